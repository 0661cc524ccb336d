"""Give mutants of real files to every reader, and print what became of them.

``python -m tests.fuzz.run --mutants 2000 --seed 1`` in the checkout. Cases that failed are kept, made smaller, in the
folder ``--save``: the files, and a line that says what went wrong.
"""

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .suite import MAKERS

ROOT = Path(__file__).resolve().parents[2]
FINE = ("right", "clean", "unchecked")


class Worker:
    """The process that reads mutants, started anew after it died."""

    def __init__(self, shared: Path | None, limit: float = 20.0) -> None:
        self._shared, self._limit = shared, limit
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def ask(self, case: dict[str, Any]) -> dict[str, str]:
        """Return the outcome of a case; a crash or a hang is one too."""
        if self._process is None:
            self._read = b""
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker", str(self._shared or "")],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
            )
            assert self._line(120) == "ready"
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(case).encode() + b"\n")
        self._process.stdin.flush()
        # The first case of a family also makes its files.
        started = self._line(120)
        if not started:
            raise RuntimeError(f"the worker ended before the case {case} began")
        answer = self._line(self._limit)
        if answer:
            found: dict[str, str] = json.loads(answer)
            return found
        code = self._process.poll()
        if code is None:
            try:
                code = self._process.wait(1)
            except subprocess.TimeoutExpired:
                self.close()
                return {
                    **json.loads(started),
                    "target": json.loads(started)["started"],
                    "outcome": "hang",
                    "detail": f"over {self._limit} s",
                }
        self.close()
        return {"target": json.loads(started)["started"], "outcome": "crash", "detail": f"exit status {code}"}

    def _line(self, limit: float) -> str:
        assert self._process is not None and self._process.stdout is not None
        end = time.monotonic() + limit
        while b"\n" not in self._read:
            # Not through the file object: what lies in its buffer does not make the pipe ready.
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            more = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not more:
                return ""
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def smaller(data: bytes, fails: Callable[[bytes], bool], tries: int = 120) -> bytes:
    """Leave out what is not needed for a failure: halves, then quarters, and so on."""
    size = max(1, len(data) // 2)
    while size and tries > 0:
        at = 0
        while at < len(data) and tries > 0:
            tries -= 1
            without = data[:at] + data[at + size :]
            if fails(without):
                data = without
            else:
                at += size
        size //= 2
    return data


def minimise(worker: Worker, family: str, name: str, folder: Path, outcome: str) -> None:
    """Make the files of a failed case smaller, in place, while it fails alike."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):

        def fails(data: bytes, path: Path = path) -> bool:
            path.write_bytes(data)
            return worker.ask({"family": family, "target": name, "files": str(folder)})["outcome"] == outcome

        before = path.read_bytes()
        path.write_bytes(smaller(before, fails))


def fuzz(
    families: list[str],
    mutants: int,
    seed: int,
    shared: Path | None,
    save: Path | None,
    report: Callable[[str], None] = print,
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Run so many cases of each family; returns counts of outcomes, and a line for each that failed."""
    counts: dict[str, Counter[str]] = {}
    findings: list[str] = []
    worker = Worker(shared)
    try:
        for family in families:
            counts[family] = Counter()
            seen: Counter[str] = Counter()
            for case in range(mutants):
                answer = worker.ask({"family": family, "seed": seed, "case": case})
                outcome = answer["outcome"]
                counts[family][outcome] += 1
                if outcome in FINE:
                    continue
                line = f"{family}, {answer['target']}, seed {seed}, case {case}: {outcome}: {answer['detail']}"
                findings.append(line)
                report(line[:600])
                key = f"{answer['target']} {outcome} {answer['detail'][-60:]}"
                seen[key] += 1
                if save is not None and seen[key] == 1:
                    folder = save / f"{family}-{case}".replace(" ", "-")
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir(parents=True)
                    worker.ask({"family": family, "seed": seed, "case": case, "keep": str(folder)})
                    # Each try of a hang takes its whole time.
                    if outcome != "hang":
                        minimise(worker, family, answer["target"], folder, outcome)
                    (folder.parent / f"{folder.name}.txt").write_text(line + "\n")
    finally:
        worker.close()
    return counts, findings


def table(counts: dict[str, Counter[str]]) -> str:
    """Write the counts as a table."""
    lines = [
        "| reader | mutants | right answers | clean errors | read, not checked | findings |",
        "|---|---|---|---|---|---|",
    ]
    whole: Counter[str] = Counter()
    for count in counts.values():
        whole += count
    for family, count in {**counts, "all": whole}.items():
        bad = count.total() - sum(count[name] for name in FINE)
        lines.append(
            f"| {family} | {count.total()} | {count['right']} | {count['clean']} | {count['unchecked']} | {bad} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutants", type=int, default=1000, help="of each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--families", nargs="+", choices=sorted(MAKERS), default=[f for f in MAKERS if f != "command"])
    parser.add_argument("--shared", type=Path, help="folder with genomes, variants and labels")
    parser.add_argument("--save", type=Path, help="folder for cases that failed")
    options = parser.parse_args()
    began = time.perf_counter()
    counts, findings = fuzz(options.families, options.mutants, options.seed, options.shared, options.save)
    print(table(counts))
    print(
        f"{sum(c.total() for c in counts.values())} mutants in {time.perf_counter() - began:.0f} s, seed {options.seed}"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
