"""The benchmarks against other libraries and of precisions, at toy size."""

import importlib.util
import json
from pathlib import Path

import precision
import pytest
import rivals
import torch
import verify_published

from lrgenome.models.checkpoint import load_model, save_model
from lrgenome.ops.jit import set_threads

TRANSLATE, PAIRS = rivals.of_transformers, rivals.pairs
DEMO = Path(rivals.__file__).resolve().parents[2] / "lrgenome" / "assets" / "demo"


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    set_threads(before)


def test_rivals_compute_the_same_and_are_timed(capsys):
    for needed in ("recurrentgemma", "transformers", "einops", "jaxtyping"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}: make test installs it")
    rivals.main(["--preset", "toy", "--length", "300", "--chunk", "128", "--threads", "1", "--repeats", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    us = result["us_per_bp"]
    for name in ("recurrentgemma", "transformers"):
        assert 0 < result["difference"][f"{name} float32"] < 2e-4
        assert result["equal_float32"][name] == pytest.approx(us[f"{name} float32"] / us["ours float32"], rel=1e-3)


def test_mambas_compute_the_same_and_are_timed(capsys):
    for needed in ("mambapy", "transformers"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}: make test installs it")
    options = ["--preset", "toy-caduceus", "--length", "150", "--chunk", "64", "--threads", "1", "--repeats", "1"]
    rivals.main(["--layer", "mamba", *options])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    us = result["us_per_bp_and_direction"]
    for name in ("mambapy", "transformers"):
        assert 0 < result["difference"][f"{name} float32"] < 2e-4
        assert result["equal_float32"][name] == pytest.approx(us[name] / us["ours float32"], rel=1e-3)


def test_layer_and_preset_must_fit(capsys):
    with pytest.raises(SystemExit):
        rivals.parse(["--layer", "mamba", "--preset", "toy"])
    assert "--preset toy: expected one of a mamba model" in capsys.readouterr().err


def test_a_rival_with_other_weights_is_noticed(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(rivals, "of_transformers", lambda values: {
        name: 1.1 * value for name, value in TRANSLATE(values).items()
    })  # fmt: skip
    monkeypatch.setattr(rivals, "pairs", lambda config: {"transformers": PAIRS(config)["transformers"]})
    with pytest.raises(ArithmeticError, match=r"transformers: our torch.float32 output is .* off"):
        rivals.measure(rivals.parse(["--preset", "toy", "--length", "100", "--threads", "1"]))


def test_precisions_are_compared_on_real_substitutions(capsys):
    vcf, fasta = str(DEMO / "demo.vcf"), str(DEMO / "GRCh37.chr20.first-2Mbp.fa.gz")
    precision.main([vcf, "--fasta", fasta, "--records", "9", "--context", "100", "--threads", "1"])
    *text, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["records"] == 9 and "9 substitutions, 100 of context" in text[0]
    assert result["scores"]["LLR"]["spearman"] > 0.9 and 0 < result["scores"]["LLR"]["max_difference"] < 0.2


def test_weights_in_the_wrong_places_are_noticed(capsys, tmp_path):
    """The embedded model passes, on its demo's sequence; one with a weight transposed by mistake does not."""
    fasta = str(DEMO / "GRCh37.chr20.first-2Mbp.fa.gz")
    options = ["--fasta", fasta, "--region", "20:1000001-1012000", "--window", "3000"]
    verify_published.main(options)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["passed"] and result["loss"] < result["composition_loss"] - 0.05
    model = load_model().model
    with torch.no_grad():
        for block in model.blocks:
            block.out_weight.copy_(block.out_weight.flip(0))
    save_model(model, tmp_path / "wrong")
    with pytest.raises(SystemExit) as ended:
        verify_published.main([*options, "--model", str(tmp_path / "wrong")])
    assert ended.value.code == 1 and not json.loads(capsys.readouterr().out.splitlines()[-1])["passed"]
