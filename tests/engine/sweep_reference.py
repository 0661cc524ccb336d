"""Models and runs that the tests of the sweeps share, and the network in plain loops."""

import numpy as np
import torch

from lrgenome import dna
from lrgenome.config import HawkConfig
from lrgenome.engine.sweep import hidden_states, stream
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.models.base import RecurrentModel
from lrgenome.models.hawk import Hawk, build

T = 37
CHUNKS = (1, 3, 16, T - 1, T, T + 5)
STRANDS = (FORWARD, REVERSE)


def make(layers: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float64, **shape) -> Hawk:
    """Make a small model in which no bias is zero and some channels remember for long."""
    sizes = {"width": 16, "recurrent_width": 24, "heads": 3, "mlp_width": 20, "half_life_max": 500.0, **shape}
    model = build(HawkConfig(layers=layers, **sizes), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.endswith("a_param"):
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    if dtype == torch.float64:
        model.double()
    return model.set_compute_dtype(dtype)


def windows(length: int = T, batch: int = 3, seed: int = 0) -> torch.Tensor:
    ids = np.random.default_rng(seed).choice([dna.MASK, *range(dna.A, dna.N + 1)], (batch, length))
    return torch.from_numpy(ids.astype(np.uint8))


def run(model: RecurrentModel, ids: torch.Tensor, *, width: int | None = None, **options) -> torch.Tensor:
    """Join the chunks of a sweep without gradients, checking their places."""
    parts, at = [], 0
    with torch.no_grad():
        for part in stream(model, ids, **options):
            assert part.start == at and part.hidden.shape == (
                *(ids.shape[0], part.end - at),
                width or model.config.width,
            )
            parts.append(part.hidden.clone())
            at = part.end
    assert at == ids.shape[1]
    return torch.cat(parts, 1)


def furthest(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    assert a.dtype == b.dtype and a.shape == b.shape
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


# The network in plain loops over positions, sharing no code with the package.


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def norm(x, scale):
    return x / np.sqrt((x * x).mean() + 1e-6) * (1.0 + scale)


def reference_scan(own, v, heads, order, restarts):
    """One direction; at the positions in `restarts` it knows nothing of what came before."""
    e = v.shape[1]
    w = e // heads
    y, h, seen = np.zeros_like(v), np.zeros(e), []
    decay = 8.0 * np.log1p(np.exp(own["a_param"]))
    for place, t in enumerate(order):
        if t in restarts:
            h, seen = np.zeros(e), []
        seen.append(v[t])
        c = own["conv_bias"].copy()
        for tap in range(4):  # the last tap is on the position itself
            if len(seen) > tap:
                c += own["conv_weight"][3 - tap] * seen[-1 - tap]
        both = np.stack([c[i * w : (i + 1) * w] @ own["gate_weight"][i] for i in range(heads)])
        in_gate = sigmoid(both[:, :w].ravel() + own["gate_bias"][0])
        a = np.exp(-sigmoid(both[:, w:].ravel() + own["gate_bias"][1]) * decay)
        h = in_gate * c if place == 0 else a * h + np.sqrt(1.0 - a * a) * in_gate * c
        y[t] = h
    return y


def reference(model: Hawk, ids, *, cuts_forward=(), cuts_reverse=(), layers=None, final=True) -> np.ndarray:
    """Hidden states (b, t, d) of the whole network; a cut is a position that starts anew in its direction."""
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    config, rows = model.config, []
    for window in np.asarray(ids):
        x = np.stack([weights["embedding"][i] for i in window])
        length = len(x)
        for layer in range(config.layers if layers is None else layers):
            p = {n.split(".", 2)[2]: w for n, w in weights.items() if n.startswith(f"blocks.{layer}.")}
            own = [{n.split(".")[2]: w for n, w in p.items() if n.startswith(f"directions.{k}.")} for k in (0, 1)]
            normed = np.stack([norm(row, p["mixer_norm"]) for row in x])
            v = normed @ p["in_branch_weight"].T + p["in_branch_bias"]
            gate = normed @ p["in_gate_weight"].T + p["in_gate_bias"]
            y = reference_scan(own[0], v, config.heads, range(length), cuts_forward)
            y = y + reference_scan(own[1], v, config.heads, range(length - 1, -1, -1), cuts_reverse)
            x = x + (gelu(gate) * y) @ p["out_weight"].T + p["out_bias"]
            up = np.stack([norm(row, p["mlp_norm"]) for row in x]) @ p["up_weight"].T + p["up_bias"]
            f = up.shape[1] // 2
            x = x + (gelu(up[:, :f]) * up[:, f:]) @ p["down_weight"].T + p["down_bias"]
        rows.append(np.stack([norm(row, weights["final_norm"]) for row in x]) if final else x)
    return np.stack(rows)


def gradients(
    model: RecurrentModel, ids: torch.Tensor, chunk: int, weight: torch.Tensor, **options
) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    (hidden_states(model, ids, chunk=chunk, **options) * weight).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}
