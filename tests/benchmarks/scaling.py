"""Time and memory of the exact sweeps against length.

``python tests/benchmarks/scaling.py --preset hawk-50m`` runs `forward` for each length in a process of its own,
so that each peak of resident memory is its own, and prints a table, then one line of JSON. Linear time is the
same number of microseconds a bp at every length; bounded memory is a growth a bp that does not rise. One round
a length (``--repeats 1``) counts the first touch of the store's memory, which later windows do not pay.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import forward

LENGTHS = "12kbp,32kbp,64kbp,128kbp,256kbp,512kbp,1Mbp"
REFERENCE = 128_000
"""Length that the longest one is compared with; one within `NEAR` of it will do."""

NEAR = 0.1


def measure(length: int, passed: Sequence[str]) -> dict[str, Any]:
    """Run `forward` on `length` positions in a fresh process with the options `passed` on; return its JSON.

    Raises
    ------
    RuntimeError
        If the process fails, with what it wrote to stderr.
    """
    command = [sys.executable, str(Path(forward.__file__)), "--length", str(length), *passed]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"forward.py ended with status {done.returncode} at {length} bp:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def with_growth(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pick what the table shows from each result, and add the growth of the peak since the length before."""
    names = ("length", "us_per_bp", "floor_us_per_bp", "fraction_of_floor", "peak_rss_gb", "warnings")
    rows: list[dict[str, Any]] = []
    for result in results:
        row = {name: result[name] for name in names}
        row["rss_growth_bytes_per_bp"] = None
        if rows and row["length"] > rows[-1]["length"]:
            more = row["peak_rss_gb"] - rows[-1]["peak_rss_gb"]
            row["rss_growth_bytes_per_bp"] = 1e9 * more / (row["length"] - rows[-1]["length"])
        rows.append(row)
    return rows


def ratio_to_reference(rows: Sequence[dict[str, Any]]) -> float | None:
    """Divide the longest length's us/bp by that at about 128 kbp; None where no length is near that."""
    near = min(rows, key=lambda row: abs(row["length"] - REFERENCE))
    if abs(near["length"] - REFERENCE) > NEAR * REFERENCE:
        return None
    longest: dict[str, Any] = max(rows, key=lambda row: row["length"])
    return float(longest["us_per_bp"] / near["us_per_bp"])


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Write rows as a table."""
    head = ("length, bp", "us/bp", "of floor's speed", "peak memory, GB", "growth, bytes/bp")
    names = ("length", "us_per_bp", "fraction_of_floor", "peak_rss_gb", "rss_growth_bytes_per_bp")
    said = [f"warning: {row['length']:,} bp: {text}" for row in rows for text in row["warnings"]]
    return "\n".join([common.table(head, [[row[name] for name in names] for row in rows]), *said])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; options other than ``--lengths`` go to `forward` as they are."""
    parser = common.common_options("Time and memory of the exact sweeps against length.")
    parser.add_argument("--lengths", default=LENGTHS, help="in rising order (%(default)s)")
    options = parser.parse_args(arguments)
    lengths = sorted({common.length_option(text) for text in options.lengths.split(",")})
    passed = ["--preset", options.preset, "--precision", options.precision, "--store", options.store]
    passed += ["--threads", str(options.threads)]
    passed += [] if options.chunk is None else ["--chunk", str(options.chunk)]
    passed += ["--repeats", str(options.repeats), "--square", str(options.square)]
    passed += ["--clock", options.clock]
    passed += [] if options.seconds is None else ["--seconds", str(options.seconds)]
    passed += [] if options.tmpdir is None else ["--tmpdir", options.tmpdir]
    passed += [] if options.keep_prepared else ["--no-keep-prepared"]
    results = []
    for length in lengths:
        results.append(measure(length, passed))
        print(f"{length:,} bp: {results[-1]['us_per_bp']:.4g} us/bp", file=sys.stderr)
    rows = with_growth(results)
    print(f"{options.preset}  {results[0]['precision']}  store {options.store}  {options.threads} threads")
    print(report(rows))
    ratio = ratio_to_reference(rows)
    whole = {name: results[0][name] for name in ("preset", "precision", "chunk", "store", "threads", "clock")}
    print(json.dumps(common.rounded({**whole, "rows": rows, "us_per_bp_ratio_longest_to_128kbp": ratio})))


if __name__ == "__main__":
    main()
