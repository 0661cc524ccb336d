"""Whole windows through a transformer: bases and tokens, strands, log-probabilities, limits and memory."""

import gc
import logging

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from lrgenome import dna, kmers
from lrgenome.config import NucleotideTransformerConfig
from lrgenome.engine import windows
from lrgenome.engine.windows import CHUNK, WindowRunner
from lrgenome.errors import MemoryLimitError, UsageError
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.models.nucleotide_transformer import build

CPU = torch.device("cpu")
PLENTY = 1 << 40
KMERS = NucleotideTransformerConfig(layers=2, width=12, heads=2, mlp_width=10, max_tokens=90)
SINGLE = NucleotideTransformerConfig(
    layers=2, width=12, heads=2, mlp_width=10, max_tokens=600, kmers=False, vocab=16
)


def model_of(config, dtype=torch.float32):
    model = build(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.for_inference(dtype)


@pytest.fixture(scope="module", params=[KMERS, SINGLE], ids=["kmers", "single bases"])
def model(request):
    return model_of(request.param)


def runner_of(model, **options):
    return WindowRunner(model, CPU, **({"free_ram": lambda: PLENTY} | options))


def windows_of(batch, length, seed=0, *, n=True):
    ids = np.random.default_rng(seed).integers(7, 11, (batch, length)).astype(np.uint8)
    if n:
        ids[0, 50:57] = dna.N
        ids[-1, [3, 100, 101]] = dna.MASK
    return torch.from_numpy(ids)


def collect(runner, ids, **options):
    parts = list(runner.stream(ids, **options))
    assert [part.start for part in parts] + [ids.shape[1]] == [0, *(part.end for part in parts)]
    return torch.cat([part.hidden for part in parts], 1)


def by_hand(model, ids, strand=FORWARD):
    """(b, t, d) states and (b, t, 16) log-probabilities, in float64."""
    states, log_p = [], []
    for row in ids.numpy():
        row = dna.reverse_complement(row) if strand == REVERSE else row
        tokens = kmers.tokenize(row) if model.config.kmers else kmers.single_bases(row)
        with torch.no_grad():
            hidden = model.encode(torch.from_numpy(tokens.ids)[None])[0]
            logits = model.head(hidden).double().numpy()
        values = np.full((len(row), 16), -np.inf)
        if model.config.kmers:
            values[:, 7:11] = kmers.base_log_probabilities(
                logits, tokens.token, tokens.offset, tokens.size[tokens.token]
            )
        else:
            values[:, 7:11] = kmers.normalise(logits[:, 7:11])
        hidden = hidden[tokens.token]
        states.append(hidden.flip(0) if strand == REVERSE else hidden)
        log_p.append(values[::-1] if strand == REVERSE else values)
    return torch.stack(states), np.stack(log_p)


@pytest.mark.parametrize("strand", [FORWARD, REVERSE])
@pytest.mark.parametrize("chunk", [1, 7, 299, 300, None])
def test_every_base_has_the_state_and_probabilities_of_its_token(model, strand, chunk):
    ids = windows_of(2, 300)
    states, log_p = by_hand(model, ids, strand)
    with runner_of(model, chunk=chunk) as runner:
        assert runner.chunk == (chunk or CHUNK) and runner.transfer == "exact"
        for part in runner.stream(ids, strand=strand):
            assert torch.equal(part.hidden, states[:, part.start : part.end])
            if chunk == 1 and part.start % 50:
                continue
            for row in range(2):
                got = runner.log_probabilities(part, row, 0, part.end - part.start)
                want = log_p[row, part.start : part.end]
                assert np.array_equal(np.isneginf(got), np.isneginf(want))
                assert got[:, 7:11] == pytest.approx(want[:, 7:11], abs=1e-5)
                assert np.exp(got).sum(1) == pytest.approx(1.0, abs=1e-12)


def test_the_reverse_strand_is_the_reverse_complement(model):
    ids = windows_of(2, 301)
    other = torch.from_numpy(dna.reverse_complement(ids.numpy()))
    assert torch.equal(collect(runner_of(model), ids, strand=REVERSE), collect(runner_of(model), other).flip(1))
    runner = runner_of(model)
    (part,) = runner.stream(ids, strand=REVERSE)
    got = runner.log_probabilities(part, 1, 10, 40)
    (part,) = runner.stream(other)
    assert np.array_equal(got, runner.log_probabilities(part, 1, 261, 291)[::-1])


def test_a_result_does_not_depend_on_what_else_is_asked(model):
    """Not on the other windows of the batch, the chunk, or the span that is read: to the last bit."""
    ids = windows_of(3, 400)
    runner = runner_of(model)
    (part,) = runner.stream(ids)
    whole = runner.log_probabilities(part, 1, 0, 400)
    for low, high in ((0, 1), (17, 18), (90, 250), (399, 400), (30, 30)):
        assert np.array_equal(runner.log_probabilities(part, 1, low, high), whole[low:high])
    alone = runner_of(model, chunk=33)
    for piece in alone.stream(ids[1:2]):
        assert torch.equal(piece.hidden[0], part.hidden[1, piece.start : piece.end])
        got = alone.log_probabilities(piece, 0, 2, piece.end - piece.start)
        assert np.array_equal(got, whole[piece.start + 2 : piece.end])


def test_a_masked_base_is_predicted_from_its_mask(model):
    ids = windows_of(1, 120, n=False)
    ids[0, 63] = dna.MASK
    runner = runner_of(model)
    (part,) = runner.stream(ids)
    got = runner.log_probabilities(part, 0, 63, 64)[0, 7:11]
    tokens = kmers.tokenize(ids[0].numpy()) if model.config.kmers else kmers.single_bases(ids[0].numpy())
    place = tokens.token[63]
    assert tokens.ids[place] == (kmers.MASK if model.config.kmers else dna.MASK)
    with torch.no_grad():
        p = model.head(model.encode(torch.from_numpy(tokens.ids)[None]))[0, place].double().exp().numpy()
    if model.config.kmers:
        assert tokens.offset[63] == 3
        sums = p[6:4102].reshape((4,) * 6).sum((0, 1, 2, 4, 5))[[0, 2, 3, 1]]
    else:
        sums = p[7:11]
    assert got == pytest.approx(np.log(sums / sums.sum()), abs=1e-5)


def test_layers_reach_the_model(model):
    ids = windows_of(1, 130)
    runner = runner_of(model)
    first, last = collect(runner, ids, layers=1), collect(runner, ids, layers=2)
    assert torch.equal(last, collect(runner, ids)) and not torch.allclose(first, last, atol=1e-2)
    with pytest.raises(UsageError, match="--layer: got 3, expected 1 to 2"):
        collect(runner, ids, layers=3)
    (part,) = runner.stream(ids, layers=1)
    with pytest.raises(UsageError, match="log-probabilities are of the last layer"):
        runner.log_probabilities(part, 0, 0, 1)


def test_gradients_stay_on_in_the_caller(model):
    for part in runner_of(model, chunk=10).stream(windows_of(1, 130)):
        assert torch.is_grad_enabled() and not part.hidden.requires_grad


def test_no_window_is_too_short(model):
    runner = runner_of(model)
    assert list(runner.stream(torch.zeros(2, 0, dtype=torch.uint8))) == []
    assert collect(runner, torch.tensor([[7]], dtype=torch.uint8)).shape == (1, 1, 12)


def test_windows_longer_than_in_training_need_an_extension(model):
    length = 6 * 89 if model.config.kmers else 600
    assert runner_of(model).plan(1, length).ram > 0
    got = "95 tokens" if model.config.kmers else "605 tokens"
    with pytest.raises(UsageError, match=f"{length + 5} bp: got {got}, expected at most .*; choose --length-extension"):
        runner_of(model).plan(1, length + 5)
    for extension in ("pi", "ntk", "yarn", "self-extend"):
        runner = runner_of(model, extension=extension)
        assert runner.plan(1, 2 * length).ram > 0
        ids = windows_of(1, 2 * length)
        got = collect(runner, ids)
        tokens = kmers.tokenize(ids[0].numpy()) if model.config.kmers else kmers.single_bases(ids[0].numpy())
        with torch.no_grad():
            expected = model.encode(torch.from_numpy(tokens.ids)[None], extension=extension)[0, tokens.token]
        assert torch.equal(got[0], expected)
    with pytest.raises(UsageError, match="--length-extension: got 'rope', expected one of none, plain, pi"):
        runner_of(model, extension="rope")


def test_a_window_of_many_n_is_run_with_a_warning(caplog):
    runner = runner_of(model_of(KMERS))
    ids = windows_of(1, 6 * 89, n=False)
    runner.plan(*ids.shape)
    assert collect(runner, ids).shape == (1, 534, 12)
    ids[0, 12] = dna.N
    with caplog.at_level(logging.WARNING, logger="lrgenome"):
        for _ in range(2):
            assert collect(runner, ids).isfinite().all()
    assert [record.getMessage() for record in caplog.records] == [
        "windows with many N have more tokens than the 90 of training; they are run anyway"
    ]
    with pytest.raises(UsageError, match="a window of 540 bp: got 91 tokens, expected at most 90"):
        runner.plan(1, 540)


def test_what_is_needed_and_what_is_free_is_said(model):
    asked = []

    def free():
        asked.append(1)
        return 1_000

    runner = runner_of(model, extension="pi", free_ram=free)
    said = r"a window of 120,000 bp \(.* tokens\) needs .* GB of memory; free are 1e-06 GB. Use a shorter --context"
    with pytest.raises(MemoryLimitError, match=said):
        runner.plan(1, 120_000)
    ample = runner_of(model, extension="pi", free_ram=lambda: asked.append(1) or PLENTY)
    asked.clear()
    ample.plan(2, 600)
    ample.plan(2, 600)
    smaller = ample.plan(1, 300)
    assert len(asked) == 1 and smaller.ram < ample.plan(2, 600).ram


class Peak(TorchDispatchMode):
    """Measures the most bytes that tensors made under it take at one time."""

    def __init__(self):
        super().__init__()
        self.live, self.most = {}, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            # Weights laid out for oneDNN are opaque; they belong to the model.
            if isinstance(tensor, torch.Tensor) and not tensor.is_mkldnn:
                storage = tensor.untyped_storage()
                self.live[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.live = {at: (ref, size) for at, (ref, size) in self.live.items() if not ref.expired()}
        self.most = max(self.most, sum(size for _, size in self.live.values()))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("extension", ["pi", "self-extend"])
@pytest.mark.parametrize(("batch", "length", "kind"), [(1, 30_000, KMERS), (1, 8_000, SINGLE), (3, 2_000, SINGLE)])
def test_no_run_takes_more_than_was_planned(dtype, extension, batch, length, kind):
    config = NucleotideTransformerConfig(**(kind.to_json() | {"layers": 1, "width": 64, "max_tokens": 512}))
    runner = runner_of(model_of(config, dtype), extension=extension, block=128)
    # The arrays that say which token a base is in are numpy's, and not measured.
    need = runner.plan(batch, length).ram - batch * length * windows._BYTES_PER_BASE
    ids = windows_of(batch, length, n=False)
    gc.collect()
    with Peak() as peak:
        for part in runner.stream(ids):
            runner.log_probabilities(part, 0, 0, 100)
    assert peak.most <= need <= 3 * peak.most


@pytest.mark.parametrize(("length", "extension"), [(12_000, "none"), (120_000, "pi")])
def test_long_windows_run(length, extension):
    config = NucleotideTransformerConfig(layers=1, width=8, heads=1, mlp_width=8)
    runner = runner_of(model_of(config), extension=extension)
    ids = windows_of(1, length, n=False)
    states = collect(runner, ids)
    assert states.shape == (1, length, 8) and states.isfinite().all()
    ids[0, 0] = dna.C if ids[0, 0] == dna.A else dna.A
    # The last token hears of the first.
    assert (collect(runner, ids)[0, -1] - states[0, -1]).abs().max() > 0.0


def test_the_head_sees_tokens_on_a_fixed_grid(monkeypatch):
    seen = []
    model = model_of(KMERS)
    original = model.head
    monkeypatch.setattr(model, "head", lambda hidden: seen.append(hidden.shape) or original(hidden))
    runner = runner_of(model)
    (part,) = runner.stream(windows_of(1, 500, n=False))
    runner.log_probabilities(part, 0, 370, 385)
    assert seen == [(windows._HEAD_ROWS, 12)] * 2
