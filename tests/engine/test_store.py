"""Stores between sweeps: what is put is got, in bounded memory and disk, and a full disk is an error."""

import errno
import os
from pathlib import Path

import psutil
import pytest
import torch

from lrgenome.config import HawkConfig
from lrgenome.engine.store import FileStore, GraphStore, MemoryStore
from lrgenome.engine.sweep import stream
from lrgenome.errors import OutputError
from lrgenome.models.hawk import build
from lrgenome.ops import jit
from lrgenome.ops.workspace import Workspace

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.fixture(autouse=True)
def one_thread():
    """Barriers between threads would cost more than these small sums."""
    before = torch.get_num_threads(), jit.numba.get_num_threads()
    jit.set_threads(1)
    yield
    torch.set_num_threads(before[0])
    jit.numba.set_num_threads(before[1])


@pytest.fixture
def store(tmp_path):
    made = FileStore(tmp_path)
    yield made
    made.close()


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def open_files() -> set[str]:
    """Names of the store's files that this process holds open."""
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(fd))
        except FileNotFoundError:  # the folder's own descriptor, closed by now
            continue
    return {link for link in links if "lrgenome-store-" in link}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [MemoryStore, FileStore, GraphStore])
def test_what_is_put_is_got(kind, dtype, tmp_path):
    store = FileStore(tmp_path) if kind is FileStore else kind()
    originals = {}
    for chunk in range(4):
        for name in ("x", "y"):
            value = tensor(2, 5 - chunk, 3, seed=10 * chunk + len(originals), dtype=dtype)
            buffer = store.buffer(name, chunk, tuple(value.shape), dtype, CPU)
            assert (buffer is None) == (kind is GraphStore)
            originals[name, chunk] = value
            store.put(name, chunk, value.clone() if buffer is None else buffer.copy_(value))
    for (name, chunk), value in reversed(originals.items()):
        got = store.get(name, chunk)
        assert got.dtype == dtype and torch.equal(got, value), (name, chunk)
    store.close()
    store.close()


def test_graph_store_hands_out_each_tensor_once_with_its_graph():
    store = GraphStore()
    leaf = torch.ones(3, requires_grad=True)
    store.put("x", 0, leaf * 2)
    store.get("x", 0).sum().backward()
    assert torch.equal(leaf.grad, torch.full((3,), 2.0))
    with pytest.raises(KeyError):
        store.get("x", 0)


def test_memory_store_computes_in_place():
    store = MemoryStore()
    first = store.buffer("x", 0, (2, 4), torch.float32, CPU)
    store.put("x", 0, first)
    assert store.get("x", 0) is first
    again = store.buffer("x", 0, (4, 1), torch.float32, CPU)
    assert again.data_ptr() == first.data_ptr() and again.shape == (4, 1)
    assert store.buffer("x", 1, (2, 4), torch.float32, CPU).data_ptr() != first.data_ptr()
    assert store.buffer("x", 0, (2, 4), torch.bfloat16, CPU).dtype == torch.bfloat16


def test_one_chunk_may_grow_shrink_and_change_its_type(store):
    for turn, (shape, dtype) in enumerate(
        [((2, 4), torch.float32), ((1, 1), torch.float64), ((9, 9), torch.bfloat16), ((2, 4), torch.float32)]
    ):
        value, neighbour = tensor(*shape, seed=turn, dtype=dtype), tensor(3, 3, seed=50 + turn)
        store.put("x", 0, value)
        store.put("x", 1, neighbour)
        assert torch.equal(store.get("x", 0), value) and torch.equal(store.get("x", 1), neighbour)


def test_empty_and_scattered_tensors(store):
    store.put("x", 0, torch.empty(2, 0, 3))
    assert store.get("x", 0).shape == (2, 0, 3)
    scattered = tensor(4, 6, seed=1).t()[::2]
    store.put("x", 1, scattered)
    assert torch.equal(store.get("x", 1), scattered)


def test_files_have_no_name_and_close_gives_their_descriptors_back(store, tmp_path):
    before = open_files()
    store.put("x", 0, tensor(5))
    store.put("y", 0, tensor(5))
    assert list(tmp_path.iterdir()) == []
    held = open_files() - before
    assert len(held) == 2 and all(str(tmp_path) in name and name.endswith("(deleted)") for name in held)
    store.close()
    assert open_files() == before


