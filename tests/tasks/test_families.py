"""Scores and embeddings by every kind of model, against whole windows in float64."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lrgenome import kmers
from lrgenome.cli.app import app
from lrgenome.config import CaduceusConfig, NucleotideTransformerConfig
from lrgenome.dna import encode, reverse_complement
from lrgenome.engine.runner import Runner
from lrgenome.engine.windows import WindowRunner
from lrgenome.io import alleles
from lrgenome.models.caduceus import build
from lrgenome.models.checkpoint import load_model, save_model
from lrgenome.models.families import build as build_any
from lrgenome.ops import backend

from .slow import ALLELES, FLANK, SlowModel, genome, slow_scores
from .test_scoring import as_array, plan_all, score

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
    path = tmp_path_factory.mktemp("models") / "caduceus"
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
    monkeypatch.setattr(alleles, "FLANK", FLANK)
    sequence, slow = genome(), SlowModel(folder)
    got = score(runner, plan_all(tmp_path, sequence, ALLELES.values()), strand)
    for (name, allele), row in zip(ALLELES.items(), got, strict=True):
        expected = slow_scores(slow, sequence, allele, strand=strand)
        assert row.llr is None or row.llr == pytest.approx(expected[0], rel=1e-4, abs=1e-5), name
        assert row[1:4] == pytest.approx(expected[1:], rel=1e-3, abs=1e-5), name


def test_both_strands_of_an_equivariant_model_give_one_score(runner, tmp_path):
    work = plan_all(tmp_path, genome(), [ALLELES["snv"], ALLELES["insertion"]])
    both, forward = (as_array(score(runner, work, strand)) for strand in ("both", "forward"))
    same = np.allclose(both, forward, rtol=1e-4, atol=1e-5, equal_nan=True)
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


# Transformers run whole windows, without states.


@pytest.fixture(scope="module", params=[True, False], ids=["6-mers", "bases"])
def transformer(request, tmp_path_factory) -> Path:
    """A small Nucleotide Transformer of either kind of token."""
    shape = {"layers": 2, "width": 16, "heads": 2, "mlp_width": 24, "kmers": request.param}
    sizes = {"vocab": 4107, "max_tokens": 200} if request.param else {"vocab": 16, "max_tokens": 1000}
    model = build_any(NucleotideTransformerConfig(**shape, **sizes), seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    path = tmp_path_factory.mktemp("models") / "transformer"
    save_model(model, path)
    return path


def by_hand(folder: Path, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states (t, d) of the bases of a window and their log-probabilities (t, 4), one base at a time."""
    model = load_model(folder).model.for_inference(torch.float64)
    cut = kmers.tokenize if model.config.kmers else kmers.single_bases
    tokens = cut(ids)
    with torch.no_grad(), backend.use("naive"):
        hidden = model.encode(torch.from_numpy(tokens.ids)[None])
        logits = model.head(hidden)[0].numpy()
    rows = []
    for token, offset in zip(tokens.token, tokens.offset, strict=True):
        if not model.config.kmers:
            values = logits[token, 7:11]
        elif tokens.size[token] == 1:
            values = logits[token, [4102, 4104, 4105, 4103]]
        else:
            letters = ["ATCG".index(base) for base in "ACGT"]
            of = np.arange(4096) // 4 ** (5 - offset) % 4
            values = np.log([np.exp(logits[token, 6:4102][of == letter]).sum() for letter in letters])
        rows.append(values - np.log(np.exp(values).sum()))
    return hidden[0].numpy()[tokens.token], np.array(rows)


def test_a_transformer_embeds_whole_windows(transformer, tmp_path):
    sequence = genome()
    fasta, out = tmp_path / "one.fa", tmp_path / "e.h5"
    fasta.write_text(f">one\n{sequence}\n")
    options = ["--bin-size", "300", "--context", "900", "--precision", "float32", "-t", "1"]
    result = CliRunner().invoke(app, ["embed", str(fasta), "-o", str(out), "--model", str(transformer), *options])
    assert result.exit_code == 0, result.output
    states, _ = by_hand(transformer, encode(sequence))
    with h5py.File(out) as file:
        np.testing.assert_allclose(
            file["embeddings"][()], states.reshape(3, 300, -1).mean(1), rtol=1e-4, atol=1e-5
        )


def test_a_transformer_scores_the_masked_token(transformer, tmp_path):
    sequence, (start, ref, alt) = genome(), ALLELES["snv"]
    model = load_model(transformer).model.for_inference(torch.float32)
    with WindowRunner(model, torch.device("cpu"), free_ram=lambda: PLENTY) as runner:
        work = plan_all(tmp_path, sequence, [(start, ref, alt)])
        (row,) = score(runner, work, "forward")
        (both,) = score(runner, work, "both")
    (windows, _) = work[0]
    _, log_p = by_hand(transformer, windows.masked)
    (site,) = windows.sites
    expected = log_p[site, "ACGT".index(alt)] - log_p[site, "ACGT".index(ref)]
    assert row.llr == pytest.approx(expected, rel=1e-4, abs=1e-5)
    _, other = by_hand(transformer, reverse_complement(windows.masked))
    back = len(windows.masked) - 1 - site
    turned = other[back, "TGCA".index(alt)] - other[back, "TGCA".index(ref)]
    assert both.llr == pytest.approx((expected + turned) / 2, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--context", "3kbp"], "choose --length-extension"),
        (["--transfer", "none"], "--transfer and --store are of recurrent models"),
        (["--length-extension", "far"], "--length-extension: got 'far'"),
    ],
)
def test_what_a_transformer_cannot_do_is_said(transformer, tmp_path, options, message):
    fasta = tmp_path / "one.fa"
    fasta.write_text(f">one\n{genome() * 5}\n")
    arguments = ["embed", str(fasta), "-o", str(tmp_path / "e.h5"), "--model", str(transformer), *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and not (tmp_path / "e.h5").exists()
    assert message in " ".join(result.output.split())


def test_position_interpolation_takes_longer_windows(transformer, tmp_path):
    fasta, out = tmp_path / "one.fa", tmp_path / "e.h5"
    fasta.write_text(f">one\n{genome() * 5}\n")
    options = ["--context", "4500", "--bin-size", "500", "--length-extension", "pi", "-t", "1"]
    result = CliRunner().invoke(app, ["embed", str(fasta), "-o", str(out), "--model", str(transformer), *options])
    assert result.exit_code == 0, result.output
    with h5py.File(out) as file:
        assert file["embeddings"].shape == (9, 16) and np.isfinite(file["embeddings"][()]).all()


def test_a_recurrent_model_needs_no_length_extension(folder, tmp_path):
    fasta = tmp_path / "one.fa"
    fasta.write_text(f">one\n{genome()}\n")
    arguments = ["embed", str(fasta), "-o", str(tmp_path / "e.h5"), "--model", str(folder), "--length-extension", "pi"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "a recurrent model takes windows of any length" in " ".join(result.output.split())
