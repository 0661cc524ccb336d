"""Checkpoints: a folder with ``config.json`` (settings) and ``model.safetensors`` (weights); never pickle."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from lrgenome.config import ModelConfig, config_from_json
from lrgenome.errors import ModelError, UsageError
from lrgenome.glossary import printable
from lrgenome.models import published
from lrgenome.models.families import Model, build
from lrgenome.models.files import CONFIG_NAME, write_tensors
from lrgenome.models.heads import HEAD_NAME, Head, load_head

FORMAT = "lrgenome-model"
FORMAT_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
DEFAULT_MODEL = "hawk-mini"


class LoadedModel(NamedTuple):
    """A model with its identity."""

    model: Model
    name: str
    """Folder name, or the embedded model's."""
    sha256: str
    """Of the weights file and the settings."""
    meta: dict[str, Any]
    """What the checkpoint says of its making (``training`` and the like)."""
    head: Head | None = None
    """Of a fine-tuned model."""


def embedded_folder() -> Path:
    """Return the folder of the embedded default model."""
    return Path(str(resources.files("lrgenome"))) / "assets" / DEFAULT_MODEL


def save_model(model: Model, folder: str | os.PathLike[str], meta: dict[str, Any] | None = None) -> str:
    """Write a checkpoint folder, each file whole or not at all, and return its sha256.

    Parameters
    ----------
    model
        The model; weights are stored as float32.
    folder
        Made if it is not there.
    meta
        JSON values to keep with the settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "model": model.config.to_json(),
        "parameters": sum(p.numel() for p in model.parameters()), **(meta or {}),
    }  # fmt: skip
    write_tensors(folder, WEIGHTS_NAME, dict(model.named_parameters()), config)
    return fingerprint(folder)


def fingerprint(folder: str | os.PathLike[str]) -> str:
    """Return the sha256 (hex) of the settings' ``model`` object, the weights, and a head's weights if there is one."""
    folder = Path(folder)
    digest = hashlib.sha256(json.dumps(_read_settings(folder)["model"], sort_keys=True).encode())
    for name in (WEIGHTS_NAME, *([HEAD_NAME] if (folder / HEAD_NAME).is_file() else [])):
        with open(folder / name, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def load_model(folder: str | os.PathLike[str] | None = None) -> LoadedModel:
    """Load a checkpoint folder, or a snapshot of published weights; None is the embedded default model.

    Raises
    ------
    ModelError
        If a file is missing or damaged, or a tensor is missing, unknown or of the wrong shape; it names the tensor.
    """
    embedded = folder is None
    path = embedded_folder() if folder is None else Path(folder)
    if not path.is_dir():
        raise ModelError(f"model {path}: no such folder; expected one with {CONFIG_NAME} and {WEIGHTS_NAME}")
    if published.is_published(path):
        config, tensors, meta = published.load_published(path)
        return LoadedModel(_filled(config, tensors), printable(path.resolve().name), published.fingerprint(path), meta)
    settings = _read_settings(path)
    try:
        config = config_from_json(settings["model"])
    except UsageError as error:
        raise ModelError(f"model {path / CONFIG_NAME}: {error}") from error
    model = _read_weights(path / WEIGHTS_NAME, config)
    name = DEFAULT_MODEL if embedded else printable(path.resolve().name)
    return LoadedModel(model, name, fingerprint(path), settings, load_head(path))


def _filled(config: ModelConfig, tensors: Mapping[str, torch.Tensor]) -> Model:
    """Make a model and give it these weights."""
    model = build(config, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    return model


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    settings = published.read_object(path, "settings")
    if settings.get("format") != FORMAT or "model" not in settings:
        raise ModelError(f'model settings {path}: expected a JSON object with "format": "{FORMAT}" and "model"')
    if settings.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"model settings {path}: got format_version {settings.get('format_version')!r}, expected {FORMAT_VERSION}"
        )
    return settings


def _read_weights(path: Path, config: ModelConfig) -> Model:
    """Make a model of these settings with the weights of a file, once every name and shape is what it must be."""
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise ModelError(f"model weights {path}: no such file")
    # Settings so deep or wide that making the model would take long are no model of ours.
    if config.parameters > size:
        raise ModelError(f"model weights {path}: got {size} bytes, too few for the settings beside it")
    try:
        # safetensors takes what may not be read for what is not there.
        open(path, "rb").close()
        with safe_open(str(path), framework="pt") as file:
            names = set(file.keys())
            if config.layers > len(names):
                raise ModelError(f"model weights {path}: got {len(names)} tensors, too few for the settings beside it")
            # Not on the meta device: its first use imports torch's compiler, a third of what a start takes.
            model = build(config, seed=0)
            expected = dict(model.named_parameters())
            if missing := sorted(set(expected) - names):
                raise ModelError(f"model weights {path}: tensor {missing[0]} is missing ({len(missing)} in all)")
            if unknown := sorted(names - set(expected)):
                raise ModelError(f"model weights {path}: tensor {unknown[0]} is unknown ({len(unknown)} in all)")
            for name, parameter in expected.items():
                got, shape = tuple(file.get_slice(name).get_shape()), tuple(parameter.shape)
                if got != shape:
                    raise ModelError(f"model weights {path}: tensor {name} has shape {got}, expected {shape}")
            with torch.no_grad():
                for name, parameter in expected.items():
                    tensor = file.get_tensor(name)
                    if not tensor.is_floating_point() or not math.isfinite(float(tensor.float().sum())):
                        raise ModelError(
                            f"model weights {path}: tensor {name} holds values that are not finite numbers"
                        )
                    parameter.copy_(tensor)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model weights {path}: damaged or not safetensors ({error})") from error
    return model
