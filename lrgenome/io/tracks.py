"""Tracks for genome browsers, one value a base: bedGraph, plain or BGZF, and bigWig."""

import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pysam

from lrgenome.errors import OutputError, UsageError
from lrgenome.io.atomic import whole_file

Floats = npt.NDArray[np.float64]

SUFFIXES = (".bedgraph", ".bedgraph.gz", ".bg", ".bw", ".bigwig")
"""The formats of a track; upper case is the same."""

_BIGWIG = (".bw", ".bigwig")
_BLOCK = 1 << 16


class Stretch(NamedTuple):
    """Values of consecutive bases.

    Attributes
    ----------
    contig
        Its name.
    start
        0-based position of the first value.
    values
        (t,) one a base; NaN where there is none.
    """

    contig: str
    start: int
    values: Floats


def check_track_suffix(path: str | os.PathLike[str]) -> str:
    """Give the format of a track, one of `SUFFIXES`.

    Raises
    ------
    UsageError
        If the suffix is none of them, or if it is bigWig and pyBigWig is not installed.
    """
    name = os.fspath(path).lower()
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    if suffix is None:
        raise UsageError(f"--track: got {os.fspath(path)!r}, expected a name ending in {', '.join(SUFFIXES)}")
    if suffix in _BIGWIG and importlib.util.find_spec("pyBigWig") is None:
        raise UsageError(
            f"--track: {os.fspath(path)} is bigWig, which needs pyBigWig: pip install 'lrgenome[bigwig]'; "
            ".bedgraph needs nothing"
        )
    return suffix


def write_track(
    path: str | os.PathLike[str], stretches: Iterable[Stretch], contigs: Mapping[str, int], name: str, description: str
) -> None:
    """Write a track; it appears when it is whole.

    Parameters
    ----------
    path
        The file, whose suffix gives the format.
    stretches
        In the order of `contigs` and of positions, not overlapping.
    contigs
        Contig name to length in bp, of the whole genome.
    name, description
        What browsers show of a bedGraph; double quotes become single ones.

    Raises
    ------
    UsageError
        As `check_track_suffix` does.
    OutputError
        If the file cannot be written.
    """
    suffix = check_track_suffix(path)
    with whole_file(path) as partial:
        if suffix in _BIGWIG:
            _write_bigwig(partial, stretches, contigs)
            return
        lines = _bedgraph(stretches, name.replace('"', "'"), description.replace('"', "'"))
        with pysam.BGZFile(str(partial), "wb", None) if suffix.endswith(".gz") else open(partial, "wb") as file:
            for line in lines:
                file.write(line.encode())


def _bedgraph(stretches: Iterable[Stretch], name: str, description: str) -> Iterator[str]:
    yield f'track type=bedGraph name="{name}" description="{description}"\n'
    for contig, start, values in stretches:
        for offset in np.flatnonzero(np.isfinite(values)).tolist():
            # Adding zero turns -0.0 into 0.0.
            yield f"{contig}\t{start + offset}\t{start + offset + 1}\t{values[offset] + 0.0:.6g}\n"


def _write_bigwig(path: Path, stretches: Iterable[Stretch], contigs: Mapping[str, int]) -> None:
    import pyBigWig

    try:
        file = pyBigWig.open(str(path), "w")
        file.addHeader(list(contigs.items()))
        for contig, start, values in stretches:
            for low, high in _runs(np.isfinite(values)):
                file.addEntries(contig, start + low, values=values[low:high].tolist(), span=1, step=1)
        file.close()
    except RuntimeError as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def _runs(wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the half-open ranges of True, cut so that none is very long."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8))).tolist()
    for low, high in zip(edges[::2], edges[1::2], strict=True):
        for start in range(low, high, _BLOCK):
            yield start, min(start + _BLOCK, high)
