"""Snapshots of published models: every layout of weights, and folders that are damaged, lie or bring code."""

import json
import pickle
import resource
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from caduceus_reference import Network, published_settings, published_state
from safetensors.torch import save_file

from lrgenome.config import CaduceusConfig
from lrgenome.engine.sweep import hidden_states
from lrgenome.errors import ModelError, UsageError
from lrgenome.models.checkpoint import load_model
from lrgenome.models.convert_caduceus import convert
from lrgenome.models.published import fingerprint, is_published, load_published, read_snapshot

SETTINGS = published_settings(8, 2, rcps=True)
FORMATS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.pt")


def state():
    return published_state(SETTINGS, 0, dtype=torch.float32)


def write_weights(folder, tensors, layout):
    if layout == "model.safetensors":
        save_file(tensors, folder / layout)
    elif layout == "model.safetensors.index.json":
        files = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
        for file in set(files.values()):
            save_file({name: tensors[name] for name in files if files[name] == file}, folder / file)
        (folder / layout).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    else:
        torch.save(tensors, folder / layout)


@pytest.fixture
def folder(tmp_path):
    """Settings and no weights yet."""
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "config.json").write_text(json.dumps(SETTINGS))
    return tmp_path / "snapshot"


def refusal(folder) -> str:
    with pytest.raises(ModelError) as caught:
        load_published(folder)
    assert str(folder) in str(caught.value) and not isinstance(caught.value, UsageError)
    return str(caught.value)


def assert_is_the_model(folder):
    expected_config, expected = convert(state(), SETTINGS)
    config, weights, meta = load_published(folder)
    assert is_published(folder)
    assert config == expected_config == CaduceusConfig(layers=2, width=8, equivariant=True)
    assert set(weights) == set(expected)
    assert all(weights[n].dtype == torch.float32 and torch.equal(weights[n], expected[n]) for n in expected)
    assert meta == {"published": SETTINGS}


@pytest.mark.parametrize("layout", FORMATS)
def test_every_layout_of_weights_is_the_same_model(folder, layout):
    write_weights(folder, state(), layout)
    assert_is_the_model(folder)


def test_a_pickle_with_every_name_of_tied_weights(folder):
    write_weights(folder, published_state(SETTINGS, 0, aliases=True, dtype=torch.float32), "pytorch_model.bin")
    assert_is_the_model(folder)


def test_safetensors_are_chosen_where_there_is_a_pickle_too(folder):
    write_weights(folder, state(), "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    assert_is_the_model(folder)


@pytest.mark.parametrize("layout", FORMATS)
def test_links_of_a_download_cache_are_followed(folder, tmp_path, layout):
    write_weights(folder, state(), layout)
    snapshot, blobs = tmp_path / "snapshots" / "2de36509", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / f"{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert_is_the_model(snapshot)


def test_files_stay_as_they_are_when_the_weights_are_changed(folder):
    for layout in FORMATS:
        write_weights(folder, state(), layout)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        for tensor in load_published(folder)[1].values():
            tensor.zero_()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_code_of_a_snapshot_is_not_run(folder, monkeypatch):
    marker = folder / "ran"
    for name in ("modeling_caduceus.py", "configuration_caduceus.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')\n")
    write_weights(folder, state(), "model.safetensors")
    monkeypatch.chdir(folder)
    assert_is_the_model(folder)
    assert not marker.exists()


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("layout", ["pytorch_model.bin", "pytorch_model.pt"])
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {**state(), "bomb": bomb}])
def test_a_pickle_that_brings_code_is_refused_and_not_run(folder, wrap, layout):
    marker = folder / "ran"
    torch.save(wrap(Bomb(marker)), folder / layout)
    assert "refused" in refusal(folder) and layout in refusal(folder)
    assert not marker.exists()
    (folder / layout).write_bytes(pickle.dumps(wrap(Bomb(marker))))
    assert layout in refusal(folder)
    torch.save(wrap(Bomb(marker)), folder / layout, _use_new_zipfile_serialization=False)
    assert layout in refusal(folder)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker))).close()
    assert marker.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3), "got Tensor, expected tensors by name"),
        ([state()], "got list, expected tensors by name"),
        ({"state_dict": state()}, "at 'state_dict', expected a tensor"),
        ({1: torch.zeros(3)}, "at 1, expected a tensor"),
        ({"wide": torch.zeros(1).expand(1 << 40)}, "tensor wide is not in the file as a plain array"),
        ({"sparse": torch.eye(3).to_sparse()}, "more than plain tensors (torch._utils _rebuild_sparse_tensor)"),
        ({"meta": torch.zeros(3, device="meta")}, "(torch._utils _rebuild_meta_tensor_no_storage)"),
    ],
)
def test_pickles_of_something_else(folder, value, message):
    torch.save(value, folder / "pytorch_model.bin")
    assert message in refusal(folder)


