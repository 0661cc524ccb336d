"""Snapshots of a training run: everything that continues it exactly, in one folder that appears whole."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from lrgenome.config import config_from_json
from lrgenome.errors import ModelError, OutputError, UsageError
from lrgenome.models.families import Model, build

log = logging.getLogger(__name__)

_PREFIX = "snapshot-"


class Keeper(Protocol):
    """What else of a run a snapshot keeps."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return it by name."""

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `tensors` returned."""


def save_snapshot(
    run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any], step: int,
    more: Keeper | None = None,
) -> None:  # fmt: skip
    """Write weights, optimizer state and what else is kept after `step` steps, then drop older snapshots."""
    tensors = {f"model/{name}": p.detach().contiguous() for name, p in model.named_parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer/{names[id(parameter)]}/{key}"] = torch.as_tensor(value).detach().contiguous()
    if more is not None:
        tensors |= {f"states/{name}": value for name, value in more.tensors().items()}
    final = run / f"{_PREFIX}{step:09d}"
    partial = run / f"{_PREFIX}partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(tensors, partial / "state.safetensors")
        (partial / "identity.json").write_text(json.dumps({"step": step, **identity}, indent=1), encoding="utf-8")
        for file in partial.iterdir():
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"snapshot {final}: {error}") from error
    for old in snapshots(run):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


def snapshots(run: Path) -> list[Path]:
    """List whole snapshots, oldest first."""
    return sorted(p for p in run.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit())


def last_step(run: Path) -> int:
    """Return the step of the last whole snapshot, 0 where there is none."""
    found = snapshots(run)
    return int(found[-1].name.removeprefix(_PREFIX)) if found else 0


def load_weights(run: Path) -> Model:
    """Make a model with the weights of the last snapshot of a run, finished or not.

    Raises
    ------
    ModelError
        If there is no snapshot, or it is damaged.
    """
    if not last_step(run):
        raise ModelError(f"{run}: holds neither a model nor a snapshot")
    folder = snapshots(run)[-1]
    try:
        saved = json.loads((folder / "identity.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "state.safetensors")
        model = build(config_from_json(saved["model"]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"model/{name}"])
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"snapshot {folder}: {error}") from error
    log.info("weights of %s after step %d", run, saved["step"])
    return model


def load_snapshot(
    run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any],
    defaults: dict[str, Any] | None = None, more: Keeper | None = None,
) -> int:  # fmt: skip
    """Restore the last snapshot into model, optimizer and what else was kept; return its step, 0 where there is none.

    `defaults` are of the settings that a snapshot of an older version does not have.

    Raises
    ------
    UsageError
        If it was made with other settings, model or data; the first difference is named.
    ModelError
        If it is damaged.
    """
    if not last_step(run):
        return 0
    folder = snapshots(run)[-1]
    try:
        saved = json.loads((folder / "identity.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "state.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"snapshot {folder}: {error}") from error
    if defaults:
        saved["settings"] = {**json.loads(json.dumps(defaults)), **saved["settings"]}
    if difference := _first_difference(saved, json.loads(json.dumps(identity))):
        raise UsageError(f"--resume: {folder} was made with other settings: {difference}")
    parameters = dict(model.named_parameters())
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"model/{name}"])
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"snapshot {folder}: {error}") from error
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            name, field = key.removeprefix("optimizer/").rsplit("/", 1)
            # Moments live beside their weights; AdamW keeps its step count on the CPU.
            home = value if field == "step" else value.to(parameters[name].device)
            optimizer.state[parameters[name]][field] = home
    if more is not None:
        more.restore({
            key.removeprefix("states/"): value for key, value in tensors.items() if key.startswith("states/")
        })  # fmt: skip
    log.info("resumed from step %d", saved["step"])
    return int(saved["step"])


def _first_difference(saved: dict[str, Any], now: dict[str, Any], where: str = "") -> str | None:
    for key, value in now.items():
        old = saved.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := _first_difference(old, value, f"{where}{key}."):
                return inner
        elif old != value:
            return f"{where}{key} was {old!r}, is now {value!r}"
    return None
