"""What the speed benchmarks share: models, input, clocks, tables, and the floor they measure against.

The floor is the time of a forward pass's matrix products alone: the same weights, dtype and numbers of rows,
into buffers that are there already, at the best of several numbers of rows at a time and of two libraries.
What the forward pass takes beyond it is norms, convolutions, recurrences, gates, memory traffic and Python.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from lrgenome import dna
from lrgenome.config import PRESETS, CaduceusConfig, HawkConfig, ModelConfig, NucleotideTransformerConfig
from lrgenome.engine.chunking import default_chunk
from lrgenome.engine.store import FileStore, MemoryStore, Store
from lrgenome.engine.sweep import Chunk, stream
from lrgenome.glossary import parse_length
from lrgenome.models.base import Block
from lrgenome.models.caduceus import CaduceusBlock
from lrgenome.models.families import Recurrent, build
from lrgenome.models.hawk import Direction, HawkBlock
from lrgenome.ops.workspace import Workspace

MODELS: dict[str, ModelConfig] = {
    **{name: config for name, config in PRESETS.items() if not isinstance(config, NucleotideTransformerConfig)},
    "toy": HawkConfig(layers=2, width=32, recurrent_width=32, heads=2, mlp_width=64),
    "toy-caduceus": CaduceusConfig(layers=2, width=32),
    "toy-caduceus-ps": CaduceusConfig(layers=2, width=32, equivariant=True),
}
"""The recurrent presets, and small ones for the tests of the benchmarks."""

ROWS = (512, 1024, 2048, 4096, 8192)
"""Numbers of rows at a time that the floor tries."""

SAMPLE = 8192
"""Rows a layer that the floor is timed on where the length is greater; the time is then scaled by rows."""

LIBRARIES = ("torch", "onednn")
"""Whose products the floor uses: ``torch.mm`` and ``bmm``, or oneDNN's with weights packed beforehand."""

NEEDED_RATE = 0.9
"""Part of a large square product's rate that a floor must reach to be called one."""

CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
"""CPU time is for one thread on a machine that others use: it stops while they have the core."""

_clock = time.perf_counter
_GC = 0.41
_N_RUN = 50


def clock() -> float:
    """Read the chosen clock, in seconds."""
    return _clock()


def choose_clock(name: str) -> None:
    """Let every benchmark in this process measure by one of `CLOCKS`."""
    global _clock
    _clock = CLOCKS[name]


