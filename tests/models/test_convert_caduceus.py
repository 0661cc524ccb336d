"""Published Caduceus weights compute in our model what their own definition computes."""

import json

import numpy as np
import pytest
import torch
from caduceus_reference import COMPLEMENT, Network, mamba, published_settings, published_state

from lrgenome.config import CaduceusConfig
from lrgenome.engine.sweep import hidden_states
from lrgenome.errors import ModelError, UsageError
from lrgenome.models.caduceus import Caduceus, build
from lrgenome.models.checkpoint import load_model, save_model
from lrgenome.models.convert_caduceus import convert

PUBLISHED = {
    "caduceus-ph_seqlen-1k_d_model-118_n_layer-4_lr-8e-3": (118, 4, False, 470_702),
    "caduceus-ps_seqlen-1k_d_model-118_n_layer-4_lr-8e-3": (118, 4, True, 470_702),
    "caduceus-ph_seqlen-1k_d_model-256_n_layer-4_lr-8e-3": (256, 4, False, 1_934_592),
    "caduceus-ps_seqlen-1k_d_model-256_n_layer-4_lr-8e-3": (256, 4, True, 1_934_592),
    "caduceus-ph_seqlen-131k_d_model-256_n_layer-16": (256, 16, False, 7_725_312),
    "caduceus-ps_seqlen-131k_d_model-256_n_layer-16": (256, 16, True, 7_725_312),
}
"""Width, blocks, strands side by side, and weights, tied ones counted once."""

SMALL_SSM = {"d_state": 3, "d_conv": 4, "expand": 2, "dt_rank": "auto", "conv_bias": True, "bias": False}
LAYER = "caduceus.backbone.layers.1."


def small(layers=2, *, rcps=True, fused=True, **more):
    return published_settings(20, layers, rcps=rcps, fused=fused, **{"ssm_cfg": SMALL_SSM, **more})


def model_of(state, settings):
    config, weights = convert(state, settings)
    model = build(config, seed=0).double().set_compute_dtype(torch.float64)
    model.load_state_dict(weights, strict=True)
    return model


def some_ids(*, batch=2, length=13):
    """Bases, N, and the tokens for masked and unknown."""
    return np.random.default_rng(3).choice([3, 6, 7, 8, 9, 10, 11], (batch, length))


def assert_same_function(state, settings):
    ids, expected = some_ids(), Network(state, settings).run(some_ids())
    model = model_of(state, settings)
    with torch.no_grad():
        hidden = hidden_states(model, torch.from_numpy(ids))
        logits = model.logits(hidden).numpy()
    wanted = expected.hidden.copy()
    if settings["rcps"]:
        # Our second strand has its channels in the order of the first's.
        wanted[..., 20:] = wanted[..., 20:][..., ::-1]
    assert abs(wanted).max() > 1 and abs(expected.logits).max() > 1
    np.testing.assert_allclose(hidden.numpy(), wanted, rtol=0, atol=1e-9)
    np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("rcps", "fused", "layers"),
    [(False, True, 3), (False, False, 2), *((True, fused, n) for fused in (True, False) for n in (1, 2, 3, 4))],
)
def test_converted_weights_compute_the_published_function(rcps, fused, layers):
    settings = small(layers, rcps=rcps, fused=fused)
    state = published_state(settings, layers)
    assert_same_function(state, settings)
    assert convert(state, settings)[0].crossed_end == (rcps and fused and layers % 2 == 1)


@pytest.mark.parametrize("rcps", [False, True])
def test_a_head_that_is_not_the_embedding(rcps):
    settings = small(3, rcps=rcps)
    state = published_state(settings, 5)
    state["lm_head.lm_head.weight" if rcps else "lm_head.weight"] = torch.randn(16, 20).double()
    config, weights = convert(state, settings)
    assert not config.tied and weights["head"].shape == (16, 20)
    assert_same_function(state, settings)


