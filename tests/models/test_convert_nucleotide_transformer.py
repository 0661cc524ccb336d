"""Published checkpoints: every tensor is used once, anything else is said, and the numbers are the published ones."""

import pytest
import torch
from nucleotide_transformer_published import (
    SIZES,
    make_settings,
    published_network,
    published_settings,
    published_shapes,
    random_tensors,
)

from lrgenome.config import PRESETS
from lrgenome.errors import ModelError
from lrgenome.models.convert_nucleotide_transformer import convert
from lrgenome.models.nucleotide_transformer import NucleotideTransformer, published_parameters

SMALL = make_settings(layers=2, width=24, heads=3, mlp_width=20)
COUNTS = {"50m": 55_904_972, "100m": 97_889_132}
NEVER_READ = ("position_embeddings", "contact_head", "inv_freq")


def loaded(config, tensors):
    model = NucleotideTransformer(config)
    model.load_state_dict(tensors)
    return model


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_convert_tensor_by_tensor(size):
    settings = published_settings(size)
    shapes = published_shapes(settings)
    with torch.device("meta"):
        config, tensors = convert({name: torch.empty(shape) for name, shape in shapes.items()}, settings)
        model = NucleotideTransformer(config)
    assert {n: t.shape for n, t in tensors.items()} == {n: p.shape for n, p in model.named_parameters()}
    read = sum(torch.Size(s).numel() for n, s in shapes.items() if not any(part in n for part in NEVER_READ))
    assert config.parameters == sum(t.numel() for t in tensors.values()) == read
    held = sum(torch.Size(s).numel() for n, s in shapes.items() if "inv_freq" not in n)
    assert published_parameters(config) == held == COUNTS.get(size, held)
    assert config.max_tokens == 2048 and config.norm_eps == 1e-12 and not config.tied and config.kmers
    if size == "50m":
        # As in safetensors' metadata of the published file: parameters and rotary buffers.
        assert sum(torch.Size(s).numel() for s in shapes.values()) == 55_905_164
        assert published_parameters(PRESETS["nt-v2-50m"]) == 55_904_972


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_converted_model_computes_what_the_published_one_does(dtype):
    tensors = random_tensors(SMALL)
    model = loaded(*convert(tensors, SMALL)).for_inference(dtype)
    tokens = [3, 100, 2, 4101, 6, 4106, 77, 4102, 2500, 2500, 9]
    hidden, logits = published_network(tensors, SMALL, tokens)
    with torch.no_grad():
        states = model.encode(torch.tensor([tokens]))
        got = model.head(states)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert torch.allclose(states[0].double(), torch.from_numpy(hidden), atol=tolerance, rtol=tolerance)
    assert torch.allclose(got[0].double(), torch.from_numpy(logits), atol=10 * tolerance, rtol=tolerance)


def test_half_precision_checkpoints_become_float32():
    tensors = {name: tensor.bfloat16() for name, tensor in random_tensors(SMALL).items()}
    _, ours = convert(tensors, SMALL)
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())
    assert torch.equal(ours["embedding"], tensors["esm.embeddings.word_embeddings.weight"].float())


