import pytest
import torch

from lrgenome.engine.memory import STORES, plan
from lrgenome.engine.runner import Runner
from lrgenome.errors import MemoryLimitError, UsageError
from lrgenome.models.checkpoint import load_model

GIB = 1 << 30
PLENTY = 1 << 40


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model).model.for_inference(torch.float32)


def choose(model, store="auto", free_ram=PLENTY, free_disk=PLENTY, batch=1, length=1_000_000, chunk=2_048):
    return plan(model, batch, length, chunk, store=store, free_ram=free_ram, free_disk=free_disk)


def test_with_plenty_everything_stays_in_memory(model):
    how = choose(model)
    assert not how.on_disk and how.keep_prepared and how.disk == 0
    # Per position, in float32: x (16), y (32), branch and gate (64).
    assert how.ram >= 1_000_000 * 4 * (16 + 32 + 64)


def test_ways_are_tried_from_the_fastest_to_the_smallest(model):
    tried = []
    free = PLENTY
    while True:
        try:
            how = choose(model, free_ram=free)
        except MemoryLimitError:
            break
        tried.append((how.on_disk, how.keep_prepared))
        free = int(how.ram / 0.9) - 1
    assert tried == [(False, True), (False, False), (True, True), (True, False)]


def test_memory_falls_and_disk_rises_along_the_ways(model):
    kept, again, disk = (
        choose(model),
        choose(model, free_ram=300_000_000),
        choose(model, free_ram=100_000_000),
    )
    assert kept.ram > again.ram > disk.ram
    assert disk.on_disk and disk.disk == 1_000_000 * 4 * (16 + 32 + 64)


def test_a_full_disk_leaves_the_way_that_writes_less(model):
    how = choose(model, store="disk", free_disk=300_000_000)
    assert how.on_disk and not how.keep_prepared


@pytest.mark.parametrize("store", STORES)
def test_the_store_asked_for_is_taken(model, store):
    assert choose(model, store=store).on_disk == (store == "disk")


def test_an_unknown_store(model):
    with pytest.raises(UsageError, match="--store: got 'tape', expected one of auto, ram, disk"):
        choose(model, store="tape")


@pytest.mark.parametrize(
    ("store", "free_ram", "free_disk"),
    [("ram", GIB // 10, PLENTY), ("disk", PLENTY, 1_000), ("auto", 1_000, PLENTY)],
)
def test_what_is_needed_and_what_is_free_is_said(model, store, free_ram, free_disk):
    with pytest.raises(MemoryLimitError) as caught:
        choose(model, store=store, free_ram=free_ram, free_disk=free_disk)
    said = {GIB // 10: "0.11 GB", 1_000: "0.00 MB", PLENTY: "1099.51 GB"}
    message = str(caught.value)
    assert message.startswith("a window of 1,000,000 bp needs ")
    assert f"; free are {said[free_ram]} of memory and {said[free_disk]} of disk" in message
    assert "--context" in message and "--store disk" in message
    # In memory, on disk, or either.
    assert (message.count("of memory"), message.count("of disk")) == {
        "ram": (2, 1), "disk": (2, 2), "auto": (3, 2)
    }[store]  # fmt: skip


def test_disk_memory_does_not_grow_with_the_window(model):
    small, large = (choose(model, store="disk", length=n) for n in (100_000, 100_000_000))
    assert small.ram == large.ram and large.disk == 1_000 * small.disk


def test_batches_take_as_much_as_long_windows(model):
    assert choose(model, batch=4, length=10_000).ram > 3 * choose(model, batch=1, length=10_000).ram


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("store", ["ram", "disk"])
@pytest.mark.parametrize("enough", [True, False])
@pytest.mark.parametrize("chunk", [128, 1_500])
def test_no_run_takes_more_than_was_planned(tiny_model, tmp_path, dtype, store, enough, chunk):
    """Every buffer that is kept, in the store and in the workspace, is in the plan."""
    model = load_model(tiny_model).model.for_inference(dtype)
    ids = torch.randint(7, 11, (2, 3_000), dtype=torch.uint8)
    ample = plan(model, 2, 3_000, chunk, store=store, free_ram=PLENTY, free_disk=PLENTY)
    free = PLENTY if enough else int(ample.ram / 0.9) - 1
    options = {"free_ram": lambda: free, "free_disk": lambda: PLENTY, "tmpdir": tmp_path, "store": store}
    with Runner(model, torch.device("cpu"), chunk=chunk, **options) as runner:
        how = runner.plan(2, 3_000)
        assert how.keep_prepared == enough
        for _ in runner.stream(ids):
            pass
        (kept,) = runner._stores.values()
        memory = runner._workspace.nbytes()
        if store == "ram":
            memory += sum(t.numel() * t.element_size() for t in kept._memory.values())
        else:
            memory += kept._scratch.nbytes()
            assert sum(kept._ends.values()) == how.disk
        assert memory <= how.ram <= 4 * memory
