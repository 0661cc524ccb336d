"""Published models by name, ``hf:ORG/NAME`` or ``hf:ORG/NAME@REVISION``: from Hugging Face's hub, or its cache."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from lrgenome.errors import ModelError, UsageError

PREFIX = "hf:"
PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
"""Files that are downloaded: settings and weights, and no code."""

_NAME = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^\s@]+))?", re.ASCII)


def is_hub_name(name: str) -> bool:
    """Tell a name on the hub from a path."""
    return name.startswith(PREFIX)


def _cache_folder() -> str | None:
    """Keep the hub's cache under TMPDIR where nothing says where it is and the home folder cannot be written to."""
    if any(name in os.environ for name in ("HF_HOME", "HF_HUB_CACHE")) or os.access(os.path.expanduser("~"), os.W_OK):
        return None
    return os.path.join(tempfile.gettempdir(), "lrgenome-huggingface")


def resolve(name: str, *, offline: bool) -> Path:
    """Return the folder of a published model, downloading what the cache does not have.

    Parameters
    ----------
    name
        ``hf:ORG/NAME`` or ``hf:ORG/NAME@REVISION``; a revision is a branch, a tag or a commit.
    offline
        Take only what the cache has; nothing is asked of the network.

    Raises
    ------
    UsageError
        If the name has another form, or the package ``huggingface_hub`` is not installed.
    ModelError
        If the model is not in the cache (`offline`), or cannot be downloaded.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"--model: got {name!r}, expected hf:ORG/NAME or hf:ORG/NAME@REVISION")
    try:
        import huggingface_hub
    except ImportError as error:
        raise UsageError(
            f"--model {name}: needs the package huggingface_hub ({error}); pip install 'lrgenome[hub]', "
            "or give the folder of a downloaded model"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            match["repository"], revision=match["revision"], allow_patterns=list(PATTERNS), local_files_only=offline,
            cache_dir=_cache_folder(),
        )  # fmt: skip
    except Exception as error:
        # Releases of the package raise the errors of three HTTP libraries, none of which we depend on.
        if offline and isinstance(error, FileNotFoundError):
            raise ModelError(
                f"model {name}: not in the cache of huggingface_hub, or not all of it; run once without --offline"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"model {name}: cannot be downloaded ({reason})") from error
    return Path(folder)
