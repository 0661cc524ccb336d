"""Checkpoints: bit-exact round trips, and folders that are damaged or lie."""

import json
import pickle
import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrgenome.config import HawkConfig
from lrgenome.errors import ModelError, OutputError, UsageError
from lrgenome.models import checkpoint
from lrgenome.models.checkpoint import CONFIG_NAME, WEIGHTS_NAME, fingerprint, load_model, save_model
from lrgenome.models.hawk import build

TINY = HawkConfig(layers=2, width=8, recurrent_width=12, heads=3, mlp_width=16, half_life_max=1000.0)


def model(seed=0):
    made = build(TINY, seed=seed)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.linspace(-0.1, 0.1, p.numel()).view(p.shape))
    return made


@pytest.fixture
def folder(tmp_path):
    save_model(model(), tmp_path / "model", {"training": {"steps": 3}})
    return tmp_path / "model"


def edit_settings(folder, **change):
    """Change the ``model`` object of the settings."""
    path = folder / CONFIG_NAME
    settings = json.loads(path.read_text())
    settings["model"].update(change)
    path.write_text(json.dumps(settings))


def edit_weights(folder, change):
    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)


def refusal(folder) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value) and not isinstance(caught.value, UsageError)
    return str(caught.value)


def test_round_trip_is_bit_exact(folder):
    loaded = load_model(folder)
    original = dict(model().named_parameters())
    assert loaded.model.config == TINY
    assert {n for n, _ in loaded.model.named_parameters()} == set(original)
    for name, tensor in loaded.model.named_parameters():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor.view(torch.int32), original[name].view(torch.int32)), name
    assert loaded.name == "model"
    assert loaded.meta["training"] == {"steps": 3}
    assert loaded.meta["parameters"] == TINY.parameters
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


def test_saving_again_gives_the_same_bytes(folder, tmp_path):
    loaded = load_model(folder)
    again = save_model(loaded.model, tmp_path / "again", {"training": {"steps": 3}})
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert again == loaded.sha256 == fingerprint(folder)


def test_sha256_tells_weights_and_settings_apart_but_not_notes(folder, tmp_path):
    sha = fingerprint(folder)
    assert len(sha) == 64 and sha == fingerprint(folder)
    assert save_model(model(), tmp_path / "noted", {"training": "elsewhere"}) == sha
    one_bit = model()
    with torch.no_grad():
        one_bit.final_norm.view(torch.int32)[0] ^= 1
    assert save_model(one_bit, tmp_path / "bit") != sha
    edit_settings(folder, half_life_max=2000.0)
    assert fingerprint(folder) != sha


def test_loading_leaves_the_global_generator_alone(folder):
    before = torch.random.get_rng_state()
    load_model(folder)
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_existing_folder_is_replaced(folder):
    sha = fingerprint(folder)
    assert save_model(model(seed=1), folder) != sha
    assert load_model(folder).sha256 == fingerprint(folder) != sha


def test_weights_that_cannot_be_written(tmp_path):
    (tmp_path / "m" / (WEIGHTS_NAME + ".partial")).mkdir(parents=True)
    with pytest.raises(OutputError, match=r"model\.safetensors\.partial"):
        save_model(model(), tmp_path / "m")
    assert not (tmp_path / "m" / WEIGHTS_NAME).exists()


def test_a_folder_that_is_not_there(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert name in refusal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("blocks.1.directions.0.a_param"),
            "blocks.1.directions.0.a_param is missing (1 in all)",
        ),
        (lambda t: t.update(rotary=torch.zeros(3)), "tensor rotary is unknown (1 in all)"),
        (lambda t: t.update(final_norm=torch.zeros(9)), "tensor final_norm has shape (9,), expected (8,)"),
        (
            lambda t: t.update(embedding=torch.zeros(8, 16)),
            "tensor embedding has shape (8, 16), expected (16, 8)",
        ),
        (lambda t: t["embedding"][3].fill_(torch.nan), "tensor embedding holds values that are not finite"),
        (
            lambda t: t["blocks.0.out_bias"][0].fill_(torch.inf),
            "tensor blocks.0.out_bias holds values that are not",
        ),
        (
            lambda t: t.update(final_norm=torch.zeros(8, dtype=torch.int64)),
            "tensor final_norm holds values that",
        ),
    ],
)
def test_wrong_tensors_are_named(folder, change, message):
    edit_weights(folder, change)
    text = refusal(folder)
    assert message in text and WEIGHTS_NAME in text


def test_opposite_infinities_are_not_finite(folder):
    edit_weights(folder, lambda t: t["final_norm"][:2].copy_(torch.tensor([torch.inf, -torch.inf])))
    assert "final_norm" in refusal(folder)


