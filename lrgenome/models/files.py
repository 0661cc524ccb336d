"""Files of a checkpoint folder, which appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lrgenome.errors import OutputError

CONFIG_NAME = "config.json"
"""Settings of a checkpoint folder, of its model and of its head."""


def write_tensors(folder: Path, name: str, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> None:
    """Write tensors, as float32, and the folder's settings.

    Raises
    ------
    OutputError
        If the tensors cannot be written.
    """
    weights, config = folder / f"{name}.partial", folder / f"{CONFIG_NAME}.partial"
    try:
        save_file({key: t.detach().float().cpu().contiguous() for key, t in tensors.items()}, weights)
    except SafetensorError as error:
        raise OutputError(f"cannot write {weights}: {error}") from error
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # safetensors makes its files readable by their owner alone; a model is there to be shared.
    weights.chmod(config.stat().st_mode)
    for partial in (weights, config):
        with open(partial, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, partial.with_suffix(""))
