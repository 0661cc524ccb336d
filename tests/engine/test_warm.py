"""Kernels are compiled before the work, and the log says so."""

import logging

import pytest
import torch

from lrgenome.config import HawkConfig
from lrgenome.engine.warm import compile_kernels
from lrgenome.models.hawk import build
from lrgenome.ops import jit

CONFIG = HawkConfig(layers=2, width=16, recurrent_width=16, heads=2, mlp_width=24)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_left_to_compile(dtype, backward):
    model = build(CONFIG, seed=0)
    model = model.set_compute_dtype(dtype, residual=torch.float32) if backward else model.for_inference(dtype)
    compile_kernels(model, torch.device("cpu"), backward=backward)
    assert all(p.grad is None for p in model.parameters())
    signatures = [len(made.signatures) for made in jit._kernels]
    compile_kernels(model, torch.device("cpu"), backward=backward)
    assert [len(made.signatures) for made in jit._kernels] == signatures and sum(signatures) >= 5


def test_the_log_says_what_was_compiled(monkeypatch, caplog):
    counts = iter([(3, ""), (8, "/somewhere")])
    monkeypatch.setattr(jit, "compiled", lambda: next(counts))
    with caplog.at_level(logging.INFO, logger="lrgenome"):
        compile_kernels(build(CONFIG, seed=0), torch.device("cpu"))
    assert "compiled 5 CPU kernels in" in caplog.text and "kept for the next run in /somewhere" in caplog.text


def test_what_the_cache_holds_is_not_announced(caplog):
    compile_kernels(build(CONFIG, seed=0), torch.device("cpu"))
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="lrgenome"):
        compile_kernels(build(CONFIG, seed=0), torch.device("cpu"))
    assert not caplog.text


def test_a_gpu_compiles_nothing_here():
    compile_kernels(None, torch.device("cuda"))
