"""The law: a window run in chunks is the window run whole, and both are the network written out in loops."""

import itertools

import numpy as np
import pytest
import torch

from lrgenome import dna
from lrgenome.config import HawkConfig
from lrgenome.engine.memory import graph_bytes
from lrgenome.engine.store import FileStore, GraphStore, MemoryStore
from lrgenome.engine.sweep import chunk_edges, hidden_states, stream
from lrgenome.errors import UsageError
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.models.hawk import Hawk, build
from lrgenome.ops import backend, jit
from lrgenome.ops.workspace import Workspace

T = 37
CHUNKS = (1, 3, 16, T - 1, T, T + 5)
STRANDS = (FORWARD, REVERSE)


@pytest.fixture(autouse=True)
def one_thread():
    """Barriers between threads would cost more than these small sums."""
    before = torch.get_num_threads(), jit.numba.get_num_threads()
    jit.set_threads(1)
    yield
    torch.set_num_threads(before[0])
    jit.numba.set_num_threads(before[1])


def make(layers: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float64, **shape) -> Hawk:
    """Make a small model in which no bias is zero and some channels remember for long."""
    sizes = {"width": 16, "recurrent_width": 24, "heads": 3, "mlp_width": 20, "half_life_max": 500.0, **shape}
    model = build(HawkConfig(layers=layers, **sizes), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.endswith("a_param"):
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    if dtype == torch.float64:
        model.double()
    return model.set_compute_dtype(dtype)


def windows(length: int = T, batch: int = 3, seed: int = 0) -> torch.Tensor:
    ids = np.random.default_rng(seed).choice([dna.MASK, *range(dna.A, dna.N + 1)], (batch, length))
    return torch.from_numpy(ids.astype(np.uint8))


def run(model: Hawk, ids: torch.Tensor, **options) -> torch.Tensor:
    """Join the chunks of a sweep without gradients, checking their places."""
    parts, at = [], 0
    with torch.no_grad():
        for part in stream(model, ids, **options):
            assert part.start == at and part.hidden.shape == (
                *(ids.shape[0], part.end - at),
                model.config.width,
            )
            parts.append(part.hidden.clone())
            at = part.end
    assert at == ids.shape[1]
    return torch.cat(parts, 1)


def furthest(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    assert a.dtype == b.dtype and a.shape == b.shape
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


# The network in plain loops over positions, sharing no code with the package.


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def norm(x, scale):
    return x / np.sqrt((x * x).mean() + 1e-6) * (1.0 + scale)


def reference_scan(own, v, heads, order, restarts):
    """One direction; at the positions in `restarts` it knows nothing of what came before."""
    e = v.shape[1]
    w = e // heads
    y, h, seen = np.zeros_like(v), np.zeros(e), []
    decay = 8.0 * np.log1p(np.exp(own["a_param"]))
    for place, t in enumerate(order):
        if t in restarts:
            h, seen = np.zeros(e), []
        seen.append(v[t])
        c = own["conv_bias"].copy()
        for tap in range(4):  # the last tap is on the position itself
            if len(seen) > tap:
                c += own["conv_weight"][3 - tap] * seen[-1 - tap]
        both = np.stack([c[i * w : (i + 1) * w] @ own["gate_weight"][i] for i in range(heads)])
        in_gate = sigmoid(both[:, :w].ravel() + own["gate_bias"][0])
        a = np.exp(-sigmoid(both[:, w:].ravel() + own["gate_bias"][1]) * decay)
        h = in_gate * c if place == 0 else a * h + np.sqrt(1.0 - a * a) * in_gate * c
        y[t] = h
    return y


def reference(model: Hawk, ids, *, cuts_forward=(), cuts_reverse=(), layers=None, final=True) -> np.ndarray:
    """Hidden states (b, t, d) of the whole network; a cut is a position that starts anew in its direction."""
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    config, rows = model.config, []
    for window in np.asarray(ids):
        x = np.stack([weights["embedding"][i] for i in window])
        length = len(x)
        for layer in range(config.layers if layers is None else layers):
            p = {n.split(".", 2)[2]: w for n, w in weights.items() if n.startswith(f"blocks.{layer}.")}
            own = [
                {n.split(".")[2]: w for n, w in p.items() if n.startswith(f"directions.{k}.")} for k in (0, 1)
            ]
            normed = np.stack([norm(row, p["mixer_norm"]) for row in x])
            v = normed @ p["in_branch_weight"].T + p["in_branch_bias"]
            gate = normed @ p["in_gate_weight"].T + p["in_gate_bias"]
            y = reference_scan(own[0], v, config.heads, range(length), cuts_forward)
            y = y + reference_scan(own[1], v, config.heads, range(length - 1, -1, -1), cuts_reverse)
            x = x + (gelu(gate) * y) @ p["out_weight"].T + p["out_bias"]
            up = np.stack([norm(row, p["mlp_norm"]) for row in x]) @ p["up_weight"].T + p["up_bias"]
            f = up.shape[1] // 2
            x = x + (gelu(up[:, :f]) * up[:, f:]) @ p["down_weight"].T + p["down_bias"]
        rows.append(np.stack([norm(row, weights["final_norm"]) for row in x]) if final else x)
    return np.stack(rows)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("chunk", [T, 10])
def test_engine_is_the_network_written_out(layers, chunk):
    model, ids = make(layers), windows()
    assert np.abs(run(model, ids, chunk=chunk).numpy() - reference(model, ids)).max() < 1e-10


def test_fast_ops_are_the_network_written_out():
    model, ids = make(3, dtype=torch.float32), windows()
    expected = torch.from_numpy(reference(model, ids)).float()
    assert furthest(run(model, ids, chunk=10), expected) < 5e-5


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
def test_chunked_equals_whole(layers, strand, dtype, limit):
    model = make(layers, dtype=dtype)
    for batch in (1, 3):
        ids = windows(batch=batch)
        whole = run(model, ids, chunk=T, strand=strand)
        for chunk in CHUNKS:
            assert furthest(run(model, ids, chunk=chunk, strand=strand), whole) < limit, (batch, chunk)


@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
def test_chunked_equals_whole_beyond_a_thousand(strand, dtype, limit):
    model, ids = make(2, dtype=dtype), windows(1203, batch=1)
    whole = run(model, ids, chunk=1203, strand=strand)
    for chunk in (1, 1000, 1202):
        assert furthest(run(model, ids, chunk=chunk, strand=strand), whole) < limit, chunk


def test_blocked_scan_obeys_the_law_too():
    model, ids = make(3, dtype=torch.float32), windows()
    whole = run(model, ids, chunk=T)
    with backend.use("blocked"):
        for chunk in (3, 16, T):
            assert furthest(run(model, ids, chunk=chunk), whole) < 5e-5


def test_bfloat16_stays_near_float32():
    model, ids = make(3, dtype=torch.float32), windows(200)
    wide = run(model, ids, chunk=200)
    model.set_compute_dtype(torch.bfloat16, residual=torch.float32)
    for chunk in (64, 200):
        narrow = run(model, ids, chunk=chunk)
        assert narrow.dtype == torch.bfloat16
        assert ((narrow.float() - wide).norm() / wide.norm()).item() < 0.03


@pytest.mark.parametrize("kind", ["memory", "file", "graph"])
@pytest.mark.parametrize("keep_prepared", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
def test_every_store_gives_the_same(kind, keep_prepared, dtype, limit, tmp_path):
    store = {"memory": MemoryStore, "file": lambda: FileStore(tmp_path), "graph": GraphStore}[kind]()
    model, scratch = make(3, dtype=dtype), Workspace()
    try:
        for batch, strand in itertools.product((1, 3), STRANDS):
            ids = windows(batch=batch)
            whole = run(model, ids, chunk=T, strand=strand)
            # One store and one workspace for all of it, windows growing and shrinking.
            for chunk in (5, T, 1, 16):
                got = run(
                    model,
                    ids,
                    chunk=chunk,
                    strand=strand,
                    store=store,
                    keep_prepared=keep_prepared,
                    workspace=scratch,
                )
                assert furthest(got, whole) < limit, (batch, strand, chunk)
    finally:
        store.close()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_buffers_used_again_change_nothing(dtype, kind, tmp_path):
    models = [
        make(2, dtype=dtype),
        make(3, seed=1, dtype=dtype, width=10, recurrent_width=40, heads=2, mlp_width=33),
    ]
    scratch = Workspace()
    store = MemoryStore() if kind == "memory" else FileStore(tmp_path)
    sizes = [(3, 30), (1, 70), (2, 7), (3, 30), (1, 1), (2, 64)]
    for turn, (batch, length) in enumerate(sizes):
        model, ids = models[turn % 2], windows(length, batch, seed=turn)
        fresh = run(model, ids, chunk=9)
        assert torch.equal(run(model, ids, chunk=9, store=store, workspace=scratch), fresh)
        assert torch.equal(run(model, ids, chunk=9, workspace=scratch), fresh)
    store.close()


def test_a_sweep_given_up_halfway_leaves_nothing_behind(tmp_path):
    model, ids = make(3, dtype=torch.float32), windows(50)
    fresh = run(model, ids, chunk=7)
    store, scratch = FileStore(tmp_path), Workspace()
    with torch.no_grad():
        for part in stream(model, windows(60, seed=5), chunk=7, store=store, workspace=scratch):
            if part.start:
                break
    assert torch.equal(run(model, ids, chunk=7, store=store, workspace=scratch), fresh)
    store.close()


@pytest.mark.parametrize("chunk", [T, 10, 1])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_reverse_strand_is_the_reverse_complement_run_forwards_and_flipped(layers, chunk):
    model, ids = make(layers), windows()
    forwards = run(model, torch.from_numpy(dna.reverse_complement(ids.numpy())), chunk=T)
    assert (run(model, ids, chunk=chunk, strand=REVERSE) - forwards.flip(1)).abs().max() < 1e-10


@pytest.mark.parametrize("chunk", [T, 10])
@pytest.mark.parametrize("strand", STRANDS)
def test_inner_layers_are_those_of_a_shorter_stack(chunk, strand):
    model, ids = make(4), windows()
    for layers in (1, 2, 3):
        shorter = make(layers)
        shorter.load_state_dict({k: v for k, v in model.state_dict().items() if k in shorter.state_dict()})
        raw = run(model, ids, chunk=chunk, layers=layers, strand=strand)
        assert (shorter.finish(raw) - run(shorter, ids, chunk=T, strand=strand)).abs().max() < 1e-10
        if strand == FORWARD:
            expected = reference(model, ids, layers=layers, final=False)
            assert np.abs(raw.numpy() - expected).max() < 1e-10
    assert torch.equal(
        run(model, ids, chunk=chunk, layers=4, strand=strand), run(model, ids, chunk=chunk, strand=strand)
    )


def cuts(chunk: int) -> tuple[set[int], set[int]]:
    """First position of every chunk but the first in each direction."""
    edges = chunk_edges(T, chunk)
    return {start for start, _ in edges[1:]}, {end - 1 for _, end in edges[:-1]}


@pytest.mark.parametrize("chunk", [1, 3, 10, 18, T - 1])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_other_transfers_start_anew_at_chunk_edges(layers, chunk):
    model, ids = make(layers), windows(batch=2)
    forward, reverse = cuts(chunk)
    exact = run(model, ids, chunk=chunk)
    for transfer, restarts in [
        ("forward", {"cuts_reverse": reverse}),
        ("none", {"cuts_forward": forward, "cuts_reverse": reverse}),
    ]:
        got = run(model, ids, chunk=chunk, transfer=transfer)
        assert np.abs(got.numpy() - reference(model, ids, **restarts)).max() < 1e-10
        assert furthest(got, exact) > 1e-4


def test_no_transfer_is_a_run_of_independent_chunks():
    model, ids = make(2), windows(30, batch=2)
    got = run(model, ids, chunk=10, transfer="none")
    # The inner chunk sees neither true end: with a neighbour on each side it starts anew without the
    # multiplier of a first base.
    alone = reference(model, ids[:, 9:21], cuts_forward={1, 11}, cuts_reverse={10, 0})[:, 1:11]
    assert np.abs(got[:, 10:20].numpy() - alone).max() < 1e-10
    # A window of its own would have that multiplier.
    assert furthest(run(model, ids[:, 10:20], chunk=10), got[:, 10:20]) > 1e-4
    # What lies in other chunks has no effect.
    other = ids.clone()
    other[:, :10] = dna.A
    other[:, 20:] = dna.C
    assert torch.equal(run(model, other, chunk=10, transfer="none")[:, 10:20], got[:, 10:20])


def test_forward_transfer_hears_the_left_only():
    model, ids = make(2), windows(30, batch=1)
    left, right = ids.clone(), ids.clone()
    left[:, 3] = dna.MASK if ids[0, 3] != dna.MASK else dna.A
    right[:, 27] = dna.MASK if ids[0, 27] != dna.MASK else dna.A
    got, of_left, of_right = (
        run(model, w, chunk=10, transfer="forward")[:, 10:20] for w in (ids, left, right)
    )
    assert torch.equal(got, of_right) and furthest(got, of_left) > 1e-6


@pytest.mark.parametrize("transfer", ["forward", "none"])
@pytest.mark.parametrize("strand", STRANDS)
def test_one_chunk_is_exact_whatever_the_transfer(transfer, strand):
    model, ids = make(3), windows()
    exact = run(model, ids, chunk=T, strand=strand)
    for chunk in (T, T + 100):
        assert torch.equal(run(model, ids, chunk=chunk, transfer=transfer, strand=strand), exact)


def gradients(
    model: Hawk, ids: torch.Tensor, chunk: int, weight: torch.Tensor, **options
) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    (hidden_states(model, ids, chunk=chunk, **options) * weight).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_gradients_of_chunks_equal_those_of_the_whole(layers, strand, dtype, limit):
    model, ids = make(layers, dtype=dtype), windows(23, batch=2)
    weight = torch.randn(2, 23, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    whole = gradients(model, ids, 23, weight, strand=strand)
    assert all(g.abs().max() > 0 for g in whole.values())
    for chunk in (1, 3, 8, 22):
        chunked = gradients(model, ids, chunk, weight, strand=strand)
        for name, gradient in chunked.items():
            assert furthest(gradient, whole[name]) < limit, (chunk, name)


def test_gradients_are_right():
    model, ids = make(2), windows(7, batch=1)
    weight = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = gradients(model, ids, 3, weight)
    rng, step = np.random.default_rng(0), 1e-6
    for name, p in model.named_parameters():
        flat, place = p.data.view(-1), int(rng.integers(p.numel()))
        if name == "embedding":
            place = int(ids[0, 0]) * 16  # a token that occurs
        kept, values = flat[place].item(), []
        for shift in (step, -step):
            flat[place] = kept + shift
            values.append((torch.from_numpy(reference(model, ids)) * weight).sum().item())
        flat[place] = kept
        slope = (values[0] - values[1]) / (2 * step)
        assert got[name].view(-1)[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-7), name


def test_recomputing_what_is_prepared_keeps_gradients():
    model, ids = make(3), windows(23, batch=2)
    expected = gradients(model, ids, 8, torch.ones(1, dtype=torch.float64))
    model.zero_grad(set_to_none=True)
    torch.cat([part.hidden for part in stream(model, ids, chunk=8, keep_prepared=False)], 1).sum().backward()
    for name, p in model.named_parameters():
        assert furthest(p.grad, expected[name]) < 1e-10, name


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_blocks_that_are_run_again_give_the_same_bits(layers, strand, dtype):
    model, ids = make(layers, dtype=dtype), windows(23, batch=2)
    model.set_compute_dtype(dtype, residual=torch.float64 if dtype == torch.float64 else torch.float32)
    weight = torch.randn(2, 23, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    kept = gradients(model, ids, 23, weight, strand=strand)
    again = gradients(model, ids, 23, weight, strand=strand, recompute=True)
    assert all(torch.equal(again[name], gradient) for name, gradient in kept.items())
    outputs = [hidden_states(model, ids, strand=strand, recompute=recompute) for recompute in (False, True)]
    assert torch.equal(*outputs)


def test_running_blocks_again_keeps_only_their_inputs():
    model, ids = make(3, dtype=torch.float32), windows(200, batch=2)

    def kept(recompute: bool) -> int:
        sizes, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = hidden_states(model, ids, recompute=recompute)
        assert out.requires_grad
        return sum(sizes.values())

    least, most = kept(True), kept(False)
    assert least == 400 * 16 * 4 * (3 + 1) + 400 * 8 and most > 15 * least
    # What the plan before a run expects.
    assert graph_bytes(model, 400, recompute=False) == pytest.approx(most, rel=0.3)


def test_running_blocks_again_needs_whole_windows():
    with pytest.raises(UsageError, match="--recompute: got --chunk 8, expected 0"):
        hidden_states(make(1), windows(), chunk=8, recompute=True)


def test_hidden_states_with_and_without_gradients_agree():
    model, ids = make(3, dtype=torch.float32), windows()
    with_graph = hidden_states(model, ids, chunk=10)
    assert with_graph.requires_grad
    with torch.no_grad():
        for chunk in (None, 10):
            assert furthest(hidden_states(model, ids, chunk=chunk), with_graph.detach()) < 5e-5
        assert torch.equal(hidden_states(model, ids, transfer="none"), hidden_states(model, ids))


def test_a_frozen_model_under_autograd_gives_the_same():
    model, ids = make(3, dtype=torch.float32).for_inference(torch.float32), windows()
    assert torch.equal(hidden_states(model, ids, chunk=10), run(model, ids, chunk=10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 0}, "--chunk: got 0"),
        ({"chunk": -3}, "--chunk: got -3"),
        ({"chunk": 5, "transfer": "both"}, "--transfer: got 'both', expected one of exact, forward, none"),
        ({"chunk": 5, "layers": 0}, "--layer: got 0, expected 1 to 3"),
        ({"chunk": 5, "layers": 4}, "--layer: got 4, expected 1 to 3"),
        ({"chunk": 5, "layers": -1}, "--layer: got -1, expected 1 to 3"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(UsageError) as caught:
        next(stream(make(3), windows(), **options))
    assert message in str(caught.value)


def test_an_empty_window_has_no_chunks():
    assert list(stream(make(1), windows(0), chunk=5)) == []


def test_chunk_edges():
    assert chunk_edges(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert chunk_edges(8, 4) == [(0, 4), (4, 8)]
    assert chunk_edges(3, 4) == [(0, 3)]
    assert chunk_edges(0, 4) == []
