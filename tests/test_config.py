"""Settings of models: the presets' sizes by arithmetic, and settings that make no sense."""

import dataclasses
import json

import pytest

from lrgenome.config import PRESETS, CaduceusConfig, HawkConfig, NucleotideTransformerConfig, config_from_json, preset
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


def test_caduceus_has_its_published_sizes():
    def by_hand(d: int, layers: int, n: int = 16) -> int:
        e, r = 2 * d, -(-d // 16)
        one_direction = 4 * e + e + e * (r + 2 * n) + (r * e + e) + e * n + e
        return 16 * d + layers * (d + d * 2 * e + e * d + 2 * one_direction) + d

    for name, expected in (("caduceus-7.7m", 7_725_312), ("caduceus-50m", 50_480_000)):
        config = preset(name)
        assert by_hand(config.width, config.layers) == config.parameters == expected
        assert preset(name + "-ps").parameters == expected and preset(name + "-ps").equivariant


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width: got 0"),
        ({"equivariant": 1}, "equivariant: got 1, expected true or false"),
        ({"crossed_end": True}, "crossed_end: got true"),
        ({"dt_rank": -1}, "dt_rank: got -1"),
        ({"dt_min": 0.0}, "dt_min, dt_max: got (0.0, 0.1)"),
        ({"dt_min": 0.2}, "dt_min, dt_max: got (0.2, 0.1)"),
        ({"dt_max": float("nan")}, "dt_min, dt_max"),
        ({"conv_width": 1}, "conv_width: got 1"),
        ({"vocab": 12}, "vocab: got 12"),
        ({"family": "hawk"}, "family: got 'hawk', expected 'caduceus'"),
    ],
)
def test_impossible_settings_of_a_caduceus(change, message):
    with pytest.raises(UsageError) as caught:
        CaduceusConfig(**{"layers": 2, "width": 8, **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads: got 3, expected a divisor of width 8"),
        ({"heads": 8}, "heads: got 8, expected a divisor of width 8 that leaves heads of an even width"),
        ({"vocab": 4106}, "vocab: got 4106, expected at least 4107"),
        ({"kmers": "yes"}, "kmers: got 'yes'"),
        ({"max_tokens": 0}, "max_tokens: got 0"),
    ],
)
def test_impossible_settings_of_a_nucleotide_transformer(change, message):
    with pytest.raises(UsageError) as caught:
        NucleotideTransformerConfig(**{"layers": 1, "width": 8, "heads": 2, "mlp_width": 16, **change})
    assert message in str(caught.value)


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
        ({"half_life_max": 173, "half_life_share": 0.5}, "--half-life-max: got 173, expected more than 173.2 bp"),
        ({"half_life_share": 0.5}, "--half-life-share: got 0.5, expected --half-life-max with it"),
        ({"half_life_max": 9e3, "half_life_share": 0.08}, "--half-life-share: got 0.08, expected at least one of 12 "),
        *(
            ({"half_life_max": 9e3, "half_life_share": share}, f"--half-life-share: got {share!r}, expected")
            for share in (0, -0.1, 1.01, float("nan"), "1", True, None)
        ),
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
        ({**TINY, "family": "mamba"}, "family: got 'mamba', expected one of hawk, caduceus, nucleotide-transformer"),
        ({**TINY, "family": ["hawk"]}, "family: got ['hawk']"),
        ({"family": "caduceus", "layers": 2}, "missing width"),
        ({**TINY, "width": "8"}, "width: got '8'"),
    ],
)
def test_decoded_json_is_checked(values, message):
    with pytest.raises(UsageError) as caught:
        config_from_json(values)
    assert message in str(caught.value)
