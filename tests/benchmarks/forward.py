"""Speed of the exact sweeps, against the matrix products that they cannot do without.

``python tests/benchmarks/forward.py --preset hawk-50m --length 131072`` runs one window of random bases
through a model with random weights, batch 1, inference, and prints a table, then one line of JSON. Rounds of
the forward pass and of the floor (see `common`) alternate, since a machine's speed drifts; the best of each
counts. The peak of resident memory is read after the first forward pass, before the floor makes its buffers.

With ``--profile`` it also says where the time goes (see `op_times`).
"""

import time
from collections.abc import Sequence
from typing import Any

import common
import op_times
import torch
from common import Usage

from lrgenome.engine.chunking import default_chunk
from lrgenome.engine.store import Store
from lrgenome.engine.sweep import stream
from lrgenome.io.resources import peak_rss
from lrgenome.models.families import Recurrent
from lrgenome.models.hawk import Hawk
from lrgenome.ops.jit import set_threads
from lrgenome.ops.workspace import Workspace
from lrgenome.tasks.compute import native_bfloat16

NOISY = 1.15
"""Slowest over fastest round of the floor from which the machine is called busy."""

IDLE = 0.8
"""Part of its threads' time that a pass must have had a core for; OpenMP's waiting threads spin at first."""


class Pass:
    """A forward pass that can be run again and again, with the same buffers."""

    def __init__(self, model: Recurrent, length: int, chunk: int, store: Store, *, keep_prepared: bool) -> None:
        self._model, self._chunk, self._store = model, chunk, store
        self._keep_prepared = keep_prepared
        self._ids = common.random_bases(length)
        self._workspace = Workspace()

    def run(self) -> Usage:
        """Stream the window and return what it took; a value that is not finite is an error."""
        start = Usage.now()
        with torch.inference_mode():
            parts = stream(
                self._model, self._ids, chunk=self._chunk, store=self._store,
                keep_prepared=self._keep_prepared, workspace=self._workspace,
            )  # fmt: skip
            for part in parts:
                last = part.hidden[0, -1]
            used = Usage.now().since(start)
            if not bool(last.isfinite().all()):
                raise ArithmeticError("the forward pass ended in values that are not finite")
        return used


def measure(options: Any) -> dict[str, Any]:
    """Measure one length.

    Parameters
    ----------
    options
        What `parse` returns.

    Returns
    -------
    dict
        The JSON object; times in seconds, rates in bp/s and GFLOP/s, memory in GB (1e9 bytes).
    """
    set_threads(options.threads)
    common.choose_clock(options.clock)
    dtype = _dtype(options.precision)
    model = common.build_model(options.preset, dtype)
    length, chunk = options.length, min(options.chunk or default_chunk(model, "cpu"), options.length)
    meter = common.FloorMeter(model, length)
    squares: dict[str, float] = {}
    passes: list[Usage] = []
    with common.open_store(options.store, options.tmpdir) as store:
        forward = Pass(model, length, chunk, store, keep_prepared=options.keep_prepared)
        with common.open_store("ram") as warm:
            Pass(model, min(length, 2 * chunk), chunk, warm, keep_prepared=options.keep_prepared).run()
        began, rss = time.perf_counter(), 0
        while len(passes) < max(1, options.repeats):
            if passes and options.seconds is not None and time.perf_counter() - began > options.seconds:
                break
            passes.append(forward.run())
            rss = rss or peak_rss()
            for library, rate in common.square_rate(options.square, dtype).items():
                squares[library] = max(rate, squares.get(library, 0.0))
            meter.measure()
    best, floor, flops = min(passes), min(meter.rounds), common.flops_per_bp(model.config) * length
    result: dict[str, Any] = {
        "preset": options.preset,
        "length": length,
        "precision": str(dtype).removeprefix("torch."),
        "chunk": chunk,
        "store": options.store,
        "keep_prepared": options.keep_prepared,
        "threads": options.threads,
        "clock": options.clock,
        "rounds": len(passes),
        "bp_per_s": length / best.seconds,
        "floor_bp_per_s": length / floor.seconds,
        "fraction_of_floor": floor.seconds / best.seconds,
        "us_per_bp": 1e6 * best.seconds / length,
        "floor_us_per_bp": 1e6 * floor.seconds / length,
        "peak_rss_gb": rss / 1e9,
        "square_gflops": max(squares.values()),
        "floor_gflops": 1e-9 * flops / floor.seconds,
        "floor_over_square": 1e-9 * flops / floor.seconds / max(squares.values()),
        "floor_rows": floor.rows,
        "floor_library": floor.provider,
        "floor_sampled_rows": min(length, common.SAMPLE),
        "square_gflops_of": squares,
        "floor_bp_per_s_of": {name: length / of.seconds for name, of in meter.best_of.items()},
        "fraction_of_torch_floor": meter.best_of["torch"].seconds / best.seconds,
        "forward_seconds": [used.seconds for used in passes],
        "floor_seconds": [of.seconds for of in meter.rounds],
        "busy_threads": (best.user + best.system) / best.wall,
        "system_seconds": best.system,
        "page_faults_per_pass": [used.faults for used in passes],
        "preempted_per_pass": [used.preempted for used in passes],
    }
    result["warnings"] = _warnings(result)
    if options.profile and isinstance(model, Hawk):
        result["profile"] = op_times.measure(
            model,
            chunk,
            options.store,
            options.tmpdir,
            keep_prepared=options.keep_prepared,
            threads=options.threads,
        )
    rounded: dict[str, Any] = common.rounded(result)
    return rounded


