"""A process that reads mutants, one after the other, in bounded memory; its death is that of one case.

A line in: family, seed and number of a case, or a folder with its files. A line out: outcome and detail.
"""

import json
import os
import random
import resource
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ADDRESSES = 1 << 30
"""Bytes that a case may ask for beyond those of the idle process."""
RESIDENT = 192 << 20
"""Bytes that a case may touch."""


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def run_case(target: Any, files: dict[str, bytes], folder: Path) -> tuple[str, str]:
    """Write the files of a case, read them and judge what came out."""
    for name, data in sorted(files.items(), key=lambda item: item[0] in target.fresh):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for name in target.fresh:
        os.utime(folder / name)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    given, error = None, None
    try:
        given = target.read(folder)
    except BaseException as caught:
        error = caught
        if isinstance(caught, MemoryError) and not type(caught).__module__.startswith("lrgenome"):
            return "memory", f"{type(caught).__name__}: {caught}"[:300]
    peak = _status("VmHWM")
    outcome, detail = target.judge(folder, files, given, error)
    if outcome == "other exception" and error is not None:
        import traceback

        where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        detail = f"{detail[:300]} at {' '.join(where[-4:])}"
    if outcome in ("right", "clean", "unchecked") and peak - before > RESIDENT:
        return "memory", f"{(peak - before) >> 20} MiB were touched ({outcome}: {detail[:200]})"
    return outcome, detail


def main() -> None:
    """Answer cases until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
    from .suite import targets_of

    # As in the test suite: a warning of a library is a defect too.
    warnings.simplefilter("error")
    shared = Path(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] else None
    kept: dict[str, list[Any]] = {}
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        family = case["family"]
        if family not in kept:
            kept[family] = targets_of(family, shared)
            for target in kept[family]:
                with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
                    outcome = run_case(target, target.files, Path(folder))
                assert outcome[0] in ("right", "unchecked"), (target.name, outcome)
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            limit = _status("VmSize") + ADDRESSES
            resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if "case" in case:
            target = kept[family][case["case"] % len(kept[family])]
            files = target.mutant(random.Random(f"{family}:{case['seed']}:{case['case']}"))
        else:
            target = next(one for one in kept[family] if one.name == case["target"])
            source = Path(case["files"])
            files = {str(p.relative_to(source)): p.read_bytes() for p in source.rglob("*") if p.is_file()}
        folder = tempfile.mkdtemp(prefix="fuzz-")
        if case.get("keep"):
            for name, data in files.items():
                path = Path(case["keep"]) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        print(json.dumps({"started": target.name}), file=answers, flush=True)
        try:
            outcome, detail = run_case(target, files, Path(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps({"target": target.name, "outcome": outcome, "detail": detail}), file=answers, flush=True)


if __name__ == "__main__":
    main()
