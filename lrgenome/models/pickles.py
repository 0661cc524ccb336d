"""Weights in the format of ``torch.save``: read where they are plain tensors by name, and refused where they are more.

The archive and the names in its pickle are looked at before torch is: a pickle can ask for memory without end, or for
code, in many ways, and weights need five names.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from lrgenome.errors import ModelError

_DAMAGED = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError)
"""What `torch.load` raises at files that are damaged, by where the damage is."""
_NEEDED = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch\._utils _rebuild_(?:tensor|tensor_v2|parameter)"
)
_PICKLE_LIMIT = 1 << 24


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Map a file that `torch.save` wrote, if it holds tensors by name and nothing else.

    Raises
    ------
    ModelError
        If it is damaged, or more than tensors.
    """
    _check_archive(path)
    try:
        read = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise _refusal(path) from error
    except _DAMAGED as error:
        raise _damage(path, error) from error
    if not isinstance(read, dict):
        raise ModelError(f"model weights {path}: got {type(read).__name__}, expected tensors by name")
    size = path.stat().st_size
    for name, tensor in read.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelError(f"model weights {path}: got {type(tensor).__name__} at {name!r}, expected a tensor")
        # A view can be larger than what it is of, and some layouts have no memory that one could compare.
        if tensor.layout != torch.strided or tensor.is_meta or tensor.numel() * tensor.element_size() > size:
            raise ModelError(f"model weights {path}: tensor {name} is not in the file as a plain array")
    return {name: tensor.detach() for name, tensor in read.items()}


def _check_archive(path: Path) -> None:
    """Refuse what is packed, and pickles that name what weights do not need."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                # Packed, a file of a kilobyte can hold gigabytes.
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                    raise ModelError(
                        f"model weights {path}: got {entry.filename} compressed, expected it as torch.save stores it"
                    )
                if entry.filename.endswith("/data.pkl") and entry.file_size <= _PICKLE_LIMIT:
                    _check_names(path, archive.read(entry))
                elif entry.filename.endswith(".pkl"):
                    raise ModelError(f"model weights {path}: {entry.filename} is not a list of tensors")
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, *_DAMAGED) as error:
        if isinstance(error, ModelError):
            raise
        raise _damage(path, error) from error


def _check_names(path: Path, data: bytes) -> None:
    for code, argument, _ in pickletools.genops(data):
        if code.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise _refusal(path)
        if code.name == "GLOBAL" and not _NEEDED.fullmatch(str(argument)):
            raise _refusal(path, f" ({argument})")


def _refusal(path: Path, what: str = "") -> ModelError:
    return ModelError(
        f"model weights {path}: refused, since it holds more than plain tensors{what} and could run code; "
        "expected weights as torch.save writes them, or safetensors"
    )


def _damage(path: Path, error: BaseException) -> ModelError:
    said = (str(error) or type(error).__name__).strip().partition("\n")[0]
    return ModelError(f"model weights {path}: damaged or not what torch.save writes since PyTorch 1.6 ({said})")
