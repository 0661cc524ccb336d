"""Where caches of libraries go that have no place of their own: private folders under TMPDIR, never HOME."""

import os
import stat
import tempfile
from pathlib import Path


def cache_folder(kind: str) -> Path | None:
    """Return a folder for a cache, ``TMPDIR/lrgenome-UID/KIND``, which the next run finds again.

    Somebody else's folder of that name is not trusted, since programs run what they find in a cache: a new one is made.

    Parameters
    ----------
    kind
        Whose cache.

    Returns
    -------
    Path or None
        The folder's name, None where nothing temporary can be written.
    """
    try:
        shared = Path(tempfile.gettempdir()) / f"lrgenome-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        if not _is_private(shared):
            shared = Path(tempfile.mkdtemp(prefix=f"lrgenome-{kind}-"))
    except OSError:
        return None
    return shared / kind


def _is_private(folder: Path) -> bool:
    """Make `folder` where it is not there; tell whether this user and nobody else can write to it."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
    return stat.S_ISDIR(status.st_mode) and mine
