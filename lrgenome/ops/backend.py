"""Which implementation of the ops runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

BACKENDS = ("naive", "cpu", "blocked", "cuda")

_forced: ContextVar[str | None] = ContextVar("forced backend", default=None)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force a backend inside the ``with`` block; the caller answers for its running on the tensors given."""
    if name not in BACKENDS:
        raise ValueError(f"got backend {name!r}, expected one of {', '.join(BACKENDS)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def select(x: torch.Tensor) -> str:
    """Name the backend for tensor `x`."""
    forced = _forced.get()
    if forced is not None:
        return forced
    if x.dtype == torch.float64:
        return "naive"
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16):
        return "cpu"
    if x.device.type == "cuda":
        return "cuda"
    return "blocked"


def wants_grad(*tensors: torch.Tensor | None) -> bool:
    """Tell whether autograd has to see an operation on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