def _dtype(precision: str) -> torch.dtype:
    if precision == "auto":
        return torch.bfloat16 if native_bfloat16(torch.device("cpu")) else torch.float32
    dtype: torch.dtype = getattr(torch, precision)
    return dtype


def _warnings(result: dict[str, Any]) -> list[str]:
    said = []
    if result["floor_over_square"] < common.NEEDED_RATE:
        said.append(
            f"the floor reaches {result['floor_over_square']:.2f} of a large square product's rate, less "
            f"than {common.NEEDED_RATE}: the fraction of it flatters the forward pass"
        )
    spread = max(result["floor_seconds"]) / min(result["floor_seconds"])
    if spread > NOISY:
        said.append(f"the floor's rounds differ {spread:.2f} times: something else runs on this machine")
    if result["clock"] == "wall" and result["busy_threads"] < IDLE * result["threads"]:
        said.append(
            f"the forward pass had {result['busy_threads']:.2f} of {result['threads']} cores: something else runs "
            "on this machine"
        )
    if result["fraction_of_torch_floor"] > 1.1 * result["fraction_of_floor"]:
        said.append(
            f"torch's own products are slow here: {result['floor_library']} is "
            f"{result['fraction_of_torch_floor'] / result['fraction_of_floor']:.2f} times as fast"
        )
    return said


def report(result: dict[str, Any]) -> str:
    """Write a result as a table."""
    r = result
    sampled = r["floor_sampled_rows"]
    scaled = f", timed on {sampled:,} rows a layer and scaled" if sampled < r["length"] else ""
    lines = [
        f"{r['preset']}  {r['length']:,} bp  {r['precision']}  chunk {r['chunk']:,}  store {r['store']}  "
        f"{r['threads']} threads  {r['clock']} clock  best of {r['rounds']} rounds",
        common.table(
            ("", "us/bp", "bp/s", "GFLOP/s"),
            [
                ("forward", r["us_per_bp"], r["bp_per_s"], r["floor_gflops"] * r["fraction_of_floor"]),
                ("floor", r["floor_us_per_bp"], r["floor_bp_per_s"], r["floor_gflops"]),
                ("square product", None, None, r["square_gflops"]),
            ],
        ),
        f"floor: {r['floor_library']}, {r['floor_rows']:,} rows at a time{scaled}",
        f"forward / floor: {r['fraction_of_floor']:.3f} of its speed "
        f"({r['fraction_of_torch_floor']:.3f} of torch's products alone)",
        f"floor / square product: {r['floor_over_square']:.3f}",
        f"peak memory: {r['peak_rss_gb']:.3f} GB",
    ]
    if "profile" in r:
        lines += ["", op_times.report(r["profile"], r["us_per_bp"], r["floor_us_per_bp"])]
    return "\n".join(lines + [f"warning: {text}" for text in r["warnings"]])


def parse(arguments: Sequence[str] | None = None) -> Any:
    """Read the command line."""
    parser = common.common_options("Speed of the exact sweeps against that of their matrix products.")
    parser.add_argument("--length", type=common.length_option, default=131_072, help="(%(default)s)")
    parser.add_argument("--profile", action="store_true", help="time each operation of a layer as well (Hawk)")
    options = parser.parse_args(arguments)
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu: CPU time is that of one thread; expected --threads 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    common.run(measure, report, parse(arguments))


if __name__ == "__main__":
    main()
