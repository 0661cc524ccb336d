"""The command ``python tests/benchmarks/baselines``: measure every baseline, write JSON, print the table."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

# Python puts this folder on its path, not the one that holds the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from baselines import FLANK, MAX_ORDER, SPECIES, Benchmark, table  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser("baselines", description="Losses of count-based baselines, in nats/bp.")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds genomes/")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--cache", type=Path, help="folder for finished rows and per-position test losses")
    parser.add_argument("--max-order", type=int, default=MAX_ORDER, help="highest Markov order (%(default)s)")
    parser.add_argument("--flank", type=int, default=FLANK, help="widest two-sided flank, bp (%(default)s)")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    genomes = options.data / "genomes"
    rows = Benchmark(genomes, options.cache, max_order=options.max_order, flank=options.flank).run()
    result = {
        "unit": "nats/bp",
        "test_regions": {species.name: [species.file, *species.test] for species in SPECIES},
        "seconds": round(time.monotonic() - began, 1),
        "rows": [asdict(row) for row in rows],
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    # Die quietly when the reader has seen enough (`| head`), as other commands do.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