def test_bfloat16_weights_are_read_as_float32(folder):
    edit_weights(folder, lambda t: t.update({n: x.bfloat16() for n, x in t.items()}))
    loaded = load_model(folder).model
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert torch.equal(loaded.embedding, model().embedding.bfloat16().float())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"n": ' + "9" * 5000 + "}", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"format": "other", "model": {}}', "expected a JSON object"),
        ('{"format": "lrgenome-model", "format_version": 1}', "expected a JSON object"),
        (
            '{"format": "lrgenome-model", "format_version": 2, "model": {}}',
            "got format_version 2, expected 1",
        ),
        ('{"format": "lrgenome-model", "model": {}}', "got format_version None"),
        ('{"format": "lrgenome-model", "format_version": 1, "model": 3}', "got int, expected an object"),
        ('{"format": "lrgenome-model", "format_version": 1, "model": {}}', "missing heads"),
    ],
)
def test_settings_that_are_damaged(folder, text, message):
    (folder / CONFIG_NAME).write_text(text)
    found = refusal(folder)
    assert message in found and CONFIG_NAME in found


def test_settings_that_are_not_text(folder):
    (folder / CONFIG_NAME).write_bytes(b"\xff\xfe\x00{}")
    assert "not JSON" in refusal(folder)


def test_huge_settings_are_not_read(folder, monkeypatch):
    with open(folder / CONFIG_NAME, "r+b") as handle:
        handle.truncate(40 << 30)  # a hole, not 40 GiB of disk
    assert "at most 1 MiB" in refusal(folder)


def test_unknown_model_setting(folder):
    edit_settings(folder, depth=4)
    assert "unknown depth" in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 10**9},
        {"width": 10**7},
        {"recurrent_width": 3 * 10**12},
        {"mlp_width": 10**300},
        {"vocab": 10**18},
        {"conv_width": 10**18},
        {"layers": 10**6, "width": 1, "recurrent_width": 1, "heads": 1, "mlp_width": 1},
        {"heads": 12, "recurrent_width": 12 * 10**6},
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_made(folder, monkeypatch, change):
    def never(config):
        raise AssertionError("a model was made")

    monkeypatch.setattr(checkpoint, "build", never)
    edit_settings(folder, **change)
    assert "too few for the settings beside it" in refusal(folder)


def test_a_deep_stack_with_a_padded_file_is_refused_before_it_is_made(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "build", lambda config, seed=None: pytest.fail("a model was made"))
    edit_settings(folder, layers=100_000, width=1, recurrent_width=1, heads=1, mlp_width=1)
    edit_weights(folder, lambda t: t.update(padding=torch.zeros(5_000_000)))
    assert "tensors, too few for the settings beside it" in refusal(folder)


@pytest.mark.parametrize(
    "change", [{"layers": 0}, {"width": -8}, {"width": 8.0}, {"heads": 5}, {"half_life_max": "x"}]
)
def test_impossible_settings(folder, change):
    edit_settings(folder, **change)
    assert next(iter(change)).replace("_", "-") in refusal(folder).replace("_", "-")


def test_settings_of_a_larger_model_than_the_weights(folder):
    edit_settings(folder, layers=3)
    assert WEIGHTS_NAME in refusal(folder)
    edit_settings(folder, layers=1)
    assert "blocks.1." in refusal(folder)


class Bomb:
    def __reduce__(self):
        return exec, ("raise AssertionError('unpickled')",)


@pytest.mark.parametrize("padding", [0, 1 << 20])
def test_a_renamed_pickle_is_not_run(folder, padding):
    (folder / WEIGHTS_NAME).write_bytes(pickle.dumps(Bomb()) + bytes(padding))
    assert WEIGHTS_NAME in refusal(folder)
    torch.save({"model": torch.zeros(padding // 4 + 1)}, folder / WEIGHTS_NAME)
    assert WEIGHTS_NAME in refusal(folder)


def test_truncated_weights_are_refused_at_every_length(folder):
    whole = (folder / WEIGHTS_NAME).read_bytes()
    for size in (0, 1, 7, 8, 100, len(whole) // 4, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS_NAME).write_bytes(whole[:size])
        assert WEIGHTS_NAME in refusal(folder)


def test_a_header_that_claims_terabytes(folder):
    header = json.dumps(
        {"embedding": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    ).encode()
    (folder / WEIGHTS_NAME).write_bytes(len(header).to_bytes(8, "little") + header + bytes(1 << 16))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "not safetensors" in refusal(folder)
    (folder / WEIGHTS_NAME).write_bytes((1 << 60).to_bytes(8, "little") + bytes(1 << 16))
    assert "not safetensors" in refusal(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_weights_that_may_not_be_read(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "safe_open", refuse)
    assert "Permission denied" in refusal(folder)


def test_loading_does_not_import_the_compiler():
    """Which takes longer than all else of a start, and every job of a pipeline starts."""
    code = "import sys\nfrom lrgenome.models.checkpoint import load_model\nload_model()\n"
    code += "print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
