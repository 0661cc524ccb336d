"""Output that is either whole or not there: written as ``NAME.partial``, renamed when complete."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lrgenome.errors import LrgenomeError, OutputError, OutputExistsError
from lrgenome.io.lock import open_alone

PARTIAL_SUFFIX = ".partial"

# Inside a caller's block an OSError may come from an input; only these can come from writing alone.
_WRITING_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_HINTS = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "the quota of this user or project is used up",
    errno.EFBIG: "larger than this file system or `ulimit -f` allows",
}


def partial_path(path: str | os.PathLike[str]) -> Path:
    """Name the file that holds `path` until it is whole: ``NAME.partial`` in the same folder."""
    path = Path(path)
    return path.with_name(path.name + PARTIAL_SUFFIX)


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Say whether `path` is a pipe or a device (``/dev/stdout``, ``/dev/null``, a FIFO).

    Those are written directly: renaming a file onto them would replace the device itself.
    """
    path = Path(path)
    # By name too: /dev/stdout may lead to a regular file that the shell holds open. /dev/shm has real files.
    if path.parts[:2] in (("/", "dev"), ("/", "proc")) and path.parts[:3] != ("/", "dev", "shm"):
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


def publish(partial: str | os.PathLike[str], final: str | os.PathLike[str]) -> None:
    """Give a complete, closed file its final name, so that it survives a crash of the machine.

    The file is synced before the rename and its directory after it. A file already called `final` is
    replaced.

    Raises
    ------
    OutputError
        If syncing or renaming fails; `partial` is then still there.
    """
    partial, final = Path(partial), Path(final)
    with os_error_as_output_error(final):
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, final)
        _sync_directory(final.parent)


def _sync_directory(folder: Path) -> None:
    # Several network file systems refuse to sync a directory; the rename itself has succeeded by now.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def same_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Tell whether two names, of which either may be of nothing yet, are of one file."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


def check_writable(path: str | os.PathLike[str], no_clobber: bool = False) -> None:
    """Refuse, before any work is done, an output that could not be written at the end.

    Parameters
    ----------
    path
        Final name of the output; ``-`` is stdout and always passes.
    no_clobber
        Whether a file that is already there must be kept.

    Raises
    ------
    OutputExistsError
        If `path` is there and `no_clobber` is set.
    OutputError
        If the folder is not there or not writable, or if `path` is a folder.
    """
    if os.fspath(path) == "-":
        return
    path = Path(path)
    try:
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder, expected the name of a file")
        if is_stream(path):
            if not os.access(path, os.W_OK):
                raise OutputError(f"cannot write {path}: no permission to write to this device or pipe")
            return
        if no_clobber and (path.exists() or path.is_symlink()):
            raise OutputExistsError(f"{path} exists already and --no-clobber is set")
        folder = path.resolve().parent
        if not folder.is_dir():
            raise OutputError(f"cannot write {path}: the folder {folder} does not exist")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write {path}: no permission to create files in {folder}")
    except OSError as error:
        if isinstance(error, LrgenomeError):
            raise
        raise _output_error(path, error) from error


