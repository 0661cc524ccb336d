"""The law for Caduceus: chunked equals whole, both are the network written out in loops, and PS is equivariant."""

import numpy as np
import pytest
import torch
from sweep_reference import STRANDS, T, furthest, gradients, run, windows

from lrgenome.config import CaduceusConfig
from lrgenome.dna import COMPLEMENT
from lrgenome.engine.memory import graph_bytes, plan
from lrgenome.engine.store import FileStore
from lrgenome.engine.sweep import hidden_states
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.models.caduceus import Caduceus, build
from lrgenome.ops import backend, jit

CHUNKS = (1, 3, 16, T - 1, T)
KINDS = (False, True)


@pytest.fixture(autouse=True)
def one_thread():
    """Barriers between threads would cost more than these small sums."""
    before = torch.get_num_threads(), jit.numba.get_num_threads()
    jit.set_threads(1)
    yield
    torch.set_num_threads(before[0])
    jit.numba.set_num_threads(before[1])


def make(layers: int = 2, *, equivariant: bool = False, dtype: torch.dtype = torch.float64, seed: int = 0) -> Caduceus:
    """Make a small model in which every weight matters."""
    config = CaduceusConfig(layers=layers, width=16, equivariant=equivariant, state=5, dt_rank=3, dt_min=1e-3)
    model = build(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
        model.embedding.mul_(3.0)
    if dtype == torch.float64:
        model.double()
    return model.set_compute_dtype(dtype)


def silu(x):
    return x / (1.0 + np.exp(-x))


def norm(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * (1.0 + scale)


def mamba(own, x, rank, size):
    """One direction, left to right, over (t, e) in-projections: convolution, projections, recurrence."""
    t, e = x.shape
    taps = own["conv_weight"]
    padded = np.concatenate([np.zeros((len(taps) - 1, e)), x])
    y, h = np.empty_like(x), np.zeros((e, size))
    for i in range(t):
        v = silu(own["conv_bias"] + sum(taps[j] * padded[i + j] for j in range(len(taps))))
        made = own["x_weight"] @ v
        dt = np.logaddexp(0.0, own["dt_weight"] @ made[:rank] + own["dt_bias"])
        b, c = made[rank : rank + size], made[rank + size :]
        h = np.exp(-dt[:, None] * np.exp(own["a_log"])) * h + (dt * v)[:, None] * b
        y[i] = h @ c + own["skip"] * v
    return y


def one_strand(model: Caduceus, ids: np.ndarray) -> np.ndarray:
    """Final hidden states (t, d) of a window read left to right."""
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    config = model.config
    x = weights["embedding"][ids]
    for layer in range(config.layers):
        p = {n.split(".", 2)[2]: w for n, w in weights.items() if n.startswith(f"blocks.{layer}.")}
        own = [{n.split(".")[2]: w for n, w in p.items() if n.startswith(f"directions.{k}.")} for k in (0, 1)]
        normed = norm(x, p["norm"])
        branch, gate = normed @ p["in_branch_weight"].T, normed @ p["in_gate_weight"].T
        y = mamba(own[0], branch, config.dt_rank, config.state)
        y = y + mamba(own[1], branch[::-1], config.dt_rank, config.state)[::-1]
        x = x + (silu(gate) * y) @ p["out_weight"].T
    return norm(x, weights["final_norm"])


def reference(model: Caduceus, ids) -> np.ndarray:
    """Hidden states of windows; an equivariant model's second strand is the reverse complement, read back to front."""
    rows = []
    for window in np.asarray(ids):
        parts = [one_strand(model, window)]
        if model.config.equivariant:
            parts.append(one_strand(model, COMPLEMENT[window][::-1])[::-1])
        rows.append(np.concatenate(parts, -1))
    return np.stack(rows)


@pytest.mark.parametrize("equivariant", KINDS)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("chunk", [T, 10])
def test_engine_is_the_network_written_out(equivariant, layers, chunk):
    model, ids = make(layers, equivariant=equivariant), windows()
    assert np.abs(run_wide(model, ids, chunk=chunk).numpy() - reference(model, ids)).max() < 1e-10
    fast = make(layers, equivariant=equivariant, dtype=torch.float32)
    assert furthest(run_wide(fast, ids, chunk=chunk), torch.from_numpy(reference(fast, ids)).float()) < 5e-5


def run_wide(model: Caduceus, ids: torch.Tensor, **options) -> torch.Tensor:
    """`run`, of outputs that may be two strands wide."""
    return run(model, ids, width=model.hidden_width(), **options)


@pytest.mark.parametrize("equivariant", KINDS)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
def test_chunked_equals_whole(equivariant, layers, strand, dtype, limit):
    model, ids = make(layers, equivariant=equivariant, dtype=dtype), windows(batch=2)
    whole = run_wide(model, ids, chunk=T, strand=strand)
    for chunk in CHUNKS:
        assert furthest(run_wide(model, ids, chunk=chunk, strand=strand), whole) < limit, chunk


@pytest.mark.parametrize("equivariant", KINDS)
def test_chunked_equals_whole_beyond_a_thousand(equivariant, tmp_path):
    model, ids = make(2, equivariant=equivariant, dtype=torch.float32), windows(2105, batch=1)
    whole = run_wide(model, ids, chunk=2105)
    for chunk, keep in ((1000, True), (64, False)):
        store = FileStore(tmp_path)
        got = run_wide(model, ids, chunk=chunk, store=store, keep_prepared=keep)
        store.close()
        assert furthest(got, whole) < 5e-5


@pytest.mark.parametrize("equivariant", KINDS)
def test_blocked_scan_obeys_the_law_too(equivariant):
    model, ids = make(2, equivariant=equivariant, dtype=torch.float32), windows()
    whole = run_wide(model, ids, chunk=T)
    with backend.use("blocked"):
        for chunk in (3, T):
            assert furthest(run_wide(model, ids, chunk=chunk), whole) < 5e-5


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_reverse_complement_gives_the_reverse(dtype, limit):
    model, ids = make(3, equivariant=True, dtype=dtype), windows()
    other = torch.from_numpy(COMPLEMENT)[ids.long()].flip(1)
    for chunk in (8, T):
        hidden, turned = (run_wide(model, of, chunk=chunk) for of in (ids, other))
        first, second = turned.flip(1).chunk(2, -1)
        assert furthest(torch.cat([second, first], -1), hidden) < limit
        logits, mirrored = model.logits(hidden), model.logits(turned).flip(1)
        assert furthest(mirrored[..., torch.from_numpy(COMPLEMENT.astype(np.int64))], logits) < limit


def test_a_model_of_one_strand_is_not_equivariant():
    model, ids = make(2), windows()
    other = torch.from_numpy(COMPLEMENT)[ids.long()].flip(1)
    assert furthest(run_wide(model, other, chunk=T).flip(1), run_wide(model, ids, chunk=T)) > 0.1


@pytest.mark.parametrize("equivariant", KINDS)
@pytest.mark.parametrize("strand", [FORWARD, REVERSE])
def test_reverse_strand_is_the_reverse_complement_run_forwards_and_flipped(equivariant, strand):
    model, ids = make(2, equivariant=equivariant), windows()
    other = torch.from_numpy(COMPLEMENT)[ids.long()].flip(1)
    got = run_wide(model, other, chunk=9, strand=1 - strand).flip(1)
    assert furthest(got, run_wide(model, ids, chunk=9, strand=strand)) < 1e-10


@pytest.mark.parametrize("equivariant", KINDS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_gradients_of_chunks_equal_those_of_the_whole(equivariant, dtype, limit):
    model, ids = make(2, equivariant=equivariant, dtype=dtype), windows(23, batch=2)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, 23, model.hidden_width(), generator=generator).to(dtype)
    whole = gradients(model, ids, 23, weight)
    assert all(g.abs().max() > 0 for g in whole.values())
    for chunk in (1, 8):
        for name, gradient in gradients(model, ids, chunk, weight).items():
            assert furthest(gradient, whole[name]) < limit, (chunk, name)
    for name, gradient in gradients(model, ids, 23, weight, recompute=True).items():
        assert torch.equal(gradient, whole[name]), name


def test_bfloat16_stays_near_float32():
    for equivariant in KINDS:
        model, ids = make(3, equivariant=equivariant, dtype=torch.float32), windows(200)
        wide = run_wide(model, ids, chunk=200)
        model.set_compute_dtype(torch.bfloat16, residual=torch.float32)
        narrow = run_wide(model, ids, chunk=64)
        assert narrow.dtype == torch.bfloat16
        assert ((narrow.float() - wide).norm() / wide.norm()).item() < 0.05


def test_both_strands_count_in_memory():
    sizes = {}
    for equivariant in KINDS:
        model = make(2, equivariant=equivariant, dtype=torch.float32)
        sizes[equivariant] = (
            plan(model, 1, 10_000, 1000, store="ram", free_ram=1 << 40, free_disk=0).ram,
            graph_bytes(model, 1000, recompute=False),
        )
    assert sizes[True] == tuple(2 * size for size in sizes[False])


@pytest.mark.parametrize("equivariant", KINDS)
def test_the_graph_is_about_as_large_as_planned(equivariant):
    model, ids = make(3, equivariant=equivariant, dtype=torch.float32), windows(200, batch=2)
    sizes, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden_states(model, ids)
    assert graph_bytes(model, 400, recompute=False) == pytest.approx(sum(sizes.values()), rel=0.35)
