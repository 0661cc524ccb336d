"""Published Nucleotide Transformers: their settings, tensors of their names and shapes, and what they compute.

The network is written here in plain loops of float64 numpy, from the architecture's description: one query and one head
at a time.
"""

import math
from typing import Any

import numpy as np
import torch

_SHAPES = {
    "50m": (12, 512, 16, 2048),
    "100m": (22, 512, 16, 2048),
    "250m": (24, 768, 16, 3072),
    "500m": (29, 1024, 16, 4096),
}
"""Layers, width, heads and MLP width."""
SIZES = tuple(_SHAPES)


def make_settings(layers: int, width: int, heads: int, mlp_width: int, vocab: int = 4107) -> dict[str, Any]:
    """Write a ``config.json`` as the published ones are."""
    return {
        "add_bias_fnn": False,
        "architectures": ["EsmForMaskedLM", "EsmForTokenClassification", "EsmForSequenceClassification"],
        "attention_probs_dropout_prob": 0.0,
        "emb_layer_norm_before": False,
        "esmfold_config": None,
        "hidden_dropout_prob": 0.0,
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": mlp_width,
        "is_folding_model": False,
        "layer_norm_eps": 1e-12,
        "mask_token_id": 2,
        "max_position_embeddings": 2050,
        "model_type": "esm",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "position_embedding_type": "rotary",
        "tie_word_embeddings": False,
        "token_dropout": False,
        "torch_dtype": "float32",
        "use_cache": False,
        "vocab_list": None,
        "vocab_size": vocab,
    }


def published_settings(size: str) -> dict[str, Any]:
    """Return the settings of a published size."""
    return make_settings(*_SHAPES[size])


def published_shapes(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """List the tensors of a checkpoint with these settings, buffers included."""
    d, f, v = settings["hidden_size"], settings["intermediate_size"], settings["vocab_size"]
    layers, heads = settings["num_hidden_layers"], settings["num_attention_heads"]
    shapes = {
        "esm.embeddings.word_embeddings.weight": (v, d),
        "esm.embeddings.position_embeddings.weight": (settings["max_position_embeddings"], d),
        "esm.encoder.emb_layer_norm_after.weight": (d,),
        "esm.encoder.emb_layer_norm_after.bias": (d,),
        "esm.contact_head.regression.weight": (1, layers * heads),
        "esm.contact_head.regression.bias": (1,),
        "lm_head.bias": (v,),
        "lm_head.dense.weight": (d, d),
        "lm_head.dense.bias": (d,),
        "lm_head.layer_norm.weight": (d,),
        "lm_head.layer_norm.bias": (d,),
        "lm_head.decoder.weight": (v, d),
    }
    for layer in range(layers):
        prefix = f"esm.encoder.layer.{layer}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{prefix}attention.{part}.weight"] = (d, d)
            shapes[f"{prefix}attention.{part}.bias"] = (d,)
        for norm in ("attention.LayerNorm", "LayerNorm"):
            shapes[f"{prefix}{norm}.weight"] = shapes[f"{prefix}{norm}.bias"] = (d,)
        shapes[f"{prefix}intermediate.dense.weight"] = (2 * f, d)
        shapes[f"{prefix}output.dense.weight"] = (d, f)
        shapes[f"{prefix}attention.self.rotary_embeddings.inv_freq"] = (d // heads // 2,)
    return shapes


def random_tensors(settings: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Draw a checkpoint with weights large enough that every one of them matters."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (0.5 if len(shape) == 1 else 2.0 / math.sqrt(shape[-1]))
        for name, shape in published_shapes(settings).items()
    }


def _norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    return (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + eps) * weight + bias


def _turned(x: np.ndarray, position: int) -> np.ndarray:
    w = len(x)
    y = np.empty(w)
    for c in range(w // 2):
        angle = position * 10_000.0 ** (-2.0 * c / w)
        y[c] = x[c] * math.cos(angle) - x[c + w // 2] * math.sin(angle)
        y[c + w // 2] = x[c + w // 2] * math.cos(angle) + x[c] * math.sin(angle)
    return y


def published_network(
    tensors: dict[str, torch.Tensor], settings: dict[str, Any], tokens: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Compute final hidden states (n, d) and logits (n, v) of one sequence."""
    p = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    eps, heads, f = settings["layer_norm_eps"], settings["num_attention_heads"], settings["intermediate_size"]
    w = settings["hidden_size"] // heads

    def product(name: str, x: np.ndarray) -> np.ndarray:
        return p[name + ".weight"] @ x + p.get(name + ".bias", 0.0)

    def normed(name: str, x: np.ndarray) -> np.ndarray:
        return _norm(x, p[name + ".weight"], p[name + ".bias"], eps)

    x = [p["esm.embeddings.word_embeddings.weight"][token] for token in tokens]
    for layer in range(settings["num_hidden_layers"]):
        prefix = f"esm.encoder.layer.{layer}."
        rows = [normed(prefix + "attention.LayerNorm", row) for row in x]
        q, k, v = (
            [product(f"{prefix}attention.self.{part}", row).reshape(heads, w) for row in rows]
            for part in ("query", "key", "value")
        )
        mixed = []
        for i in range(len(x)):
            row = np.empty((heads, w))
            for h in range(heads):
                query = _turned(q[i][h] * w**-0.5, i)
                weights = np.exp([query @ _turned(k[j][h], j) for j in range(len(x))])
                row[h] = sum(a * v[j][h] for j, a in enumerate(weights)) / weights.sum()
            mixed.append(product(prefix + "attention.output.dense", row.ravel()))
        x = [row + change for row, change in zip(x, mixed, strict=True)]
        for i, row in enumerate(x):
            both = product(prefix + "intermediate.dense", normed(prefix + "LayerNorm", row))
            gate = both[:f] / (1.0 + np.exp(-both[:f]))
            x[i] = row + product(prefix + "output.dense", gate * both[f:])
    hidden = [normed("esm.encoder.emb_layer_norm_after", row) for row in x]
    logits = []
    for row in hidden:
        inner = product("lm_head.dense", row)
        inner = np.array([0.5 * value * (1.0 + math.erf(value / math.sqrt(2.0))) for value in inner])
        logits.append(product("lm_head.decoder", normed("lm_head.layer_norm", inner)) + p["lm_head.bias"])
    return np.array(hidden), np.array(logits)
