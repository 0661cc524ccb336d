"""The benchmarks against other libraries and of precisions, at toy size."""

import importlib.util
import json
from pathlib import Path

import precision
import pytest
import rivals
import torch

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
