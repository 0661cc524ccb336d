"""`lrgenome data`: the files of a manifest, listed, fetched and verified; the demo data."""

from __future__ import annotations

import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import pysam

from lrgenome.errors import DownloadError, FastaError, InputError, UsageError
from lrgenome.io.atomic import (
    atomic_output,
    check_writable,
    os_error_as_output_error,
    partial_path,
    publish,
    whole_file,
)
from lrgenome.io.download import download, sha256_of
from lrgenome.io.fai import gzip_kind
from lrgenome.io.fasta import Fasta
from lrgenome.io.lock import held
from lrgenome.io.manifest import DataSet, read_data_sets
from lrgenome.tasks.progress import Progress

log = logging.getLogger(__name__)

_FASTA = (".fa.gz", ".fasta.gz", ".fna.gz", ".fa", ".fasta", ".fna")
_ADDRESS = re.compile(r"(?:https?|ftp)://[^\s,;\"']+?\.(?:fa|fasta|fna)(?:\.gz)?(?=$|[\s,;\"'])")
_ACCESSION = re.compile(r"GC[AF]_\d{9}\.\d+")
_BLOCK = 1 << 20


class Receipt(NamedTuple):
    """What was downloaded for a file, kept beside it as ``NAME.receipt.json``."""

    url: str
    sha256: str
    """Of what the address gave."""
    bytes: int
    """Of what the address gave."""
    stored_sha256: str
    """Of the file as it is kept: a FASTA in plain gzip is kept as BGZF."""


def receipt_path(path: Path) -> Path:
    """Name the receipt of a file."""
    return path.with_name(path.name + ".receipt.json")


