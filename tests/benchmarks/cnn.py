"""A bidirectional convolutional network of as many weights as a model, trained on as much of the same data.

A stack of dilated convolutions (as Benegas et al. 2023, doi:10.1073/pnas.2311219120, use for DNA): each block adds a
convolution of 9 taps and then a feed-forward layer to its input, both behind a norm; dilations double from block to
block, so that a base sees about 4 kbp on each side. Windows, masks, optimizer and schedule are those of ``lrgenome
pretrain`` with the same settings.

    python tests/benchmarks/cnn.py MANIFEST -o RUN --window 12kbp --batch-size 1 --accumulate 2 --steps 1000 [--resume]
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu

from lrgenome.config import PRESETS
from lrgenome.dna import VOCAB_SIZE
from lrgenome.glossary import parse_length
from lrgenome.io.encoded import default_cache
from lrgenome.models.stack import normal
from lrgenome.ops.jit import set_threads
from lrgenome.ops.norm import rms_norm
from lrgenome.training.data import Corpus, sample_rng
from lrgenome.training.objective import Masked, masked_losses, training_example
from lrgenome.training.optim import build_optimizer, learning_rate
from lrgenome.training.settings import PretrainSettings, parse_schedule
from lrgenome.training.snapshot import load_snapshot, save_snapshot
from lrgenome.training.step import windows_at_once

log = logging.getLogger("cnn")
TAPS = 9


@dataclass(frozen=True)
class Shape:
    """Of the network: about as many weights as hawk-mini."""

    blocks: int = 10
    width: int = 128
    inner: int = 224


class Block(nn.Module):
    """Norm, dilated convolution; norm, feed-forward layer; both residual."""

    def __init__(self, shape: Shape, dilation: int) -> None:
        super().__init__()
        d, f = shape.width, shape.inner
        scale = 1.0 / np.sqrt(2 * shape.blocks)
        self.dilation = dilation
        self.conv_norm = nn.Parameter(torch.zeros(d))
        self.taps = normal(d, d, TAPS, std=float(np.sqrt(1.0 / (d * TAPS))))
        self.taps_bias = nn.Parameter(torch.zeros(d))
        self.out_weight = normal(d, d, std=float(scale / np.sqrt(d)))
        self.mlp_norm = nn.Parameter(torch.zeros(d))
        self.up_weight = normal(f, d, std=float(np.sqrt(1.0 / d)))
        self.up_bias = nn.Parameter(torch.zeros(f))
        self.down_weight = normal(d, f, std=float(scale * np.sqrt(2.0 / f)))

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Compute (b, t, d) from (b, t, d), in float32 with products in `dtype`."""
        b, t, d = x.shape
        rows = rms_norm(x.reshape(b * t, d), self.conv_norm, dtype).view(b, t, d).transpose(1, 2)
        reach = TAPS // 2 * self.dilation
        mixed = conv1d(rows, self.taps.to(dtype), self.taps_bias.to(dtype), padding=reach, dilation=self.dilation)
        x = x + gelu(mixed.transpose(1, 2)) @ self.out_weight.to(dtype).t()
        rows = rms_norm(x.reshape(b * t, d), self.mlp_norm, dtype)
        inner = gelu(rows @ self.up_weight.to(dtype).t() + self.up_bias.to(dtype))
        return x + (inner @ self.down_weight.to(dtype).t()).view(b, t, d)


