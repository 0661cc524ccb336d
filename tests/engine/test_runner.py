import pytest
import torch

from lrgenome.engine import runner as module
from lrgenome.engine.chunking import GPU_CHUNK, default_chunk
from lrgenome.engine.runner import Runner
from lrgenome.engine.store import FileStore, MemoryStore
from lrgenome.engine.sweep import hidden_states
from lrgenome.errors import MemoryLimitError, OutputError, UsageError
from lrgenome.glossary import REVERSE
from lrgenome.models.checkpoint import load_model

CPU = torch.device("cpu")
PLENTY = 1 << 40


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model).model.for_inference(torch.float32)


@pytest.fixture
def make(model, tmp_path):
    runners = []

    def new(device=CPU, **options):
        options = {"free_ram": lambda: PLENTY, "free_disk": lambda: PLENTY, "tmpdir": tmp_path, **options}
        runners.append(Runner(model, device, **options))
        return runners[-1]

    yield new
    for runner in runners:
        runner.close()


def windows(*shape, seed=0):
    return torch.randint(7, 12, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def collect(runner, ids, **options):
    """Concatenate the chunks, whose memory is used again by the next one."""
    return torch.cat([part.hidden.clone() for part in runner.stream(ids, **options)], 1)


@pytest.mark.parametrize("store", ["ram", "disk"])
@pytest.mark.parametrize("chunk", [1, 7, 299, 300, 5_000])
def test_a_runner_streams_what_the_whole_pass_gives(model, make, store, chunk):
    ids = windows(2, 300)
    with torch.no_grad():
        whole = hidden_states(model, ids)
    got = collect(make(chunk=chunk, store=store), ids)
    assert (got - whole).abs().max() <= 5e-5 * whole.abs().max()


def test_disk_and_memory_give_the_same_bytes(make):
    ids = windows(1, 500)
    results = [
        collect(make(chunk=64, store=store, free_ram=lambda free=free: free), ids)
        for store, free in (("ram", PLENTY), ("disk", PLENTY), ("ram", 250_000))
    ]
    assert torch.equal(results[0], results[1])
    # Computing the in-projections twice rather than keeping them changes nothing either.
    assert torch.equal(results[0], results[2])


def test_windows_of_many_lengths_share_buffers_and_nothing_else(make):
    shared = make(chunk=50)
    for length in (200, 1, 350, 49, 200, 51):
        ids = windows(1, length, seed=length)
        assert torch.equal(collect(shared, ids), collect(make(chunk=50), ids))
    assert len(shared._stores) == 1


def test_strand_and_layers_reach_the_sweep(make):
    ids = windows(1, 130)
    forward, reverse = collect(make(), ids), collect(make(), ids, strand=REVERSE)
    first, last = collect(make(), ids, layers=1), collect(make(), ids, layers=2)
    assert not torch.allclose(forward, reverse, atol=1e-3)
    assert not torch.allclose(forward, first, atol=1e-3)
    assert torch.equal(forward, last)


def test_gradients_stay_on_in_the_caller(make):
    assert torch.is_grad_enabled()
    for part in make(chunk=10).stream(windows(1, 30)):
        assert torch.is_grad_enabled() and not part.hidden.requires_grad


def test_the_chunk_is_chosen_by_device(make, model):
    assert make().chunk == default_chunk(model, "cpu")
    assert make(torch.device("cuda:0")).chunk == GPU_CHUNK
    assert make(torch.device("cuda:0"), chunk=5).chunk == 5


class Ids:
    """Stands in for a tensor on a GPU."""

    def __init__(self, *shape):
        self.shape = shape

    def to(self, device):
        return self


@pytest.mark.parametrize(("batch", "chunk"), [(1, 100_000), (400, 83_886)])
def test_no_tensor_on_a_gpu_passes_32_bit_indices(make, monkeypatch, batch, chunk):
    used = {}

    def stream(model, ids, **options):
        used.update(options)
        yield from ()

    monkeypatch.setattr(module, "stream", stream)
    runner = make(torch.device("cuda:0"))
    assert list(runner.stream(Ids(batch, 200_000))) == []
    assert used["chunk"] == chunk
    assert used["chunk"] * batch * runner.model.prepared_width() < 2**31


def test_memory_is_asked_once_a_shape_and_the_largest_decides(make):
    asked = []
    runner = make(free_ram=lambda: asked.append(1) or PLENTY)
    large = runner.plan(1, 1_000)
    assert runner.plan(1, 1_000) is large
    assert runner.plan(1, 500) is large and runner.plan(2, 500) is large
    assert len(asked) == 1
    assert runner.plan(2, 1_000).ram > large.ram
    assert len(asked) == 2


def test_a_larger_window_frees_what_smaller_ones_kept(make):
    runner = make()
    collect(runner, windows(1, 100))
    (before,) = runner._stores.values()
    runner.plan(1, 200)
    assert runner._stores == {} and before._memory == {}
    collect(runner, windows(1, 200))


def test_a_window_that_does_not_fit_is_refused_before_it_runs(make):
    runner = make(free_ram=lambda: 10_000)
    with pytest.raises(MemoryLimitError, match="a window of 5,000 bp needs"):
        next(runner.stream(windows(1, 5_000)))


def test_little_memory_goes_to_disk_by_itself(make, tmp_path):
    runner = make(chunk=64, free_ram=lambda: 400_000)
    collect(runner, windows(1, 5_000))
    (store,) = runner._stores.values()
    assert isinstance(store, FileStore) and store.folder == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_stores_are_closed_at_the_end(make):
    with make(store="disk", chunk=20) as runner:
        collect(runner, windows(1, 100))
        (store,) = runner._stores.values()
        assert store._files
    assert store._files == {} and runner._stores == {}
    with make() as runner:
        collect(runner, windows(1, 100))
        assert isinstance(next(iter(runner._stores.values())), MemoryStore)


def test_a_folder_that_is_gone_is_an_output_error(make, tmp_path):
    with pytest.raises(OutputError, match=r"temporary store in .*gone.*--tmpdir"):
        collect(make(store="disk", chunk=20, tmpdir=tmp_path / "gone"), windows(1, 100))


def test_unknown_transfer(make):
    with pytest.raises(UsageError, match="--transfer: got 'some', expected one of exact, forward, none"):
        make(transfer="some")


def test_an_empty_window_gives_nothing(make):
    assert list(make().stream(windows(1, 0))) == []
