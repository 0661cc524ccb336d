"""Speed of a training step, against three forward passes of matrix products.

``python tests/benchmarks/training_step.py --preset hawk-50m --length 12kbp --windows 8`` takes steps of masked
language modelling on random bases, as ``lrgenome pretrain`` takes them: forward, loss, backward, clipping, AdamW.
The limit is three times the floor of `common`: a backward pass needs two products for each of the forward pass.
Steps and floors alternate and the best of each counts. Then come a table and one line of JSON.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import common
import numpy as np
from common import Usage

from lrgenome.io.resources import available_memory, peak_rss
from lrgenome.models.families import build
from lrgenome.ops.jit import set_threads
from lrgenome.training.data import Corpus
from lrgenome.training.optim import build_optimizer
from lrgenome.training.settings import PretrainSettings
from lrgenome.training.step import (
    RECOMPUTE,
    choose_recompute,
    gradients,
    set_precision,
    update,
    windows_at_once,
)


def random_corpus(window: int) -> Corpus:
    """Stand in for a corpus: windows of random bases, drawn by the step's random numbers."""

    bases = common.random_bases(2 * window)[0].numpy()

    def draw(rng: np.random.Generator, length: int) -> np.ndarray:
        start = int(rng.integers(0, window))
        return bases[start : start + length]

    return cast(Corpus, SimpleNamespace(draw=draw))


def measure(options: Any) -> dict[str, Any]:
    """Measure steps; `options` is what `parse` returns."""
    set_threads(options.threads)
    common.choose_clock(options.clock)
    settings = PretrainSettings(
        window=options.length, batch_size=options.windows, accumulate=1, precision=options.precision
    )
    model = build(common.MODELS[options.preset], seed=0)
    set_precision(model, settings)
    optimizer = build_optimizer(model, rate=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    corpus = random_corpus(settings.window)
    recompute = choose_recompute(model, settings, options.recompute, available_memory())
    steps: list[Usage] = []
    rss = 0
    frozen = common.build_model(options.preset, model.compute_dtype)
    positions = settings.bases_until(1)
    meter = common.FloorMeter(frozen, positions)
    for number in range(options.repeats + 1):
        start = Usage.now()
        gradients(model, corpus, settings, number, recompute=recompute)
        update(optimizer, settings, number)
        if number:  # the first one compiles
            steps.append(Usage.now().since(start))
        rss = rss or peak_rss()
        if number:
            meter.measure()
    best, floor = min(steps), min(meter.rounds)
    result = {
        "preset": options.preset,
        "window": settings.window,
        "windows": settings.batch_size,
        "windows_at_once": windows_at_once(settings, model.embedding.device, settings.window),
        "precision": settings.precision,
        "recompute": recompute,
        "threads": options.threads,
        "clock": options.clock,
        "step_seconds": best.seconds,
        "bp_per_s": positions / best.seconds,
        "us_per_bp": 1e6 * best.seconds / positions,
        "limit_us_per_bp": 3e6 * floor.seconds / positions,
        "fraction_of_limit": 3 * floor.seconds / best.seconds,
        "peak_rss_gb": rss / 1e9,
        "floor_library": floor.provider,
        "floor_rows": floor.rows,
        "system_seconds": best.system,
        "page_faults": best.faults,
        "busy_threads": (best.user + best.system) / best.wall,
        "all_step_seconds": [step.seconds for step in steps],
        "all_floor_seconds": [of.seconds for of in meter.rounds],
    }
    rounded: dict[str, Any] = common.rounded(result)
    return rounded


def report(r: dict[str, Any]) -> str:
    """Write a result as a table."""
    how = "blocks run again in the backward pass" if r["recompute"] else "graph kept"
    return "\n".join(
        [
            f"{r['preset']}  {r['windows']} windows of {r['window']:,} bp, {r['windows_at_once']} at once  "
            f"{r['precision']}  {how}  {r['threads']} threads  {r['clock']} clock",
            common.table(
                ("", "us/bp", "bp/s"),
                [
                    ("step", r["us_per_bp"], r["bp_per_s"]),
                    ("limit: 3 floors", r["limit_us_per_bp"], 1e6 / r["limit_us_per_bp"]),
                ],
            ),
            f"step / limit: {r['fraction_of_limit']:.3f} of its speed",
            f"peak memory: {r['peak_rss_gb']:.2f} GB; in the kernel {r['system_seconds']:.1f} s of "
            f"{r['step_seconds']:.1f} s, {r['page_faults']:,} page faults",
        ]
    )


def parse(arguments: Sequence[str] | None = None) -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Speed of a training step against three floors.")
    parser.add_argument("--preset", choices=common.MODELS, default="hawk-50m", help="model (%(default)s)")
    parser.add_argument("--length", type=common.length_option, default=12_000, help="window, bp (%(default)s)")
    parser.add_argument("--windows", type=int, default=8, help="windows a step (%(default)s)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--recompute", choices=RECOMPUTE, default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(%(default)s)")
    parser.add_argument("--clock", choices=common.CLOCKS, default="wall", help="cpu: with one thread (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="steps that count (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    common.run(measure, report, parse(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
