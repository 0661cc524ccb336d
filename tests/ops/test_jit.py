"""What the kernels stand on: exp and its kin, bfloat16, caches of compiled code, the one pool of threads."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from helpers import one_thread, threads  # noqa: F401

from lrgenome.ops import jit


def over_array(function: Callable[..., Any]) -> Callable[[Any], np.ndarray]:
    """Compile a loop that applies `function` to every float32, with the flags of the kernels."""

    @numba.njit(fastmath=jit.FLAGS, error_model="numpy")
    def loop(x: Any, y: Any) -> None:
        for i in range(x.size):
            y[i] = function(x[i])

    def run(x: Any) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty_like(x)
        loop(x, y)
        return y

    return run


@numba.njit(fastmath=jit.FLAGS, error_model="numpy")
def slope(x: Any) -> Any:
    return jit.gelu_and_slope(x)[1]


@numba.njit(fastmath=jit.FLAGS, error_model="numpy")
def value_beside_slope(x: Any) -> Any:
    return jit.gelu_and_slope(x)[0]


exp, expm1, sigmoid, gelu = (over_array(f) for f in (jit.exp, jit.expm1, jit.sigmoid, jit.gelu))


def floats_between(low: float, high: float, count: int = 2_000_000) -> np.ndarray:
    """Float32 numbers, some evenly spaced, some evenly spaced in their bits towards zero."""
    even = np.linspace(low, high, count)
    parts = [even]
    for bound in (low, high):
        if bound:
            tiny, top = np.array([1e-38, abs(bound)], np.float32).view(np.int32)
            bits = np.linspace(tiny, top, count // 2).astype(np.int32)
            parts.append(np.sign(bound) * bits.view(np.float32).astype(np.float64))
    return np.concatenate(parts).astype(np.float32)


def test_exp_is_within_two_units_in_the_last_place() -> None:
    x = floats_between(-87.0, 88.0)
    want = np.exp(x.astype(np.float64))
    units = np.abs(exp(x) - want) / np.spacing(want.astype(np.float32)).astype(np.float64)
    assert units.max() <= 2.0
    assert exp([0.0, -0.0]).tolist() == [1.0, 1.0]


def test_exp_is_clamped_to_normal_numbers() -> None:
    low, high = exp([-87.0, 88.0])
    assert np.finfo(np.float32).tiny < low and np.isfinite(high)
    assert exp([-87.5, -200.0, -np.inf]).tolist() == [low] * 3
    assert exp([88.5, 200.0, np.inf]).tolist() == [high] * 3


def test_expm1_does_not_cancel() -> None:
    x = floats_between(-87.0, 88.0)
    x = x[x != 0.0]
    want = np.expm1(x.astype(np.float64))
    error = np.abs(expm1(x) - want) / np.abs(want)
    assert error[np.abs(x) < 1e-3].max() <= 2.0**-23
    assert error.max() <= 2.0**-22
    assert expm1([0.0, -np.inf, -200.0]).tolist() == [0.0, -1.0, -1.0]
    # 1 - a^2 is made of it, and must not become negative: its square root would be no number.
    assert expm1(-np.abs(x)).min() >= -1.0 and expm1(-np.abs(x)).max() <= 0.0


def test_sigmoid() -> None:
    x = floats_between(-87.0, 87.0)
    want = 1.0 / (1.0 + np.exp(-x.astype(np.float64)))
    got = sigmoid(x)
    assert (np.abs(got - want) / want).max() <= 3e-7
    assert got.min() > 0.0 and got.max() == 1.0
    extreme = sigmoid([-np.inf, -1e30, 1e30, np.inf])
    assert (extreme[:2] >= 0.0).all() and extreme[:2].max() < 1e-37 and extreme[2:].tolist() == [1.0, 1.0]


def test_gelu_and_its_slope() -> None:
    x = np.concatenate(
        [floats_between(-12.0, 12.0, 500_000), np.linspace(-1e4, 1e4, 100_001, dtype=np.float32)]
    )
    leaf = torch.from_numpy(x.astype(np.float64)).requires_grad_()
    y = torch.nn.functional.gelu(leaf, approximate="tanh")
    (want_slope,) = torch.autograd.grad(y.sum(), leaf)
    want = y.detach().numpy()
    allowed = 2e-7 * np.abs(x) + 1e-30
    assert (np.abs(gelu(x) - want) <= allowed).all()
    assert (np.abs(over_array(value_beside_slope)(x) - want) <= allowed).all()
    assert np.abs(over_array(slope)(x) - want_slope.numpy()).max() <= 3e-6


@pytest.mark.parametrize("function", [exp, expm1, sigmoid, gelu])
def test_not_a_number_stays_one(function: Callable[[Any], np.ndarray]) -> None:
    # More than a vector of them, and one alone.
    assert np.isnan(function([np.nan] * 37)).all() and np.isnan(function([np.nan])).all()
    assert np.isnan(function([1.0, np.nan, -np.nan, 2.0])).tolist() == [False, True, True, False]


@numba.njit(fastmath=jit.FLAGS, error_model="numpy")
def round_all(x: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = jit.from_f32(x[i], y)


@numba.njit(fastmath=jit.FLAGS, error_model="numpy")
def widen_all(x: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = jit.to_f32(x[i])


def test_rounding_to_bfloat16_is_that_of_torch() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 1_000_000, dtype=np.uint32)
    halves = (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000
    edges = np.array([0, 1 << 31, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF], np.uint32)
    subnormal = rng.integers(0, 2**23, 100_000, dtype=np.uint32) | (
        rng.integers(0, 2, 100_000, dtype=np.uint32) << 31
    )
    x = (
        np.concatenate([bits, halves, halves - 1, halves + 1, edges, subnormal])
        .astype(np.uint32)
        .view(np.float32)
    )
    got = np.empty(x.size, np.uint16)
    round_all(x, got)
    want = torch.from_numpy(x).to(torch.bfloat16).view(torch.uint16).numpy()
    numbers = ~np.isnan(x)
    assert np.isinf(x).sum() >= 2 and (~numbers).sum() > 1000
    np.testing.assert_array_equal(got[numbers], want[numbers])
    # A NaN whose payload is all in the lower half must not become an infinity.
    widened = torch.from_numpy(got.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.isnan(widened[~numbers]).all()


def test_bfloat16_is_read_exactly() -> None:
    every = np.arange(2**16, dtype=np.uint16)
    got = np.empty(every.size, np.float32)
    widen_all(every, got)
    np.testing.assert_array_equal(got.view(np.uint32), every.astype(np.uint32) << 16)


def test_float32_passes_unchanged() -> None:
    x = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
    one, two = np.empty(x.size, np.float32), np.empty(x.size, np.float32)
    round_all(x.view(np.float32), one)
    widen_all(x.view(np.float32), two)
    numbers = ~np.isnan(x.view(np.float32))
    for got in (one, two):
        np.testing.assert_array_equal(got.view(np.uint32)[numbers], x[numbers])
        assert np.isnan(got[~numbers]).all()


def test_outside_a_kernel_the_stubs_say_so() -> None:
    with pytest.raises(NotImplementedError):
        jit.to_f32(1.0)
    with pytest.raises(NotImplementedError):
        jit.from_f32(1.0, np.zeros(1))


def test_storage_is_a_view() -> None:
    x = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    array = jit.storage(x)
    assert array.dtype == np.uint16
    array[1] = 0x3F80
    assert x.tolist() == [0.0, 1.0, 0.0]
    y = torch.zeros(3)
    jit.storage(y)[2] = 2.0
    assert y.tolist() == [0.0, 0.0, 2.0]


def test_set_threads_binds_both_and_knows_its_bounds() -> None:
    most = numba.config.NUMBA_NUM_THREADS
    with threads(1):
        jit.set_threads(most)
        assert torch.get_num_threads() == numba.get_num_threads() == most
        jit.set_threads(1)
        assert torch.get_num_threads() == numba.get_num_threads() == 1
        jit.set_threads(most + 1)
        assert numba.get_num_threads() == most


RUN_A_KERNEL = """
import torch
from lrgenome.ops.gating import geglu
assert geglu(torch.ones(4, 8)).shape == (4, 4)
"""


def python(code: str, tmp_path: Path, **variables: str) -> str:
    """Run `code` in a new interpreter with a fresh, empty HOME and TMPDIR; returns what it printed."""
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir(exist_ok=True)
    package = str(Path(jit.__file__).parents[2])
    unset = ("NUMBA_CACHE_DIR", "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": package}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


NOTHING_IS_WRITABLE = "import os\nos.access = lambda *args, **named: False\n"


def test_home_is_never_written(tmp_path: Path) -> None:
    python(RUN_A_KERNEL, tmp_path)
    assert not files_under(tmp_path / "home")


def test_a_read_only_install_caches_under_tmpdir(tmp_path: Path) -> None:
    python(NOTHING_IS_WRITABLE + RUN_A_KERNEL, tmp_path)
    assert not files_under(tmp_path / "home")
    (folder,) = (tmp_path / "tmp").iterdir()
    assert folder.name.startswith("lrgenome-")
    cached = files_under(folder / "numba")
    assert {path.suffix for path in cached} == {".nbi", ".nbc"}


def test_an_earlier_import_of_numba_changes_nothing(tmp_path: Path) -> None:
    python("import numba\n" + NOTHING_IS_WRITABLE + RUN_A_KERNEL, tmp_path)
    assert not files_under(tmp_path / "home") and files_under(tmp_path / "tmp")


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], str | None]:
    """Choose the cache anew in this process, as if nothing beside the package could be written."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *args, **named: False)

    def choose() -> str | None:
        jit._choose_cache_dir()
        return os.environ.get("NUMBA_CACHE_DIR")

    return choose


