"""Speed on a CUDA device: a forward pass, a training step and each kernel, against plain torch and a limit.

``python tests/benchmarks/gpu.py --preset hawk-50m --length 1Mbp --windows 32 --window 12kbp`` streams one window
without gradients and takes training steps on random bases, each with our Triton kernels and with plain torch in
their place, in the same run. The limit is the time that the matrix products' operations would take at the rate of a
large square product measured here; of a kernel, that of moving its inputs and outputs once at the rate of a large
copy measured here. Then come tables and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import common
import torch
from torch import Tensor
from training_step import random_corpus

from lrgenome.config import HawkConfig
from lrgenome.engine.chunking import default_chunk
from lrgenome.engine.store import MemoryStore
from lrgenome.engine.sweep import stream
from lrgenome.models.families import build
from lrgenome.ops import gating, norm, trusted
from lrgenome.ops.conv import blocked as plain_conv
from lrgenome.ops.conv import conv
from lrgenome.ops.rglru import blocked as plain_rglru
from lrgenome.ops.rglru import rglru
from lrgenome.training.optim import build_optimizer
from lrgenome.training.settings import PretrainSettings
from lrgenome.training.step import gradients, set_precision, update

PRESETS = [name for name, config in common.MODELS.items() if isinstance(config, HawkConfig)]
"""Whose kernels these are."""
DEVICE = torch.device("cuda")


def timed(work: Callable[[], Any], repeats: int) -> float:
    """Return the median seconds of `work`, after one run that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Let plain torch run in place of our kernels."""
    real, places = trusted.trusted, []
    from lrgenome.ops.conv import cuda as conv_cuda
    from lrgenome.ops.rglru import cuda as rglru_cuda

    try:
        for module in (trusted, conv_cuda, rglru_cuda, gating, norm):
            places.append(module)
            module.trusted = lambda name, device: None  # type: ignore[attr-defined]
        yield
    finally:
        for module in places:
            module.trusted = real  # type: ignore[attr-defined]


def in_plain_torch(work: Callable[[], Any]) -> float:
    """Return the seconds of `work` without our kernels; not a number where the device's memory does not hold it."""
    with without_kernels():
        try:
            return timed(work, 1)
        except torch.OutOfMemoryError:
            return float("nan")


def rates(dtype: torch.dtype) -> tuple[float, float]:
    """Measure the rate of a large square product (operations/s) and of a large copy (bytes/s, read and written)."""
    a, b = (torch.randn(8192, 8192, device=DEVICE).to(dtype) for _ in range(2))
    big = torch.randn(1 << 29, device=DEVICE)
    to = torch.empty_like(big)
    return 2 * 8192**3 / timed(lambda: a @ b, 20), 2 * big.nbytes / timed(lambda: to.copy_(big), 20)


def matrix_weights(model: Any) -> int:
    """Return how many products of a weight a base takes in the model's matrices."""
    return sum(p.numel() for name, p in model.named_parameters()
               if name.endswith("weight") and "conv" not in name and "embedding" not in name)  # fmt: skip


def forward(options: Any, dtype: torch.dtype, rate: float) -> dict[str, Any]:
    """Time a window without gradients."""
    model = build(common.MODELS[options.preset], seed=0).to(DEVICE).for_inference(dtype)
    ids = common.random_bases(options.length)[:, : options.length].to(DEVICE)
    chunk = default_chunk(model, "cuda")

    @torch.inference_mode()
    def run() -> None:
        for _ in stream(model, ids, chunk=chunk, store=MemoryStore()):
            pass

    torch.cuda.reset_peak_memory_stats()
    ours = timed(run, options.repeats)
    memory = torch.cuda.max_memory_allocated()
    plain = in_plain_torch(run)
    limit = 2 * matrix_weights(model) * options.length / rate
    return {"what": f"forward, {options.length:,} bp", "seconds": ours, "bp_per_s": options.length / ours,
            "over_plain": plain / ours, "of_limit": limit / ours, "gb": memory / 1e9}  # fmt: skip


def step(options: Any, rate: float) -> dict[str, Any]:
    """Time an optimizer step."""
    settings = PretrainSettings(
        window=options.window, batch_size=options.windows, accumulate=1, precision=options.precision
    )
    model = build(common.MODELS[options.preset], seed=0).to(DEVICE)
    set_precision(model, settings)
    optimizer = build_optimizer(model, rate=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    corpus = random_corpus(settings.window)
    again = options.recompute

    def run() -> None:
        gradients(model, corpus, settings, 0, recompute=again)
        update(optimizer, settings, 0)

    torch.cuda.reset_peak_memory_stats()
    ours = timed(run, options.repeats)
    memory, bases = torch.cuda.max_memory_allocated(), options.window * options.windows
    plain = float("nan") if options.skip_plain else in_plain_torch(run)
    limit = 3 * 2 * matrix_weights(model) * bases / rate
    if options.profile:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
            run()
        print(seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=60))
    return {"what": f"step, {options.windows} x {options.window:,} bp", "seconds": ours, "bp_per_s": bases / ours,
            "over_plain": plain / ours, "of_limit": limit / ours, "gb": memory / 1e9}  # fmt: skip


