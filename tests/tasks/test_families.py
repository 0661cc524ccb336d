"""Scores and embeddings by every kind of model, against whole windows in float64."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lrgenome.cli.app import app
from lrgenome.config import CaduceusConfig
from lrgenome.engine.runner import Runner
from lrgenome.models.caduceus import build
from lrgenome.models.checkpoint import load_model, save_model
from lrgenome.tasks import variants

from .slow import ALLELES, FLANK, SlowModel, genome, slow_scores
from .test_scoring import plan_all, score

PLENTY = 1 << 40


@pytest.fixture(scope="module", params=[False, True], ids=["caduceus-ph", "caduceus-ps"])
def folder(request, tmp_path_factory) -> Path:
    """A small Caduceus in which every weight matters."""
    config = CaduceusConfig(layers=2, width=16, equivariant=request.param, state=4, dt_rank=2)
    model = build(config, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        model.embedding.mul_(3.0)
    path = tmp_path_factory.mktemp("models") / request.node.callspec.id.replace("/", "-")
    save_model(model, path)
    return path


@pytest.fixture
def runner(folder, tmp_path) -> Iterator[Runner]:
    model = load_model(folder).model.for_inference(torch.float32)
    made = Runner(model, torch.device("cpu"), chunk=40, tmpdir=tmp_path, free_ram=lambda: PLENTY,
                  free_disk=lambda: PLENTY)  # fmt: skip
    with made:
        yield made


def test_weights_survive_saving_and_loading(folder):
    loaded = load_model(folder)
    assert sum(p.numel() for p in loaded.model.parameters()) == loaded.model.config.parameters
    assert loaded.meta["parameters"] == loaded.model.config.parameters


@pytest.mark.parametrize("strand", ["both", "forward"])
def test_scores_are_those_of_the_definition(folder, runner, monkeypatch, tmp_path, strand):
    monkeypatch.setattr(variants, "FLANK", FLANK)
    sequence, slow = genome(), SlowModel(folder)
    got = score(runner, plan_all(tmp_path, sequence, ALLELES.values()), strand)
    for (name, allele), row in zip(ALLELES.items(), got, strict=True):
        expected = slow_scores(slow, sequence, allele, strand=strand)
        assert row.llr is None or row.llr == pytest.approx(expected[0], rel=1e-4, abs=1e-5), name
        assert row[1:] == pytest.approx(expected[1:], rel=1e-3, abs=1e-5), name


def test_both_strands_of_an_equivariant_model_give_one_score(runner, tmp_path):
    work = plan_all(tmp_path, genome(), [ALLELES["snv"], ALLELES["insertion"]])
    both, forward = score(runner, work, "both"), score(runner, work, "forward")
    same = all(a == pytest.approx(b, rel=1e-4, abs=1e-5) for a, b in zip(both, forward, strict=True))
    assert same == runner.model.config.equivariant


def test_embed_writes_hidden_states_of_either_width(folder, tmp_path):
    sequence = genome()
    fasta, out = tmp_path / "one.fa", tmp_path / "e.h5"
    fasta.write_text(f">one\n{sequence}\n")
    options = ["--bin-size", "300", "--context", "900", "--precision", "float32", "-t", "1", "--chunk", "70"]
    result = CliRunner().invoke(app, ["embed", str(fasta), "-o", str(out), "--model", str(folder), *options])
    assert result.exit_code == 0, result.output
    states = SlowModel(folder).states(sequence)
    with h5py.File(out) as file:
        got = file["embeddings"][()]
    np.testing.assert_allclose(got, states.reshape(3, 300, -1).mean(1), rtol=1e-4, atol=1e-5)
