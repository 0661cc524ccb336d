"""Runs whole windows through a transformer, with the surface of `engine.runner`.

A window is tokenised and encoded whole, and every base is given the hidden state of its token. The reverse strand is
the true reverse complement, cut into tokens from its own left end, its results given back in genomic order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrgenome.dna import FIRST_BASE, VOCAB_SIZE, IdArray, reverse_complement
from lrgenome.engine.memory import Plan
from lrgenome.engine.sweep import Chunk, chunk_edges
from lrgenome.errors import MemoryLimitError, UsageError
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.kmers import FloatArray, IntArray, K, Tokens, base_log_probabilities, normalise, single_bases, tokenize
from lrgenome.models.attention import QUERY_BLOCK, score_block
from lrgenome.models.nucleotide_transformer import ROWS, NucleotideTransformer, wide_of
from lrgenome.ops.rope import EXTENSIONS

log = logging.getLogger(__name__)

CHUNK = 4_096
"""Bases of output at a time."""
_HEAD_ROWS = 64
"""Tokens that go through the head together, on a fixed grid: products of different shapes round differently."""
_SPARE = 0.9
"""Share of the free memory that a window may take."""
_BYTES_PER_BASE = 64
"""Of the arrays that map bases to tokens."""


class _Row(NamedTuple):
    """One window of a batch."""

    tokens: Tokens
    hidden: Tensor
    """(n, d) states of its tokens."""


class WindowRunner:
    """A transformer ready for inference.

    Parameters
    ----------
    model
        Frozen, on its device, with its dtypes chosen.
    device
        Where it is.
    chunk
        Bases of output at a time; makes no difference to it.
    extension
        One of `ops.rope.EXTENSIONS`: what is done with windows of more tokens than the model was trained on.
    block
        Queries at a time in attention: a matter of memory only.
    free_ram
        Function that returns the bytes that may be taken; asked once per window shape.
    """

    transfer = "exact"

    def __init__(
        self,
        model: NucleotideTransformer,
        device: torch.device,
        *,
        chunk: int | None = None,
        extension: str = "none",
        block: int = QUERY_BLOCK,
        free_ram: Callable[[], int],
    ) -> None:
        if extension not in EXTENSIONS:
            raise UsageError(f"--length-extension: got {extension!r}, expected one of {', '.join(EXTENSIONS)}")
        self.model, self.device, self.extension, self.block = model, device, extension, block
        self.chunk = chunk or CHUNK
        self._free_ram = free_ram
        self._plans: dict[tuple[int, int, int], Plan] = {}
        self._rows: list[_Row] = []
        self._strand, self._length, self._final = FORWARD, 0, True
        self._warned = False

    def __enter__(self) -> WindowRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the last windows."""
        self._rows = []

    def plan(self, batch: int, length: int) -> Plan:
        """Return what windows of this shape take, if they have no N (each of which is a token of its own).

        Raises
        ------
        UsageError
            If they are longer than the windows of training, and there is no length extension.
        MemoryLimitError
            If they do not fit.
        """
        tokens = 1 + length // K + length % K if self.model.config.kmers else length
        return self._plan(batch, length, tokens)

    def _plan(self, batch: int, length: int, tokens: int) -> Plan:
        limit = self.model.config.max_tokens
        without_n = 1 + length // K + length % K if self.model.config.kmers else length
        if tokens > limit >= without_n and self.extension == "none" and not self._warned:
            self._warned = True
            log.warning("windows with many N have more tokens than the %d of training; they are run anyway", limit)
        elif without_n > limit and self.extension == "none":
            raise UsageError(
                f"a window of {length:,} bp: got {without_n:,} tokens, expected at most {limit:,}, on which the model "
                f"was trained; choose --length-extension ({', '.join(EXTENSIONS[1:])}) or a shorter --context"
            )
        key = (batch, length, tokens)
        if key not in self._plans:
            # What a window before it took will be used again, so only the largest shape counts.
            if any(all(a >= b for a, b in zip(other, key, strict=True)) for other in self._plans):
                self._plans[key] = Plan(False, True, self._bytes(*key), 0)
            else:
                self.close()
                need, free = self._bytes(*key), self._free_ram()
                if need > free * _SPARE:
                    raise MemoryLimitError(
                        f"a window of {length:,} bp ({tokens:,} tokens) needs {need / 1e9:.3g} GB of memory; free are "
                        f"{free / 1e9:.3g} GB. Use a shorter --context, --precision bfloat16 or a smaller --batch-size"
                    )
                self._plans[key] = Plan(False, True, need, 0)
                log.debug("windows of %d x %d bp: %s", batch, length, self._plans[key])
        return self._plans[key]

    def _bytes(self, batch: int, length: int, tokens: int) -> int:
        """Estimate the bytes that windows of `length` bp and `tokens` tokens take beyond the model."""
        model, config = self.model, self.model.config
        d, f, h = config.width, config.mlp_width, config.heads
        kinds = model.compute_dtype, model.residual_dtype, wide_of(model.compute_dtype)
        item, res, wide = (kind.itemsize for kind in kinds)
        # The residual stream, old and new; queries, keys, values; rotated keys with what rotating them takes; mixed.
        inside = tokens * d * (2 * res + 4 * item + 3 * wide + item)
        rotations = tokens * config.head_width * wide
        products = min(tokens, ROWS) * (4 * f + 4 * d) * item
        attention = min(tokens, self.block) * d * 4 * wide
        if self.extension == "self-extend" and tokens > config.max_tokens:
            rotations *= 4
            # Both halves, the scores they make, their softmax, and the neighbours' of one block.
            attention += 5 * h * score_block(1, h, tokens, self.block) * tokens * wide + 2 * tokens * d * wide
        kept = batch * (tokens * d * item + length * _BYTES_PER_BASE)
        output = batch * min(length, self.chunk) * d * item + 2 * _HEAD_ROWS * config.vocab * 8
        return inside + rotations + products + attention + kept + output

    def stream(self, ids: Tensor, *, strand: int = FORWARD, layers: int | None = None) -> Iterator[Chunk]:
        """Run windows of base ids (b, t) uint8, forward strand, and yield chunks in genomic order.

        Parameters
        ----------
        strand
            FORWARD, or REVERSE to run the reverse complement.
        layers
            Stop after this many blocks and yield their raw output; default all, with the final norm.

        Raises
        ------
        UsageError, MemoryLimitError
            As `plan` raises them, now of the windows' real numbers of tokens.
        """
        batch, length = ids.shape
        if length == 0:
            return
        self.close()
        bases: IdArray = ids.cpu().numpy()
        cut = tokenize if self.model.config.kmers else single_bases
        windows = [cut(row) for row in (reverse_complement(bases) if strand == REVERSE else bases)]
        self._plan(batch, length, max(len(tokens.ids) for tokens in windows))
        self._strand, self._length = strand, length
        self._final = layers is None or layers == self.model.config.layers
        # One by one: windows of one length differ in tokens where they have N, and padding would change last digits.
        self._rows = [_Row(tokens, self._encode(tokens, layers)) for tokens in windows]
        rows = self._rows
        for start, end in chunk_edges(length, self.chunk):
            with torch.no_grad():
                states = [row.hidden[self._on_device(row.tokens.token[self._read(start, end)])] for row in rows]
                part = Chunk(start, end, torch.stack(states))
            yield part

    def _encode(self, tokens: Tokens, layers: int | None) -> Tensor:
        with torch.no_grad():
            ids = self._on_device(tokens.ids)[None]
            return self.model.encode(ids, layers=layers, extension=self.extension, block=self.block)[0]

    def _on_device(self, values: IntArray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _read(self, start: int, end: int) -> IntArray:
        """Return where the genomic positions start .. end are in the strand that was read."""
        positions = np.arange(start, end)
        return self._length - 1 - positions if self._strand == REVERSE else positions

    def log_probabilities(self, part: Chunk, row: int, lo: int, hi: int) -> FloatArray:
        """Return what the head says of the bases lo .. hi of a window, counted from the start of a chunk.

        Parameters
        ----------
        part
            Of the last windows streamed.
        row
            Which of them.

        Returns
        -------
        (hi - lo, 16) float64
            Log-probabilities over the ids of `lrgenome.dna`, of the bases as the strand that was read has them (on the
            reverse strand the complements of the genome's), in genomic order; -inf for what is not A, C, G or T.
        """
        if not self._final:
            raise UsageError("log-probabilities are of the last layer; got the output of an earlier one")
        tokens, hidden = self._rows[row]
        result = np.full((hi - lo, VOCAB_SIZE), -np.inf)
        if hi == lo:
            return result
        places = self._read(part.start + lo, part.start + hi)
        token = tokens.token[places]
        first = int(token.min()) // _HEAD_ROWS * _HEAD_ROWS
        logits = np.concatenate(
            [self._logits(hidden, low) for low in range(first, int(token.max()) + 1, _HEAD_ROWS)]
        )
        if self.model.config.kmers:
            values = base_log_probabilities(logits, token - first, tokens.offset[places], tokens.size[token])
        else:
            values = normalise(logits[token - first, FIRST_BASE : FIRST_BASE + 4])
        result[:, FIRST_BASE : FIRST_BASE + 4] = values
        return result

    def _logits(self, hidden: Tensor, low: int) -> FloatArray:
        """Return the logits (m, v) of the tokens low .. low + `_HEAD_ROWS`, fewer at the end."""
        rows = hidden[low : low + _HEAD_ROWS]
        full = hidden.new_zeros(_HEAD_ROWS, hidden.shape[1])
        full[: len(rows)] = rows
        with torch.no_grad():
            logits: FloatArray = self.model.head(full)[: len(rows)].double().cpu().numpy()
        return logits
