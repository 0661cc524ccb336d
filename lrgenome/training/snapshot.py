"""Snapshots of a training run: everything that continues it exactly, in one folder that appears whole."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
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
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


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
    saved = _read_identity(folder)
    try:
        config = config_from_json(saved.get("model"))
    except UsageError as error:
        raise ModelError(f"snapshot {folder}: {error}") from error
    tensors = _read_tensors(folder)
    # Before a model is made: settings may be of one that no memory can hold.
    if config.parameters > sum(t.numel() for t in tensors.values()) or config.layers > len(tensors):
        raise ModelError(f"snapshot {folder}: has too few weights for the settings beside them")
    with torch.device("meta"):
        expected = dict(build(config).named_parameters())
    _check_shapes(folder, tensors, {f"model/{name}": p for name, p in expected.items()})
    model = build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
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
    saved, tensors = _read_identity(folder), _read_tensors(folder)
    with suppress(UsageError):  # with what an older version did not know yet
        saved["model"] = config_from_json(saved.get("model")).to_json()
    if defaults and isinstance(saved.get("settings"), dict):
        saved["settings"] = {**json.loads(json.dumps(defaults)), **saved["settings"]}
    if difference := _first_difference(saved, json.loads(json.dumps(identity))):
        raise UsageError(f"--resume: {folder} was made with other settings: {difference}")
    parameters = dict(model.named_parameters())
    _check_shapes(folder, tensors, {f"model/{name}": p for name, p in parameters.items()})
    state = _optimizer_state(folder, tensors, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model/{name}"])
    for name, fields in state.items():
        # Moments live beside their weights; AdamW keeps its step count on the CPU.
        home = parameters[name].device
        optimizer.state[parameters[name]].update(
            (field, value if field == "step" else value.to(home)) for field, value in fields.items()
        )
    if more is not None:
        try:
            more.restore({
                key.removeprefix("states/"): value for key, value in tensors.items() if key.startswith("states/")
            })  # fmt: skip
        except KeyError as error:
            raise ModelError(f"snapshot {folder}: tensor states/{error.args[0]} is missing") from error
    log.info("resumed from step %d", saved["step"])
    return int(saved["step"])


def _read_identity(folder: Path) -> dict[str, Any]:
    """Read what a snapshot is of; its step is that of its name."""
    path = folder / "identity.json"
    try:
        if not path.is_file():
            raise ModelError(f"snapshot {folder}: {path.name} is no file")
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"snapshot {folder}: {path.name} cannot be read ({error})") from error
    step = saved.get("step") if isinstance(saved, dict) else None
    if type(step) is not int or step != int(folder.name.removeprefix(_PREFIX)):
        raise ModelError(f"snapshot {folder}: {path.name} has step {step!r}, expected that of the folder's name")
    return dict(saved)


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "state.safetensors"
    try:
        if not path.is_file():
            raise ModelError(f"snapshot {folder}: {path.name} is no file")
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"snapshot {folder}: {path.name} is damaged ({error})") from error
    for name, tensor in tensors.items():
        if not name.startswith("states/") and not (tensor.is_floating_point() and bool(torch.isfinite(tensor).all())):
            raise ModelError(f"snapshot {folder}: tensor {name} holds values that are not finite numbers")
    return tensors


def _check_shapes(
    folder: Path, tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    for name, like in expected.items():
        if name not in tensors or tensors[name].shape != like.shape:
            got = tuple(tensors[name].shape) if name in tensors else "no tensor"
            raise ModelError(f"snapshot {folder}: got {got} of {name}, expected shape {tuple(like.shape)}")


def _optimizer_state(
    folder: Path, tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, torch.Tensor]]:
    """Return AdamW's state by parameter and field, each of the shape that it must have."""
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if not key.startswith("optimizer/"):
            continue
        name, _, field = key.removeprefix("optimizer/").rpartition("/")
        if name not in parameters or field not in _MOMENTS:
            raise ModelError(f"snapshot {folder}: tensor {key} is of no weight")
        shape = torch.Size() if field == "step" else parameters[name].shape
        if value.shape != shape or (field == "step" and float(value) < 1.0):
            raise ModelError(f"snapshot {folder}: {key} has shape {tuple(value.shape)}, expected {tuple(shape)}")
        state.setdefault(name, {})[field] = value
    for name, fields in state.items():
        if missing := sorted(set(_MOMENTS) - set(fields)):
            raise ModelError(f"snapshot {folder}: tensor optimizer/{name}/{missing[0]} is missing")
    return state


def _first_difference(saved: dict[str, Any], now: dict[str, Any], where: str = "") -> str | None:
    for key, value in now.items():
        old = saved.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := _first_difference(old, value, f"{where}{key}."):
                return inner
        elif old != value:
            return f"{where}{key} was {old!r}, is now {value!r}"
    return None
