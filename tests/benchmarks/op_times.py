"""Where the time of a forward pass goes: each operation of a layer on its own, on one chunk of data.

Every operation is timed on buffers that it has just used, so on warm caches. Its fixed cost, Python and the
launch of threads, is that of the same call in a model so narrow that arithmetic takes no time. What a layer takes
beyond its operations is then measured in steps: the whole layer on one chunk over and over (operations evict
each other's data), the sweeps over one chunk, and over many (the store's data comes from memory or the disk).
Those last sweeps are also run with a clock around each operation, which says what each one takes in its place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import common
import torch
from torch import Tensor

from lrgenome.config import HawkConfig
from lrgenome.engine.store import Store
from lrgenome.engine.sweep import stream
from lrgenome.models import hawk
from lrgenome.models.hawk import DECAY_SCALE, Direction, Hawk, HawkBlock, build
from lrgenome.ops.conv import conv
from lrgenome.ops.gating import gate_sum, geglu
from lrgenome.ops.jit import set_threads
from lrgenome.ops.linear import linear, per_head
from lrgenome.ops.norm import add_rms_norm, rms_norm
from lrgenome.ops.rglru import rglru
from lrgenome.ops.workspace import Workspace

COLD_BYTES = 256_000_000
"""Size from which a store surely does not fit a cache."""

_DEPTH = 2
_ROUNDS = 3
_ELSE = "everything else"
_NARROW = HawkConfig(layers=1, width=16, recurrent_width=16, heads=1, mlp_width=16)


class Op(NamedTuple):
    """One operation of a layer."""

    group: str
    """Row of the short table."""
    name: str
    call: Callable[[], object]
    values: int
    """Numbers read and written a position, weights apart; 0 where arithmetic is what counts."""


def layer_ops(model: Hawk, rows: int) -> list[Op]:
    """Return the operations of one layer over a chunk, each as often as a forward pass does it."""
    config, dtype, block = model.config, model.compute_dtype, cast(HawkBlock, model.stack[0])
    d, e, f, h, w = config.width, config.recurrent_width, config.mlp_width, config.heads, config.head_width
    wide = {width: torch.randn(rows, width).to(dtype) for width in (d, e, f, 2 * f)}
    out = {width: torch.empty(rows, width, dtype=dtype) for width in (d, e, f, 2 * f)}
    x = torch.randn(rows, d).to(model.residual_dtype)
    delta = torch.randn(rows, d).to(dtype) * 1e-3
    sequence = wide[e].view(1, rows, e)
    gates = torch.empty(h, rows, 2 * w, dtype=dtype)

    def product(name: str, weight: Tensor, bias: Tensor) -> Op:
        source = wide[weight.shape[1]]
        return Op("matrix products", name, lambda: linear(source, weight, bias), 0)

    ops = [
        Op("norm", "norm", lambda: rms_norm(x, block.mixer_norm, dtype, out=out[d]), 2 * d),
        product("in, branch", block.in_branch_weight, block.in_branch_bias),
        product("in, gate", block.in_gate_weight, block.in_gate_bias),
    ]
    for reverse, own in enumerate(cast(list[Direction], list(block.directions))):
        ops += _direction_ops(block, own, bool(reverse), sequence, gates, out[e].view(1, rows, e))
    return [
        *ops,
        Op("gate_sum", "gate_sum", lambda: gate_sum(wide[e], wide[e], wide[e], out=out[e]), 4 * e),
        product("out", block.out_weight, block.out_bias),
        Op("norm", "add and norm", lambda: add_rms_norm(x, delta, block.mlp_norm, dtype, out=out[d]), 4 * d),
        product("up", block.up_weight, block.up_bias),
        Op("geglu", "geglu", lambda: geglu(wide[2 * f], out=out[f]), 3 * f),
        product("down", block.down_weight, block.down_bias),
        Op("residual add", "residual add", lambda: x.add_(delta), 3 * d),
    ]


def _direction_ops(block: HawkBlock, own: Direction, reverse: bool, x: Tensor, gates: Tensor, out: Tensor) -> list[Op]:
    _, rows, e = x.shape
    w = block.config.head_width
    state = block.initial_state(1, x.device)
    decay = DECAY_SCALE * torch.nn.functional.softplus(own.a_param)
    filled = torch.randn(gates.shape).to(gates.dtype)
    way = "reverse" if reverse else "forward"
    return [
        Op(
            "conv", f"conv, {way}",
            lambda: conv(x, own.conv_weight, own.conv_bias, state.halo, reverse=reverse, out=out), 2 * e,
        ),
        Op(
            "matrix products", f"gates, {way}",
            lambda: per_head(x.view(rows, e), own.gate_weight, out=gates), 0,
        ),
        Op(
            "gates + recurrence", f"gates + recurrence, {way}",
            lambda: rglru(x, filled, own.gate_bias, decay, state.h, reverse=reverse, reset=False, out=out),
            2 * e + block.config.heads * 2 * w,
        ),
    ]  # fmt: skip


def _layer(model: Hawk, chunk: int) -> Callable[[], object]:
    """Return a call of one layer on one chunk, as the sweeps call it, on the same memory every time."""
    block, dtype = model.stack[0], model.compute_dtype
    e, ws = model.scan_width(), Workspace()
    x = torch.randn(1, chunk, model.config.width).to(model.residual_dtype)
    y1, y2 = (torch.empty(1, chunk, e, dtype=dtype) for _ in range(2))
    state = block.initial_state(1, x.device)

    def layer() -> None:
        u = block.prepare(x, ws)
        block.scan(u, state, weights=0, reverse=False, reset=False, ws=ws, out=y1)
        block.scan(u, state, weights=1, reverse=True, reset=False, ws=ws, out=y2)
        block.combine(x, u, y1, y2, ws)

    return layer


def _ends(model: Hawk, chunk: int) -> Callable[[], object]:
    """Return a call of the embedding and the final norm on one chunk."""
    ids = common.random_bases(chunk)
    return lambda: model.finish(model.embed(ids))


def _sweeps(model: Hawk, chunk: int, count: int, store: Store, *, keep_prepared: bool) -> Callable[[], object]:
    """Return a call of the sweeps over `count` chunks and the first layers of `model`."""
    ids, ws, depth = common.random_bases(chunk * count), Workspace(), min(_DEPTH, len(model.stack))

    def run() -> None:
        settings = {"chunk": chunk, "layers": depth, "keep_prepared": keep_prepared}
        for _ in stream(model, ids, store=store, workspace=ws, **settings):
            pass

    return run


@contextmanager
def _clocks(model: Hawk) -> Iterator[dict[str, float]]:
    """Put a clock around each operation that `models.hawk` calls; gives seconds by the names of `layer_ops`."""
    took: dict[str, float] = {}
    names: dict[int, str] = {}
    for block in cast(list[HawkBlock], model.stack):
        products = {"in, branch": "in_branch", "in, gate": "in_gate", "out": "out", "up": "up", "down": "down"}
        names |= {id(getattr(block, stem + "_weight")): name for name, stem in products.items()}
        first, second = cast(list[Direction], list(block.directions))
        names |= {id(first.gate_weight): "gates, forward", id(second.gate_weight): "gates, reverse"}

    def clocked(call: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def timed(*args: Any, **settings: Any) -> Any:
            start = common.clock()
            result = call(*args, **settings)
            key = name(*args, **settings)
            took[key] = took.get(key, 0.0) + common.clock() - start
            return result

        return timed

    def way(op: str) -> Callable[..., str]:
        return lambda *args, reverse, **settings: f"{op}, {'reverse' if reverse else 'forward'}"

    name_of: dict[str, Callable[..., str]] = {
        "linear": lambda x, weight, *args, **settings: names[id(weight)],
        "per_head": lambda x, weight, **settings: names[id(weight)],
        "conv": way("conv"),
        "rglru": way("gates + recurrence"),
        "rms_norm": lambda *args, **settings: "norm",
        "add_rms_norm": lambda *args, **settings: "add and norm",
        "gate_sum": lambda *args, **settings: "gate_sum",
        "geglu": lambda *args, **settings: "geglu",
    }
    plain = {op: getattr(hawk, op) for op in name_of}
    for op, name in name_of.items():
        setattr(hawk, op, clocked(plain[op], name))
    try:
        yield took
    finally:
        for op, call in plain.items():
            setattr(hawk, op, call)


def _in_place(model: Hawk, run: Callable[[], object]) -> dict[str, float]:
    """Return the seconds of each operation inside `run`, of the fastest of `_ROUNDS`, and of "everything else"."""
    best: dict[str, float] = {}
    for _ in range(_ROUNDS):
        with _clocks(model) as took:
            start = common.clock()
            run()
            whole = common.clock() - start
        if not best or whole < sum(best.values()):
            best = {**took, _ELSE: whole - sum(took.values())}
    return best


def _fastest_in_rounds(calls: dict[str, Callable[[], object]], seconds: dict[str, float]) -> dict[str, float]:
    """Time several calls in turn, `_ROUNDS` times, so that a slow spell of the machine spoils none of them."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            best[name] = min(best[name], common.fastest(call, seconds=seconds.get(name, 0.1), runs=1))
    return best


