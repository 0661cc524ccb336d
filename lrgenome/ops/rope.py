"""Rotary positions (Su et al. 2021), and what to do with inputs longer than those of training.

A head's pair of channels (c, c + w/2) turns by ``position * base^(-2c/w)``. The schemes, for a length of L tokens
where L_train were seen in training, s = L / L_train; none does anything where L <= L_train:

* ``plain``: positions as they are, at angles that training never saw.
* ``pi``: position interpolation, m becomes m / s (Chen et al. 2023).
* ``ntk``: the base becomes base * s^(w/(w-2)): slow channels are interpolated, fast ones left alone.
* ``yarn``: interpolated below 1 turn in L_train, left alone above 32, a ramp between, and both cosine and sine times
  0.1 ln(s) + 1 (Peng et al. 2023).
* ``self-extend`` (Jin et al. 2024), made symmetric for two directions: a key j at most W tokens from its query i keeps
  its distance i - j. For one further to the left it is i // G - j // G + W - W // G, and to the right the mirror image,
  -(j // G - i // G + W - W // G); one softmax over all. The group size G is the smallest that keeps every distance
  below L_train.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lrgenome.errors import UsageError

EXTENSIONS = ("none", "plain", "pi", "ntk", "yarn", "self-extend")
BASE = 10_000.0
BETA_FAST, BETA_SLOW = 32.0, 1.0


class Rotation(NamedTuple):
    """What turns queries or keys (b, h, n, w)."""

    cos: Tensor
    """(1 or b, 1, n, w/2), at least float32."""
    sin: Tensor
    """Like `cos`."""

    def rows(self, low: int, high: int) -> Rotation:
        """Return the part for positions low .. high."""
        return Rotation(self.cos[:, :, low:high], self.sin[:, :, low:high])


class Groups(NamedTuple):
    """Rotations of ``self-extend`` for keys that are no neighbours."""

    neighbours: int
    """Largest distance that is kept, W."""
    keys: Rotation
    left: Rotation
    """Of queries, for keys on their left."""
    right: Rotation
    """Of queries, for keys on their right."""


class Places(NamedTuple):
    """Where the tokens of a batch are."""

    exact: Rotation
    groups: Groups | None
    mask: Tensor | None
    """(b, 1, 1, n) false for padding; None where there is none."""


def frequencies(width: int, extension: str, length: int, trained: int) -> tuple[Tensor, float]:
    """Return the turn of each pair of channels a position, (w/2,) float64, and the factor of cosine and sine."""
    channel = torch.arange(0, width, 2, dtype=torch.float64)
    turns = BASE ** (-channel / width)
    s = length / trained
    if s <= 1.0:
        return turns, 1.0
    if extension == "pi":
        return turns / s, 1.0
    if extension == "ntk":
        # base^(-c/w) with the new base; written so that heads of width 2, whose one channel has c = 0, have no pole.
        return turns * s ** (-channel / max(1, width - 2)), 1.0
    if extension == "yarn":
        low, high = (_channel_of(beta, width, trained) for beta in (BETA_FAST, BETA_SLOW))
        low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
        ramp = ((channel / 2 - low) / (high - low or 1e-3)).clamp(0.0, 1.0)
        return turns * (ramp / s + 1.0 - ramp), 0.1 * math.log(s) + 1.0
    return turns, 1.0


def _channel_of(rotations: float, width: int, trained: int) -> float:
    """Return the (fractional) pair of channels that makes so many rotations in `trained` positions."""
    return width * math.log(trained / (rotations * 2.0 * math.pi)) / (2.0 * math.log(BASE))


def neighbours(trained: int) -> int:
    """Return the distance W up to which ``self-extend`` leaves positions alone: a quarter of the trained length."""
    return trained // 4


def group_size(length: int, trained: int) -> int:
    """Return the smallest G with which ``self-extend`` makes no distance of `trained` or more; 1 leaves all alone."""
    if length <= trained:
        return 1
    near = neighbours(trained)
    size = max(1, (length - 1) // trained)
    while (length - 1) // size + near - near // size >= trained:
        size += 1
    return size


def places(
    lengths: list[int], count: int, *,
    width: int, trained: int, extension: str, device: torch.device, dtype: torch.dtype,
) -> Places:  # fmt: skip
    """Find the rotations of a batch; each row's depend on its own length only.

    Parameters
    ----------
    lengths
        Tokens of each row without padding.
    count
        Tokens of each row with padding, n.
    width
        Width of a head, w.
    trained
        Longest input of training, tokens.
    extension
        One of `EXTENSIONS`.
    dtype
        Of the rotations.
    """
    if extension not in EXTENSIONS:
        raise UsageError(f"--length-extension: got {extension!r}, expected one of {', '.join(EXTENSIONS)}")
    kinds = lengths[:1] if len(set(lengths)) == 1 else lengths
    position = torch.arange(count, dtype=torch.float64)
    speeds = {length: frequencies(width, extension, length, trained) for length in set(kinds)}

    def rotation(positions: list[Tensor]) -> Rotation:
        turns = [torch.outer(m, speeds[length][0]) for m, length in zip(positions, kinds, strict=True)]
        factors = [speeds[length][1] for length in kinds]
        cos, sin = (
            torch.stack([f(turn) * factor for turn, factor in zip(turns, factors, strict=True)])[:, None]
            for f in (torch.cos, torch.sin)
        )
        return Rotation(cos.to(device, dtype), sin.to(device, dtype))

    groups = None
    if extension == "self-extend" and max(lengths) > trained:
        near, sizes = neighbours(trained), [group_size(length, trained) for length in kinds]
        grouped = [position // size for size in sizes]
        shifts = [near - near // size for size in sizes]
        groups = Groups(
            near,
            rotation(grouped),
            rotation([m + shift for m, shift in zip(grouped, shifts, strict=True)]),
            rotation([m - shift for m, shift in zip(grouped, shifts, strict=True)]),
        )
    mask = None
    if min(lengths) < count:
        mask = (torch.arange(count) < torch.tensor(lengths)[:, None])[:, None, None].to(device)
    return Places(rotation([position] * len(kinds)), groups, mask)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys (b, h, n, w) to their positions; the result has the dtype of `x`."""
    first, second = x.to(rotation.cos.dtype).chunk(2, -1)
    cos, sin = rotation
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)
