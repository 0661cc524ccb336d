"""Our layers against other libraries' on the same CPU, with the same weights, in one run.

``python tests/benchmarks/rivals.py`` runs one bidirectional Hawk layer (both directions and the MLP) over a window,
in inference, as we run it and as the modules of two other libraries do the same work:

* `recurrentgemma` 1.0.1, the torch half, of the authors of Hawk;
* the RecurrentGemma of `transformers`.

Theirs is their residual block with a second convolution and RG-LRU over the flipped sequence. Outputs are compared
before anything is timed. Then rounds alternate, and the best of each counts: all in float32, theirs in bfloat16
too, ours in the best precision of this CPU. A table follows, and one line of JSON.

``--layer mamba`` does it with a Caduceus layer and the Mamba of two libraries; see `mamba_rivals`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))

import common
import mamba_rivals
import torch
from hawk_oracles import (
    BothWays,
    copy_weights,
    of_recurrentgemma,
    of_transformers,
    recurrentgemma_block,
    recurrentgemma_modules,
    scrambled,
    transformers_block,
)
from torch import Tensor, nn

from lrgenome.config import CaduceusConfig, HawkConfig
from lrgenome.models.hawk import Hawk, build
from lrgenome.ops.jit import set_threads
from lrgenome.tasks.compute import native_bfloat16

AGREE = {torch.float32: 2e-4, torch.bfloat16: 0.1}
"""Largest difference of outputs, relative to the largest value."""


class Layer(common.FirstLayer):
    """Our layer: the first block of a model of two, streamed, so that its output is raw."""

    def __init__(
        self, config: HawkConfig, weights: Sequence[dict[str, Tensor]], dtype: torch.dtype, chunk: int | None
    ) -> None:
        self._model: Hawk = build(config, seed=0)
        # Right to left first: what both directions share is that of the first.
        for direction, of in reversed(list(enumerate(weights))):
            copy_weights(self._model.blocks[0], of, direction)  # type: ignore[arg-type]
        self._model.for_inference(dtype)
        super().__init__(self._model, chunk)

    @property
    def embedding(self) -> Tensor:
        """(v, d): what the tokens are for this layer and its rivals."""
        return self._model.embedding.detach()


def pairs(config: HawkConfig) -> dict[str, Callable[[], tuple[BothWays, list[dict[str, Tensor]]]]]:
    """Name what makes each rival, with its weights in our form for both directions."""

    def recurrentgemma() -> tuple[BothWays, list[dict[str, Tensor]]]:
        with recurrentgemma_modules() as modules:
            one, other = (scrambled(recurrentgemma_block(modules, config), seed=k) for k in (0, 1))
        return BothWays(one, other), [of_recurrentgemma(dict(b.named_parameters())) for b in (one, other)]

    def transformers() -> tuple[BothWays, list[dict[str, Tensor]]]:
        one, other = (scrambled(transformers_block(config), seed=k) for k in (0, 1))
        return BothWays(one, other), [of_transformers(dict(b.named_parameters())) for b in (one, other)]

    return {"recurrentgemma": recurrentgemma, "transformers": transformers}


def measure(options: Any) -> dict[str, Any]:
    """Measure; `options` is what `parse` returns."""
    set_threads(options.threads)
    preset = common.MODELS[options.preset]
    config = HawkConfig(
        layers=2, width=preset.width, recurrent_width=preset.recurrent_width, heads=preset.heads,
        mlp_width=preset.mlp_width,
    )  # fmt: skip
    ids = common.random_bases(options.length)
    best = torch.bfloat16 if native_bfloat16(torch.device("cpu")) else torch.float32
    calls: dict[str, Callable[[], object]] = {}
    differences: dict[str, float] = {}
    chunks: dict[str, int] = {}
    for name, make in pairs(config).items():
        rival, weights = make()
        rival.eval().requires_grad_(False)
        ours = {dtype: Layer(config, weights, dtype, options.chunk)
                for dtype in (torch.float32, best)}  # fmt: skip
        x = torch.nn.functional.embedding(ids.long(), ours[torch.float32].embedding.float())
        with torch.inference_mode():
            want = rival(x)
            for dtype, layer in ours.items():
                chunks[_word(dtype)] = layer.chunk
                off = float((layer.output(ids) - want).abs().max() / want.abs().max())
                differences[f"{name} {_word(dtype)}"] = off
                if not off <= AGREE[dtype]:
                    raise ArithmeticError(f"{name}: our {dtype} output is {off:.1e} off, expected {AGREE[dtype]:.0e}")
        calls[f"{name} float32"] = _call(rival, x)
        half = make()[0].eval().requires_grad_(False).to(torch.bfloat16)
        calls[f"{name} bfloat16"] = _call(half, x.to(torch.bfloat16))
        for dtype, layer in ours.items():
            calls.setdefault(f"ours {_word(dtype)}", _ours(layer, ids))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for number in range(options.repeats + 1):
            for name, call in calls.items():
                start = common.clock()
                call()
                if number:
                    seconds[name].append(common.clock() - start)
    us = {name: 1e6 * min(taken) / options.length for name, taken in seconds.items()}
    result = {
        "preset": options.preset,
        "length": options.length,
        "threads": options.threads,
        "chunk": chunks,
        "us_per_bp": us,
        "equal_float32": {name: us[f"{name} float32"] / us["ours float32"] for name in pairs(config)},
        "best_over_default": {name: us[f"{name} float32"] / us[f"ours {_word(best)}"] for name in pairs(config)},
        "difference": differences,
        "seconds": seconds,
    }
    rounded: dict[str, Any] = common.rounded(result)
    return rounded


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _call(module: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: module(x)


def _ours(layer: Layer, ids: Tensor) -> Callable[[], object]:
    return lambda: layer.run(ids)


def report(r: dict[str, Any]) -> str:
    """Write a result as a table."""
    rows = [(name, us, r["us_per_bp"]["ours float32"] / us) for name, us in r["us_per_bp"].items()]
    lines = [
        f"one bidirectional layer of {r['preset']}  {r['length']:,} bp  {r['threads']} threads  chunks {r['chunk']}",
        common.table(("", "us/bp", "speed of ours in float32"), rows),
    ]
    for name in r["equal_float32"]:
        lines.append(
            f"ours over {name}: {r['equal_float32'][name]:.2f} both in float32, "
            f"{r['best_over_default'][name]:.2f} in our best precision over its default"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Our layers against those of other libraries.")
    parser.add_argument("--layer", choices=("hawk", "mamba"), default="hawk", help="(%(default)s)")
    parser.add_argument("--preset", choices=common.MODELS, help="shape (hawk-50m or caduceus-50m)")
    parser.add_argument("--length", type=common.length_option, help="window, bp (12,000; of mamba 2,048)")
    parser.add_argument("--chunk", type=common.length_option, help="positions at a time (as the commands choose it)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count (%(default)s)")
    options = parser.parse_args(arguments)
    mamba = options.layer == "mamba"
    options.preset = options.preset or ("caduceus-50m" if mamba else "hawk-50m")
    # One of the Mambas is a loop in Python over positions.
    options.length = options.length or (2_048 if mamba else 12_000)
    if isinstance(common.MODELS[options.preset], CaduceusConfig) != mamba:
        parser.error(f"--preset {options.preset}: expected one of a {options.layer} model")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = parse(arguments)
    if options.layer == "mamba":
        common.run(mamba_rivals.measure, mamba_rivals.report, options)
    else:
        common.run(measure, report, options)


if __name__ == "__main__":
    main(sys.argv[1:])