def _cold_chunks(model: Hawk, chunk: int) -> int:
    """Count the chunks whose stored tensors fill `COLD_BYTES`."""
    values = model.prepared_width() + model.scan_width()
    stored = model.config.width * model.residual_dtype.itemsize + values * model.compute_dtype.itemsize
    return -(-COLD_BYTES // (chunk * stored))


def measure(
    model: Hawk, chunk: int, store: str, folder: str | None, *, keep_prepared: bool, threads: int
) -> dict[str, Any]:
    """Time the operations of `model` on chunks of `chunk` positions.

    Parameters
    ----------
    model
        The model, ready for inference.
    chunk
        Positions at a time.
    store, folder
        Kind and folder of the store; see `common.open_store`.
    keep_prepared
        As in `stream`.
    threads
        Threads of the pass; with several, each operation is timed with one as well.

    Returns
    -------
    dict
        ``ops``: name, us/bp of all layers alone and in place, GB/s where memory counts, and with several threads the
        speed-up that they give; ``parts``: us/bp of all layers, without fixed costs, by group; then the fixed
        costs, and what the layer, the sweeps and the store take beyond those.
    """
    layers, item, depth = len(model.stack), model.compute_dtype.itemsize, min(_DEPTH, len(model.stack))
    scale = 1e6 * layers / chunk
    narrow = build(_NARROW, seed=0).for_inference(model.compute_dtype)
    count = _cold_chunks(model, chunk)
    with torch.inference_mode(), common.open_store("ram") as near, common.open_store(store, folder) as far:
        ops = layer_ops(model, chunk)
        calls: dict[str, Callable[[], object]] = {op.name: op.call for op in ops}
        small = {"narrow " + op.name: op.call for op in layer_ops(narrow, 16)}
        calls |= small | {"narrow layer": _layer(narrow, 16), "layer": _layer(model, chunk)}
        calls["ends"] = _ends(model, chunk)
        calls["warm"] = _sweeps(model, chunk, 1, near, keep_prepared=keep_prepared)
        calls["cold"] = _sweeps(model, chunk, count, far, keep_prepared=keep_prepared)
        took = _fastest_in_rounds(calls, {**dict.fromkeys(small, 0.005), "layer": 0.3, "warm": 0.3})
        rows: list[dict[str, Any]] = []
        for op in ops:
            rate = 1e-9 * op.values * item * chunk / took[op.name] if op.values else None
            rows.append({"name": op.name, "us_per_bp": took[op.name] * scale, "gb_per_s": rate})
        placed = _in_place(model, calls["cold"])
        for row in rows:
            seconds = placed.get(row["name"])
            row["us_per_bp_in_place"] = None if seconds is None else seconds * scale / depth / count
        if threads > 1:
            set_threads(1)
            for op, row in zip(ops, rows, strict=True):
                row["speed_up"] = common.fastest(op.call) / took[op.name]
            set_threads(threads)
    parts: dict[str, float] = {}
    in_place: dict[str, float] = {}
    for op, row in zip(ops, rows, strict=True):
        in_place[op.group] = in_place.get(op.group, 0.0) + (row["us_per_bp_in_place"] or 0.0)
        net = took[op.name] - took["narrow " + op.name]
        parts[op.group] = parts.get(op.group, 0.0) + net * scale
    overhead, warm, cold = took["narrow layer"], took["warm"] / depth, took["cold"] / depth / count
    parts["cache misses between operations"] = (took["layer"] - overhead) * scale - sum(parts.values())
    parts["Python and thread launches"] = overhead * scale
    parts["embedding and final norm"] = took["ends"] * scale / layers
    parts["sweeps around the layers"] = (warm - took["layer"] - took["ends"] / depth) * scale
    parts["store traffic"] = (cold - warm) * scale
    in_place[_ELSE] = placed[_ELSE] * scale / depth / count
    return {"chunk": chunk, "cold_chunks": count, "ops": rows, "parts": parts, "in_place": in_place}


def report(profile: dict[str, Any], forward: float, floor: float) -> str:
    """Write a profile as two tables; `forward` and `floor` are measured us/bp."""
    head = ("operation", "alone, us/bp", "in place, us/bp", "GB/s alone", "speed-up by threads")
    names = ("name", "us_per_bp", "us_per_bp_in_place", "gb_per_s", "speed_up")
    ops = [[row.get(name) for name in names] for row in profile["ops"]]
    parts, placed = profile["parts"], profile["in_place"]
    known = sum(parts.values())
    rows = [(name, value, value / forward, placed.get(name) or None) for name, value in parts.items()]
    rows += [
        ("not accounted for", forward - known, 1 - known / forward, placed[_ELSE]),
        ("forward, measured", forward, 1.0, sum(placed.values())),
        ("floor, measured", floor, floor / forward, None),
    ]
    where = f"all layers, chunk {profile['chunk']:,}"
    return "\n".join(
        [
            f"each operation, {where}",
            common.table(head, ops),
            "",
            f"where the time goes, {where} (in place and store traffic: {profile['cold_chunks']} chunks)",
            common.table(("part", "us/bp", "of forward", "in place, us/bp"), rows),
        ]
    )
