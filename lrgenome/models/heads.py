"""Heads: from pooled hidden states of a window, or of ALT and REF, to predictions.

Hidden layers with softplus between them are those of the benchmark's own fine-tuning (docs/finetuning.md).
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot, softplus

from lrgenome.config.head import HeadConfig, head_from_json
from lrgenome.errors import ModelError, UsageError
from lrgenome.models.files import CONFIG_NAME, write_tensors
from lrgenome.models.published import read_object
from lrgenome.models.stack import normal

HEAD_NAME = "head.safetensors"
_LOG_SCALE = 1e5
"""A distance of so many bp comes in as about 1."""


class Extras(NamedTuple):
    """What comes in beside the sequence."""

    tissue: Tensor | None = None
    """(b,) int64, number of the tissue."""
    distance: Tensor | None = None
    """(b,) float32, bp to the nearest transcription start; NaN where it is not known."""


class Head(nn.Module):
    """Attention over stretches (where asked for), then layers with softplus between them."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        # What the sequence's values are shifted and scaled by, so that layers see values around 1.
        self.register_buffer("mean", torch.zeros(config.pooled))
        self.register_buffer("scale", torch.ones(config.pooled))
        if config.pool == "attention":
            self.query = nn.Parameter(torch.zeros(config.pooled))
        if config.tissue == "embedding":
            self.tissue_embedding = normal(len(config.tissues), config.tissue_width, std=1.0)
        widths = [config.inputs, *config.hidden, config.logits]
        self.weights = nn.ParameterList(
            [normal(o, i, std=(1.0 / i) ** 0.5) for i, o in pairwise(widths)]
        )
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(o)) for o in widths[1:]])

    def forward(self, pooled: Tensor, extras: Extras = Extras()) -> Tensor:  # noqa: B008
        """Make logits (b, o), or (b, K, o) of bins, of the stretches of windows.

        Parameters
        ----------
        pooled
            (b, S, K, d): alleles (ALT, REF; or one window), stretches, hidden values.
        """
        x = self.inputs_of(pooled, extras)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = linear(x if i == 0 else softplus(x), weight, bias)
        return x if self.config.pool == "bins" else x[:, 0]

    def inputs_of(self, pooled: Tensor, extras: Extras) -> Tensor:
        """Return what the first layer reads, (b, 1 or K, i)."""
        config = self.config
        x = (self.compared(pooled) - self.mean) * self.scale
        if config.pool == "attention":
            x = (x * (x @ self.query).softmax(1)[..., None]).sum(1, keepdim=True)
        elif config.pool == "mean":
            x = x.mean(1, keepdim=True)
        more = []
        if config.tissue != "none":
            assert extras.tissue is not None
            if config.tissue == "index":
                more.append(extras.tissue[:, None].to(x.dtype))
            elif config.tissue == "onehot":
                more.append(one_hot(extras.tissue, len(config.tissues)).to(x.dtype))
            else:
                more.append(self.tissue_embedding[extras.tissue])
        if config.distance:
            assert extras.distance is not None
            known = torch.nan_to_num(extras.distance, nan=_LOG_SCALE).to(x.dtype)
            more.append(torch.log1p(known)[:, None] / float(np.log1p(_LOG_SCALE)))
        if more:
            x = torch.cat([x, torch.cat(more, 1)[:, None].expand(-1, x.shape[1], -1)], -1)
        return x

    def compared(self, pooled: Tensor) -> Tensor:
        """Return (b, K, p) of pooled stretches (b, S, K, d): alleles side by side, or what parts them."""
        pooled = pooled.to(self.mean.dtype)
        if self.config.variants and self.config.alleles == "difference":
            gap = pooled[:, 0] - pooled[:, 1]
            return torch.cat([gap, gap.abs()], -1)
        return pooled.permute(0, 2, 1, 3).flatten(2)

    def predictions(self, logits: Tensor) -> Tensor:
        """Return (b, [K,] m) probabilities, or numbers."""
        if self.config.kind == "classes":
            return logits.softmax(-1)[..., 1:]
        return logits.sigmoid() if self.config.kind == "labels" else logits


def save_head(head: Head, folder: str | os.PathLike[str], more: dict[str, Any] | None = None) -> None:
    """Add a head to a checkpoint folder that holds its model."""
    folder = Path(folder)
    settings = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    settings |= {"head": head.config.to_json(), **(more or {})}
    write_tensors(folder, HEAD_NAME, head.state_dict(), settings)


def load_head(folder: str | os.PathLike[str] | None) -> Head | None:
    """Read the head of a checkpoint folder; None where it has none.

    Raises
    ------
    ModelError
        If it is damaged, or a tensor is missing, unknown or of the wrong shape.
    """
    path = None if folder is None else Path(folder) / HEAD_NAME
    if path is None or folder is None or not path.is_file():
        return None
    try:
        config = head_from_json(read_object(Path(folder) / CONFIG_NAME, "settings").get("head"))
    except UsageError as error:
        raise ModelError(f"head of {folder}: {error}") from error
    size = path.stat().st_size
    if config.parameters > size:
        raise ModelError(f"head {path}: got {size} bytes, too few for the settings beside it")
    tensors = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            if len(config.hidden) > len(file.keys()):
                raise ModelError(f"head {path}: got {len(file.keys())} tensors, too few for the settings beside it")
            with torch.device("meta"):
                expected = {name: tuple(t.shape) for name, t in Head(config).state_dict().items()}
            if set(file.keys()) != set(expected):
                raise ModelError(f"head {path}: got tensors {sorted(file.keys())}, expected {sorted(expected)}")
            for name, shape in expected.items():
                got = tuple(file.get_slice(name).get_shape())
                if got != shape:
                    raise ModelError(f"head {path}: tensor {name} has shape {got}, expected {shape}")
                tensors[name] = file.get_tensor(name)
                if not tensors[name].is_floating_point() or not bool(torch.isfinite(tensors[name]).all()):
                    raise ModelError(f"head {path}: tensor {name} holds values that are not finite numbers")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"head {path}: damaged or not safetensors ({error})") from error
    head = Head(config)
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)
