"""The benchmarks of held-out loss: pieces of windows, strands, and the convolutional network."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent))
import cnn
import heldout

from lrgenome.config import HawkConfig
from lrgenome.dna import reverse_complement
from lrgenome.engine.sweep import hidden_states
from lrgenome.models.hawk import build
from lrgenome.training.data import sample_rng
from lrgenome.training.objective import Masked, corrupt, masked_losses


@pytest.fixture
def window() -> tuple[np.ndarray, Masked]:
    truth = np.random.default_rng(0).integers(7, 11, 200).astype(np.uint8)
    return truth, corrupt(truth, sample_rng(0, 0, 0), 0.15)


def model():
    return build(HawkConfig(layers=2, width=8, recurrent_width=8, heads=2, mlp_width=8), seed=0).for_inference(
        torch.float32
    )


def test_losses_are_those_of_training(window):
    truth, masked = window
    hidden = hidden_states(model(), torch.from_numpy(masked.ids)[None])[0, torch.from_numpy(masked.targets)]
    want = masked_losses(model().logits(hidden), torch.from_numpy(truth[masked.targets]))
    assert np.allclose(heldout.model_losses(model(), False, truth, masked), want.numpy(), atol=1e-5)


def test_both_strands_give_the_same_for_the_reverse_complement(window):
    truth, masked = window
    flipped = Masked(reverse_complement(masked.ids), masked.targets[::-1].copy())
    one = heldout.model_losses(model(), True, truth, masked)
    other = heldout.model_losses(model(), True, reverse_complement(truth), flipped)
    assert np.allclose(one, other[::-1], atol=1e-5)


def test_every_target_is_scored_once_in_a_whole_piece(window):
    truth, masked = window
    lengths = []

    def losses(ids: np.ndarray, part: Masked) -> np.ndarray:
        lengths.append(len(ids))
        return np.flatnonzero(part.targets) + 1000.0 * int(ids.tobytes() == truth.tobytes())

    assert np.array_equal(heldout.in_pieces(losses, truth, masked, 200), np.flatnonzero(masked.targets) + 1000.0)
    lengths.clear()
    found = heldout.in_pieces(losses, truth, masked, 60)
    # The last piece reaches back, to be as long as the others, and scores only what is new in it.
    assert lengths == [60] * 4 and len(found) == masked.targets.sum() and not np.isnan(found).any()
    at = np.flatnonzero(masked.targets)
    assert np.array_equal(found, np.where(at < 180, at % 60, at - 140))


def test_the_convolutional_network_sees_as_far_as_it_says(window):
    torch.manual_seed(0)
    net = cnn.Convolutional(cnn.Shape(blocks=3, width=8, inner=8))
    truth, masked = window
    ids = torch.from_numpy(masked.ids)[None]
    changed = ids.clone()
    changed[0, 100] = 7 if int(ids[0, 100]) != 7 else 8
    moved = (net(ids) - net(changed)).abs().sum(-1)[0] > 0
    reach = cnn.TAPS // 2 * (1 + 2 + 4)
    assert moved[100 - reach : 100 + reach + 1].any() and not moved[: 100 - reach].any()
    assert not moved[100 + reach + 1 :].any()
    assert heldout.cnn_losses(net, truth, masked).shape == (int(masked.targets.sum()),)
    whole = cnn.Convolutional(cnn.Shape())
    assert abs(sum(p.numel() for p in whole.parameters()) / 2_208_448 - 1) < 0.02


def test_the_network_goes_on_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "a.fa").write_text(">1\n" + "ACGTTGCA" * 200 + "\n")
    manifest = tmp_path / "manifest.tsv"
    manifest.write_text("path\tweight\tname\tholdout\tvalidation\na.fa\t1\tant\t.\t.\n")
    monkeypatch.setattr(cnn, "Shape", partial(cnn.Shape, blocks=2, width=8, inner=8))
    base = ["cnn", str(manifest), "--window", "64", "--batch-size", "2", "--accumulate", "1", "--warmup", "1", "-t",
            "1"]  # fmt: skip
    for name, runs in (("whole", [["--steps", "4"]]), ("again", [["--steps", "4"], ["--steps", "4", "--resume"]])):
        for run in runs:
            monkeypatch.setattr(sys, "argv", [*base, "-o", str(tmp_path / name), *run])
            cnn.main()
    one, two = (cnn.load(tmp_path / name).state_dict() for name in ("whole", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)