class Convolutional(nn.Module):
    """Embedding, blocks, final norm, and a head tied to the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = normal(VOCAB_SIZE, shape.width, std=1.0)
        self.blocks = nn.ModuleList([Block(shape, 1 << i) for i in range(shape.blocks)])
        self.final_norm = nn.Parameter(torch.zeros(shape.width))
        self.head_bias = nn.Parameter(torch.zeros(VOCAB_SIZE))
        self.head_scale = nn.Parameter(torch.full((), shape.width**-0.5))

    def forward(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the normed hidden states (b, t, d) of token ids (b, t)."""
        x = self.embedding[ids.long()]
        for block in self.blocks:
            x = block(x, dtype)
        return rms_norm(x.reshape(-1, x.shape[-1]), self.final_norm, torch.float32).view(x.shape)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (..., v) logits of hidden states (..., d)."""
        return self.head_scale * (hidden @ self.embedding.t()) + self.head_bias

    def losses(self, batch: list[tuple[np.ndarray, Masked]], dtype: torch.dtype) -> Tensor:
        """Return the (n,) losses at the targets of (true ids, corrupted window), in nats."""
        ids, targets, truth = (
            torch.from_numpy(np.stack(rows)).to(self.embedding.device)
            for rows in ([m.ids for _, m in batch], [m.targets for _, m in batch], [t for t, _ in batch])
        )
        return masked_losses(self.logits(self(ids, dtype)[targets]), truth[targets])


def load(folder: Path) -> Convolutional:
    """Read what `main` wrote."""
    shape = Shape(**json.loads((folder / "cnn.json").read_text())["shape"])
    model = Convolutional(shape)
    model.load_state_dict(load_file(folder / "cnn.safetensors"))
    return model.eval().requires_grad_(False)


def step_gradients(model: Convolutional, corpus: Corpus, settings: PretrainSettings, step: int) -> float:
    """Leave the clipped gradients of one step in the model, as `training.step.gradients` does; returns the loss."""
    config, window, dtype = PRESETS["hawk-mini"], settings.window_at(step), getattr(torch, settings.precision)
    model.zero_grad(set_to_none=True)
    examples = []
    for index in range(settings.windows_per_step):
        rng = sample_rng(settings.seed, step, index)
        examples.append(training_example(config, corpus.draw(rng, window), rng, settings.mask_fraction, 0.0))
    count = sum(int(masked.targets.sum()) for _, masked in examples)
    most, total = windows_at_once(settings, model.embedding.device, window), 0.0
    for low in range(0, len(examples), most):
        loss = model.losses(examples[low : low + most], dtype).sum() / max(1, count)
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    return total


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--window", type=parse_length, default=12_000)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--schedule", type=parse_schedule, default=())
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--lr-min", type=float, default=1e-5)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", "-t", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    set_threads(args.threads)
    settings = PretrainSettings(
        window=args.window, batch_size=args.batch_size, accumulate=args.accumulate, steps=args.steps,
        schedule=args.schedule, warmup=args.warmup, lr=args.lr, lr_min=args.lr_min, weight_decay=args.weight_decay,
        seed=args.seed, precision=args.precision,
    )  # fmt: skip
    torch.manual_seed(settings.seed)
    model = Convolutional(Shape()).to(args.device)
    log.info("%d weights", sum(p.numel() for p in model.parameters()))
    optimizer = build_optimizer(
        model, rate=settings.lr, betas=(settings.beta1, settings.beta2), weight_decay=settings.weight_decay
    )
    args.output.mkdir(parents=True, exist_ok=True)
    lengths = {window for window, _ in settings.phases}
    with Corpus(args.manifest, settings.window, *lengths, cache=default_cache(args.manifest)) as corpus:
        identity = {"settings": asdict(settings), "shape": asdict(model.shape), "data": corpus.fingerprint()}
        start = load_snapshot(args.output, model, optimizer, identity) if args.resume else 0
        saved, began, losses = time.monotonic(), time.process_time(), []
        for step in range(start, settings.steps):
            losses.append(step_gradients(model, corpus, settings, step))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    step, warmup=settings.warmup, steps=settings.steps, low=settings.lr_min, high=settings.lr
                )
            optimizer.step()
            if time.monotonic() - saved > 300 or step + 1 == settings.steps:
                save_snapshot(args.output, model, optimizer, identity, step + 1)
                saved = time.monotonic()
            if (step + 1) % 100 == 0:
                log.info("step %d, loss %.4f, %.0f s of CPU", step + 1, np.mean(losses[-100:]),
                         time.process_time() - began)  # fmt: skip
    save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, args.output / "cnn.safetensors")
    (args.output / "cnn.json").write_text(json.dumps({"shape": asdict(model.shape), **identity}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
