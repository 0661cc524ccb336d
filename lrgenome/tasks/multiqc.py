"""`lrgenome multiqc`: what runs counted, for a report of MultiQC."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrgenome.errors import UsageError
from lrgenome.io import multiqc as content
from lrgenome.io.atomic import check_writable
from lrgenome.io.summary import read_summaries

log = logging.getLogger(__name__)


def run(inputs: Sequence[Path], prefix: Path, *, sample: str | None = None, no_clobber: bool = False) -> list[Path]:
    """Write custom content of MultiQC for one sample; returns the files.

    Parameters
    ----------
    inputs
        Summaries of ``score-vcf``, of a run or of all its shards, and at most one ``.h5`` of ``embed``.
    prefix
        Beginning of the files' names.
    sample
        Name in the report. Default: the last part of `prefix`.
    no_clobber
        Refuse to replace files that are there.

    Raises
    ------
    LrgenomeError
        If an input cannot be read, or an output cannot be written.
    """
    sample = prefix.name if sample is None else sample
    if not sample:
        raise UsageError(f"-o: got {str(prefix)!r}, expected a name, to which the endings of the files are added")
    embeddings = [path for path in inputs if path.suffix.lower() == ".h5"]
    summaries = [path for path in inputs if path not in embeddings]
    if len(embeddings) > 1:
        raise UsageError(f"got {len(embeddings)} files of embeddings, expected one; lrgenome concat joins shards")
    made: dict[str, dict[str, Any]] = {}
    for name in [*(["status", "score"] if summaries else []), *(["embed"] if embeddings else [])]:
        check_writable(_path(prefix, name), no_clobber)
    if summaries:
        whole = read_summaries(summaries)
        made["status"] = content.status_bars(sample, whole)
        made["score"] = content.general_statistics("score", sample, content.score_statistics(whole))
    if embeddings:
        made["embed"] = content.general_statistics("embed", sample, _embedded(embeddings[0]))
    for name, one in made.items():
        content.write_content(_path(prefix, name), one)
    log.info("sample %s: wrote %s", sample, ", ".join(str(_path(prefix, name)) for name in made))
    return [_path(prefix, name) for name in made]


def _path(prefix: Path, name: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{name}{content.SUFFIX}")


def _embedded(path: Path) -> dict[str, float]:
    import numpy as np

    from lrgenome.io.hdf5_reader import read_embeddings

    with read_embeddings(path) as rows:
        lengths = rows.end[:] - rows.start[:]
        bases = int(lengths.sum())
        unknown = float(np.dot(rows.n_frac[:].astype(np.float64), lengths))
        return {"rows": len(rows), "megabases": bases / 1e6, "unknown": 100 * unknown / bases}
