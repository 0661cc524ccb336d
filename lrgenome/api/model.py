"""A model in Python: load it, embed intervals, score variants, stream states."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.dna import FIRST_BASE, IdArray, encode
from lrgenome.engine.runners import AnyRunner
from lrgenome.errors import InputError, UsageError
from lrgenome.glossary import FORWARD, REVERSE, parse_length
from lrgenome.io.fasta import Fasta, resolve_contig
from lrgenome.io.vcf import VcfRecord
from lrgenome.models.checkpoint import LoadedModel
from lrgenome.tasks.embed import Embedder, EmbedSettings, Row, core_length, groups
from lrgenome.tasks.readout import IntervalReadout, readout_of
from lrgenome.tasks.score_rows import Account, ScoreSettings, Selected, make_scorer
from lrgenome.tasks.score_vcf import choose_scoring, default_batch_size
from lrgenome.tasks.setup import ready
from lrgenome.tasks.variants import VariantPlanner, preflight

if TYPE_CHECKING:
    from lrgenome.api.module import OneHotModule

FastaLike = str | os.PathLike[str] | Fasta
Sequenced = str | bytes | IdArray


class VariantScore(NamedTuple):
    """Scores of one ALT allele, as in the table of `score-vcf`; None is missing.

    Attributes
    ----------
    chrom, pos, ref, alt
        As they were given; 1-based.
    llr, dist_cos, dist_l2, pll_diff, err_est
        Columns of the same names.
    status
        Statuses joined by ``&``.
    predictions
        Of a fine-tuned model of variants: its columns by name.
    """

    chrom: str
    pos: int
    ref: str
    alt: str
    llr: float | None
    dist_cos: float | None
    dist_l2: float | None
    pll_diff: float | None
    err_est: float | None
    status: str
    predictions: dict[str, float | str | None]


class States(NamedTuple):
    """What a model has at a stretch of a sequence.

    Attributes
    ----------
    start, end
        0-based half-open, in bp of the sequence.
    hidden
        (end - start, d) float32 states; a row is of one base.
    log_p
        (end - start, 4) float32 natural log-probabilities of A, C, G and T on the forward strand, nothing masked; None
        unless asked for.
    """

    start: int
    end: int
    hidden: npt.NDArray[np.float32]
    log_p: npt.NDArray[np.float32] | None


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    gpu: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    precision: str = "float32",
    chunk: int | None = None,
    transfer: str = "exact",
    store: str = "auto",
    tmpdir: str | os.PathLike[str] | None = None,
    max_memory: int | None = None,
    length_extension: str = "none",
    offline: bool = False,
) -> Model:
    """Load a model.

    Parameters
    ----------
    model
        A checkpoint folder, a downloaded snapshot of published weights, or ``hf:ORG/NAME[@REVISION]``. Default: the
        embedded model.
    gpu, device
        Index of a GPU; or ``cpu``, ``cuda`` or ``cuda:N``. Default: the first GPU, else the CPU.
    threads
        CPU threads, of torch as a whole. Default: all that this process may use.
    precision
        ``float32``, ``bfloat16``, or ``auto`` for bfloat16 where the device has it. Default: ``float32``.
    chunk, transfer, store, tmpdir, max_memory, length_extension, offline
        As the options of the same names; `max_memory` in bytes.

    Raises
    ------
    ModelError
        If the model is missing, damaged or incompatible.
    DeviceError
        If a GPU was asked for and is not there.
    UsageError
        If settings contradict each other.
    """
    loaded, runner = ready(
        None if model is None else Path(model), gpu=gpu, device=device, threads=threads, precision=precision, auto=None,
        chunk=chunk, transfer=transfer, store=store, tmpdir=None if tmpdir is None else Path(tmpdir),
        max_memory=max_memory, extension=length_extension, offline=offline,
    )  # fmt: skip
    return Model(loaded, runner)


class Model:
    """A model that is ready to run; made by `load`. A context manager: leaving it frees its buffers.

    Not to be used by several threads at a time.

    Attributes
    ----------
    name, sha256
        As in the outputs of the commands.
    meta
        What the checkpoint says of its making.
    width
        Length d of a hidden state.
    layers
        Number of blocks.
    columns
        Names of what a fine-tuned head of intervals predicts; empty where there is none.
    """

    def __init__(self, loaded: LoadedModel, runner: AnyRunner) -> None:
        self._loaded, self._runner = loaded, runner
        self.name, self.sha256, self.meta = loaded.name, loaded.sha256, loaded.meta
        self.width, self.layers = runner.model.hidden_width(), runner.model.config.layers
        head = loaded.head
        self.columns = () if head is None or head.config.variants else tuple(head.config.outputs)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.layers} layers of width {self.width}, on {self._runner.device})"

    def close(self) -> None:
        """Free the buffers; the model can still be used, and makes them anew."""
        self._runner.close()

    def embed(
        self,
        fasta: FastaLike,
        intervals: Iterable[Sequence[Any]],
        *,
        context: int | str | None = None,
        strand: str = "forward",
        layer: int | None = None,
        pool: str = "mean",
        head: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Embed intervals of a genome, as ``lrgenome embed --bed`` does.

        Parameters
        ----------
        fasta
            A path, or an open `Fasta`.
        intervals
            (contig, start, end) each, 0-based half-open, in bp; what follows in a row is not looked at.
        context
            Length of a core, bp or as ``100kbp``; a quarter of it is run on each side. Default: 100 kbp, or for
            ``head=True`` the length of the windows that the head was trained on.
        strand
            ``forward``, ``reverse`` or ``both`` (their mean).
        layer
            Block whose output is taken, 1-based. Default: the last, after the final norm.
        pool
            ``mean`` over each interval, or ``none``: every base of intervals of one length.
        head
            What the model's fine-tuned head of intervals predicts (`columns`), rather than states.

        Returns
        -------
        (n, d) float32
            (n, L, d) for ``pool="none"``, (n, m) for ``head=True``; rows in the order of `intervals`.

        Raises
        ------
        InputError
            If a contig is not in the FASTA, or an interval leaves it.
        UsageError
            If settings contradict each other.
        """
        asked = self._loaded.head.config if head and self._loaded.head is not None else None
        core = core_length(None if context is None else _length(context), asked)
        settings = EmbedSettings(context=core, layer=layer, head=head, pool=pool, strand=strand, given=True)
        with ExitStack() as stack:
            genome = _opened(fasta, stack)
            rows = [_row(genome, number, interval) for number, interval in enumerate(intervals)]
            lengths = {row.end - row.start for row in rows}
            if pool == "none" and len(lengths) > 1:
                raise UsageError(f"pool: got none and lengths {sorted(lengths)[:3]}, expected intervals of one length")
            readout = IntervalReadout(self._loaded.head, strand, self._loaded.model.strands) if head else None
            embedder = Embedder(genome, self._runner, settings, readout)
            parts = [embedder.embed(group).astype(np.float32) for group in groups(iter(rows), settings, self.width)]
        width = self.width if readout is None else len(readout.columns)
        shape = (0, *lengths, width) if pool == "none" else (0, width)
        return np.concatenate([np.zeros(shape, np.float32), *parts]) if parts else np.zeros((0, width), np.float32)

    def score(
        self,
        fasta: FastaLike,
        variants: Iterable[Sequence[Any]],
        *,
        context: int | str = "12kbp",
        strand: str = "both",
        exact_windows: bool = False,
        check_ref: str = "warn",
        tissues: Sequence[str] = (),
    ) -> list[VariantScore]:
        """Score variants, as ``lrgenome score-vcf`` does.

        Parameters
        ----------
        fasta
            A path, or an open `Fasta`.
        variants
            (contig, position, REF, ALT) each, the position 1-based as in a VCF; ALT may have several alleles, split by
            commas. A fifth value is the INFO that symbolic alleles need, as ``END=2000``.
        context
            bp or as ``1Mbp``.
        strand
            ``both`` (averaged) or ``forward``.
        exact_windows
            Run a whole window for each allele rather than boundary states.
        check_ref
            ``warn``, ``skip`` or ``error``, where REF differs from the FASTA.
        tissues
            Those to predict for, of a fine-tuned model that knows tissues.

        Returns
        -------
        list of VariantScore
            One an ALT allele, in the order of `variants`; one that cannot be scored has a status that says why.

        Raises
        ------
        InputError
            If the variants and the FASTA do not belong together.
        UsageError
            If settings contradict each other.
        """
        settings = choose_scoring(
            ScoreSettings(context=_length(context), strand=strand, check_ref=check_ref), self._runner,
            exact_windows=exact_windows or None, only_tiles=(),
        )  # fmt: skip
        records = [_record(number, variant) for number, variant in enumerate(variants)]
        with ExitStack() as stack:
            genome = _opened(fasta, stack)
            planner = VariantPlanner(
                genome, settings.context, check_ref=check_ref, alias="auto", tiles=settings.tiles
            )
            preflight(
                VariantPlanner(genome, settings.context, check_ref="warn", alias="auto", tiles=True), iter(records)
            )
            readout = readout_of(
                self._loaded.head, tissues=tissues, strands=strand, halves=self._loaded.model.strands
            )
            batch = default_batch_size("auto", self._runner.device, settings.context, tiles=settings.tiles)
            scorer = make_scorer(self._runner, genome, settings, batch, readout)
            names = () if readout is None else readout.columns
            return [
                VariantScore(record.chrom, record.pos + 1, record.ref, alt, *row[:5], "&".join(row.status),
                             dict(zip(names, row.extra, strict=True)))
                for block in scorer(Selected(lambda: iter(records), len(records)), 0, planner, Account())
                for record, rows in block
                for alt, row in zip(record.alts or (".",), rows, strict=True)
            ]  # fmt: skip

    def stream(
        self, sequence: Sequenced, *, strand: str = "forward", layer: int | None = None, log_p: bool = False
    ) -> Iterator[States]:
        """Run one sequence of any length, in bounded memory, and yield its states from left to right.

        The states are those of the whole sequence, whatever the chunks: what lies to the right counts as well.

        Parameters
        ----------
        sequence
            Letters, or (t,) token ids as `Fasta.fetch` gives them. Codes other than A, C, G and T are read as N.
        strand
            ``forward``, or ``reverse`` for the reverse complement; states are in the order of `sequence` either way.
        layer
            Block whose output is taken, 1-based. Default: the last, after the final norm.
        log_p
            Give log-probabilities too; of the last layer only.

        Yields
        ------
        States
            Stretches that follow each other.

        Raises
        ------
        InputError
            If the sequence has letters that are no nucleotide codes.
        MemoryLimitError
            If it does not fit, even on disk.
        """
        if strand not in ("forward", "reverse"):
            raise UsageError(f"strand: got {strand!r}, expected forward or reverse")
        if log_p and layer is not None and layer != self.layers:
            raise UsageError(f"log_p is of the last layer, {self.layers}; got layer {layer}")
        ids = torch.from_numpy(_ids(sequence))[None]
        which = FORWARD if strand == "forward" else REVERSE
        for part in self._runner.stream(ids, strand=which, layers=layer):
            values = None
            if log_p:
                found = self._runner.log_probabilities(part, 0, 0, part.end - part.start)
                bases = found[:, FIRST_BASE : FIRST_BASE + 4]
                # As the strand that was run reads them: its T is an A here.
                values = (bases if which == FORWARD else bases[:, ::-1]).astype(np.float32)
            yield States(part.start, part.end, part.hidden[0].float().cpu().numpy().copy(), values)

    def as_module(self, output: str = "embedding", *, strand: str = "forward") -> OneHotModule:
        """Return the model as a torch module of one-hot sequences, as tangermeme and the like take them.

        Parameters
        ----------
        output, strand
            As `OneHotModule` takes them.
        """
        from lrgenome.api.module import OneHotModule

        return OneHotModule(self._runner, self._loaded, output=output, strand=strand)


