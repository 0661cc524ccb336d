"""What every recurrent model is: an embedding, residual blocks, a final norm and a head, in a chosen precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lrgenome.models.base import Block
from lrgenome.ops.norm import EPS, rms_norm


def normal(*shape: int, std: float) -> nn.Parameter:
    """Draw a parameter from a normal distribution around zero."""
    return nn.Parameter(torch.randn(*shape) * std)


class RecurrentStack(nn.Module):
    """Embedding, blocks and final norm; the head multiplies by the embedding.

    Parameters
    ----------
    embedding
        (v, d) weights, drawn before the blocks'.
    blocks
        Modules that satisfy `base.Block`, each with an attribute `compute_dtype`.
    """

    STRANDS: ClassVar[int] = 1
    NORM_EPS: ClassVar[float] = EPS
    KEPT_WIDE: ClassVar[tuple[str, ...]] = ()
    """Ends of the names of weights and biases that the recurrence uses, which stay float32."""

    def __init__(self, embedding: nn.Parameter, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.compute_dtype = torch.float32
        self.residual_dtype = torch.float32
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = nn.Parameter(torch.zeros(embedding.shape[1]))

    @property
    def strands(self) -> int:
        """Rows of the residual stream for each window."""
        return self.STRANDS

    @property
    def stack(self) -> list[Block]:
        """The blocks in order."""
        return cast(list[Block], list(self.blocks))

    def set_compute_dtype(self, dtype: torch.dtype, *, residual: torch.dtype | None = None) -> Self:
        """Choose the dtype of matrix products and of what is kept between sweeps, and of the residual stream."""
        self.compute_dtype = dtype
        self.residual_dtype = dtype if residual is None else residual
        for block in self.blocks:
            cast(Any, block).compute_dtype = dtype
        return self

    def for_inference(self, dtype: torch.dtype) -> Self:
        """Freeze, with projection weights stored in `dtype`; what the recurrence uses stays float32."""
        self.eval().requires_grad_(False)
        self.set_compute_dtype(dtype)
        for name, parameter in self.named_parameters():
            if dtype == torch.float64:
                parameter.data = parameter.data.double()
            elif name.endswith(("_weight", "_bias")) and not name.endswith(self.KEPT_WIDE):
                parameter.data = parameter.data.to(dtype)
        return self

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids (b, t) as (b, t, d) in the residual dtype."""
        return torch.nn.functional.embedding(ids.long(), self.embedding).to(self.residual_dtype)

    def finish(self, x: Tensor, *, norm: bool = True) -> Tensor:
        """Make the model's output of the last block's (b, t, d): with the final norm, in the compute dtype."""
        if not norm:
            return x
        rows = rms_norm(x.reshape(-1, x.shape[-1]), self.final_norm, self.compute_dtype, eps=self.NORM_EPS)
        return rows.view(x.shape)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute (..., v) logits from final hidden states (..., d), in float32 (float64 models: float64)."""
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        return hidden.to(wide) @ self.embedding.to(wide).t()

    def hidden_width(self) -> int:
        """Values per position in the output."""
        return self.strands * self.embedding.shape[1]
