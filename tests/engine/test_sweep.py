"""The law: a window run in chunks is the window run whole, and both are the network written out in loops."""

import itertools

import numpy as np
import pytest
import torch
from sweep_reference import (
    CHUNKS,
    STRANDS,
    T,
    furthest,
    make,
    reference,
    run,
    windows,
)

from lrgenome import dna
from lrgenome.config import CaduceusConfig
from lrgenome.engine.store import FileStore, GraphStore, MemoryStore
from lrgenome.engine.sweep import chunk_edges, hidden_states, stream
from lrgenome.errors import UsageError
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.models.caduceus import build as build_caduceus
from lrgenome.ops import backend, jit
from lrgenome.ops.workspace import Workspace


@pytest.fixture(autouse=True)
def one_thread():
    """Barriers between threads would cost more than these small sums."""
    before = torch.get_num_threads(), jit.numba.get_num_threads()
    jit.set_threads(1)
    yield
    torch.set_num_threads(before[0])
    jit.numba.set_num_threads(before[1])


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
    got, of_left, of_right = (run(model, w, chunk=10, transfer="forward")[:, 10:20] for w in (ids, left, right))
    assert torch.equal(got, of_right) and furthest(got, of_left) > 1e-6


@pytest.mark.parametrize("transfer", ["forward", "none"])
@pytest.mark.parametrize("strand", STRANDS)
def test_one_chunk_is_exact_whatever_the_transfer(transfer, strand):
    model, ids = make(3), windows()
    exact = run(model, ids, chunk=T, strand=strand)
    for chunk in (T, T + 100):
        assert torch.equal(run(model, ids, chunk=chunk, transfer=transfer, strand=strand), exact)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_makes_no_difference_to_the_last_bit(dtype):
    model, ids = make(3, dtype=torch.float32, width=32, recurrent_width=48).for_inference(dtype), windows(300)
    kept, again = (
        run(model, ids, chunk=64, store=MemoryStore(), keep_prepared=keep, workspace=Workspace())
        for keep in (True, False)
    )
    assert torch.equal(kept, again)


@pytest.mark.parametrize("with_graph", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize("kind", ["hawk", "caduceus", "caduceus-ps"])
def test_a_window_between_the_ends_of_its_neighbours_is_the_middle_of_the_whole(kind, strand, recompute, with_graph):
    model = make(1) if kind == "hawk" else build_caduceus(
        CaduceusConfig(layers=1, width=8, equivariant=kind == "caduceus-ps"), seed=0
    ).double().set_compute_dtype(torch.float64)  # fmt: skip
    if strand == REVERSE and kind == "caduceus-ps":
        pytest.skip("runs both strands")
    ids, whole, found = windows(), {}, {}
    with torch.set_grad_enabled(with_graph):
        want = hidden_states(model, ids, strand=strand, ends=whole, recompute=recompute)
        for name, part in {"left": ids[:, :11], "right": ids[:, 25:]}.items():
            hidden_states(model, part, strand=strand, ends=found.setdefault(name, {}), recompute=recompute)
        got = hidden_states(
            model, ids[:, 11:25], strand=strand, recompute=recompute, chunk=14 if recompute else 5,
            start=[(found["left"][0, False], found["right"][0, True])], ends=(ends := {}),
        )  # fmt: skip
        assert furthest(got, want[:, 11:25]) < 1e-12
        # And on to the window's own ends.
        zero = model.stack[0].initial_state(3 * model.strands, ids.device)
        hidden_states(model, ids[:, 25:], strand=strand, start=[(ends[0, False], zero)], ends=(last := {}))
        hidden_states(model, ids[:, :11], strand=strand, start=[(zero, ends[0, True])], ends=(first := {}))
    assert furthest(first[0, True].h, whole[0, True].h) < 1e-12
    assert furthest(last[0, False].h, whole[0, False].h) < 1e-12
    if recompute and with_graph:
        assert not any(part.requires_grad for state in whole.values() for part in state)
