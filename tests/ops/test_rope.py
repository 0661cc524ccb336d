"""Rotary positions and their extensions against `transformers`."""

import math

import pytest
import torch
from helpers import assert_close

from lrgenome.errors import UsageError
from lrgenome.ops.rope import EXTENSIONS, frequencies, group_size, neighbours, places, rotate

CPU = torch.device("cpu")
THEIRS = {"pi": "linear", "ntk": "dynamic", "yarn": "yarn"}


def published(extension, width, trained, length):
    """Turns a position and factor, as `transformers` computes them."""
    transformers = pytest.importorskip("transformers")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    # Dynamic NTK takes the length as it is: its own factor is 1.
    factor = 1.0 if extension == "ntk" else length / trained
    config = transformers.LlamaConfig(
        hidden_size=2 * width, num_attention_heads=2, max_position_embeddings=trained,
        rope_parameters={
            "rope_type": THEIRS[extension], "rope_theta": 10_000.0, "factor": factor,
            "original_max_position_embeddings": trained,
        },
    )  # fmt: skip
    return rope_utils.ROPE_INIT_FUNCTIONS[THEIRS[extension]](config, CPU, seq_len=length)


@pytest.mark.parametrize("extension", sorted(THEIRS))
@pytest.mark.parametrize("width", [8, 32, 48, 64])
@pytest.mark.parametrize(("trained", "length"), [(2048, 2500), (2048, 20_001), (512, 4096)])
@pytest.mark.filterwarnings("ignore")
def test_frequencies_are_those_of_transformers(extension, width, trained, length):
    turns, factor = frequencies(width, extension, length, trained)
    expected, expected_factor = published(extension, width, trained, length)
    assert turns.dtype == torch.float64 and turns.shape == (width // 2,)
    assert torch.allclose(turns, expected.double(), rtol=2e-6, atol=0.0)
    assert factor == pytest.approx(expected_factor, rel=1e-12)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("length", [1, 100, 2048])
def test_nothing_changes_up_to_the_trained_length(extension, length):
    turns, factor = frequencies(16, extension, length, 2048)
    assert torch.allclose(turns, 10_000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16), rtol=1e-15)
    assert factor == 1.0
    assert place([length], extension).groups is None


def place(lengths, extension="none", width=16, trained=2048):
    return places(
        lengths, max(lengths), width=width, trained=trained, extension=extension, device=CPU, dtype=torch.float64
    )


def test_a_head_of_two_channels_has_no_pole():
    assert frequencies(2, "ntk", 100, 10)[0].tolist() == [1.0]


def test_rotation_is_multiplication_by_a_complex_number():
    x = torch.randn(2, 3, 50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, place([50], width=8).exact)
    turns = frequencies(8, "none", 50, 2048)[0]
    angle = torch.outer(torch.arange(50, dtype=torch.float64), turns)
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angle), angle)
    assert_close(turned, torch.cat((expected.real, expected.imag), -1), 1e-14)
    assert rotate(x.bfloat16(), place([50], width=8).exact).dtype == torch.bfloat16


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_row_is_placed_by_its_own_length(extension):
    """What else is in the batch makes no difference."""
    lengths = [70, 30, 100]
    batch = place(lengths, extension, trained=40)
    assert torch.equal(batch.mask[:, 0, 0].sum(1), torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = place([length], extension, trained=40)
        assert alone.mask is None
        pairs = [(batch.exact, alone.exact)]
        if alone.groups is not None:
            pairs += [(getattr(batch.groups, k), getattr(alone.groups, k)) for k in ("keys", "left", "right")]
        for ours, theirs in pairs:
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a[row, :, :length], b[0])


@pytest.mark.parametrize("trained", [1, 5, 512, 2048])
@pytest.mark.parametrize("times", [1.001, 1.5, 2, 10, 83.3])
def test_groups_are_as_small_as_distances_allow(trained, times):
    length = math.ceil(trained * times)
    near = neighbours(trained)

    def longest(size):
        return (length - 1) // size + near - near // size

    size = group_size(length, trained)
    assert longest(size) < trained
    assert all(longest(smaller) >= trained for smaller in range(1, size))
    assert group_size(trained, trained) == 1


def test_an_unknown_extension():
    with pytest.raises(UsageError, match="--length-extension: got 'alibi', expected one of none, plain, pi, ntk, yarn"):
        place([10], "alibi")
