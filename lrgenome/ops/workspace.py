"""Buffers that are used again and again, since fresh pages are dearer than the arithmetic on them."""

from math import prod

import torch
from torch import Tensor


class Workspace:
    """Named scratch tensors that grow to the largest size asked for; one caller at a time.

    A disabled workspace returns None for everything: the ops then allocate, as autograd needs.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self._flat: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Return a contiguous tensor with undefined content, the same memory for the same name each time."""
        if not self.enabled:
            return None
        key, size = (name, dtype, device), prod(shape)
        flat = self._flat.get(key)
        if flat is None or flat.numel() < size:
            flat = self._flat[key] = torch.empty(size, dtype=dtype, device=device)
        return flat[:size].view(shape)

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for t in self._flat.values())
