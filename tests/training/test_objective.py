"""Corruption of windows, and the loss at its targets."""

import math

import numpy as np
import pytest
import torch

from lrgenome import dna
from lrgenome.training.objective import corrupt, masked_losses

LENGTH = 400_000


def bases(length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(1).integers(dna.A, dna.T + 1, length).astype(np.uint8)


def within(count: int, of: int, share: float) -> bool:
    """Tell whether a count is within five standard deviations of what the share predicts."""
    return abs(count - of * share) < 5 * math.sqrt(of * share * (1 - share))


@pytest.mark.parametrize("fraction", [0.15, 0.4])
def test_shares(fraction):
    ids = bases()
    corrupted, targets = corrupt(ids, np.random.default_rng(2), fraction)
    count = int(targets.sum())
    assert within(count, LENGTH, fraction)
    masked, kept = corrupted[targets] == dna.MASK, corrupted[targets] == ids[targets]
    assert within(int(masked.sum()), count, 0.8)
    # A random base is the true one in a quarter of the cases.
    assert within(int(kept.sum()), count, 0.1 + 0.1 / 4)
    others = corrupted[targets][~masked & ~kept]
    assert within(len(others), count, 0.1 * 3 / 4)
    assert set(others.tolist()) <= {dna.A, dna.C, dna.G, dna.T}


def test_random_bases_are_uniform_and_targets_are_spread_evenly():
    ids = np.full(LENGTH, dna.G, dtype=np.uint8)
    corrupted, targets = corrupt(ids, np.random.default_rng(3), 0.15)
    swapped = int(((corrupted != dna.G) & (corrupted != dna.MASK)).sum())
    for base in (dna.A, dna.C, dna.T):
        assert within(int((corrupted == base).sum()), swapped, 1 / 3)
    for part in np.split(targets, 8):
        assert within(int(part.sum()), len(part), 0.15)


def test_only_targets_change_and_the_input_is_kept():
    ids = bases(5000)
    before = ids.copy()
    corrupted, targets = corrupt(ids, np.random.default_rng(4), 0.15)
    assert np.array_equal(ids, before)
    assert np.array_equal(corrupted[~targets], ids[~targets])
    assert corrupted.dtype == np.uint8 and targets.dtype == bool


def test_n_and_special_tokens_are_never_targets():
    ids = np.random.default_rng(5).integers(0, dna.VOCAB_SIZE, LENGTH).astype(np.uint8)
    corrupted, targets = corrupt(ids, np.random.default_rng(6), 0.9)
    is_base = (ids >= dna.A) & (ids <= dna.T)
    assert not targets[~is_base].any() and np.array_equal(corrupted[~is_base], ids[~is_base])
    assert within(int(targets.sum()), int(is_base.sum()), 0.9)
    assert not corrupt(np.full(100, dna.N, dtype=np.uint8), np.random.default_rng(7), 0.9).targets.any()


def test_equal_random_numbers_give_equal_windows():
    ids = bases(1000)
    one, two, other = (corrupt(ids, np.random.default_rng(seed), 0.15) for seed in (8, 8, 9))
    assert np.array_equal(one.ids, two.ids) and np.array_equal(one.targets, two.targets)
    assert not np.array_equal(one.targets, other.targets)


def test_losses_by_hand():
    # exp of the first row sums to 1 + 2 + 3 + 4 + 12 * 0.
    first = torch.full((16,), -torch.inf)
    first[dna.A : dna.T + 1] = torch.log(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    logits = torch.stack([first, first, torch.zeros(16)])
    truth = torch.tensor([dna.A, dna.T, dna.C], dtype=torch.uint8)
    losses = masked_losses(logits, truth)
    assert losses.shape == (3,) and losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx([math.log(10), math.log(10 / 4), math.log(16)])


def test_losses_do_not_overflow_and_have_the_softmax_as_slope():
    logits = torch.tensor([[1000.0, 0.0] + [0.0] * 14, [0.5, 0.0] + [0.0] * 14], requires_grad=True)
    losses = masked_losses(logits, torch.tensor([1, 0]))
    assert losses[0].item() == pytest.approx(1000.0)
    losses[1].backward()
    share = torch.softmax(logits.detach()[1], 0)
    share[0] -= 1
    assert torch.allclose(logits.grad[1], share) and not logits.grad[0].any()


def test_no_targets_no_losses():
    assert masked_losses(torch.zeros(0, 16), torch.zeros(0, dtype=torch.uint8)).shape == (0,)
