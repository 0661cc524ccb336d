"""What the kernels stand on: caches of compiled code, the one pool of threads, the same bits from both."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from helpers import one_thread, threads  # noqa: F401

from lrgenome.ops import jit


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


def test_a_cache_that_the_user_chose_is_kept(chosen: Callable[[], str | None], monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the runtime is shared through /proc, on Linux only")
def test_kernels_run_on_the_openmp_threads_of_torch(tmp_path: Path) -> None:
    # Torch's first parallel operation finds the kernel's workers; a pool of its own would be a thread more.
    code = THREADS_OF_THE_PROCESS + RUN_A_KERNEL
    code += "before = count()\ntorch.ones(2000, 2000) + 1.0\n"
    code += "import numba\nprint(numba.threading_layer(), count() - before)"
    layer, more = python(code, tmp_path, OMP_NUM_THREADS="2", NUMBA_NUM_THREADS="2").split()
    assert layer == "omp"
    assert more == "0"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the runtime is shared through /proc, on Linux only")
def test_the_first_kernel_does_not_undo_set_threads(tmp_path: Path) -> None:
    # Numba gives the pool all its threads when it starts it; torch has asked for its number before.
    code = "import torch\ntorch.get_num_threads()\nfrom lrgenome.ops.jit import set_threads\nset_threads(1)\n"
    code += RUN_A_KERNEL + "import numba\nprint(torch.get_num_threads(), numba.get_num_threads())"
    assert python(code, tmp_path, OMP_NUM_THREADS="2", NUMBA_NUM_THREADS="2").split() == ["1", "1"]


HASH_A_MODEL = """
import hashlib, torch
from lrgenome.config import HawkConfig
from lrgenome.engine.sweep import hidden_states
from lrgenome.models.hawk import build
from lrgenome.ops.jit import set_threads
set_threads(1)
model = build(HawkConfig(layers=2, width=40, recurrent_width=48, heads=3, mlp_width=24, half_life_max=90.0), seed=1)
ids = torch.randint(7, 11, (2, 300), generator=torch.Generator().manual_seed(2))
hidden = hidden_states(model, ids, chunk=128)
hidden.square().sum().backward()
for tensor in (hidden.detach(), *(p.grad for p in model.parameters() if p.grad is not None)):
    print(hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
"""


def test_kernels_from_the_cache_give_the_bits_of_those_just_compiled(tmp_path: Path) -> None:
    cache = str(tmp_path / "kernels")
    first = python(HASH_A_MODEL, tmp_path, NUMBA_CACHE_DIR=cache)
    kept = files_under(tmp_path / "kernels")
    assert kept and len(first.splitlines()) > 20
    assert python(HASH_A_MODEL, tmp_path, NUMBA_CACHE_DIR=cache) == first
    assert files_under(tmp_path / "kernels") == kept
