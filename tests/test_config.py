"""Settings of models: the presets' sizes by arithmetic, and settings that make no sense."""

import dataclasses
import json

import pytest

from lrgenome.config import PRESETS, HawkConfig, config_from_json, preset
from lrgenome.errors import UsageError

TINY = {"layers": 2, "width": 8, "recurrent_width": 12, "heads": 3, "mlp_width": 16}


def count_by_hand(c: HawkConfig) -> int:
    d, e, f, w = c.width, c.recurrent_width, c.mlp_width, c.recurrent_width // c.heads
    convolution = 4 * e + e
    gates = 2 * (c.heads * w * w + e)
    one_direction = convolution + gates + e  # Lambda
    mixer = d + 2 * (d * e + e) + 2 * one_direction + (e * d + d)
    mlp = d + 2 * (d * f + f) + (f * d + d)
    return 16 * d + c.layers * (mixer + mlp) + d


def test_the_papers_hawk_has_its_size():
    config = preset("hawk-50m")
    assert (config.layers, config.width, config.recurrent_width, config.heads, config.mlp_width) == (
        12,
        576,
        768,
        6,
        1728,
    )
    assert config.half_life_max is None
    assert count_by_hand(config) == config.parameters == 56_720_448


def test_the_default_model_is_small():
    config = preset("hawk-mini")
    assert count_by_hand(config) == config.parameters
    assert 2_000_000 < config.parameters < 4_000_000
    assert config.half_life_max == 12_000


def test_unknown_preset_lists_the_known():
    with pytest.raises(UsageError, match=r"--preset: got 'hawk', expected one of hawk-50m, hawk-mini"):
        preset("hawk")


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("hawk-mini").layers = 1


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_settings_survive_json(name):
    config = PRESETS[name]
    assert config_from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    "name", ["layers", "width", "recurrent_width", "heads", "mlp_width", "conv_width", "vocab"]
)
@pytest.mark.parametrize("value", [0, -1, 1.0, "4", None, True, [4]])
def test_sizes_are_positive_whole_numbers(name, value):
    with pytest.raises(UsageError, match=rf"model setting {name}: got .*, expected a positive whole number"):
        HawkConfig(**{**TINY, name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads: got 5, expected a divisor of recurrent_width 12"),
        ({"conv_width": 1}, "conv_width: got 1, expected at least 2"),
        ({"vocab": 15}, "vocab: got 15, expected at least 16"),
        ({"family": "mamba"}, "family: got 'mamba', expected 'hawk'"),
        ({"half_life_max": 2.0}, "--half-life-max: got 2.0"),
        ({"half_life_max": -1}, "--half-life-max: got -1"),
        ({"half_life_max": float("nan")}, "--half-life-max: got nan"),
        ({"half_life_max": float("inf")}, "--half-life-max: got inf"),
        ({"half_life_max": "12kbp"}, "--half-life-max: got '12kbp'"),
        ({"half_life_max": 10**400}, "--half-life-max: got 1000"),
    ],
)
def test_impossible_settings(change, message):
    with pytest.raises(UsageError) as caught:
        HawkConfig(**{**TINY, **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "got NoneType, expected an object"),
        ([TINY], "got list, expected an object"),
        ({**TINY, "depth": 3, "breadth": 1}, "unknown breadth, depth"),
        ({"layers": 2, "width": 8}, "missing heads, mlp_width, recurrent_width"),
        ({**TINY, "width": "8"}, "width: got '8'"),
    ],
)
def test_decoded_json_is_checked(values, message):
    with pytest.raises(UsageError) as caught:
        config_from_json(values)
    assert message in str(caught.value)
