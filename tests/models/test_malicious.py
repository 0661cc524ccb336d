"""Checkpoints made to do harm: nothing of them is run, opened elsewhere or given memory; each is a `ModelError`."""

import contextlib
import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from caduceus_reference import published_settings, published_state
from malice import CONFIGS, edit, little_memory, refusal
from nucleotide_transformer_published import make_settings, random_tensors
from safetensors.torch import load_file, save_file

from lrgenome.config.head import HeadConfig
from lrgenome.errors import ModelError
from lrgenome.models.checkpoint import load_model, save_model
from lrgenome.models.families import build
from lrgenome.models.heads import HEAD_NAME, Head, load_head, save_head

pytestmark = pytest.mark.timeout(120)

HOSTILE = (-1, 0, 10**9, 10**18, 10**400, 0.5, 1e300, float("inf"), float("nan"), "16", True, None, [16], {"a": 1})
PUBLISHED = {
    "caduceus": (published_settings(8, 2, rcps=True), lambda s: published_state(s, 0, dtype=torch.float32)),
    "transformer": (make_settings(layers=2, width=24, heads=3, mlp_width=20), random_tensors),
}


@pytest.fixture(params=CONFIGS)
def folder(request, tmp_path):
    save_model(build(CONFIGS[request.param], seed=1), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hawk(tmp_path):
    save_model(build(CONFIGS["hawk"], seed=1), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def tuned(hawk):
    save_head(
        Head(HeadConfig(kind="labels", outputs=("a", "b"), width=16, variants=True, context=100, hidden=(8,))), hawk
    )
    return hawk


@pytest.fixture(params=PUBLISHED)
def snapshot(request, tmp_path):
    settings, tensors = PUBLISHED[request.param]
    path = tmp_path / "published"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings))
    save_file({name: t.contiguous() for name, t in tensors(settings).items()}, path / "model.safetensors")
    return path