@contextlib.contextmanager
def atomic_output(
    path: str | os.PathLike[str], mode: str = "w", *, keep_partial: bool = False
) -> Iterator[IO[Any]]:
    r"""Open `path` for writing so that it appears under its name only when the block ends without an error.

    Text is UTF-8 with ``\n`` line ends on every system. A symbolic link is followed: its target is replaced.
    Pipes and devices are written directly.

    Parameters
    ----------
    path
        Final name of the output.
    mode
        ``w`` or ``wb``; ``a`` or ``ab`` continue a partial file that is there.
    keep_partial
        Leave ``NAME.partial`` behind when the block fails (for resuming) instead of removing it.

    Yields
    ------
    file object
        The open partial file.

    Raises
    ------
    OutputError
        If opening, writing, closing or renaming fails. Other errors of the block pass unchanged.
    """
    if mode not in ("w", "wb", "a", "ab"):
        raise ValueError(f"got mode {mode!r}, expected w, wb, a or ab")
    path = Path(path)
    final = path if is_stream(path) else Path(os.path.realpath(path))
    target = final if is_stream(path) else partial_path(final)
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with os_error_as_output_error(path):
        handle = open(target, mode, **text) if target == final else open_alone(target, mode, **text)
    try:
        yield handle
        with os_error_as_output_error(path):
            handle.flush()
        # Renamed while it is locked: nobody else may begin to write it before.
        if target != final:
            publish(target, final)
        with os_error_as_output_error(path):
            handle.close()
    except BaseException as error:
        # Closing flushes, and would fail again on a full disk.
        with contextlib.suppress(OSError):
            handle.close()
        if target != final and not keep_partial:
            with contextlib.suppress(OSError):
                target.unlink()
        if (
            isinstance(error, OSError)
            and not isinstance(error, LrgenomeError)
            and error.errno in _WRITING_ERRNOS
        ):
            raise _output_error(path, error) from error
        raise


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the name under which a library writes `path`, which appears only when the block ends without an error.

    For writers that take a name; `atomic_output` is for those that take an open file. A symbolic link is followed.

    Parameters
    ----------
    path
        Final name of the output.

    Yields
    ------
    Path
        ``NAME.partial``, which the block makes.

    Raises
    ------
    OutputError
        If the block raises an OSError, or renaming fails. Other errors of the block pass unchanged.
    """
    final = Path(os.path.realpath(path))
    partial = partial_path(final)
    with os_error_as_output_error(path):
        alone = open_alone(partial, "wb")
    try:
        with os_error_as_output_error(path):
            yield partial
        publish(partial, final)
    finally:
        # After a publication there is none, or it is another process's.
        if _is_open(partial, alone):
            with contextlib.suppress(OSError):
                partial.unlink()
        alone.close()


def _is_open(path: Path, handle: IO[Any]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle.fileno()))
    except OSError:
        return False


def write_at_once(path: Path, data: bytes, permissions: int, not_before: int = 0) -> None:
    """Write a small file that many jobs on a cluster may write at the same moment.

    Each writes under a name of its own, so that none ever sees another's half.

    Parameters
    ----------
    path
        The file; one that is there is replaced.
    data
        All of its content.
    permissions
        Its mode bits.
    not_before
        Earliest modification time it may get, in ns since 1970.

    Raises
    ------
    OSError
        As it comes; nothing is left behind.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(descriptor, "wb") as handle:
            handle.write(data)
            os.fchmod(handle.fileno(), permissions)
        if os.stat(name).st_mtime_ns < not_before:
            os.utime(name, ns=(not_before, not_before))
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def os_error_as_output_error(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of the block into an OutputError that names the file, the cause and the free space.

    Errors of this package pass unchanged, and so does BrokenPipeError (a reader such as ``head`` that left).

    Parameters
    ----------
    path
        The output that the block writes.

    Raises
    ------
    OutputError
        With the ``errno`` of the error that caused it.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, LrgenomeError | BrokenPipeError):
            raise
        raise _output_error(Path(path), error) from error


def _output_error(path: Path, error: OSError) -> OutputError:
    cause = error.strerror or str(error) or type(error).__name__
    number = error.errno or 0
    code = f" ({errno.errorcode[number]})" if number in errno.errorcode else ""
    hint = f"; {_HINTS[number]}" if number in _HINTS else ""
    failure = OutputError(f"cannot write {path}: {cause}{code}; {_free_space(path)}{hint}")
    failure.errno = error.errno
    return failure


def _free_space(path: Path) -> str:
    for folder in path.absolute().parents:
        try:
            return f"{shutil.disk_usage(folder).free / 1e9:.3f} GB free in {folder}"
        except OSError:
            continue
    return "free space unknown"