def _length(value: int | str) -> int:
    try:
        return parse_length(str(value))
    except ValueError as error:
        raise UsageError(f"context: {error}") from error


def _opened(fasta: FastaLike, stack: ExitStack) -> Fasta:
    return fasta if isinstance(fasta, Fasta) else stack.enter_context(Fasta(fasta))


def _row(genome: Fasta, number: int, interval: Sequence[Any]) -> Row:
    try:
        name, start, end = str(interval[0]), int(interval[1]), int(interval[2])
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(f"interval {number}: got {interval!r}, expected contig, start and end") from error
    contig = resolve_contig(name, genome.contigs)
    if contig is None:
        raise InputError(f"interval {number}: contig {name!r} is not in {genome.path.name}")
    if not 0 <= start < end <= genome.contigs[contig]:
        raise InputError(
            f"interval {number}: got {name}:{start}-{end}, expected 0 <= start < end <= {genome.contigs[contig]}"
        )
    return Row(contig, start, end, "")


def _record(number: int, variant: Sequence[Any]) -> VcfRecord:
    try:
        chrom, pos, ref, alt = str(variant[0]), int(variant[1]), str(variant[2]), str(variant[3]) or "."
        info = str(variant[4]) if len(variant) > 4 else "."
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(f"variant {number}: got {variant!r}, expected contig, position, REF and ALT") from error
    alts = () if alt == "." else tuple(alt.split(","))
    line = "\t".join((chrom, str(pos), ".", ref, alt, ".", ".", info))
    return VcfRecord(chrom, pos - 1, ".", ref, alts, line, number, number + 1)


def _ids(sequence: Sequenced) -> IdArray:
    if isinstance(sequence, (str, bytes)):
        try:
            ids = encode(sequence)
        except ValueError as error:
            raise InputError(f"sequence: {error}") from error
    else:
        ids = np.ascontiguousarray(sequence)
        if ids.ndim != 1 or ids.dtype != np.uint8:
            raise InputError(f"sequence: got {ids.dtype} of shape {ids.shape}, expected token ids, (t,) uint8")
    if not len(ids):
        raise InputError("sequence: got none, expected at least one base")
    return ids
