"""Gradients of a window run in chunks are those of the window run whole."""

import numpy as np
import pytest
import torch
from sweep_reference import STRANDS, furthest, gradients, make, reference, run, windows

from lrgenome.engine.memory import graph_bytes
from lrgenome.engine.sweep import hidden_states, stream
from lrgenome.errors import UsageError
from lrgenome.ops import jit


@pytest.fixture(autouse=True)
def one_thread():
    """Barriers between threads would cost more than these small sums."""
    before = torch.get_num_threads(), jit.numba.get_num_threads()
    jit.set_threads(1)
    yield
    torch.set_num_threads(before[0])
    jit.numba.set_num_threads(before[1])


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
