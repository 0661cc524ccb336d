"""The published Caduceus, from its definition: float64, slow, with every flip and exchange written out.

It runs on a state dict of the published names, shares nothing with `lrgenome`, and knows nothing of how weights are
converted. Arrays are (b, t, channels); of a network with both strands (``rcps``), the second half of the channels is
the other strand in reverse order of channels.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]

COMPLEMENT = [0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, 11, 12, 13, 14, 15]
EPS = 1e-5
TIED = ("in_proj.weight", "out_proj.weight")


class Output(NamedTuple):
    """What the network says of token ids (b, t)."""

    logits: Array
    """(b, t, 16)."""
    hidden: Array
    """(b, t, d), or (b, t, 2d), after the final norm."""


def published_settings(d_model: int, n_layer: int, *, rcps: bool, fused: bool = True, **more: Any) -> dict[str, Any]:
    """Settings as in the ``config.json`` of a published model."""
    return {
        "architectures": ["CaduceusForMaskedLM"],
        "auto_map": {"AutoModelForMaskedLM": "modeling_caduceus.CaduceusForMaskedLM"},
        "bidirectional": True,
        "bidirectional_strategy": "add",
        "bidirectional_weight_tie": True,
        "complement_map": {str(i): c for i, c in enumerate(COMPLEMENT)},
        "d_model": d_model,
        "fused_add_norm": fused,
        "initializer_cfg": {"initializer_range": 0.02, "n_residuals_per_layer": 1, "rescale_prenorm_residual": True},
        "model_type": "caduceus",
        "n_layer": n_layer,
        "norm_epsilon": EPS,
        "pad_vocab_size_multiple": 8,
        "rcps": rcps,
        "residual_in_fp32": False,
        "rms_norm": True,
        "ssm_cfg": {
            "bias": False, "conv_bias": True, "d_conv": 4, "d_state": 16, "dt_init": "random", "dt_init_floor": 1e-4,
            "dt_max": 0.1, "dt_min": 0.001, "dt_rank": "auto", "dt_scale": 1.0, "expand": 2, "use_fast_path": True,
        },
        "torch_dtype": "float32",
        "transformers_version": "4.38.1",
        "vocab_size": 16,
        **more,
    }  # fmt: skip


def published_state(
    settings: Mapping[str, Any], seed: int, *, aliases: bool = False, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Draw weights of the published names and shapes, of sizes at which every one of them matters.

    With `aliases`, tied weights have all of their names, as in a ``pytorch_model.bin``; without, one each, as in a
    ``model.safetensors``.
    """
    rng = torch.Generator().manual_seed(seed)
    d, ssm, rcps = settings["d_model"], settings["ssm_cfg"], settings["rcps"]
    e, n, k = ssm["expand"] * d, ssm["d_state"], ssm["d_conv"]
    r = math.ceil(d / 16) if ssm["dt_rank"] == "auto" else ssm["dt_rank"]
    inner = "submodule." if rcps else ""
    norm = "submodule." if rcps and not settings["fused_add_norm"] else ""

    def draw(*shape: int, scale: float, around: float = 0.0) -> Tensor:
        return (around + scale * torch.randn(*shape, generator=rng, dtype=torch.float64)).to(dtype)

    state: dict[str, Tensor] = {}

    def put_map(name: str) -> None:
        if rcps:
            state[name] = torch.tensor(COMPLEMENT)

    words = "caduceus.backbone.embeddings.word_embeddings."
    embedding = words + ("embedding.weight" if rcps else "weight")
    put_map(words + "complement_map")
    state[embedding] = draw(16, d, scale=1.0)
    for layer in range(settings["n_layer"]):
        prefix = f"caduceus.backbone.layers.{layer}."
        state[f"{prefix}norm.{norm}weight"] = draw(d, scale=0.3, around=1.0)
        for side in ("mamba_fwd.", "mamba_rev."):
            own = {
                "A_log": torch.log(torch.arange(1.0, n + 1.0)).to(dtype) + draw(e, n, scale=0.3),
                "D": draw(e, scale=0.3, around=1.0),
                "in_proj.weight": draw(2 * e, d, scale=d**-0.5),
                "conv1d.weight": draw(e, 1, k, scale=k**-0.5),
                "conv1d.bias": draw(e, scale=0.3),
                "x_proj.weight": draw(r + 2 * n, e, scale=e**-0.5),
                "dt_proj.weight": draw(e, r, scale=r**-0.5),
                "dt_proj.bias": draw(e, scale=1.0, around=-1.5),
                "out_proj.weight": draw(d, e, scale=e**-0.5),
            }
            for name, tensor in own.items():
                where = f"{prefix}mixer.{inner}"
                if side == "mamba_fwd." or name not in TIED:
                    state[where + side + name] = tensor
                elif aliases:
                    state[where + side + name] = state[f"{where}mamba_fwd.{name}"]
    state[f"caduceus.backbone.norm_f.{norm}weight"] = draw(d, scale=0.3, around=1.0)
    put_map("lm_head.complement_map")
    if aliases:
        state["lm_head.lm_head.weight" if rcps else "lm_head.weight"] = state[embedding]
    return state


