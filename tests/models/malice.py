"""What tests of checkpoints that do harm share: models, bounds on memory, and the error that is expected."""

import contextlib
import json
import resource

import pytest

from lrgenome.config import CaduceusConfig, HawkConfig, NucleotideTransformerConfig
from lrgenome.errors import ModelError
from lrgenome.models.checkpoint import load_model

CONFIGS = {
    "hawk": HawkConfig(layers=2, width=16, recurrent_width=32, heads=2, mlp_width=24, half_life_max=200.0),
    "caduceus": CaduceusConfig(layers=2, width=16),
    "transformer": NucleotideTransformerConfig(
        layers=2, width=16, heads=2, mlp_width=24, kmers=False, vocab=16, tied=True
    ),
}


def status(name):
    with open("/proc/self/status") as lines:
        return int(next(line for line in lines if line.startswith(name)).split()[1]) << 10


@contextlib.contextmanager
def little_memory():
    """Allow 256 MiB of addresses more than are in use, and see that 48 MiB were not touched."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/clear_refs", "w") as handle:
        handle.write("5")
    before = status("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + (256 << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert status("VmHWM") - before < 48 << 20


def refusal(folder, load=load_model):
    with little_memory(), pytest.raises(ModelError) as caught:
        load(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 1100
    return str(caught.value)


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
