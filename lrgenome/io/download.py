"""Downloads that go on where they were cut off, are checked, and appear under their name when they are whole.

Python's own HTTP client: proxies are those of ``http_proxy``, ``https_proxy`` and ``no_proxy``.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrgenome.errors import DownloadError
from lrgenome.io.atomic import os_error_as_output_error, partial_path
from lrgenome.version import __version__

log = logging.getLogger(__name__)

TRIES = 5
_BLOCK = 1 << 20
_TIMEOUT = 60.0
"""Seconds without a byte."""
_WAIT = 1.0
"""Seconds before the second try; twice as many before each later one."""
_FINAL = frozenset({400, 401, 403, 404, 405, 410, 451})
"""Answers that another try does not change."""


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file, hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def download(
    url: str, target: Path, *, sha256: str | None = None, size: int | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> str:  # fmt: skip
    """Download a file and return its sha256.

    What is there is kept in ``TARGET.partial`` and gone on from, in this call or in a later one, if the server can and
    still has the same file.

    Parameters
    ----------
    url
        http, https or ftp.
    target
        Its name when it is whole; a file that is there is replaced.
    sha256, size
        What the file must be, in hex and in bytes, where known.
    progress
        Called with the bytes so far and in all.

    Raises
    ------
    DownloadError
        If it cannot be had, or is not what it must be; the latter is thrown away.
    OutputError
        If it cannot be written.
    """
    partial, about = partial_path(target), target.with_name(target.name + ".download")
    with os_error_as_output_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(TRIES):
        try:
            _get(url, partial, about, progress)
            break
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}"
            if error.code in _FINAL:
                raise DownloadError(f"{url}: cannot be downloaded: the server said {reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, EOFError) as error:
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        if attempt + 1 == TRIES:
            raise DownloadError(f"{url}: cannot be downloaded in {TRIES} tries: {reason}; what came is kept")
        log.info("%s: %s; trying again", url, reason)
        time.sleep(_WAIT * 2**attempt)
    found, length = sha256_of(partial), partial.stat().st_size
    if (size is not None and length != size) or (sha256 is not None and found != sha256):
        partial.unlink()
        about.unlink(missing_ok=True)
        raise DownloadError(
            f"{url}: got {length:,} bytes with sha256 {found}, expected "
            f"{'any number of' if size is None else format(size, ',')} bytes with sha256 {sha256 or 'unknown'}; "
            "thrown away"
        )
    with os_error_as_output_error(target):
        os.replace(partial, target)
        about.unlink(missing_ok=True)
    return found


def _get(url: str, partial: Path, about: Path, progress: Callable[[int, int | None], None]) -> None:
    """Add to the partial file what is missing of it; raises when that is cut off."""
    known = _known(about, url)
    done = partial.stat().st_size if known and partial.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": f"lrgenome/{__version__}"})
    if done:
        # Of another version of the file than the one that was begun, the server sends all.
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", known["validator"])
    try:
        # Not urlopen, which remembers the proxies of its first call.
        answer = urllib.request.build_opener().open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        # Nothing is missing: the run before was cut off after the last byte.
        if done and error.code == 416 and known.get("total") == done:
            return
        raise
    with answer:
        going_on = done > 0 and getattr(answer, "status", None) == 206
        done = done if going_on else 0
        left = answer.headers.get("Content-Length")
        total = done + int(left) if left is not None else None
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        # A weak validator does not promise the same bytes.
        known = {"url": url, "validator": "" if validator.startswith("W/") else validator, "total": total}
        with os_error_as_output_error(partial):
            handle = open(partial, "ab" if going_on else "wb", buffering=0)
            about.write_text(json.dumps(known), encoding="utf-8")
        with handle:
            while block := _read(answer):
                with os_error_as_output_error(partial):
                    handle.write(block)
                done += len(block)
                progress(done, total)
    if total is not None and done < total:
        raise EOFError(f"cut off after {done:,} of {total:,} bytes")


def _read(answer: Any) -> bytes:
    try:
        block: bytes = answer.read(_BLOCK)
    except http.client.IncompleteRead as error:
        block = error.partial
    except OSError as error:
        raise ConnectionError(str(error)) from error
    return block


def _known(about: Path, url: str) -> dict[str, Any]:
    """Return what is known of a download that was begun, if it can be gone on from."""
    try:
        known = json.loads(about.read_text(encoding="utf-8"))
        return dict(known) if known["url"] == url and known["validator"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
