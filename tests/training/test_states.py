"""Windows that begin with what another left, or with noise like it."""

import numpy as np
import pytest
import torch
from small_runs import TINY, change, outcome, train

from lrgenome.config import CaduceusConfig
from lrgenome.engine.sweep import hidden_states
from lrgenome.errors import ModelError, UsageError
from lrgenome.models.base import DirectionState
from lrgenome.models.families import build
from lrgenome.training.states import InitialStates
from lrgenome.training.step import _parts, gradients


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(states: InitialStates, index: int) -> torch.Tensor:
    """Draw until the window begins with something."""
    seed = 0
    while (row := states.draw(rng(seed), index)) is None:
        seed += 1
    return row


@pytest.mark.parametrize("equivariant", [False, True])
def test_states_survive_being_rows_of_numbers(equivariant):
    model = build(CaduceusConfig(layers=2, width=8, equivariant=equivariant), seed=0)
    states = InitialStates(model, "pass", 3)
    ends: dict[tuple[int, bool], DirectionState] = {}
    hidden_states(model, torch.randint(7, 11, (3, 20)), ends=ends)
    back = states.start_of(list(states.flat_of(ends)))
    for (layer, reverse), state in ends.items():
        for part, again in zip(state, back[layer][int(reverse)], strict=True):
            assert part.shape == again.shape and part.dtype == again.dtype and torch.equal(part, again)


def test_a_window_begins_with_the_final_state_of_the_step_before():
    model = build(TINY, seed=0)
    states = InitialStates(model, "pass", 2)
    assert states.draw(rng(), 0) is None
    ends: dict[tuple[int, bool], DirectionState] = {}
    hidden_states(model, torch.randint(7, 11, (2, 20)), ends=ends)
    rows = states.flat_of(ends)
    states.collect(dict(enumerate(rows)))
    assert states.draw(rng(), 0) is None, "collected, but the step is not done"
    states.advance()
    assert torch.equal(drawn(states, 0), rows[0]) and torch.equal(drawn(states, 1), rows[1])
    begins = [states.draw(rng(seed), 0) is not None for seed in range(200)]
    assert 70 < sum(begins) < 130


def test_noise_has_the_moments_of_final_states():
    model = build(TINY, seed=0)
    states = InitialStates(model, "noise", 4)
    generator = torch.Generator().manual_seed(0)
    size = states.tensors()["values"].shape[1]
    mean, spread = torch.randn(size, generator=generator), torch.rand(size, generator=generator)
    for _ in range(600):
        rows = mean + spread * torch.randn(4, size, generator=generator)
        states.collect(dict(enumerate(rows)))
        states.advance()
    noise = torch.stack([row for seed in range(2_000) if (row := states.draw(rng(seed), 0)) is not None])
    assert len(noise) > 800
    assert (noise.mean(0) - mean).abs().max() < 0.25 and (noise.std(0) - spread).abs().max() < 0.15


@pytest.mark.parametrize("kind", ["pass", "noise"])
def test_only_how_windows_begin_is_other(corpus, kind):
    """The first step has nothing to begin with; later ones do, and the loss of a window without is as before."""
    settings = change(steps=4)
    plain, model = build(TINY, seed=0), build(TINY, seed=0)
    states = InitialStates(model, kind, settings.windows_per_step)
    same = gradients(model, corpus, settings, 0, states=states)
    assert same == gradients(plain, corpus, settings, 0)
    states.advance()
    assert gradients(model, corpus, settings, 1, states=states) != gradients(plain, corpus, settings, 1)


@pytest.mark.parametrize("kind", ["pass", "noise"])
@pytest.mark.parametrize("steps", [1, 7])
def test_an_interrupted_run_goes_on_exactly(corpus, tmp_path, kind, steps):
    class Stop:
        left = steps

        def update(self, count: int) -> None:
            self.left -= count
            if not self.left:
                raise KeyboardInterrupt

        def set_postfix_str(self, text: str) -> None:
            pass

    train(corpus, tmp_path / "whole", state_init=kind)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path / "cut", state_init=kind, progress=Stop())
    train(corpus, tmp_path / "cut", state_init=kind, resume=True, weights=5)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    train(corpus, tmp_path / "zero")
    assert outcome(tmp_path / "zero") != outcome(tmp_path / "whole")


def test_windows_with_and_without_a_state_go_apart():
    row = torch.zeros(1)
    assert _parts([None] * 5, 4, 2) == [[0, 1], [2, 3], [4]]
    assert _parts([row, None, row, row, None, row], 4, 2) == [[1], [0, 2], [3], [4], [5]]


def test_what_cannot_be():
    with pytest.raises(UsageError, match="--state-init: got 'one', expected one of zero, pass, noise"):
        change(state_init="one")
    model = build(TINY, seed=0)
    states = InitialStates(model, "pass", 2)
    with pytest.raises(ModelError, match="expected values of shape"):
        states.restore({})
    with pytest.raises(ModelError, match="expected values of shape"):
        InitialStates(model, "pass", 3).restore(states.tensors())