def test_a_closed_store_starts_afresh(store):
    store.put("x", 0, tensor(5))
    store.close()
    with pytest.raises(KeyError):
        store.get("x", 0)
    store.put("x", 3, tensor(7, seed=1))
    assert torch.equal(store.get("x", 3), tensor(7, seed=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_short_reads_and_writes_are_continued(store, monkeypatch, dtype):
    calls = {"pwritev": 0, "preadv": 0}

    def short(name):
        real = getattr(os, name)

        def some_bytes(fd, buffers, offset):
            calls[name] += 1
            (view,) = buffers
            return real(fd, [view[: max(1, len(view) // 3)]], offset)

        return some_bytes

    for name in calls:
        monkeypatch.setattr(os, name, short(name))
    value, other = tensor(7, 11, dtype=dtype), tensor(7, 11, seed=1, dtype=dtype)
    store.put("x", 0, value)
    store.put("x", 1, other)
    assert torch.equal(store.get("x", 0), value) and torch.equal(store.get("x", 1), other)
    assert min(calls.values()) > 4


def test_a_full_disk_names_the_folder_and_what_to_do(store, monkeypatch, tmp_path):
    real = os.pwritev

    def until_full(fd, buffers, offset):
        if offset >= 64:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, [buffers[0][:64]], offset)

    monkeypatch.setattr(os, "pwritev", until_full)
    with pytest.raises(OutputError) as caught:
        store.put("branch", 0, tensor(100))
    assert str(caught.value) == (
        f"temporary store in {tmp_path}: No space left on device after 64 of 400 bytes of branch; "
        "give --tmpdir a folder with more space"
    )


def test_a_disk_that_takes_nothing_does_not_hang(store, monkeypatch):
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: 0)
    with pytest.raises(OutputError, match="after 0 of 40 bytes"):
        store.put("x", 0, tensor(10))


def test_a_file_cut_short_is_noticed(store):
    store.put("x", 0, tensor(10))
    os.ftruncate(store._files["x"], 12)
    with pytest.raises(OutputError, match="ended early after 12 of 40 bytes of x"):
        store.get("x", 0)


def test_a_folder_that_is_not_there(tmp_path):
    store = FileStore(tmp_path / "gone")
    with pytest.raises(OutputError, match=r"gone: No such file or directory after 0 of 40"):
        store.put("x", 0, tensor(10))
    store.close()


def model(width: int = 16):
    config = HawkConfig(layers=2, width=width, recurrent_width=width, heads=2, mlp_width=width)
    return build(config, seed=0).for_inference(torch.float32)


def sweep(made, store, *, chunk: int, chunks: int, scratch: Workspace) -> int:
    """Run a window of that many chunks and return the most memory seen in use on the way, in bytes."""
    ids = torch.randint(7, 11, (1, chunk * chunks), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    most, process = 0, psutil.Process()
    with torch.no_grad():
        for _ in stream(made, ids, chunk=chunk, store=store, workspace=scratch):
            most = max(most, process.memory_info().rss)
    return most


def test_disk_full_during_a_sweep(store, monkeypatch, tmp_path):
    before = open_files()

    def full(fd, buffers, offset):
        if offset > 4000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, buffers, offset)

    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OutputError, match=f"temporary store in {tmp_path}: No space left on device"):
        sweep(model(), store, chunk=10, chunks=50, scratch=Workspace())
    store.close()
    assert open_files() == before


def test_buffers_do_not_grow_with_the_window(store):
    made, scratch = model(), Workspace()
    sweep(made, store, chunk=10, chunks=3, scratch=scratch)
    few = scratch.nbytes() + store._scratch.nbytes()
    sweep(made, store, chunk=10, chunks=60, scratch=scratch)
    assert scratch.nbytes() + store._scratch.nbytes() == few


def test_memory_of_the_process_does_not_grow_with_the_window(store):
    made, scratch = model(width=64), Workspace()
    start = sweep(made, store, chunk=500, chunks=2, scratch=scratch)
    most = sweep(made, store, chunk=500, chunks=100, scratch=scratch)
    kept = sum(os.fstat(fd).st_size for fd in store._files.values())
    assert kept == 50_000 * 4 * 64 * 4  # x, y, branch and gate in float32
    assert most - start < kept / 3


def test_disk_use_does_not_grow_with_the_number_of_windows(store):
    made, scratch = model(), Workspace()
    sizes = []
    for chunk in (10, 7, 10, 7, 10, 3, 10):  # a short last chunk, then a full one, again and again
        sweep(made, store, chunk=chunk, chunks=5, scratch=scratch)
        sizes.append(sum(os.fstat(fd).st_size for fd in store._files.values()))
    assert sizes == [sizes[0]] * len(sizes)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [MemoryStore, FileStore, GraphStore])
def test_tensors_come_back_to_their_device(kind, tmp_path):
    store = FileStore(tmp_path) if kind is FileStore else kind()
    value = tensor(5, 5).cuda()
    store.put("x", 0, value)
    got = store.get("x", 0)
    assert got.device == value.device and torch.equal(got, value)
    store.close()