def test_every_value_lands_somewhere_once():
    tensors = random_tensors(SMALL)
    _, ours = convert(tensors, SMALL)
    used = [tensors[name].flatten() for name in tensors if not any(part in name for part in NEVER_READ)]
    assert torch.equal(torch.cat(used).sort()[0], torch.cat([t.flatten() for t in ours.values()]).sort()[0])


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("said", [True, None])
def test_tied_heads(given, said):
    """Tied by the settings, or where they do not say, because there is no matrix."""
    tensors, settings = random_tensors(SMALL), dict(SMALL)
    decoder = tensors.pop("lm_head.decoder.weight")
    if said is None:
        del settings["tie_word_embeddings"]
    else:
        settings["tie_word_embeddings"] = True
    if given:
        tensors["lm_head.decoder.weight"] = tensors["esm.embeddings.word_embeddings.weight"].clone()
        tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()
    config, ours = convert(tensors, settings)
    assert config.tied == (said is True or not given)
    model = loaded(config, ours).for_inference(torch.float64)
    states = torch.randn(5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    untied = dict(tensors, **{"lm_head.decoder.weight": tensors["esm.embeddings.word_embeddings.weight"]})
    reference = loaded(*convert(untied, SMALL)).for_inference(torch.float64)
    assert torch.equal(model.head(states), reference.head(states))
    if given and said:
        with pytest.raises(ModelError, match=r"lm_head\.decoder\.weight differs from esm\.embeddings\.word_embeddings"):
            convert(dict(tensors, **{"lm_head.decoder.weight": decoder}), settings)
        with pytest.raises(ModelError, match=r"lm_head\.decoder\.bias differs from lm_head\.bias"):
            convert(dict(tensors, **{"lm_head.decoder.bias": decoder[:, 0]}), settings)


@pytest.mark.parametrize("name", sorted(published_shapes(SMALL)))
def test_wrong_shapes_and_missing_tensors_are_named(name):
    tensors = random_tensors(SMALL)
    wrong = dict(tensors, **{name: torch.cat([tensors[name]] * 2)})
    with pytest.raises(ModelError, match=f"tensor {name} has shape "):
        convert(wrong, SMALL)
    del tensors[name]
    if any(part in name for part in NEVER_READ):
        convert(tensors, SMALL)
    else:
        with pytest.raises(ModelError, match=f"tensor {name} is missing \\(1 in all\\)"):
            convert(tensors, SMALL)


@pytest.mark.parametrize(
    "name", ["esm.encoder.layer.2.LayerNorm.weight", "esm.encoder.layer.0.output.dense.bias", "esm.pooler.dense.weight"]
)
def test_unknown_tensors_are_named(name):
    with pytest.raises(ModelError, match=f"tensor {name} is unknown"):
        convert(dict(random_tensors(SMALL), **{name: torch.zeros(24)}), SMALL)


def test_whole_numbers_are_no_weights():
    tensors = random_tensors(SMALL)
    tensors["lm_head.bias"] = tensors["lm_head.bias"].to(torch.int8)
    with pytest.raises(ModelError, match=r"lm_head\.bias has type torch\.int8"):
        convert(tensors, SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "absolute"}, "position_embedding_type: got 'absolute', expected 'rotary'"),
        ({"token_dropout": True}, "token_dropout: got True, expected False"),
        ({"add_bias_fnn": True}, "add_bias_fnn: got True, expected False"),
        ({"rope_theta": 500.0}, r"rope_theta: got 500\.0, expected 10000\.0"),
        ({"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}, r"rope_parameters: got .*500\.0"),
        ({"rope_scaling": {"factor": 2.0}}, r"rope_scaling: got .*2\.0.*, expected None"),
        ({"position_embedding_type": None}, "position_embedding_type: got None, expected 'rotary'"),
        ({"tie_word_embeddings": "no"}, "tied: got 'no', expected true or false"),
        ({"mask_token_id": 4}, "mask_token_id: got 4, expected 2"),
        ({"hidden_size": 25}, "heads: got 3, expected a divisor of width 25"),
        ({"num_hidden_layers": "2"}, "layers: got '2', expected a positive whole number"),
        ({"num_hidden_layers": 10**9}, "too few for 1000000000 layers"),
        ({"layer_norm_eps": 0}, "norm_eps: got 0, expected a number above 0"),
        ({"max_position_embeddings": None}, "max_position_embeddings: got None, expected at least 3"),
    ],
)
def test_settings_of_other_models_are_named(change, message):
    with pytest.raises(ModelError, match=message):
        convert(random_tensors(SMALL), SMALL | change)


def test_settings_that_say_the_same_otherwise_are_taken():
    other = {"emb_layer_norm_before": None, "rope_parameters": {"rope_theta": 10_000, "rope_type": "default"}}
    assert convert(random_tensors(SMALL), SMALL | other)[0] == convert(random_tensors(SMALL), SMALL)[0]


def test_missing_settings_are_named():
    with pytest.raises(ModelError, match=r"settings: hidden_size is missing \(1 in all\)"):
        convert(random_tensors(SMALL), {name: value for name, value in SMALL.items() if name != "hidden_size"})