class Usage(NamedTuple):
    """What the operating system counts for this process."""

    seconds: float
    """By the chosen clock."""
    wall: float
    """Seconds."""
    user: float
    """Seconds of all threads, waiting OpenMP threads included while they spin."""
    system: float
    """Seconds in the kernel, such as in page faults."""
    faults: int
    """Pages touched for the first time."""
    preempted: int
    """Times that a thread lost its core to another process or thread."""

    @classmethod
    def now(cls) -> "Usage":
        """Read the counters."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(clock(), time.perf_counter(), used.ru_utime, used.ru_stime, used.ru_minflt, used.ru_nivcsw)

    def since(self, start: "Usage") -> "Usage":
        """Return the differences from `start`."""
        return Usage(*(after - before for after, before in zip(self, start, strict=True)))


class Floor(NamedTuple):
    """The matrix products of a forward pass, and nothing else."""

    seconds: float
    """For all positions and layers."""
    rows: int
    """Rows at a time."""
    provider: str
    """One of `LIBRARIES`."""


def run(
    measure: Callable[[Any], dict[str, Any]], report: Callable[[dict[str, Any]], str], options: Any
) -> dict[str, Any]:
    """Measure what `options` say; print the report, then the result as one line of JSON, and return it."""
    result = measure(options)
    print(report(result))
    print(json.dumps(result))
    return result


def build_model(name: str, dtype: torch.dtype) -> Recurrent:
    """Make a model with random weights, the same each time, ready for inference."""
    return build(MODELS[name], seed=0).for_inference(dtype)


class FirstLayer:
    """The first block of a model of two, ready for inference, streamed so that its output is raw."""

    def __init__(self, model: Recurrent, chunk: int | None) -> None:
        self._streamed, self._workspace = model, Workspace()
        self.chunk = chunk or default_chunk(model, "cpu")

    def run(self, ids: Tensor) -> None:
        """Run the block; each chunk of its raw output is dropped."""
        for _ in self._stream(ids):
            pass

    def output(self, ids: Tensor) -> Tensor:
        """Return the raw output of the block (1, t, d) in float32."""
        return torch.cat([part.hidden.float().clone() for part in self._stream(ids)], 1)

    def _stream(self, ids: Tensor) -> Iterator[Chunk]:
        return stream(self._streamed, ids, chunk=self.chunk, layers=1, workspace=self._workspace)


def random_bases(length: int) -> Tensor:
    """Draw (1, t) token ids with a vertebrate's GC content and a short run of N, the same each time."""
    rng = np.random.default_rng(0)
    share = [(1 - _GC) / 2, _GC / 2, _GC / 2, (1 - _GC) / 2]
    ids = rng.choice(np.arange(dna.A, dna.T + 1, dtype=np.uint8), length, p=share)
    if length > 4 * _N_RUN:
        ids[length // 2 : length // 2 + _N_RUN] = dna.N
    return torch.from_numpy(ids)[None]


@contextmanager
def open_store(kind: str, folder: str | None = None) -> Iterator[Store]:
    """Give a store of kind "ram" or "disk", and free it at the end."""
    store: Store = MemoryStore() if kind == "ram" else FileStore(folder)
    try:
        yield store
    finally:
        store.close()


def fastest(call: Callable[[], object], *, seconds: float = 0.2, runs: int = 3) -> float:
    """Run `call` once to warm up, then at least `runs` times and `seconds` long; return the fastest."""
    call()
    best, began, done = float("inf"), clock(), 0
    while done < runs or clock() - began < seconds:
        start = clock()
        call()
        best = min(best, clock() - start)
        done += 1
    return best


def matrices(block: Block) -> tuple[list[Tensor], list[Tensor]]:
    """Return the matrices of a block's products: dense ones (o, i), and block-diagonal ones (h, w, o)."""
    if isinstance(block, HawkBlock):
        names = ["in_branch_weight", "in_gate_weight", "out_weight", "up_weight", "down_weight"]
        return [getattr(block, name) for name in names], [cast(Direction, d).gate_weight for d in block.directions]
    names = ["in_branch_weight", "in_gate_weight", "out_weight"]
    own = [getattr(direction, name) for direction in cast(CaduceusBlock, block).directions
           for name in ("x_weight", "dt_weight")]  # fmt: skip
    return [getattr(block, name) for name in names] + own, []


def flops_per_bp(config: ModelConfig) -> int:
    """Additions and multiplications of a forward pass's matrix products at one position, without the head."""
    with torch.device("meta"):
        model = build(config)
    weights = [weight for block in model.stack for kind in matrices(block) for weight in kind]
    return 2 * model.strands * sum(weight.numel() for weight in weights)


def onednn_works() -> bool:
    """Tell whether this torch has oneDNN's products with packed weights."""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16), 16)
        torch.ops.mkldnn._linear_pointwise(torch.zeros(16, 16), packed, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True


def libraries() -> tuple[str, ...]:
    """Return the `LIBRARIES` that are here."""
    return LIBRARIES if onednn_works() else LIBRARIES[:1]


def square_rate(size: int, dtype: torch.dtype) -> dict[str, float]:
    """Measure the rate of one product of two `size` x `size` matrices, in GFLOP/s, by library."""
    a, b, c = (torch.randn(size, size).to(dtype) for _ in range(3))
    rates = {"torch": 2e-9 * size**3 / fastest(lambda: torch.mm(a, b.t(), out=c))}
    if onednn_works():
        packed = torch.ops.mkldnn._reorder_linear_weight(b, size)
        call = torch.ops.mkldnn._linear_pointwise
        rates["onednn"] = 2e-9 * size**3 / fastest(lambda: call(a, packed, None, "none", [], ""))
    return rates


class Products:
    """All matrix products of some layers over `rows` rows at a time."""

    def __init__(self, model: Recurrent, rows: int, provider: str, layers: int) -> None:
        dtype = model.compute_dtype
        self.rows, self.provider = rows, provider
        found = [matrices(block) for block in model.stack[:layers]]
        self._widths = [(weight.shape[1], weight.shape[0]) for weight in found[0][0]]
        self._x = {width: torch.randn(rows, width).to(dtype) for width, _ in self._widths}
        self._out = {width: torch.empty(rows, width, dtype=dtype) for _, width in self._widths}
        for weight in found[0][1][:1]:
            h, w, o = weight.shape
            self._heads = torch.randn(h, rows, w).to(dtype)
            self._gates = torch.empty(h, rows, o, dtype=dtype)
        self._layers = []
        for dense, gates in found:
            dense = [weight.detach() for weight in dense]
            split: list[Any] = [weight.detach() for weight in gates]
            if provider == "onednn":
                dense = [self._pack(weight) for weight in dense]
                split = [[self._pack(head.t().contiguous()) for head in weight] for weight in split]
            self._layers.append((dense, split))

    def _pack(self, weight: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, self.rows)
        return packed

    def run(self, rows: int) -> float:
        """Run every product once over `rows` rows; return the seconds."""
        run = self._onednn if self.provider == "onednn" else self._torch
        start = clock()
        for dense, gates in self._layers:
            for done in range(0, rows, self.rows):
                run(dense, gates, min(self.rows, rows - done))
        return clock() - start

    def _torch(self, dense: Sequence[Tensor], gates: Sequence[Tensor], n: int) -> None:
        for weight, (i, o) in zip(dense, self._widths, strict=True):
            torch.mm(self._x[i][:n], weight.t(), out=self._out[o][:n])
        for weight in gates:
            torch.bmm(self._heads[:, :n], weight, out=self._gates[:, :n])

    def _onednn(self, dense: Sequence[Tensor], gates: Sequence[Sequence[Tensor]], n: int) -> None:
        call = torch.ops.mkldnn._linear_pointwise
        for weight, (i, _) in zip(dense, self._widths, strict=True):
            call(self._x[i][:n], weight, None, "none", [], "")
        for heads in gates:
            for rows, weight in zip(self._heads, heads, strict=True):
                call(rows[:n], weight, None, "none", [], "")


class FloorMeter:
    """Measures the floor of a forward pass over `length` positions, one round at a time.

    The first round tries every library with all of `ROWS` on two layers; then the two fastest choices of each
    library are measured on all layers, in that round and the later ones. Where `length` is above `SAMPLE`, so
    many rows a layer are timed and the result is scaled by length / `SAMPLE`.
    """

    def __init__(self, model: Recurrent, length: int) -> None:
        self._model, self._length = model, length * model.strands
        self._sample = min(self._length, SAMPLE)
        self._chosen: list[Products] = []
        self.rounds: list[Floor] = []
        """The best of each round."""
        self.best_of: dict[str, Floor] = {}
        """The best so far, by library."""

    def measure(self) -> Floor:
        """Add a round and return its best."""
        with torch.inference_mode():
            if not self._chosen:
                self._choose()
            scale = self._length / self._sample
            measured = [Floor(p.run(self._sample) * scale, p.rows, p.provider) for p in self._chosen]
        for floor in measured:
            self.best_of[floor.provider] = min(floor, self.best_of.get(floor.provider, floor))
        self.rounds.append(min(measured))
        return self.rounds[-1]

    def _choose(self) -> None:
        layers = min(2, len(self._model.stack))
        for library in libraries():
            tried = []
            for rows in ROWS:
                if rows > self._sample and tried:
                    continue
                products = Products(self._model, rows, library, layers)
                products.run(min(rows, self._sample))
                tried.append((products.run(self._sample), rows))
            for _, rows in sorted(tried)[:2]:
                self._chosen.append(Products(self._model, rows, library, len(self._model.stack)))


def length_option(text: str) -> int:
    """Read a length such as 12kbp for argparse."""
    try:
        return parse_length(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def common_options(description: str) -> argparse.ArgumentParser:
    """Make a parser with the options that all speed benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", choices=MODELS, default="hawk-50m", help="model (%(default)s)")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--chunk", type=length_option, help="positions at a time (as the commands choose it)")
    parser.add_argument("--store", choices=("ram", "disk"), default="ram", help="between sweeps (%(default)s)")
    parser.add_argument("--tmpdir", help="folder of the disk store; default the system's")
    parser.add_argument("--no-keep-prepared", dest="keep_prepared", action="store_false", help="prepare twice")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(%(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: with one thread (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of forward and floor (%(default)s)")
    parser.add_argument("--seconds", type=float, help="start no further round after this long")
    parser.add_argument("--square", type=int, default=2048, help="size of the square product (%(default)s)")
    return parser


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write rows as text: words to the left, numbers to the right, None as a dot."""
    lines = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[j]) for line in [list(head), *lines]) for j in range(len(head))]
    numeric = [all(not isinstance(row[j], str) for row in rows) for j in range(len(head))]
    justify = [str.rjust if n else str.ljust for n in numeric]
    return "\n".join(
        "  ".join(f(c, w) for f, c, w in zip(justify, line, widths, strict=True)).rstrip()
        for line in [list(head), *lines]
    )


def rounded(value: Any) -> Any:
    """Round every float in lists and dicts to 5 significant digits."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _cell(value: Any) -> str:
    if value is None:
        return "."
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
