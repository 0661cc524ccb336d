"""What the tests of tasks share: a slow model to compare with, and runners of a tiny one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from benchmark_files import Benchmark

from lrgenome.engine.runner import Runner
from lrgenome.models.checkpoint import LoadedModel, load_model
from lrgenome.ops.jit import set_threads

from .slow import SlowModel

PLENTY = 1 << 40


@pytest.fixture(scope="session")
def slow_model(tiny_model: Path) -> SlowModel:
    return SlowModel(tiny_model)


@pytest.fixture
def tiny(tiny_model: Path) -> LoadedModel:
    """The tiny model, in float32, ready for inference."""
    loaded = load_model(tiny_model)
    loaded.model.for_inference(torch.float32)
    return loaded


@pytest.fixture
def make_runner(tiny: LoadedModel, tmp_path: Path) -> Iterator[Callable[..., Runner]]:
    """Make runners of the tiny model on the CPU; keyword arguments are those of `Runner`."""
    runners = []

    def make(**options: object) -> Runner:
        options = {"tmpdir": tmp_path, "free_ram": lambda: PLENTY, "free_disk": lambda: PLENTY, **options}
        runners.append(Runner(tiny.model, torch.device("cpu"), **options))  # type: ignore[arg-type]
        return runners[-1]

    yield make
    for runner in runners:
        runner.close()


@pytest.fixture
def runner(make_runner: Callable[..., Runner]) -> Runner:
    return make_runner()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run on one thread; give the process back what it had."""
    before = torch.get_num_threads()
    set_threads(1)
    yield
    set_threads(before)


@pytest.fixture(scope="session")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Miniature files of the benchmark, for reading only."""
    return Benchmark(tmp_path_factory.mktemp("benchmark"))
