"""Heads that are kept beside their model, and what is done to damaged ones."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrgenome.config.head import HeadConfig, head_from_json
from lrgenome.errors import ModelError, UsageError
from lrgenome.models.checkpoint import load_model
from lrgenome.models.heads import HEAD_NAME, Extras, Head, load_head, save_head

CONFIG = HeadConfig(kind="labels", outputs=("a", "b"), width=16, variants=True, context=100, hidden=(8,),
                    pool="attention", bin_size=10, tissue="embedding", tissues=("x", "y"), distance=True)  # fmt: skip


@pytest.fixture
def folder(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "tuned")
    torch.manual_seed(0)
    save_head(Head(CONFIG), tmp_path / "tuned")
    return tmp_path / "tuned"


def test_a_head_comes_back_as_it_was(folder, tiny_model):
    loaded = load_model(folder)
    torch.manual_seed(0)
    made = Head(CONFIG)
    pooled, extras = torch.randn(3, 2, 4, 16), Extras(torch.tensor([0, 1, 1]), torch.tensor([1.0, 5.0, float("nan")]))
    assert loaded.head is not None and loaded.head.config == CONFIG
    assert torch.equal(loaded.head(pooled, extras), made(pooled, extras))
    probabilities = made.predictions(made(pooled, extras))
    assert probabilities.shape == (3, 2) and bool(((probabilities > 0) & (probabilities < 1)).all())
    assert loaded.sha256 != load_model(tiny_model).sha256 and load_model(tiny_model).head is None
    assert load_head(None) is None


def test_kinds_of_predictions():
    for kind, outputs, width in (("classes", ("y",), 1), ("numbers", ("y", "z"), 2)):
        head = Head(HeadConfig(kind=kind, outputs=outputs, width=4, variants=False, context=9))
        logits = head(torch.randn(5, 1, 1, 4))
        assert logits.shape == (5, 2) and head.predictions(logits).shape == (5, width)
    bins = Head(HeadConfig(kind="numbers", outputs=("y",), width=4, variants=False, context=9, pool="bins", bin_size=1))
    assert bins(torch.randn(5, 1, 9, 4)).shape == (5, 9, 1)


def test_damaged_heads_are_named(folder):
    tensors = load_file(folder / HEAD_NAME)
    for change, message in (
        ({**tensors, "query": torch.zeros(3)}, r"tensor query has shape \(3,\), expected \(32,\)"),
        ({name: t for name, t in tensors.items() if name != "query"}, "got tensors .*, expected"),
        ({**tensors, "query": torch.full((32,), float("inf"))}, "tensor query holds values that are not finite"),
    ):
        save_file(change, folder / HEAD_NAME)
        with pytest.raises(ModelError, match=message):
            load_model(folder)
    (folder / HEAD_NAME).write_bytes(b"nothing" * 1000)
    with pytest.raises(ModelError, match="damaged or not safetensors"):
        load_model(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["head"]["pool"] = "most"
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="head setting pool: got 'most', expected one of mean"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "unknown more"),
        ({"kind": None}, "head setting kind"),
        ({"outputs": []}, "expected outputs"),
        ({"low": 5, "high": 5}, "head settings low, high"),
        ({"pool": "bins", "bin_size": 0}, "head setting bin_size"),
        ({"tissue": "index", "tissues": []}, "without names of tissues"),
        ({"kind": "classes"}, "got 2, expected one of kind classes"),
        ({"width": "wide"}, "head setting width: got 'wide'"),
        ({"outputs": "ab"}, "head setting outputs: got 'ab'"),
        ({"hidden": [True]}, "head setting hidden"),
        ({"low": 0.5}, "head setting low"),
        ({"distance": 1}, "head setting distance"),
        ({"tissue_width": -1}, "expected outputs, and widths"),
    ],
)
def test_impossible_settings(change, message):
    with pytest.raises(UsageError, match=message):
        head_from_json({**CONFIG.to_json(), **change})
    with pytest.raises(UsageError, match="missing"):
        head_from_json({"kind": "labels"})
    with pytest.raises(UsageError, match="got list, expected an object"):
        head_from_json([])
