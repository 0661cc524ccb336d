"""Means of stretches: with a graph and streamed, of every architecture, as a loop would take them."""

import numpy as np
import pytest
import torch
from small_runs import TINY

from lrgenome.config import CaduceusConfig, NucleotideTransformerConfig
from lrgenome.config.head import HeadConfig
from lrgenome.dna import VOCAB_SIZE, reverse_complement
from lrgenome.engine.runner import Runner
from lrgenome.engine.sweep import hidden_states
from lrgenome.engine.windows import WindowRunner
from lrgenome.errors import UsageError
from lrgenome.models.families import build
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.training.stretches import pooled_states, streamed_means, stretches_of, width_of

MODELS = {
    "hawk": TINY,
    "caduceus-ps": CaduceusConfig(layers=2, width=8, equivariant=True),
    "bases": NucleotideTransformerConfig(
        layers=2, width=16, heads=2, mlp_width=16, kmers=False, vocab=VOCAB_SIZE, tied=True, max_tokens=90
    ),
    "kmers": NucleotideTransformerConfig(layers=1, width=16, heads=2, mlp_width=16, max_tokens=90),
}


def config(**values) -> HeadConfig:
    base = {"kind": "classes", "outputs": ("y",), "width": 16, "variants": False, "context": 90}
    return HeadConfig(**{**base, "low": -20, "high": 25, **values})


def windows(count: int = 2, length: int = 90) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(7, 12, (count, length)).astype(np.uint8))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("strand", ["forward", "both"])
@pytest.mark.parametrize("shape", [{}, {"pool": "attention", "bin_size": 7}, {"pool": "bins", "bin_size": 8}, "spans"])
def test_streamed_means_are_those_with_a_graph(tmp_path, name, strand, shape):
    model, ids = build(MODELS[name], seed=0), windows()
    spans = [((3, 10), (50, 55)), ((0, 90),)] if shape == "spans" else None
    chosen = config(strand=strand, **({} if spans else shape))
    with torch.no_grad():
        want = pooled_states(model, ids, chosen, spans)
    model.for_inference(torch.float32)
    cpu, plenty = torch.device("cpu"), lambda: 1 << 40
    runner = (
        WindowRunner(model, cpu, free_ram=plenty) if isinstance(model, NucleotideTransformer)
        else Runner(model, cpu, chunk=13, tmpdir=tmp_path, free_ram=plenty, free_disk=plenty)
    )  # fmt: skip
    with runner:
        got = streamed_means(runner, ids, chosen, spans)
    assert got.shape == want.shape == (2, stretches_of(chosen, 90).number if not spans else 1, width_of(model))
    assert torch.allclose(got, want, atol=2e-5)


def test_means_are_what_a_loop_takes():
    model, ids = build(TINY, seed=0), windows()
    chosen = config(pool="attention", bin_size=10)
    where = stretches_of(chosen, 90)
    # 45 bases from 45 - 20 on hold four stretches of 10, in their middle.
    assert (where.low, where.number, where.size, where.high) == (27, 4, 10, 67)
    got = pooled_states(model, ids, chosen)
    hidden = hidden_states(model, ids)
    for k in range(4):
        assert torch.allclose(got[:, k], hidden[:, 27 + 10 * k : 37 + 10 * k].mean(1), atol=1e-6)
    got.sum().backward()
    assert model.embedding.grad is not None and model.embedding.grad.abs().sum() > 0


def test_a_model_of_both_strands_gives_the_same_for_the_reverse_complement():
    model = build(MODELS["caduceus-ps"], seed=0)
    ids = windows()
    flipped = torch.from_numpy(reverse_complement(ids.numpy()).copy())
    chosen = config(low=-20, high=20)
    assert torch.allclose(pooled_states(model, ids, chosen), pooled_states(model, flipped, chosen), atol=1e-5)


def test_windows_cut_what_is_pooled_or_are_too_short_for_it():
    assert stretches_of(config(low=-768, high=769), 100)[:3] == (0, 1, 100)
    # Bins are of an even number, so that one begins in the middle.
    assert stretches_of(config(pool="bins", bin_size=30), 100)[:3] == (20, 2, 30)
    assert stretches_of(config(pool="bins", bin_size=128), 12_000)[:2] == ((12_000 - 92 * 128) // 2, 92)
    with pytest.raises(UsageError, match="--context: got 20 bp, too short"):
        stretches_of(config(pool="bins", bin_size=30), 20)