def _silu(x: Array) -> Array:
    return x / (1.0 + np.exp(-x))


def _rms_norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + EPS) * weight


def _reverse_complement(x: Array) -> Array:
    """Reverse positions and channels."""
    return x[:, ::-1, ::-1]


def mamba(x: Array, weights: Mapping[str, Array]) -> Array:
    """Mamba (Gu and Dao 2023), left to right, a position at a time."""
    b, t, _ = x.shape
    e, n = weights["A_log"].shape
    k = weights["conv1d.weight"].shape[-1]
    r = weights["dt_proj.weight"].shape[1]
    both = x @ weights["in_proj.weight"].T
    branch, gate = both[..., :e], both[..., e:]
    a = -np.exp(weights["A_log"])
    h = np.zeros((b, e, n))
    y = np.empty((b, t, e))
    for now in range(t):
        u = np.broadcast_to(weights["conv1d.bias"], (b, e)).copy()
        for tap in range(k):
            at = now - (k - 1) + tap
            if at >= 0:
                u += weights["conv1d.weight"][:, 0, tap] * branch[:, at]
        u = _silu(u)
        made = u @ weights["x_proj.weight"].T
        low, b_now, c_now = made[:, :r], made[:, r : r + n], made[:, r + n :]
        step = np.logaddexp(0.0, low @ weights["dt_proj.weight"].T + weights["dt_proj.bias"])[..., None]
        h = np.exp(step * a) * h + step * b_now[:, None, :] * u[..., None]
        y[:, now] = (h * c_now[:, None, :]).sum(-1) + weights["D"] * u
    return (y * _silu(gate)) @ weights["out_proj.weight"].T


class Network:
    """A published network.

    Parameters
    ----------
    state
        Weights by their published names; tied ones under one name or all.
    settings
        Of its ``config.json``.
    """

    def __init__(self, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        self.values = {name: tensor.double().numpy() for name, tensor in state.items()}
        self.rcps, self.fused = settings["rcps"], settings["fused_add_norm"]
        self.layers = settings["n_layer"]

    def _norm(self, x: Array, name: str) -> Array:
        wrapped = "submodule." if self.rcps and not self.fused else ""
        return _rms_norm(x, self.values[f"caduceus.backbone.{name}.{wrapped}weight"])

    def _mixer(self, x: Array, layer: int) -> Array:
        """Both directions of one layer."""
        prefix = f"caduceus.backbone.layers.{layer}.mixer." + ("submodule." if self.rcps else "")
        sides = []
        for side in ("mamba_fwd.", "mamba_rev."):
            start = prefix + side
            own = {name[len(start) :]: value for name, value in self.values.items() if name.startswith(start)}
            shared = {name: self.values[f"{prefix}mamba_fwd.{name}"] for name in TIED}
            sides.append(shared | own)
        return mamba(x, sides[0]) + mamba(x[:, ::-1], sides[1])[:, ::-1]

    def _block(self, x: Array, layer: int) -> Array:
        if not self.rcps:
            return x + self._mixer(self._norm(x, f"layers.{layer}.norm"), layer)
        first, second = np.split(x, 2, -1)
        if self.fused:
            # The fused path names the halves the wrong way round, in the residual stream too.
            first, second = second, first
        normed = self._norm(first, f"layers.{layer}.norm")
        other = self._norm(_reverse_complement(second), f"layers.{layer}.norm")
        other = _reverse_complement(self._mixer(other, layer))
        return np.concatenate([first + self._mixer(normed, layer), second + other], -1)

    def _embed(self, ids: npt.NDArray[np.int64]) -> Array:
        words = "caduceus.backbone.embeddings.word_embeddings."
        if not self.rcps:
            return self.values[words + "weight"][ids]
        table = self.values[words + "embedding.weight"]
        other_strand = np.array(COMPLEMENT)[ids[:, ::-1]]
        return np.concatenate([table[ids], _reverse_complement(table[other_strand])], -1)

    def _logits(self, hidden: Array) -> Array:
        words = "caduceus.backbone.embeddings.word_embeddings."
        if not self.rcps:
            return hidden @ self.values.get("lm_head.weight", self.values[words + "weight"]).T
        head = self.values.get("lm_head.lm_head.weight", self.values[words + "embedding.weight"])
        first, second = np.split(hidden, 2, -1)
        return first @ head.T + second[..., ::-1] @ head[COMPLEMENT].T

    def run(self, ids: npt.NDArray[np.int64]) -> Output:
        """Run windows of token ids (b, t)."""
        x = self._embed(ids)
        for layer in range(self.layers):
            x = self._block(x, layer)
        if self.rcps:
            first, second = np.split(x, 2, -1)
            second = _reverse_complement(self._norm(_reverse_complement(second), "norm_f"))
            hidden = np.concatenate([self._norm(first, "norm_f"), second], -1)
        else:
            hidden = self._norm(x, "norm_f")
        return Output(self._logits(hidden), hidden)
