"""One writer of an output at a time: locks that the kernel drops when a process ends, however it ends.

A lock is `flock` on the very file that is being written, or on a file of its own. Whoever has it may rename or remove
the file, so that a lock counts only while the name still leads to the locked file.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lrgenome.errors import OutputError

log = logging.getLogger(__name__)

_MODES = {"w": os.O_WRONLY, "a": os.O_WRONLY | os.O_APPEND, "r+": os.O_RDWR}


def lock(descriptor: int, path: Path) -> None:
    """Lock an open file for this process alone; on a file system without locks, say so and go on.

    Raises
    ------
    OutputError
        If another process has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(f"another process is writing {path}; wait for it, or choose another name") from error
    except OSError as error:
        log.warning("%s: this file system has no locks (%s); see that no other run writes it", path, error.strerror)


def open_alone(path: str | os.PathLike[str], mode: str, **options: Any) -> IO[Any]:
    """Open a file that only this process writes, until it is closed; made if it is not there.

    Parameters
    ----------
    path
        The file.
    mode
        ``w``, ``a`` or ``r+``, with ``b`` or without. With ``w`` it is emptied once it is locked, not before.
    options
        Of `open`.

    Raises
    ------
    OutputError
        If another process has it.
    OSError
        If it cannot be opened.
    """
    path, plain = Path(path), mode.replace("b", "")
    while True:
        descriptor = os.open(path, _MODES[plain] | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            lock(descriptor, path)
            # Between the two, the other process may have given the file its final name.
            if _leads_to(path, descriptor):
                if plain == "w":
                    os.ftruncate(descriptor, 0)
                return open(descriptor, mode, **options)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextlib.contextmanager
def held(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a lock file for the length of a block, and remove it then; one that a kill left behind is taken over.

    Raises
    ------
    OutputError
        If another process holds it.
    OSError
        If it cannot be made.
    """
    with open_alone(path, "ab", buffering=0):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)


@contextlib.contextmanager
def folder_held(folder: Path) -> Iterator[None]:
    """Hold a folder of outputs for the length of a block, by the file ``.lock`` in it.

    The folder is made if it is not there, and removed if nothing came into it.

    Raises
    ------
    OutputError
        If another run writes it, or it cannot be made or written.
    """
    made = not folder.exists()
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(folder / ".lock"))
        except OutputError as error:
            raise OutputError(f"another run is writing {folder}; wait for it, or choose another folder") from error
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
        try:
            yield
        finally:
            stack.close()
            if made:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _leads_to(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
