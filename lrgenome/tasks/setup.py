"""From options to a model that is ready to run."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import torch

from lrgenome.engine.runner import Runner
from lrgenome.engine.warm import compile_kernels
from lrgenome.io.resources import free_disk, scratch_dir
from lrgenome.models.checkpoint import LoadedModel, load_model
from lrgenome.tasks.compute import choose_compute, free_memory

log = logging.getLogger(__name__)


def ready(
    model: Path | None,
    *,
    gpu: int | None,
    device: str | None,
    threads: int | None,
    precision: str,
    auto: torch.dtype | None,
    chunk: int | None,
    transfer: str,
    store: str,
    tmpdir: Path | None,
) -> tuple[LoadedModel, Runner]:
    """Load a model and make its runner; the parameters are the command line's options."""
    compute = choose_compute(gpu=gpu, device=device, threads=threads, precision=precision, auto=auto)
    loaded = load_model(model)
    log.info("model: %s, sha256 %s", loaded.name, loaded.sha256)
    net = loaded.model.for_inference(compute.dtype).to(compute.device)
    compile_kernels(net, compute.device)
    folder = scratch_dir(tmpdir)
    runner = Runner(
        net, compute.device, chunk=chunk, transfer=transfer, store=store, tmpdir=folder,
        free_ram=functools.partial(free_memory, compute.device), free_disk=functools.partial(free_disk, folder),
    )  # fmt: skip
    return loaded, runner
