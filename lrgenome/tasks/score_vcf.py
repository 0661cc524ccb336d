"""`lrgenome score-vcf`: score every ALT allele of a VCF."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import torch

from lrgenome.engine.runner import Runner
from lrgenome.engine.runners import AnyRunner
from lrgenome.engine.windows import WindowRunner
from lrgenome.errors import SkippedRecordsError, UsageError
from lrgenome.glossary import format_length
from lrgenome.io.atomic import check_writable, is_stream, os_error_as_output_error, partial_path, same_file
from lrgenome.io.fasta import Fasta, read_alias_table
from lrgenome.io.scores import (
    ScoreJournal,
    check_score_suffix,
    header_text,
    publish_scores,
)
from lrgenome.io.summary import Summary
from lrgenome.io.vcf import RecordSource, VariantSource, VcfRecord, open_variants, to_bytes
from lrgenome.models.checkpoint import LoadedModel
from lrgenome.tasks.readout import Readout
from lrgenome.tasks.saturation import Saturation, with_pictures
from lrgenome.tasks.score_rows import Account, Rows, ScoreSettings, Selected, make_rows
from lrgenome.tasks.scoring import STRANDS
from lrgenome.tasks.selection import Regions, parse_shard, read_regions, shard_range
from lrgenome.tasks.tiles import default_tolerance
from lrgenome.tasks.variants import VariantPlanner, preflight

log = logging.getLogger(__name__)

_PROBE_BASES = 20_000


@dataclass(frozen=True)
class ScoreOutput:
    """Where the scores go."""

    path: str = "-"
    """TSV, VCF or BCF by suffix; ``-`` is TSV on standard output."""
    header: str = "auto"
    """auto (all but shards after the first), always or never."""
    write_index: bool = False
    resume: bool = False
    no_clobber: bool = False
    no_version: bool = False
    summary: Path | None = None
    """Where `lrgenome.io.summary.Summary` is written."""
    strict: bool = False
    """Raise if anything was skipped."""

    def __post_init__(self) -> None:
        if self.header not in ("auto", "always", "never"):
            raise UsageError(f"--header: got {self.header!r}, expected auto, always or never")
        if self.path == "-" and self.resume:
            raise UsageError("--resume: got standard output, expected --output FILE")


def find_fasta(given: Path | None, source: VariantSource | None) -> Path:
    """Return the FASTA to use: the one given, else the VCF header's ``##reference`` if that file is here."""
    if given is not None:
        return given
    if source is None:
        raise UsageError("--saturate: got no --fasta, expected the genome whose bases are to be changed")
    named = source.reference
    if named and os.path.isfile(named):
        log.info("reference from the VCF header: %s", named)
        return Path(named)
    hint = f"the header's ##reference is {named!r}, which is no file here" if named else "the header names none"
    raise UsageError(f"--fasta: none given, and {hint}")