def edit_header(path, change):
    """Change the header of a safetensors file; its data stays."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    text = change(header)
    text = (json.dumps(header) if text is None else text).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def test_settings_of_every_kind_are_refused_or_make_the_same_model(folder):
    """Each setting in turn is absurd; few of them, such as a half-life of fresh weights, do not matter."""
    path = folder / "config.json"
    good, names = path.read_text(), json.loads(path.read_text())["model"]
    expected = {n: p.shape for n, p in load_model(folder).model.named_parameters()}
    accepted = set()
    for name in names:
        for value in HOSTILE:
            path.write_text(good)
            edit(path, lambda v, name=name, value=value: v["model"].update({name: value}))
            with little_memory():
                try:
                    model = load_model(folder).model
                except ModelError as error:
                    assert str(folder) in str(error)
                    continue
            assert {n: p.shape for n, p in model.named_parameters()} == expected
            accepted.add(name)
        path.write_text(good)
        edit(path, lambda v, name=name: v["model"].pop(name))
        with contextlib.suppress(ModelError):
            load_model(folder)
    assert accepted <= {
        "half_life_max",
        "half_life_share",
        "dt_min",
        "dt_max",
        "dt_rank",
        "max_tokens",
        "norm_eps",
        "tied",
        "kmers",
        "equivariant",
    }


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"n": ' + "9" * 5000 + "}",
        '{"a": 1, "a": 2}',
        "1e999",
        '"lrgenome-model"',
        "null",
        "",
        '{"format": "lrgenome-model", "format_version": 1, "model": ' + "[" * 200 + "]" * 200 + "}",
        '{"format": "lrgenome-model", "format_version": 1, "model": {}, "model": {}}',
        "\x00",
        '{"a": "' + "x" * (1 << 20) + '"}',
    ],
)
def test_json_that_is_a_bomb(hawk, text):
    (hawk / "config.json").write_text(text)
    refusal(hawk)


HEADERS = {
    "longer than the file": lambda d: struct.pack("<Q", len(d)) + d[8:],
    "of 2**63 bytes": lambda d: struct.pack("<Q", 1 << 63) + d[8:],
    "of nothing": lambda d: bytes(8) + d[8:],
    "without data": lambda d: d[: 8 + struct.unpack("<Q", d[:8])[0]],
    "without a header": lambda d: d[:7],
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_of_absurd_length(folder, case):
    path = folder / "model.safetensors"
    path.write_bytes(HEADERS[case](path.read_bytes()))
    assert "model.safetensors" in refusal(folder)


def first(header):
    return header[min(name for name in header if name != "__metadata__")]


ENTRIES = {
    "a billion parameters": lambda h: first(h).update(shape=[1 << 30]),
    "shapes that overflow": lambda h: first(h).update(shape=[1 << 40, 1 << 40]),
    "negative shape": lambda h: first(h).update(shape=[-1]),
    "offsets beyond the file": lambda h: first(h).update(data_offsets=[0, 1 << 50]),
    "offsets that overlap": lambda h: h["final_norm"].update(data_offsets=[0, 64]),
    "offsets in reverse": lambda h: first(h).update(data_offsets=first(h)["data_offsets"][::-1]),
    "no such type": lambda h: first(h).update(dtype="F12"),
    "whole numbers": lambda h: first(h).update(dtype="I32"),
    "an unknown tensor": lambda h: h.update({"\ud800/../x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    "a name twice": lambda h: json.dumps(h)[:-1] + ', "embedding": ' + json.dumps(h["embedding"]) + "}",
    "no object": lambda h: "[]",
    "depth": lambda h: "[" * 100_000,
}


@pytest.mark.parametrize("case", ENTRIES)
def test_entries_that_lie(hawk, case):
    before = load_file(hawk / "model.safetensors")["embedding"].clone()
    edit_header(hawk / "model.safetensors", ENTRIES[case])
    if case == "a name twice":  # one and the same entry
        with contextlib.suppress(ModelError):
            assert torch.equal(dict(load_model(hawk).model.named_parameters())["embedding"], before)
        return
    assert "model.safetensors" in refusal(hawk)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers(folder, value):
    tensors = load_file(folder / "model.safetensors")
    for name in (min(tensors), max(tensors)):
        changed = {n: t.clone() for n, t in tensors.items()}
        changed[name].view(-1)[-1] = value
        save_file(changed, folder / "model.safetensors")
        assert f"tensor {name} holds values that are not finite numbers" in refusal(folder)


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.pt", "head.safetensors", "config.json"]
)
def test_code_in_a_folder_of_ours_is_not_run(hawk, tmp_path, name):
    marker = tmp_path / "ran"
    torch.save(Bomb(marker), hawk / name)
    if name in ("pytorch_model.bin", "model.pt"):
        load_model(hawk)  # which it does not look at
        (hawk / "model.safetensors").unlink()
    assert "safetensors" in refusal(hawk) or name in ("config.json", "head.safetensors")
    assert not marker.exists()


def archive(pickled, **how):
    """Make what torch.save would, around this pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **how) as made:
        made.writestr("archive/data.pkl", pickled)
        made.writestr("archive/version", "3\n")
        made.writestr("archive/data/0", np.zeros(4, np.float32).tobytes())
    return out.getvalue()


def with_memo_bomb():
    """Each list holds the one before twice: a few bytes for 2**30 leaves."""
    out = b"\x80\x02]q\x00"
    for i in range(30):
        out += b"]" + b"q" + bytes([i + 1]) + b"(h" + bytes([i]) + b"h" + bytes([i]) + b"e"
    return out + b"."