def test_the_reference_of_mamba_agrees_with_that_of_transformers():
    modeling = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    sizes = {"hidden_size": 20, "state_size": 3, "conv_kernel": 4, "expand": 2, "time_step_rank": "auto"}
    theirs = modeling.MambaMixer(modeling.MambaConfig(**sizes), layer_idx=0)
    start = LAYER + "mixer.mamba_fwd."
    state = {n[len(start) :]: t for n, t in published_state(small(rcps=False), 4).items() if n.startswith(start)}
    theirs.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    x = np.random.default_rng(5).normal(size=(2, 13, 20))
    with torch.no_grad():
        got = theirs(torch.from_numpy(x).float()).numpy()
    expected = mamba(x, {name: tensor.numpy() for name, tensor in state.items()})
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("fused", [True, False])
def test_the_reference_treats_both_strands_alike(fused):
    network = Network(published_state(small(3, fused=fused), 1), small(3, fused=fused))
    ids = some_ids()
    there, back = network.run(ids).logits, network.run(np.array(COMPLEMENT)[ids[:, ::-1]]).logits
    np.testing.assert_allclose(back[:, ::-1][..., COMPLEMENT], there, rtol=0, atol=1e-10)


def test_fused_weights_read_as_others_are_another_network():
    state = published_state(small(), 1)
    renamed = {name.replace("norm.weight", "norm.submodule.weight"): tensor for name, tensor in state.items()}
    renamed["caduceus.backbone.norm_f.submodule.weight"] = renamed.pop("caduceus.backbone.norm_f.weight")
    fused = Network(state, small()).run(some_ids()).logits
    other = Network(renamed, small(fused=False)).run(some_ids()).logits
    assert abs(fused - other).max() > 0.1


@pytest.mark.parametrize("aliases", [False, True])
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_published_model_has_our_names_and_shapes(name, aliases):
    width, layers, rcps, count = PUBLISHED[name]
    settings = published_settings(width, layers, rcps=rcps)
    state = published_state(settings, 0, aliases=aliases, dtype=torch.float32)
    config, weights = convert(state, settings)
    assert config == CaduceusConfig(layers=layers, width=width, equivariant=rcps)
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in Caduceus(config).named_parameters()}
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == expected
    assert sum(tensor.numel() for tensor in weights.values()) == config.parameters == count
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in weights.values())


@pytest.mark.parametrize("rcps", [False, True])
def test_ties_survive_saving_and_loading(tmp_path, rcps):
    settings = published_settings(256, 16, rcps=rcps)
    config, weights = convert(published_state(settings, 0, aliases=True, dtype=torch.float32), settings)
    model = build(config, seed=0)
    model.load_state_dict(weights, strict=True)
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.model.config == config and config.tied
    assert sum(p.numel() for p in loaded.model.parameters()) == loaded.meta["parameters"] == 7_725_312
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_every_tensor_is_used_and_none_is_shared_or_changed():
    settings = small()
    state = published_state(settings, 2)
    before = {name: tensor.clone() for name, tensor in state.items()}
    _, weights = convert(state, settings)
    storages = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    assert len(storages) == len(weights)
    assert not storages & {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    reached = []
    for name in state:
        if name.endswith("complement_map"):
            continue
        _, other = convert({**state, name: state[name] + 1.0}, settings)
        changed = [ours for ours in weights if not torch.equal(weights[ours], other[ours])]
        assert len(changed) == (2 if name.endswith("in_proj.weight") else 1), name
        reached += changed
    assert sorted(reached) == sorted(weights)


def test_half_precision_is_read_as_float32():
    settings = small()
    state = {n: t if t.dtype == torch.int64 else t.bfloat16() for n, t in published_state(settings, 2).items()}
    _, weights = convert(state, settings)
    assert torch.equal(weights["final_norm"], state["caduceus.backbone.norm_f.weight"].float() - 1.0)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def refusal(state, settings) -> str:
    with pytest.raises(ModelError) as caught:
        convert(state, settings)
    assert not isinstance(caught.value, UsageError)
    return str(caught.value)


@pytest.mark.parametrize(("rcps", "fused"), [(False, True), (True, True), (True, False)])
def test_tensors_that_are_missing_or_of_another_shape_are_named(rcps, fused):
    settings = small(rcps=rcps, fused=fused)
    state = published_state(settings, 0)
    for name, tensor in state.items():
        without = {other: t for other, t in state.items() if other != name}
        assert f"tensor {name} is missing" in refusal(without, settings)
        larger = {**state, name: torch.cat([tensor, tensor[:1]])}
        assert f"tensor {name} has shape {tuple(larger[name].shape)}" in refusal(larger, settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotary": torch.zeros(3)}, "tensor rotary is unknown (1 in all)"),
        ({"lm_head.bias": torch.zeros(16)}, "tensor lm_head.bias is unknown (1 in all)"),
        ({LAYER + "mixer.submodule.mamba_fwd.in_proj.bias": torch.zeros(80)}, "in_proj.bias is unknown"),
        ({LAYER + "norm.weight": torch.ones(20, dtype=torch.int64)}, "norm.weight holds torch.int64"),
        ({"lm_head.complement_map": torch.arange(16)}, "tensor lm_head.complement_map: got [0, 1, 2, 3, 4, 5, 6, 7,"),
        ({"lm_head.complement_map": torch.zeros(16)}, "tensor lm_head.complement_map holds torch.float32"),
    ],
)
def test_tensors_that_do_not_belong(change, message):
    assert message in refusal({**published_state(small(), 0), **change}, small())


