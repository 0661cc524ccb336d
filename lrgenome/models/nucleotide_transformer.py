"""Nucleotide Transformer v2 (Dalla-Torre et al. 2024, doi:10.1038/s41592-024-02523-z): an encoder of DNA tokens.

Pre-norm blocks of attention with rotary positions and a gated MLP without biases, a final norm, and a head of one
more layer. It has no state: a window is run whole. Tokens are those of `lrgenome.kmers`: 6-mers, or single bases
without a CLS token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, layer_norm, silu

from lrgenome.config import NucleotideTransformerConfig
from lrgenome.errors import UsageError
from lrgenome.models.attention import QUERY_BLOCK, attend, by_rows
from lrgenome.models.stack import normal
from lrgenome.ops.linear import linear
from lrgenome.ops.rope import Places, places

ROWS = 1024
"""Tokens at a time in products."""
_STD = 0.02


def wide_of(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of norms, rotations and logits: float32, or float64 in float64 models."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Norm(nn.Module):
    """LayerNorm: subtract the mean, divide by the standard deviation, scale and shift."""

    def __init__(self, config: NucleotideTransformerConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.scale = nn.Parameter(torch.ones(config.width))
        self.shift = nn.Parameter(torch.zeros(config.width))

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalise the last axis of `x` (..., d) in at least float32; the result has `dtype`."""
        wide = wide_of(x.dtype)
        return layer_norm(x.to(wide), self.scale.shape, self.scale.to(wide), self.shift.to(wide), self.eps).to(dtype)


class EncoderBlock(nn.Module):
    """Norm, attention, norm, gated MLP, both residual.

    `qkv_weight` (3d, d) holds queries, keys and values, `up_weight` (2f, d) the MLP's gate and then its other half.
    """

    def __init__(self, config: NucleotideTransformerConfig) -> None:
        super().__init__()
        d, f = config.width, config.mlp_width
        out_std = _STD / math.sqrt(2 * config.layers)
        self.config = config
        self.compute_dtype = torch.float32
        self.attention_norm = Norm(config)
        self.qkv_weight = normal(3 * d, d, std=_STD)
        self.qkv_bias = nn.Parameter(torch.zeros(3 * d))
        self.out_weight = normal(d, d, std=out_std)
        self.out_bias = nn.Parameter(torch.zeros(d))
        self.mlp_norm = Norm(config)
        self.up_weight = normal(2 * f, d, std=_STD)
        self.down_weight = normal(d, f, std=out_std)

    def forward(self, x: Tensor, where: Places, *, block: int, rows: int) -> Tensor:
        """Compute the next block's input from `x` (b, n, d)."""
        b, n, d = x.shape
        heads, w = self.config.heads, self.config.head_width
        flat = x.reshape(b * n, d)
        qkv = by_rows(self._project, rows, flat).view(b, n, 3, heads, w)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, where, block=block)
        return by_rows(self._finish, rows, flat, mixed.view(b * n, d)).view(b, n, d)

    def _project(self, x: Tensor) -> Tensor:
        return linear(self.attention_norm(x, self.compute_dtype), self.qkv_weight, self.qkv_bias)

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + linear(mixed, self.out_weight, self.out_bias)
        gate, up = linear(self.mlp_norm(x, self.compute_dtype), self.up_weight, None).chunk(2, -1)
        return x + linear(silu(gate) * up, self.down_weight, None)