def read_receipt(path: Path) -> Receipt | None:
    """Return the receipt of a file, or None if it has none that can be read."""
    try:
        return Receipt(**json.loads(receipt_path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def select(manifest: Path, names: Sequence[str], kinds: Sequence[str]) -> list[DataSet]:
    """Return the data sets of a manifest with these names and of these kinds; all where none are given.

    Raises
    ------
    UsageError
        If there is none of a name or kind.
    """
    found = read_data_sets(manifest)
    for option, wanted, there in (
        ("NAME", names, {one.name for one in found}), ("--kind", kinds, {one.kind for one in found}),
    ):  # fmt: skip
        for word in wanted:
            if word not in there:
                raise UsageError(f"{option}: got {word!r}, {manifest} has {', '.join(sorted(there))}")
    return [one for one in found if (not names or one.name in names) and (not kinds or one.kind in kinds)]


def state(one: DataSet) -> str:
    """Say in a word where a file is: here, begun, missing, or without an address."""
    if one.path.is_file():
        return "here"
    if partial_path(one.path).is_file():
        return "begun"
    return "missing" if one.url else "no address"


def list_data(sets: Sequence[DataSet]) -> None:
    """Print a table of data sets."""
    print("name\tkind\tspecies\tassembly\tbytes\tlicence\tstate")
    for one in sets:
        size = "." if one.bytes is None else str(one.bytes)
        print("\t".join(word or "." for word in (
            one.name, one.kind, one.species, one.assembly, size, one.licence, state(one),
        )))  # fmt: skip


def check(one: DataSet) -> str:
    """Compare a file with the manifest and its receipt: ok, mismatch, unpinned (nothing to compare with) or missing."""
    if not one.path.is_file():
        return "missing"
    receipt, found = read_receipt(one.path), sha256_of(one.path)
    if found == one.sha256:
        return "ok"
    if receipt is None or receipt.url != one.url:
        return "mismatch" if one.sha256 else "unpinned"
    return "ok" if found == receipt.stored_sha256 and one.sha256 in (None, receipt.sha256) else "mismatch"


def verify(sets: Sequence[DataSet]) -> None:
    """Check every file that is there, and print what was found.

    Raises
    ------
    InputError
        If one is not what it must be.
    """
    found = {}
    for one in sets:
        found[one.name] = check(one)
        print(f"{one.name}\t{found[one.name]}", flush=True)
    if wrong := [name for name, word in found.items() if word == "mismatch"]:
        raise InputError(f"not what the manifest or the receipt says: {', '.join(wrong)}")


def fetch(sets: Sequence[DataSet], *, offline: bool, named: bool) -> None:
    """Download what is missing, and check it; a FASTA becomes BGZF with its index beside it.

    Parameters
    ----------
    sets
        Of `select`.
    offline
        Use no network: what is missing is an error.
    named
        Whether the user named each of them, so that one without an address is an error.

    Raises
    ------
    UsageError
        If something is missing and `offline`, or has no address.
    DownloadError
        If something cannot be had, or is not what it must be.
    """
    missing = [one for one in sets if not one.path.is_file()]
    for one in [one for one in missing if one.url is None]:
        text = f"{one.name}: the manifest has no address for {one.path}; it is from {one.source or 'an unnamed source'}"
        if named:
            raise UsageError(text)
        log.warning("%s", text)
    missing = [one for one in missing if one.url is not None]
    if offline and missing:
        raise UsageError(f"--offline: missing are {', '.join(one.name for one in missing)}")
    for one in missing:
        _fetch(one)
        print(f"{one.name}\tfetched")


def _fetch(one: DataSet) -> None:
    with os_error_as_output_error(one.path):
        one.path.parent.mkdir(parents=True, exist_ok=True)
        with held(one.path.with_name(one.path.name + ".lock")):
            _fetch_alone(one)


def _fetch_alone(one: DataSet) -> None:
    assert one.url is not None
    with Progress(one.name, one.bytes, "B", scale=True) as bar:
        seen = 0

        def progress(done: int, total: int | None) -> None:
            nonlocal seen
            bar.update(done - seen)
            seen = done

        raw = one.path.with_name(one.path.name + ".raw")
        digest = download(one.url, raw, sha256=one.sha256, size=one.bytes, progress=progress)
    length = raw.stat().st_size
    if one.path.name.endswith(_FASTA):
        _store_fasta(raw, one.path)
    else:
        publish(raw, one.path)
    receipt = Receipt(one.url, digest, length, sha256_of(one.path))
    with os_error_as_output_error(receipt_path(one.path)):
        receipt_path(one.path).write_text(json.dumps(receipt._asdict(), indent=2) + "\n", encoding="utf-8")
    if one.sha256 is None:
        log.warning("%s: the manifest has no sha256 for it; what came has %s", one.name, digest)


def _store_fasta(raw: Path, target: Path) -> None:
    """Keep a downloaded FASTA as its name says, plain or BGZF, with its index; the download goes."""
    kind, compress = gzip_kind(raw), target.name.endswith(".gz")
    if kind == ("bgzf" if compress else ""):
        publish(raw, target)
    else:
        with whole_file(target) as staged:
            with pysam.BGZFile(str(staged), "wb", None) if compress else open(staged, "wb") as out:
                for block in _unpacked(raw, kind):
                    out.write(block)
        raw.unlink()
    try:
        # Makes the index, and finds a page of HTML that came in place of a genome.
        Fasta(target).close()
    except FastaError:
        target.unlink()
        raise


def _unpacked(raw: Path, kind: str) -> Iterator[bytes]:
    try:
        with (gzip.open if kind else open)(raw, "rb") as source:
            while block := source.read(_BLOCK):
                yield block
    except (EOFError, OSError, zlib.error) as error:
        raise DownloadError(f"{raw}: is damaged: {error}") from error


def expand(source: Path, output: Path, *, weight: float) -> int:
    """Write a manifest with a row for each genome of a list of addresses, and return how many there are.

    Parameters
    ----------
    source
        Text (CSV, TSV or one a line) with an address of a FASTA in each line; lines without one are skipped.
    output
        Manifest; files go to ``data/`` beside it. The name of each is its assembly accession (GCF_... or GCA_...), or
        else its file's.
    weight
        Of each genome.

    Raises
    ------
    InputError
        If the list has no address, or has one twice.
    """
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: cannot be read as text ({error})") from error
    rows: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _ADDRESS.search(line)
        if match is None:
            continue
        url = match.group(0)
        file = url.rsplit("/", 1)[-1]
        accession = _ACCESSION.search(file) or _ACCESSION.search(url)
        name = accession.group(0) if accession else file.split(".")[0]
        if name in rows:
            raise InputError(f"{source} line {number}: {name} is there a second time")
        rows[name] = "\t".join((name, "genome", name, f"data/{file}", url, f"{weight:g}", ".", "."))
    if not rows:
        raise InputError(f"{source}: got no address of a FASTA ({', '.join(_FASTA)}), expected one a line")
    header = "name\tkind\tassembly\tpath\turl\tweight\tholdout\tvalidation"
    with atomic_output(output, "w") as handle:
        handle.write("\n".join([header, *rows.values()]) + "\n")
    return len(rows)


def write_demo(folder: Path, *, no_clobber: bool = False) -> list[Path]:
    """Copy the demo data of the package into a folder, which is made if it is not there.

    Returns
    -------
    list of Path
        The copies, in order of name; the index of a FASTA comes after it, so that it is never the older one.

    Raises
    ------
    OutputExistsError
        If one of them is there and `no_clobber` is set; nothing is written then.
    OutputError
        If they cannot be written.
    """
    with os_error_as_output_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = sorted(Path(str(resources.files("lrgenome"))).joinpath("assets", "demo").iterdir())
    copies = [folder / file.name for file in files]
    for copy in copies:
        check_writable(copy, no_clobber)
    for file, copy in zip(files, copies, strict=True):
        with atomic_output(copy, "wb") as out:
            out.write(file.read_bytes())
    return copies
