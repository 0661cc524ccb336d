"""Genomes encoded once, so that windows at random places cost a read of their own bases and no more.

A cache folder holds, for each FASTA, ``NAME.KEY.bases`` (contigs one after the other, two bases a byte, the first in
the low half, each contig from a byte of its own) and ``NAME.KEY.json`` (contigs with their lengths in bp and offsets in
bytes). KEY follows from path, size and time of the FASTA, so that one that was changed is encoded anew. Read with
pread, not through a memory map, whose touched pages count as resident memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lrgenome.dna import FIRST_BASE, IdArray, N
from lrgenome.errors import FastaError
from lrgenome.io.atomic import os_error_as_output_error
from lrgenome.io.fasta import Fasta, digest_of

log = logging.getLogger(__name__)

FORMAT = 1
_BLOCK = 1 << 24
"""Bases that are encoded at a time; even, so that blocks end with bytes."""


class EncodedGenome:
    """An encoded genome, with the contigs, bases and fingerprint of its FASTA; a context manager.

    Parameters
    ----------
    index
        The ``.json`` that `encode` made.

    Attributes
    ----------
    contigs
        Name to length in bp, in file order.

    Raises
    ------
    ValueError
        If the files are damaged or of another format; they may be made again.
    OSError
        If they cannot be read.
    """

    def __init__(self, index: Path) -> None:
        about = _read_index(index)
        self.path = Path(about["fasta"])
        self.contigs: dict[str, int] = {name: length for name, length, _ in about["contigs"]}
        self._offsets = {name: offset for name, _, offset in about["contigs"]}
        self._fingerprint: str = about["fingerprint"]
        self._bases = index.with_suffix(".bases")
        self._file = open(self._bases, "rb", buffering=0)
        if os.fstat(self._file.fileno()).st_size != about["bytes"]:
            self._file.close()
            raise ValueError(f"{self._bases}: expected {about['bytes']} bytes")

    def __enter__(self) -> EncodedGenome:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; more than once does no harm."""
        self._file.close()

    def fingerprint(self) -> str:
        """Return what `Fasta.fingerprint` does."""
        return self._fingerprint

    def fetch(self, contig: str, start: int, end: int) -> IdArray:
        """Read an interval as `Fasta.fetch` does: (t,) uint8 token ids of [start, end), 0-based, in bp.

        Raises
        ------
        FastaError
            If the interval is not wholly inside a contig, or the file was cut.
        """
        length = self.contigs.get(contig)
        if length is None or not 0 <= start <= end <= length:
            raise FastaError(f"{self.path}: got the interval [{start}, {end}) of contig {contig!r}, expected it inside "
                             f"{'a contig' if length is None else f'[0, {length})'}")  # fmt: skip
        low, high = start // 2, (end + 1) // 2
        raw = os.pread(self._file.fileno(), high - low, self._offsets[contig] + low)
        if len(raw) != high - low:
            raise FastaError(f"{self._bases}: is cut short; remove it, and it is made again")
        packed = np.frombuffer(raw, dtype=np.uint8)
        ids = np.empty(2 * len(packed), dtype=np.uint8)
        ids[::2], ids[1::2] = packed & 15, packed >> 4
        ids += FIRST_BASE
        if len(ids) and ids.max() > N:
            raise FastaError(f"{self._bases}: holds something else than bases; remove it, and it is made again")
        return ids[start - 2 * low : end - 2 * low]


def _read_index(index: Path) -> dict[str, Any]:
    """Read what `encode` wrote, if it hangs together; `ValueError` if it does not."""
    about = json.loads(index.read_text(encoding="utf-8"))
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{index}: expected format {FORMAT}")
    offset = 0
    for name, length, start in about["contigs"]:
        if not isinstance(name, str) or not isinstance(length, int) or length < 1 or start != offset:
            raise ValueError(f"{index}: contig {name!r} is not where it should be")
        offset += (length + 1) // 2
    digest = digest_of({name: length for name, length, _ in about["contigs"]})
    if offset != about["bytes"] or str(about["fingerprint"]).rpartition(":")[2] != digest:
        raise ValueError(f"{index}: does not fit its own contigs")
    return about


def encode(fasta: Fasta, index: Path) -> None:
    """Write the files of a genome beside `index`, each whole or not at all.

    Raises
    ------
    FastaError
        If the FASTA holds something else than nucleotide codes.
    OutputError
        If they cannot be written.
    """
    log.info("encoding %s, %s bp", fasta.path.name, f"{sum(fasta.contigs.values()):,}")
    with os_error_as_output_error(index):
        index.parent.mkdir(parents=True, exist_ok=True)
        # Each process writes a file of its own: several may encode the same genome.
        descriptor, name = tempfile.mkstemp(dir=index.parent, prefix=f"{index.stem}.", suffix=".partial")
    staged, contigs, offset = Path(name), [], 0
    try:
        with open(descriptor, "wb") as handle:
            for contig, length in fasta.contigs.items():
                contigs.append((contig, length, offset))
                for start in range(0, length, _BLOCK):
                    ids = fasta.fetch(contig, start, min(length, start + _BLOCK)) - FIRST_BASE
                    packed = ids[::2].copy()
                    packed[: len(ids) // 2] |= ids[1::2] << 4
                    with os_error_as_output_error(index):
                        handle.write(packed.tobytes())
                    offset += len(packed)
            with os_error_as_output_error(index):
                handle.flush()
        about = {
            "format": FORMAT, "fasta": str(fasta.path), "fingerprint": fasta.fingerprint(), "bytes": offset,
            "contigs": contigs,
        }  # fmt: skip
        with os_error_as_output_error(index):
            staged.chmod(0o644)
            os.replace(staged, index.with_suffix(".bases"))
            staged.write_text(json.dumps(about), encoding="utf-8")
            os.replace(staged, index)
    finally:
        staged.unlink(missing_ok=True)


def open_genome(path: Path, cache: Path | None) -> Fasta | EncodedGenome:
    """Open a genome, encoded in the folder `cache`, where it is encoded first if it has to be; None: the FASTA itself.

    Raises
    ------
    FastaError
        As `Fasta` does.
    OutputError
        As `encode` does.
    """
    if cache is None:
        return Fasta(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise FastaError(f"{path}: cannot be read: {error.strerror or error}") from error
    key = hashlib.sha256(f"{os.path.realpath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    index = cache / f"{path.name}.{key}.json"
    try:
        return EncodedGenome(index)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        with Fasta(path) as fasta:
            encode(fasta, index)
    return EncodedGenome(index)


def default_cache(manifest: Path) -> Path:
    """Return where genomes of a manifest are encoded: ``.lrgenome-cache`` beside it, or under TMPDIR."""
    if os.access(manifest.resolve().parent, os.W_OK | os.X_OK):
        return manifest.resolve().parent / ".lrgenome-cache"
    return Path(tempfile.gettempdir()) / "lrgenome-cache"