def select(source: RecordSource, planner: VariantPlanner, regions: Regions | None, shard: tuple[int, int]) -> Selected:
    """Confine the records to regions and a shard; counting them reads the input once.

    Shards of tiles part between two cores wherever that leaves them about as long, so that a tile is not run twice.
    """

    def wanted() -> Iterator[VcfRecord]:
        for record in source.records():
            contig = planner.contig(record.chrom) if regions is not None else None
            if regions is None or (
                contig is not None and regions.overlaps(contig, record.pos, record.pos + len(record.ref))
            ):
                yield record

    total = 0
    steps = array("q")
    last: tuple[str, int] | None = None
    for total, record in enumerate(wanted(), 1):
        if planner.tiles and shard[1] > 1:
            core = record.chrom, (record.pos + len(record.ref) // 2) // planner.context
            if core != last:
                steps.append(total - 1)
                last = core
    low, high = shard_range(total, shard, steps)
    return Selected(lambda: islice(wanted(), low, high), high - low)


def run(
    vcf: str | Saturation,
    fasta: Path | None,
    loaded: LoadedModel,
    runner: AnyRunner,
    settings: ScoreSettings,
    output: ScoreOutput,
    *,
    batch_size: int,
    tmpdir: Path | None,
    dry_run: bool,
    readout: Readout | None = None,
) -> dict[str, int]:
    """Score a VCF and write the output; returns the counts of statuses.

    Parameters
    ----------
    vcf
        A path, or ``-``; or what is scored in place of a VCF.
    fasta
        The reference, or None for the one that the header names.
    loaded
        The model, for its name.
    runner
        The model, ready.
    batch_size
        Windows of one length at a time.
    tmpdir
        Folder for spooled input.
    dry_run
        Print counts and expected time to standard output instead.
    readout
        Of a fine-tuned head, whose columns are added.

    Raises
    ------
    LrgenomeError
        As the readers, the planner, the scorer and the writers raise it.
    """
    check_score_suffix(output.path, output.write_index)
    check_writable(output.path, output.no_clobber)
    piped = is_stream(output.path)
    if piped and output.path != "-" and not str(output.path).endswith(".tsv"):
        raise UsageError(f"-o: got {output.path}, a pipe or device, expected its name to end in .tsv")
    if output.summary is not None:
        if str(output.summary) == "-":
            raise UsageError("--summary: got -, expected a file: standard output may be the table")
        check_writable(output.summary)
    shard = parse_shard(settings.shard)
    if isinstance(vcf, Saturation):
        vcf.check(shard, output.no_clobber)
    with ExitStack() as stack:
        alias = settings.chrom_alias
        table = alias if alias in ("auto", "none") else read_alias_table(alias)
        source: RecordSource
        if isinstance(vcf, Saturation):
            reference = stack.enter_context(Fasta(find_fasta(fasta, None)))
            source = made = vcf.source(reference, table)
        else:
            source = file = stack.enter_context(open_variants(vcf, tmpdir))
            found = find_fasta(fasta, file)
            if output.path != "-" and same_file(output.path, found):
                raise UsageError(f"-o: got {output.path}, which is the reference and would be lost")
            reference = stack.enter_context(Fasta(found))
        planner = VariantPlanner(
            reference, settings.context, check_ref=settings.check_ref, alias=table, tiles=settings.tiles
        )
        # A mismatch in a record that is not selected is no error.
        preflight(
            VariantPlanner(reference, settings.context, check_ref="warn", alias=table, tiles=True), source.records()
        )
        regions = read_regions(list(settings.regions), settings.regions_file, reference.contigs, table)
        selected = select(source, planner, regions, shard)
        rows = make_rows(runner, reference, settings, batch_size, readout)
        if dry_run:
            return _dry_run(selected, planner, runner, settings, batch_size)
        if isinstance(vcf, Saturation):
            how = "" if settings.llr == "masked" else f", {settings.llr}"
            caption = f"{loaded.name}, context {format_length(settings.context)}{how}"
            rows = with_pictures(rows, vcf, made, reference, partial_path(output.path), caption)
        metadata = _metadata(loaded, runner, settings, reference)
        header = header_text(
            metadata, () if readout is None else readout.columns, no_version=output.no_version,
        )  # fmt: skip
        with_header = output.header == "always" or (output.header == "auto" and shard[0] == 1)
        account = Account()
        if output.path == "-" or piped:
            pipe = sys.stdout.buffer if output.path == "-" else stack.enter_context(open(output.path, "wb"))
            _write_stream(pipe, header if with_header else "")
            for text in rows(selected, 0, planner, account):
                _write_stream(pipe, text)
        else:
            _write_file(output, header, with_header, source, selected, planner, rows, account)
        _report(account, selected.total, output, shard, metadata)
    return dict(account.statuses)


def _write_stream(stream: BinaryIO, text: str) -> None:
    # As bytes, since text of the input that is not UTF-8 goes out as it came in.
    with os_error_as_output_error("standard output" if stream is sys.stdout.buffer else stream.name):
        stream.write(to_bytes(text))
        stream.flush()


def _write_file(
    output: ScoreOutput, header: str, with_header: bool, source: RecordSource, selected: Selected,
    planner: VariantPlanner, rows: Rows, account: Account,
) -> None:  # fmt: skip
    journal_path = partial_path(output.path)
    with ScoreJournal(journal_path, header, resume=output.resume) as journal:
        done = journal.resume_from(selected.records()) if output.resume else 0
        if done:
            log.info("resumed after %d of %d records", done, selected.total)
            for record in islice(selected.records(), done):
                account.add(planner.plan(record))
        for text in rows(selected, done, planner, account):
            journal.append(text)
        # While the journal is ours, so is the output.
        publish_scores(
            journal_path, output.path, source, header=with_header, no_version=output.no_version,
            write_index=output.write_index, records=selected.records,
        )  # fmt: skip


def _metadata(
    loaded: LoadedModel, runner: AnyRunner, settings: ScoreSettings, fasta: Fasta
) -> dict[str, object]:
    metadata: dict[str, object] = {
        "model": loaded.name, "model_sha256": loaded.sha256, "reference": fasta.fingerprint(),
        "context": settings.context, "strand": settings.strand, "check_ref": settings.check_ref,
        "chrom_alias": _alias_word(settings.chrom_alias),
        "precision": str(runner.model.compute_dtype).removeprefix("torch."), "chunk": runner.chunk,
        "transfer": runner.transfer,
    }  # fmt: skip
    if isinstance(runner, WindowRunner):
        metadata["length_extension"] = runner.extension
    if settings.tiles:
        metadata |= {"scoring": "boundary-states", "llr": settings.llr, "region_size": settings.region_size,
                     "state_every": settings.state_every,
                     "tolerance": settings.tolerance or default_tolerance(runner.model.compute_dtype)}  # fmt: skip
    return metadata


def _alias_word(alias: str) -> str:
    """Name the way contigs are matched: auto, none, or a digest of the table."""
    if alias in ("auto", "none"):
        return alias
    table = sorted(read_alias_table(alias).items())
    return "table-" + hashlib.sha256(repr(table).encode()).hexdigest()[:16]


def _report(
    account: Account, records: int, output: ScoreOutput, shard: tuple[int, int], metadata: dict[str, object]
) -> None:  # fmt: skip
    log.info("statuses of the %d ALT alleles of %d records:", account.alleles, records)
    for status, count in account.statuses.most_common():
        log.info("  %-14s %9d", status, count)
    if output.summary is not None:
        Summary(
            shard, records, account.alleles, account.skipped.total(), dict(account.statuses), metadata
        ).write(output.summary)  # fmt: skip
    if output.strict and account.skipped:
        skipped = ", ".join(f"{n} {status}" for status, n in account.skipped.items())
        raise SkippedRecordsError(f"--strict: not all alleles could be scored ({skipped}); the output is complete")


def _dry_run(
    selected: Selected, planner: VariantPlanner, runner: AnyRunner, settings: ScoreSettings, batch_size: int
) -> dict[str, int]:
    account = Account()
    bases, strands = 0, len(STRANDS[settings.strand])
    tiles: set[tuple[str, int]] = set()
    for record in selected.records():
        plans = planner.plan(record)
        account.add(plans)
        for plan in plans:
            if plan.windows is not None:
                passes = [plan.windows.reference, plan.windows.alternative]
                passes += [plan.windows.masked] if plan.windows.masked is not None else []
                bases += sum(len(p) for p in passes) * strands
            if plan.edit is not None:
                region, longest = settings.region_size + settings.state_every, planner.fasta.contigs[plan.edit.contig]
                if settings.llr == "masked" or not plan.edit.substitution:
                    # ALT, twice half a region masked (or ALT once more), and the reference, which others may share.
                    bases += 3 * min(region, 2 * settings.context) * strands
                tile = plan.edit.core(settings.context)
                if tile not in tiles:
                    tiles.add(tile)
                    bases += min(2 * settings.context, longest) * strands
    rate = measure_rate(runner, 1 if settings.tiles else batch_size, settings.context)
    print(f"records\t{selected.total}\nalleles\t{account.alleles}")
    for status, count in account.statuses.most_common():
        print(f"{status}\t{count}")
    print(f"context\t{format_length(settings.context)}\nbases_to_run\t{bases}\nexpected_seconds\t{bases / rate:.0f}")
    return dict(account.statuses)


def measure_rate(runner: AnyRunner, batch_size: int, length: int) -> float:
    """Measure bases a second on a short random window."""
    short = min(length, _PROBE_BASES)
    ids = torch.randint(7, 11, (batch_size, short), dtype=torch.uint8)
    for _ in range(2):
        began = time.perf_counter()
        for _ in runner.stream(ids):
            pass
        elapsed = time.perf_counter() - began
    return batch_size * short / elapsed


def default_batch_size(text: str, device: torch.device, length: int, *, tiles: bool = False) -> int:
    """Read ``--batch-size``: auto is 1 on a CPU, where one fills the cores; on a GPU, what makes about 128 kbp."""
    if text != "auto":
        if not text.isdigit() or int(text) < 1:
            raise UsageError(f"--batch-size: got {text!r}, expected auto or a whole number of at least 1")
        return int(text)
    # Regions are of some kilobases however long the context.
    return 1 if device.type == "cpu" else 32 if tiles else max(1, min(64, 131_072 // max(1, length)))


def choose_scoring(
    settings: ScoreSettings, runner: AnyRunner, *, exact_windows: bool | None, only_tiles: Sequence[str]
) -> ScoreSettings:
    """Choose boundary states where the model has them, unless whole windows are asked for.

    Raises
    ------
    UsageError
        If it has none, and they are asked for (`exact_windows` is False), or options are given that are of boundary
        states (`only_tiles`, by their names in the settings).
    """
    if exact_windows:
        return replace(settings, tiles=False)
    able = isinstance(runner, Runner) and runner.transfer == "exact"
    if not able:
        asked = "boundary_states" if exact_windows is False else next(iter(only_tiles), None)
        if asked is not None:
            got = f"--transfer {runner.transfer}" if isinstance(runner, Runner) else "a transformer"
            raise UsageError(
                f"--{asked.replace('_', '-')}: got {got}, expected a recurrent model and --transfer exact"
            )
        log.info("scoring whole windows: boundary states are of recurrent models and --transfer exact")
    return replace(settings, tiles=able)


__all__ = ("ScoreOutput", "ScoreSettings", "choose_scoring", "default_batch_size", "measure_rate", "run")
