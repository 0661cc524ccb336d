"""Snapshots of published models: folders with ``config.json`` and weights, as Hugging Face keeps them.

No code of a snapshot is run: ``*.py`` is not looked at, and of a pickle only tensors are taken. Weights files are
mapped, so that a tensor takes no memory before its shape is known to be right.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrgenome.config import ModelConfig
from lrgenome.errors import ModelError
from lrgenome.models.pickles import read_pickle

CONFIG_NAME = "config.json"
SAFETENSORS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_NAMES = ("pytorch_model.bin", "pytorch_model.pt")

CONVERTERS = {"caduceus": "convert_caduceus", "esm": "convert_nucleotide_transformer"}
"""``model_type`` of the settings, and the module of `lrgenome.models` that converts such weights."""

_JSON_LIMIT = 1 << 20
_JSON_DEPTH = 64


def is_published(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a folder holds a published model that can be converted, going by its settings."""
    try:
        settings = read_object(Path(folder) / CONFIG_NAME, "settings")
    except ModelError:
        return False
    kind = settings.get("model_type")
    # A checkpoint of our own says what format it has.
    return isinstance(kind, str) and kind in CONVERTERS and "format" not in settings


def load_published(
    folder: str | os.PathLike[str],
) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """Read a snapshot as one of our models.

    Returns
    -------
    config
        Settings of our model.
    weights
        Its parameters by name, float32.
    meta
        ``published``: the settings as they were published.

    Raises
    ------
    ModelError
        If a file is missing, damaged or more than tensors, or the model is none that we support.
    """
    folder = Path(folder)
    settings, tensors = read_snapshot(folder)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in CONVERTERS:
        expected = " or ".join(f'"{name}"' for name in CONVERTERS)
        raise ModelError(f"model {folder / CONFIG_NAME}: got model_type {kind!r}, expected {expected}")
    convert = importlib.import_module(f"lrgenome.models.{CONVERTERS[kind]}").convert
    try:
        config, weights = convert(tensors, settings)
    except ModelError as error:
        raise ModelError(f"published model {folder}: {error}") from error
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"published model {folder}: {name} holds values that are not finite numbers")
    return config, {name: tensor.float() for name, tensor in weights.items()}, {"published": settings}


def read_snapshot(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a snapshot's settings, and its weights by their published names, mapped from their files.

    Raises
    ------
    ModelError
        If there are no settings or weights, or they are damaged, or weights are more than tensors.
    """
    folder = Path(folder)
    settings = read_object(folder / CONFIG_NAME, "settings")
    tensors: dict[str, Tensor] = {}
    for path in _weights_files(folder):
        read = read_pickle(path) if path.name in PICKLE_NAMES else _read_safetensors(path)
        if twice := sorted(set(read) & set(tensors)):
            raise ModelError(f"model weights {path}: tensor {twice[0]} is in another file too")
        tensors |= read
    if (folder / INDEX_NAME).is_file() and not (folder / SAFETENSORS_NAME).is_file():
        promised = set(_weight_map(folder))
        if odd := sorted(promised ^ set(tensors)):
            state = "missing from its files" if odd[0] in promised else "not in it"
            raise ModelError(f"model weights {folder / INDEX_NAME}: tensor {odd[0]} is {state} ({len(odd)} in all)")
    return settings, tensors


def fingerprint(folder: str | os.PathLike[str]) -> str:
    """Return the sha256 (hex) of a snapshot's settings followed by its weights files."""
    folder = Path(folder)
    settings = read_object(folder / CONFIG_NAME, "settings")
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in _weights_files(folder):
        with open(path, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Read the JSON object of a small file, named `what` in errors; `ModelError` if it is anything else."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise ModelError(f"model {what} {path}: expected a regular file")
        if about.st_size > _JSON_LIMIT:
            raise ModelError(f"model {what} {path}: got {about.st_size} bytes, expected at most 1 MiB")
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except OSError as error:
        raise ModelError(f"model {what} {path}: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"model {what} {path}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ModelError(f"model {what} {path}: got {type(values).__name__}, expected a JSON object")
    level: list[Any] = [values]
    for _ in range(_JSON_DEPTH):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for part in inner for one in part]
    if level:
        raise ModelError(f"model {what} {path}: got JSON that is more than {_JSON_DEPTH} levels deep")
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, whose keys must differ: readers do not agree on which of two counts."""
    made = dict(pairs)
    if len(made) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {twice!r} is there twice")
    return made


def _weights_files(folder: Path) -> list[Path]:
    """Choose the weights files: safetensors before pickle, and one file before several."""
    if (folder / SAFETENSORS_NAME).is_file():
        return [folder / SAFETENSORS_NAME]
    if (folder / INDEX_NAME).is_file():
        paths = [folder / name for name in sorted(set(_weight_map(folder).values()))]
        if odd := [path for path in paths if not path.is_file()]:
            raise ModelError(f"model weights {odd[0]}: no such file")
        return paths
    for name in PICKLE_NAMES:
        if (folder / name).is_file():
            return [folder / name]
    expected = ", ".join((SAFETENSORS_NAME, INDEX_NAME, *PICKLE_NAMES))
    raise ModelError(f"model {folder}: no weights; expected one of {expected}")


def _weight_map(folder: Path) -> dict[str, str]:
    """Read the index of weights in several files: tensor to file in the same folder."""
    path = folder / INDEX_NAME
    files = read_object(path, "index").get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ModelError(f"model index {path}: expected a weight_map of file names")
    for name in files.values():
        # Nothing but a name: an index may not point elsewhere.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors") or len(name) > 200:
            raise ModelError(f"model index {path}: got {name!r}, expected the name of a safetensors file beside it")
    return files


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Map a file's tensors; its header was checked against its size before any is made."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model weights {path}: damaged or not safetensors ({error})") from error