def kernels(options: Any, dtype: torch.dtype, copies: float) -> Iterator[dict[str, Any]]:
    """Time each kernel forward, and forward and backward, on a batch of windows."""
    config: Any = common.MODELS[options.preset]
    b, t = options.windows, options.window
    e, heads, d, f = config.recurrent_width, config.heads, config.width, config.mlp_width

    def draw(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=DEVICE).to(kind).requires_grad_()

    wide = torch.float32
    x, gates = draw(b, t, e), draw(heads, b * t, 2 * e // heads)
    bias, decay, h0 = draw(2, e, kind=wide), torch.rand(e, device=DEVICE), torch.zeros(b, e, device=DEVICE)
    weight, conv_bias = draw(4, e, kind=wide), draw(e, kind=wide)
    halo = torch.zeros(b, 3, e, device=DEVICE, dtype=dtype)
    rows, delta, scale = draw(b * t, d, kind=wide), draw(b * t, d), draw(d, kind=wide)
    up, gate, y1, y2 = draw(b * t, 2 * f), draw(b * t, e), draw(b * t, e), draw(b * t, e)
    flags = {"reverse": False, "reset": True}
    size = dtype.itemsize
    cases: tuple[tuple[str, Callable[[], Any], Callable[[], Any], tuple[Tensor, ...], int], ...] = (
        ("RG-LRU", lambda: rglru(x, gates, bias, decay, h0, **flags)[0],
         lambda: plain_rglru.rglru(x, gates, bias, decay, h0, **flags)[0], (x, gates, bias), 4 * e * size),
        ("convolution", lambda: conv(x, weight, conv_bias, halo, reverse=False),
         lambda: plain_conv.conv(x, weight, conv_bias, halo, reverse=False), (x, weight, conv_bias), 2 * e * size),
        ("norm", lambda: norm.add_rms_norm(rows, delta, scale, dtype)[1],
         lambda: norm.naive_rms_norm(rows + delta, scale, dtype), (rows, delta, scale), d * (8 + 2 * size)),
        ("geglu", lambda: gating.geglu(up), lambda: gating.naive_geglu(up), (up,), 3 * f * size),
        ("gated sum", lambda: gating.gate_sum(gate, y1, y2), lambda: gating.naive_gate_sum(gate, y1, y2),
         (gate, y1, y2), 4 * e * size),
    )  # fmt: skip
    for name, ours, plain, leaves, moved in cases:
        fast, fast_both = alone_and_with_backward(ours, leaves, options.repeats)
        slow, slow_both = alone_and_with_backward(plain, leaves, 1)
        yield {"kernel": name, "forward_us_per_kbp": 1e9 * fast / (b * t), "forward_over_plain": slow / fast,
               "of_limit": b * t * moved / copies / fast, "both_us_per_kbp": 1e9 * fast_both / (b * t),
               "both_over_plain": slow_both / fast_both}  # fmt: skip


def alone_and_with_backward(
    work: Callable[[], Tensor], leaves: tuple[Tensor, ...], repeats: int
) -> tuple[float, float]:
    """Return the seconds of `work` without gradients, and with its backward pass."""
    grad = torch.randn_like(work().detach())
    with torch.no_grad():
        alone = timed(work, repeats)
    return alone, timed(lambda: torch.autograd.grad(work(), leaves, grad), repeats)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="hawk-50m", help="Hawk (%(default)s)")
    parser.add_argument("--length", type=common.length_option, default=1_000_000, help="forward pass, bp")
    parser.add_argument("--window", type=common.length_option, default=12_000, help="training window, bp")
    parser.add_argument("--windows", type=int, default=16, help="windows a step (%(default)s)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--recompute", action="store_true", help="run blocks again in the backward pass")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip-plain", action="store_true", help="training steps with our kernels only")
    parser.add_argument("--skip-kernels", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print what a training step consists of")
    options = parser.parse_args()
    dtype = getattr(torch, options.precision)
    rate, copies = rates(dtype)
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "preset": options.preset,
                              "precision": options.precision,
                              "tflops": rate / 1e12, "copy_tb_per_s": copies / 1e12}  # fmt: skip
    result["passes"] = [forward(options, dtype, rate), step(options, rate)]
    print(f"{result['device']}  {options.preset}  {options.precision}: a large product runs at {rate / 1e12:.0f} "
          f"TFLOP/s, a copy at {copies / 1e12:.2f} TB/s")  # fmt: skip
    print(common.table(
        ("", "seconds", "Mbp/s", "of the limit", "over plain torch", "GB"),
        [(p["what"], p["seconds"], p["bp_per_s"] / 1e6, p["of_limit"], p["over_plain"], p["gb"])
         for p in result["passes"]],
    ))  # fmt: skip
    if not options.skip_kernels:
        result["kernels"] = list(kernels(options, dtype, copies))
        print(common.table(
            ("kernel", "us/kbp", "of the limit", "over plain", "with backward", "over plain "),
            [(k["kernel"], k["forward_us_per_kbp"], k["of_limit"], k["forward_over_plain"], k["both_us_per_kbp"],
              k["both_over_plain"]) for k in result["kernels"]],
        ))  # fmt: skip
    print(json.dumps(common.rounded(result)))


if __name__ == "__main__":
    main()