class NucleotideTransformer(nn.Module):
    """Embedding, blocks, final norm, and a head: one layer, its norm, and a product with the vocabulary.

    The product is with `decoder_weight` (v, d), or with the embedding in a tied model, which has none.
    """

    def __init__(self, config: NucleotideTransformerConfig) -> None:
        super().__init__()
        d, v = config.width, config.vocab
        self.config = config
        self.compute_dtype = torch.float32
        self.residual_dtype = torch.float32
        self.embedding = normal(v, d, std=_STD)
        self.blocks = nn.ModuleList([EncoderBlock(config) for _ in range(config.layers)])
        self.final_norm = Norm(config)
        self.head_weight = normal(d, d, std=_STD)
        self.head_bias = nn.Parameter(torch.zeros(d))
        self.head_norm = Norm(config)
        if not config.tied:
            self.decoder_weight = normal(v, d, std=_STD)
        self.decoder_bias = nn.Parameter(torch.zeros(v))

    def set_compute_dtype(self, dtype: torch.dtype, *, residual: torch.dtype | None = None) -> NucleotideTransformer:
        """Choose the dtype of matrix products, and of the residual stream."""
        self.compute_dtype = dtype
        self.residual_dtype = dtype if residual is None else residual
        for block in self.blocks:
            cast(EncoderBlock, block).compute_dtype = dtype
        return self

    def for_inference(self, dtype: torch.dtype) -> NucleotideTransformer:
        """Freeze, with the blocks' projection weights stored in `dtype`; norms and the head stay float32."""
        self.eval().requires_grad_(False)
        self.set_compute_dtype(dtype)
        for name, parameter in self.named_parameters():
            if dtype == torch.float64:
                parameter.data = parameter.data.double()
            elif name.startswith("blocks.") and name.endswith(("_weight", "_bias")):
                parameter.data = parameter.data.to(dtype)
        return self

    def encode(
        self, tokens: Tensor, lengths: Sequence[int] | None = None, *,
        layers: int | None = None, extension: str = "none", block: int = QUERY_BLOCK, rows: int = ROWS,
    ) -> Tensor:  # fmt: skip
        """Run whole windows.

        Parameters
        ----------
        tokens
            (b, n) token ids.
        lengths
            Tokens of each row that are no padding at its end; default all. What comes out for padding is undefined.
        layers
            Stop after this many blocks and return their raw output; default all, with the final norm.
        extension
            One of `ops.rope.EXTENSIONS`, for rows of more than ``config.max_tokens``.
        block, rows
            Queries, and rows of products, at a time: matters of memory and speed only.

        Returns
        -------
        (b, n, d)
            Hidden states, in the compute dtype.
        """
        b, n = tokens.shape
        depth = len(self.blocks)
        count = depth if layers is None else layers
        if not 1 <= count <= depth:
            raise UsageError(f"--layer: got {layers}, expected 1 to {depth}")
        x = embedding(tokens.long(), self.embedding).to(self.residual_dtype)
        if n > 0:
            config = self.config
            where = places(
                [n] * b if lengths is None else list(lengths), n, width=config.head_width, trained=config.max_tokens,
                extension=extension, device=tokens.device, dtype=wide_of(self.compute_dtype),
            )  # fmt: skip
            for encoder in self.blocks[:count]:
                x = encoder(x, where, block=block, rows=rows)
        return cast(Tensor, self.final_norm(x, self.compute_dtype)) if count == depth else x

    def head(self, hidden: Tensor) -> Tensor:
        """Compute (..., v) logits from final hidden states (..., d), in float32 (float64 models: float64)."""
        wide = wide_of(hidden.dtype)
        x = hidden.reshape(-1, hidden.shape[-1]).to(wide)
        x = self.head_norm(gelu(linear(x, self.head_weight, self.head_bias)), wide)
        logits = linear(x, self.embedding if self.config.tied else self.decoder_weight, self.decoder_bias)
        return logits.view(*hidden.shape[:-1], logits.shape[-1])

    @property
    def strands(self) -> int:
        """Rows of the residual stream for each window."""
        return 1

    def hidden_width(self) -> int:
        """Values per position in the output."""
        return self.config.width

    def graph_width(self) -> int:
        """Values per token, without the residual stream's, that autograd keeps of a block."""
        # Norms' outputs; queries, keys, values, the rotated ones and what attention makes of them; the MLP's halves,
        # the SiLU and the product.
        return (2 + 3 + 2 + 1) * self.config.width + 4 * self.config.mlp_width

    def graph_norms(self) -> int:
        """Norms in a block, each of which keeps its input."""
        return 2


def build(config: NucleotideTransformerConfig, *, seed: int | None = None) -> NucleotideTransformer:
    """Make a model with fresh weights; with `seed`, the same ones each time, global random state untouched."""
    if seed is None:
        return NucleotideTransformer(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NucleotideTransformer(config)


def published_parameters(config: NucleotideTransformerConfig) -> int:
    """Count the parameters of a published checkpoint with these settings.

    That is ours, a table of positions that rotary models do not use (with two rows more than tokens), and a head that
    predicts contacts of proteins from all attention maps.
    """
    positions = (config.max_tokens + 2) * config.width
    contacts = config.layers * config.heads + 1
    return config.parameters + positions + contacts