def test_pickles_of_old_are_not_mapped(folder):
    torch.save(state(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert "not what torch.save writes since PyTorch 1.6" in refusal(folder)


@pytest.mark.parametrize("layout", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_weights_are_refused_at_every_length(folder, layout):
    write_weights(folder, state(), layout)
    whole = (folder / layout).read_bytes()
    for size in (0, 1, 7, 8, 100, len(whole) // 4, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        (folder / layout).write_bytes(whole[:size])
        assert layout in refusal(folder)


@pytest.mark.parametrize("layout", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights_are_errors_of_ours_or_other_numbers(folder, layout):
    write_weights(folder, state(), layout)
    whole = (folder / layout).read_bytes()
    # Headers are at the beginning of the one, and at both ends of the other.
    places = [*range(0, 3000, 41), *range(len(whole) - 9000, len(whole), 41)]
    for place in places:
        (folder / layout).write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            load_published(folder)
        except ModelError as error:
            assert str(folder) in str(error)


def header(shape, *, claims: int) -> bytes:
    tensors = {
        "caduceus.backbone.embeddings.word_embeddings.embedding.weight": {
            "dtype": "F32", "shape": shape, "data_offsets": [0, claims],
        }
    }  # fmt: skip
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


def test_weights_of_another_size_cost_no_memory(folder):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = folder / "model.safetensors"
    path.write_bytes(header([1 << 40], claims=1 << 42) + bytes(1 << 16))
    assert "not safetensors" in refusal(folder)
    size = 1 << 33
    path.write_bytes(header([size // 4], claims=size))
    with open(path, "r+b") as handle:
        handle.truncate(path.stat().st_size + size)  # a hole, not 8 GiB of disk
    assert f"has shape ({size // 4},), expected (16, 8)" in refusal(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_nothing_but_settings(folder):
    message = refusal(folder)
    assert "no weights; expected one of model.safetensors, " in message and "pytorch_model.bin" in message


def test_nothing_but_weights(folder):
    write_weights(folder, state(), "model.safetensors")
    (folder / "config.json").unlink()
    assert "config.json: No such file" in refusal(folder)
    assert not is_published(folder)


def test_nothing_at_all(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert "config.json: No such file" in refusal(folder)
        assert not is_published(folder)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", '{"n": ' + "9" * 5000 + "}"])
def test_settings_that_are_not_json(folder, text):
    write_weights(folder, state(), "model.safetensors")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "not JSON" in refusal(folder)
    assert not is_published(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "got list, expected a JSON object"),
        ({}, "got model_type None"),
        ({"model_type": "bert"}, "got model_type 'bert', expected \"caduceus\" or \"esm\""),
        ({"model_type": ["esm"]}, "got model_type ['esm']"),
        ({**SETTINGS, "rms_norm": False}, "setting rms_norm: got False"),
    ],
)
def test_settings_of_another_model(folder, settings, message):
    write_weights(folder, state(), "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model_type": "caduceus"}, True),
        ({"model_type": "esm", "architectures": ["EsmForMaskedLM"]}, True),
        ({"model_type": "bert"}, False),
        ({"model_type": {}}, False),
        ({"format": "lrgenome-model", "format_version": 1, "model": {}}, False),
        ({"format": "lrgenome-model", "model_type": "caduceus"}, False),
        ([], False),
    ],
)
def test_published_models_are_told_from_our_own(folder, settings, expected):
    (folder / "config.json").write_text(json.dumps(settings))
    assert is_published(folder) is expected


def test_huge_settings_are_not_read(folder):
    with open(folder / "config.json", "r+b") as handle:
        handle.truncate(40 << 30)  # a hole, not 40 GiB of disk
    assert "at most 1 MiB" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.update(extra=min(files.values())), "tensor extra is missing from its files"),
        (lambda files: files.pop("lm_head.complement_map"), "tensor lm_head.complement_map is not in it"),
        (lambda files: files.update(extra="../model.safetensors"), "got '../model.safetensors', expected the name"),
        (lambda files: files.update(extra="/etc/passwd"), "got '/etc/passwd', expected the name"),
        (lambda files: files.update(extra="weights.pkl"), "got 'weights.pkl', expected the name"),
        (lambda files: files.update(extra=3), "got 3, expected the name"),
        (lambda files: files.update(extra="gone.safetensors"), "gone.safetensors: no such file"),
        (lambda files: files.clear(), "expected a weight_map"),
    ],
)
def test_an_index_that_is_wrong(folder, change, message):
    write_weights(folder, state(), "model.safetensors.index.json")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    assert message in refusal(folder)


def test_a_tensor_that_is_in_two_files(folder):
    write_weights(folder, state(), "model.safetensors.index.json")
    save_file(state(), folder / "model-00001-of-00002.safetensors")
    assert "is in another file too" in refusal(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(folder, value):
    tensors = state()
    tensors["caduceus.backbone.norm_f.weight"][3] = value
    write_weights(folder, tensors, "model.safetensors")
    assert "final_norm holds values that are not finite numbers" in refusal(folder)


def test_a_tensor_that_is_missing_is_named(folder):
    tensors = state()
    del tensors["caduceus.backbone.norm_f.weight"]
    write_weights(folder, tensors, "pytorch_model.bin")
    assert "tensor caduceus.backbone.norm_f.weight is missing" in refusal(folder)


def test_a_snapshot_loads_as_a_model_that_computes_what_was_published(folder):
    write_weights(folder, state(), "model.safetensors")
    loaded = load_model(folder)
    assert loaded.sha256 == fingerprint(folder) and loaded.name == "snapshot"
    ids = np.random.default_rng(0).choice([3, 7, 8, 9, 10, 11], (2, 9))
    model = loaded.model.for_inference(torch.float64)
    with torch.no_grad():
        logits = model.logits(hidden_states(model, torch.from_numpy(ids))).numpy()
    # Norms are stored less 1 in float32.
    np.testing.assert_allclose(logits, Network(state(), SETTINGS).run(ids).logits, rtol=0, atol=1e-5)


def test_a_snapshot_is_read_as_it_is(folder):
    write_weights(folder, state(), "model.safetensors")
    settings, tensors = read_snapshot(folder)
    assert settings == SETTINGS
    assert set(tensors) == set(state())
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state().items())


def test_other_architectures_go_to_their_own_converter(folder, monkeypatch):
    def convert(tensors, settings):
        seen.append((tensors, settings))
        return "config", {"embedding": tensors["esm.embeddings"] * 2}

    seen = []
    module = ModuleType("lrgenome.models.convert_nucleotide_transformer")
    module.convert = convert
    monkeypatch.setitem(sys.modules, module.__name__, module)
    settings = {"model_type": "esm", "hidden_size": 512}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file({"esm.embeddings": torch.ones(3, dtype=torch.float16)}, folder / "model.safetensors")
    config, weights, meta = load_published(folder)
    assert config == "config" and meta == {"published": settings}
    assert torch.equal(weights["embedding"], torch.full((3,), 2.0))
    assert seen[0][1] == settings


def test_a_fingerprint_tells_weights_and_settings_apart(folder):
    write_weights(folder, state(), "model.safetensors.index.json")
    sha = fingerprint(folder)
    assert len(sha) == 64 and sha == fingerprint(folder)
    (folder / "config.json").write_text(json.dumps(SETTINGS, indent=2, sort_keys=True))
    (folder / "README.md").write_text("notes")
    assert fingerprint(folder) == sha
    (folder / "config.json").write_text(json.dumps({**SETTINGS, "fused_add_norm": False}))
    other = fingerprint(folder)
    assert other != sha
    tensors = state()
    tensors["caduceus.backbone.norm_f.weight"].view(torch.int32)[0] ^= 1
    write_weights(folder, tensors, "model.safetensors.index.json")
    assert fingerprint(folder) not in (sha, other)
