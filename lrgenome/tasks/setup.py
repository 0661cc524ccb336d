"""From options to a model that is ready to run."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import torch

from lrgenome.engine.runner import Runner
from lrgenome.engine.runners import AnyRunner
from lrgenome.engine.warm import compile_kernels
from lrgenome.engine.windows import WindowRunner
from lrgenome.errors import UsageError
from lrgenome.io.resources import free_disk, scratch_dir
from lrgenome.models import hub
from lrgenome.models.checkpoint import LoadedModel, load_model
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.tasks.compute import choose_compute, free_memory

log = logging.getLogger(__name__)


def find_model(model: Path | None, *, offline: bool) -> Path | None:
    """Return the folder of ``--model``; weights named ``hf:ORG/NAME`` are downloaded, or found in the cache."""
    if model is None or not hub.is_hub_name(str(model)):
        return model
    return hub.resolve(str(model), offline=offline)


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
    max_memory: int | None = None,
    extension: str = "none",
    offline: bool = False,
) -> tuple[LoadedModel, AnyRunner]:
    """Load a model and make its runner; the parameters are the command line's options."""
    compute = choose_compute(gpu=gpu, device=device, threads=threads, precision=precision, auto=auto)
    loaded = load_model(find_model(model, offline=offline))
    if model is not None and hub.is_hub_name(str(model)):
        # The folder in the cache has the name of a commit.
        loaded = loaded._replace(name=str(model))
    log.info("model: %s, sha256 %s", loaded.name, loaded.sha256)
    net = loaded.model.for_inference(compute.dtype).to(compute.device)
    free = functools.partial(free_memory, compute.device, limit=max_memory)
    if isinstance(net, NucleotideTransformer):
        if (transfer, store) != ("exact", "auto"):
            raise UsageError("--transfer and --store are of recurrent models; this one runs whole windows")
        return loaded, WindowRunner(net, compute.device, chunk=chunk, extension=extension, free_ram=free)
    if extension != "none":
        raise UsageError(f"--length-extension: got {extension!r}; a recurrent model takes windows of any length")
    compile_kernels(net, compute.device)
    folder = scratch_dir(tmpdir)
    runner = Runner(
        net, compute.device, chunk=chunk, transfer=transfer, store=store, tmpdir=folder,
        free_ram=free, free_disk=functools.partial(free_disk, folder),
    )  # fmt: skip
    return loaded, runner
