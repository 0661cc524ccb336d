"""Commands as processes of their own, without the seconds that imports take."""

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from places import as_found, options_from_environment
from zygote import Command, Zygote

from .jobs import FILES, FOLDERS, Jobs

__all__ = ["as_found"]

NOBODY = 65_534


@pytest.fixture(scope="session")
def zygote(tiny_model: Path) -> Iterator[Zygote]:
    with Zygote(options_from_environment(tiny_model)) as made:
        yield made


@pytest.fixture
def start(zygote: Zygote, tiny_model: Path) -> Iterator[Callable[..., Command]]:
    """Start a command; keyword arguments are those of `Zygote.start`, ``env`` what is added to the environment."""
    started = []

    def go(*args: object, env: dict[str, str | None] | None = None, **options: object) -> Command:
        whole = options_from_environment(tiny_model) | {"COLUMNS": "200"} | (env or {})
        whole = {name: value for name, value in whole.items() if value is not None}
        started.append(zygote.start(*args, env=whole, **options))
        return started[-1]

    yield go
    for one in started:
        if one.poll() is None:
            one.send_signal(signal.SIGKILL)
            one.wait()


@pytest.fixture
def run(start: Callable[..., Command]) -> Callable[..., Command]:
    """Run a command to its end; another exit code than the one expected, or a traceback, fails the test."""

    def go(*args: object, code: int = 0, **options: object) -> Command:
        command = start(*args, **options)
        command.wait()
        assert command.returncode == code, command.stderr[-3_000:]
        assert "Traceback" not in command.stderr, command.stderr[-3_000:]
        return command

    return go


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="lrgenome-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


@pytest.fixture(scope="session")
def whole(zygote: Zygote, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], object]:
    """What each job writes when nothing disturbs it."""
    place, known = Jobs(tmp_path_factory.mktemp("whole")), {}

    def outcome(name: str) -> object:
        if name not in known:
            began = time.monotonic()
            command = zygote.start(*place.job(name, tiny_model), "-q", env=options_from_environment(tiny_model))
            assert command.wait() == 0, command.stderr
            known[name] = place.outcome(name), time.monotonic() - began
        return known[name]

    return outcome


@pytest.fixture
def as_nobody() -> int:
    """Number of a user without rights."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    return NOBODY


def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mount a file system for a test."""
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    made = subprocess.run([mount, *options, folder], capture_output=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    folder = tmp_path / "v.disk"
    folder.mkdir()
    yield from mounted(folder, "-t", "tmpfs", "-o", "size=16m", "tmpfs")


def no_larger(size: int) -> dict[int, int]:
    """Give the limit that lets no file grow beyond a size."""
    return {resource.RLIMIT_FSIZE: size}


def some(names: tuple[str, ...], *default: str) -> list[object]:
    """Make parameters of names, of which only some are of the default suite."""
    return [name if name in default else pytest.param(name, marks=pytest.mark.long) for name in names]


EVERY = (*FILES, *FOLDERS)