PICKLES = {
    "packed gigabytes": archive(b"\x80\x02}." + bytes(1 << 24), compression=zipfile.ZIP_DEFLATED),
    "an array of bytes": archive(b"\x80\x02c__builtin__\nbytearray\nq\x00\x8a\x05\x00\x00\x00\x00\x10\x85Rq\x01."),
    "names from the stack": archive(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R."),
    "old names": archive(b"(S'ls'\nios\nsystem\n."),
    "a function": archive(b"\x80\x02ctorch\nzeros\n(K\x01K\x02tR."),
    "numpy": archive(b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n)R."),
    "lists of lists": archive(with_memo_bomb()),
    "a number of megabytes": archive(b"\x80\x02\x8b\x00\x00\x10\x00" + b"\x7f" * (1 << 20) + b"."),
    "nothing": archive(b""),
    "no archive": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("layout", ["pytorch_model.bin", "pytorch_model.pt"])
@pytest.mark.parametrize("case", PICKLES)
def test_pickles_that_are_bombs(snapshot, case, layout):
    (snapshot / "model.safetensors").unlink()
    (snapshot / layout).write_bytes(PICKLES[case])
    assert layout in refusal(snapshot)


def test_a_second_pickle_in_an_archive(snapshot):
    """Readers do not agree on which of two entries of one name counts."""
    settings = json.loads((snapshot / "config.json").read_text())
    (snapshot / "model.safetensors").unlink()
    path = snapshot / "pytorch_model.bin"
    torch.save(PUBLISHED["caduceus"][1](PUBLISHED["caduceus"][0]), path)
    with zipfile.ZipFile(path, "a") as made, pytest.warns(UserWarning, match="Duplicate"):
        made.writestr(next(n for n in made.namelist() if n.endswith("/data.pkl")), b"\x80\x02ctorch\nzeros\n(K\x01tR.")
    assert settings["model_type"] in ("caduceus", "esm") and "pytorch_model.bin" in refusal(snapshot)


@pytest.mark.parametrize("place", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "gone"])
def test_what_is_no_file_does_not_hang(snapshot, place, kind):
    path = snapshot / place
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "gone":
        path.symlink_to("/dev/zero" if kind == "device" else path)
    refusal(snapshot)


@pytest.mark.parametrize("place", ["config.json", "model.safetensors", "head.safetensors"])
def test_pipes_in_a_folder_of_ours(tuned, place):
    (tuned / place).unlink()
    os.mkfifo(tuned / place)
    if place == "head.safetensors":  # settings of a head without weights: a model without a head
        assert load_model(tuned).head is None
    else:
        refusal(tuned)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/../../x.safetensors",
        "..safetensors/",
        "",
        ".",
        "x\0.safetensors",
        "gone.safetensors",
        "pipe.safetensors",
        "device.safetensors",
        "pytorch_model.bin",
        3,
        None,
        ["x"],
        "x" * 5000 + ".safetensors",
    ],
)
def test_an_index_that_points_elsewhere(snapshot, name):
    os.mkfifo(snapshot / "pipe.safetensors")
    (snapshot / "device.safetensors").symlink_to("/dev/zero")
    (snapshot / "model.safetensors").rename(snapshot / "one.safetensors")
    tensors = load_file(snapshot / "one.safetensors")
    files = dict.fromkeys(tensors, "one.safetensors") | {min(tensors): name}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    refusal(snapshot)


@pytest.mark.parametrize("values", [(10**9,), (-1, 0, 0.5, True, "a", None, [], 10**400)])
def test_published_settings_of_every_kind(snapshot, values):
    """Numbers of weights are checked before there are any; what is read all the same is the same model."""
    path = snapshot / "config.json"
    good = path.read_text()
    load_model(snapshot)  # what is imported at first takes memory too
    for name in json.loads(good):
        for value in values:
            edit(path, lambda v, name=name, value=value: v.update({name: value}))
            with little_memory(), contextlib.suppress(ModelError):
                load_model(snapshot)
            path.write_text(good)
    for name in ("d_model", "n_layer", "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"):
        if name in json.loads(good):
            edit(path, lambda v, name=name: v.update({name: 10**9}))
            refusal(snapshot)
            path.write_text(good)


def test_a_tokenizer_that_lies(snapshot):
    """Its files are not read, and complements of other letters are refused."""
    for name in ("tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "tokenizer.json"):
        (snapshot / name).write_text("{" * 1000)
    load_model(snapshot)
    settings = json.loads((snapshot / "config.json").read_text())
    if "complement_map" in settings:
        settings["complement_map"]["7"] = 7
        (snapshot / "config.json").write_text(json.dumps(settings))
        assert "complement_map" in refusal(snapshot)


def test_settings_of_a_head_of_every_kind(tuned):
    path = tuned / "config.json"
    good = path.read_text()
    for name in json.loads(good)["head"]:
        for value in (*HOSTILE, [10**9], [-1], [""], ["a"] * 1000, [10**400], "labels"):
            edit(path, lambda v, name=name, value=value: v["head"].update({name: value}))
            with little_memory(), contextlib.suppress(ModelError):
                assert load_head(tuned) is not None
            path.write_text(good)
    for change in (
        {"hidden": [10**9]},
        {"hidden": [8] * 100_000},
        {"width": 10**12},
        {"outputs": ["a"] * 10_000},
        {"tissue": "embedding", "tissues": ["a"], "tissue_width": 10**12},
    ):
        edit(path, lambda v, change=change: v["head"].update(change))
        assert "head" in refusal(tuned)
        path.write_text(good)
    edit(path, lambda v: v.update(head=None))
    refusal(tuned)
    path.write_text(good)
    save_file({n: t.to(torch.int32) for n, t in load_file(tuned / HEAD_NAME).items()}, tuned / HEAD_NAME)
    assert "not finite numbers" in refusal(tuned)