@pytest.mark.parametrize("name", ["in_proj", "out_proj"])
def test_a_broken_tie_between_the_directions_is_named(name):
    state = published_state(small(), 0, aliases=True)
    broken = f"{LAYER}mixer.submodule.mamba_rev.{name}.weight"
    state[broken] = state[broken].clone()
    state[broken].view(torch.int64)[0, 0] ^= 1
    assert f"tensor {broken} differs from {LAYER}mixer.submodule.mamba_fwd.{name}.weight" in refusal(state, small())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bidirectional": False}, "setting bidirectional: got False, expected True"),
        ({"bidirectional_strategy": "ew_multiply"}, "setting bidirectional_strategy: got 'ew_multiply'"),
        ({"bidirectional_weight_tie": False}, "setting bidirectional_weight_tie: got False"),
        ({"rms_norm": False}, "setting rms_norm: got False"),
        ({"norm_epsilon": 1e-6}, "setting norm_epsilon: got 1e-06, expected 1e-05"),
        ({"model_type": "mamba"}, "setting model_type: got 'mamba'"),
        ({"rcps": "yes"}, "setting rcps: got 'yes'"),
        ({"vocab_size": 8}, "setting vocab_size: got 8 (padded to a multiple of 8), expected 16"),
        ({"pad_vocab_size_multiple": 0}, "setting pad_vocab_size_multiple: got 0"),
        ({"d_model": None}, "setting d_model: got None"),
        ({"n_layer": True}, "setting n_layer: got True"),
        ({"n_layer": 10**12}, "layers.2.norm.weight is missing"),
        ({"d_model": 10**12}, "embedding.weight has shape (16, 20), expected (16, 1000000000000)"),
        ({"complement_map": {"0": 0, "1": 2}}, "setting complement_map: got [0, 2]"),
        ({"complement_map": [0, 1]}, "setting complement_map: got [0, 1]"),
        ({"ssm_cfg": [1]}, "setting ssm_cfg: got [1], expected an object"),
        ({"ssm_cfg": {**SMALL_SSM, "bias": True}}, "setting ssm_cfg bias: got True"),
        ({"ssm_cfg": {**SMALL_SSM, "conv_bias": False}}, "setting ssm_cfg conv_bias: got False"),
        ({"ssm_cfg": {**SMALL_SSM, "headdim": 64}}, "setting ssm_cfg: unknown headdim"),
        ({"ssm_cfg": {**SMALL_SSM, "d_state": 0}}, "state: got 0"),
        ({"ssm_cfg": {**SMALL_SSM, "dt_rank": "half"}}, "dt_rank: got 'half'"),
        ({"ssm_cfg": None}, "x_proj.weight has shape (8, 40), expected (34, 40)"),
    ],
)
def test_settings_that_are_not_supported_are_named(change, message):
    assert message in refusal(published_state(small(), 0), {**small(), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 12},
        {"bidirectional_strategy": None},
        {"complement_map": None},
        {"complement_map": {str(i): c for i, c in enumerate(COMPLEMENT[:12])}},
        # Sorted as text, as JSON that was written again may be.
        {"complement_map": json.loads(json.dumps(small()["complement_map"], sort_keys=True))},
        {"ssm_cfg": {**SMALL_SSM, "dt_rank": 2, "dt_max": 0.2}},
        {"num_labels": 2, "residual_in_fp32": True},
    ],
)
def test_settings_that_mean_the_same(change):
    state = published_state(small(), 0)
    config, weights = convert(state, {**small(), **change})
    usual, expected = convert(state, small())
    assert config.parameters == usual.parameters
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_settings_that_are_left_out_have_their_published_defaults():
    settings = {"d_model": 20, "n_layer": 2, "vocab_size": 12, "rcps": True}
    full = published_settings(20, 2, rcps=True)
    state = published_state(full, 0)
    assert convert(state, settings)[0] == convert(state, full)[0]
