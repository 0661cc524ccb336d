"""A Caduceus layer against other libraries' Mamba, with the same weights, in one run; see `rivals`.

Ours is the whole bidirectional layer (norm, projections, two convolutions and selective scans, gate); theirs is one
direction's mixer, without a norm. So half of ours is compared with one of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import common
import torch
from mamba_oracles import BothWays, copy_weights, mambapy_mixer, tied_pair, transformers_mixer
from torch import Tensor

from lrgenome.config import CaduceusConfig
from lrgenome.models.caduceus import CaduceusBlock, build
from lrgenome.ops.jit import set_threads
from lrgenome.ops.norm import naive_rms_norm
from lrgenome.tasks.compute import native_bfloat16

RIVALS = {"transformers": transformers_mixer, "mambapy": mambapy_mixer}
AGREE = {torch.float32: 2e-4, torch.bfloat16: 0.1}
"""Largest difference of outputs, relative to the largest value."""


class Layer(common.FirstLayer):
    """Our layer: the first block of a model of two, streamed, so that its output is raw."""

    def __init__(self, config: CaduceusConfig, rival: BothWays, dtype: torch.dtype, chunk: int | None) -> None:
        self._model = build(config, seed=0)
        block = cast(CaduceusBlock, self._model.blocks[0])
        for direction, mixer in enumerate((rival.one, rival.other)):
            copy_weights(block, dict(mixer.named_parameters()), direction)
        # What goes into the layer is the embedding: of the size of what goes into a trained one.
        self._model.embedding.data.mul_(50.0)
        self._model.for_inference(dtype)
        super().__init__(self._model, chunk)

    def inputs(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layer's input (1, t, d) and what its norm makes of it, float32."""
        x = torch.nn.functional.embedding(ids.long(), self._model.embedding.detach().float())
        scale = cast(CaduceusBlock, self._model.blocks[0]).norm.detach()
        return x, naive_rms_norm(x, scale, torch.float32, self._model.NORM_EPS)


def measure(options: Any) -> dict[str, Any]:
    """Measure; `options` is what `rivals.parse` returns."""
    set_threads(options.threads)
    preset = cast(CaduceusConfig, common.MODELS[options.preset])
    config = CaduceusConfig(layers=2, width=preset.width, state=preset.state, expand=preset.expand)
    ids = common.random_bases(options.length)
    best = torch.bfloat16 if native_bfloat16(torch.device("cpu")) else torch.float32
    calls: dict[str, Callable[[], object]] = {}
    differences: dict[str, float] = {}
    chunks: dict[str, int] = {}
    for name, make in RIVALS.items():
        rival = tied_pair(config, make).eval().requires_grad_(False)
        for dtype in dict.fromkeys((torch.float32, best)):
            layer, word = Layer(config, rival, dtype, options.chunk), str(dtype).removeprefix("torch.")
            with torch.inference_mode():
                x, normed = layer.inputs(ids)
                want = x + rival(normed)
                off = float((layer.output(ids) - want).abs().max() / want.abs().max())
            differences[f"{name} {word}"], chunks[word] = off, layer.chunk
            if not off <= AGREE[dtype]:
                raise ArithmeticError(f"{name}: our {dtype} output is {off:.1e} off, expected {AGREE[dtype]:.0e}")
            calls.setdefault(f"ours {word}", lambda layer=layer: layer.run(ids))  # type: ignore[misc]
        calls[name] = lambda mixer=rival.one, x=normed: mixer(x)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for number in range(options.repeats + 1):
            for name, call in calls.items():
                start = common.clock()
                call()
                if number:
                    seconds[name].append(common.clock() - start)
    # A layer of ours is two directions.
    us = {name: 1e6 * min(taken) / options.length / (2 if name.startswith("ours") else 1)
          for name, taken in seconds.items()}  # fmt: skip
    word = str(best).removeprefix("torch.")
    rounded: dict[str, Any] = common.rounded({
        "preset": options.preset,
        "length": options.length,
        "threads": options.threads,
        "chunk": chunks,
        "us_per_bp_and_direction": us,
        "equal_float32": {name: us[name] / us["ours float32"] for name in RIVALS},
        "best_over_default": {name: us[name] / us[f"ours {word}"] for name in RIVALS},
        "difference": differences,
        "seconds": seconds,
    })  # fmt: skip
    return rounded


def report(r: dict[str, Any]) -> str:
    """Write a result as a table."""
    us = r["us_per_bp_and_direction"]
    rows = [(name, value, us["ours float32"] / value) for name, value in us.items()]
    lines = [
        f"one layer and direction of {r['preset']}  {r['length']:,} bp  {r['threads']} threads  chunks {r['chunk']}",
        common.table(("", "us/bp", "speed of ours in float32"), rows),
    ]
    for name in r["equal_float32"]:
        lines.append(
            f"ours over {name}: {r['equal_float32'][name]:.1f} both in float32, "
            f"{r['best_over_default'][name]:.1f} in our best precision"
        )
    return "\n".join(lines)
