"""Corpora of the tests of pre-training."""

from pathlib import Path

import pytest
import torch
from small_runs import SETTINGS

from lrgenome.ops import jit
from lrgenome.training.data import Corpus


@pytest.fixture(autouse=True)
def one_thread():
    """Barriers between threads would cost more than these small sums."""
    before = torch.get_num_threads(), jit.numba.get_num_threads()
    jit.set_threads(1)
    yield
    torch.set_num_threads(before[0])
    jit.numba.set_num_threads(before[1])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Two genomes that repeat themselves, with validation regions."""
    folder = tmp_path_factory.mktemp("genomes")
    (folder / "a.fa").write_text(">1\n" + "ACGTTGCA" * 200 + "\n")
    (folder / "b.fa").write_text(">1\n" + "AAACCGT" * 200 + "\n")
    path = folder / "manifest.tsv"
    path.write_text(
        "path\tweight\tname\tholdout\tvalidation\na.fa\t2\tant\t.\t1:1-200\nb.fa\t1\tbee\t1:301-400\t1:1-200\n"
    )
    return path


@pytest.fixture
def corpus(manifest):
    with Corpus(manifest, SETTINGS.window) as made:
        yield made