def test_a_cache_that_the_user_chose_is_kept(
    chosen: Callable[[], str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "mine")
    assert chosen() == "mine"


def test_a_writable_install_needs_no_other_cache(
    chosen: Callable[[], str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *args, **named: True)
    assert chosen() is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners and modes of files")
@pytest.mark.parametrize("kind", ["fresh", "ours", "open to all", "somebody else's", "a file", "a link"])
def test_only_a_private_folder_is_trusted(
    kind: str, chosen: Callable[[], str | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = tmp_path / f"lrgenome-{os.getuid()}"
    if kind in ("ours", "open to all"):
        shared.mkdir()
        shared.chmod(0o777 if kind == "open to all" else 0o755)
    elif kind == "somebody else's":
        mine = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
        (tmp_path / f"lrgenome-{mine + 1}").mkdir()
    elif kind == "a file":
        shared.touch()
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir()
        shared.symlink_to(tmp_path / "elsewhere")
    cache = Path(chosen() or "")
    assert cache.name == "numba" and cache.parent.parent == tmp_path
    if kind in ("fresh", "ours"):
        assert cache.parent == shared
    else:
        assert cache.parent.name.startswith("lrgenome-numba-")
    if kind != "ours":
        assert cache.parent.stat().st_mode & 0o777 == 0o700


THREADS_OF_THE_PROCESS = """
import os
def count():
    return len(os.listdir("/proc/self/task"))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the runtime is shared through /proc, on Linux only"
)
def test_kernels_run_on_the_openmp_threads_of_torch(tmp_path: Path) -> None:
    # Torch's first parallel operation finds the kernel's workers; a pool of its own would be a thread more.
    code = THREADS_OF_THE_PROCESS + RUN_A_KERNEL
    code += "before = count()\ntorch.ones(2000, 2000) + 1.0\n"
    code += "import numba\nprint(numba.threading_layer(), count() - before)"
    layer, more = python(code, tmp_path, OMP_NUM_THREADS="2", NUMBA_NUM_THREADS="2").split()
    assert layer == "omp"
    assert more == "0"


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the runtime is shared through /proc, on Linux only"
)
def test_the_first_kernel_does_not_undo_set_threads(tmp_path: Path) -> None:
    # Numba gives the pool all its threads when it starts it; torch has asked for its number before.
    code = "import torch\ntorch.get_num_threads()\nfrom lrgenome.ops.jit import set_threads\nset_threads(1)\n"
    code += RUN_A_KERNEL + "import numba\nprint(torch.get_num_threads(), numba.get_num_threads())"
    assert python(code, tmp_path, OMP_NUM_THREADS="2", NUMBA_NUM_THREADS="2").split() == ["1", "1"]
