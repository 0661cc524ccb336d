"""Fixtures for every test: a seeded toy genome, and real data where it is there."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from places import Place, options_from_environment
from typer.testing import CliRunner

from lrgenome.cli.app import app

# Triton reads it when a test imports it: kernels run interpreted without a GPU, of which device files tell soonest.
_gpus = [path for name in ("nvidia[0-9]*", "dxg", "kfd") for path in Path("/dev").glob(name)]
if not _gpus or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# There is Triton for Linux alone.
_of_triton = ["ops/test_triton.py", "ops/test_triton_rows.py", "ops/test_trusted.py"]
collect_ignore = [] if importlib.util.find_spec("triton") else _of_triton

# A background job of a shell ignores SIGINT, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# So does what runs under nohup, of SIGHUP.
for _number in (signal.SIGHUP, signal.SIGTERM, signal.SIGXCPU):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real genomes and variants beside the checkout; tests are skipped without it."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real genomes of shared/data beside the checkout")
    return folder


@pytest.fixture(scope="session")
def toy_sequences() -> dict[str, str]:
    """Three contigs of 5,003, 1,200 and 61 bp with soft-masked letters, a run of N and IUPAC codes."""
    rng = np.random.default_rng(20)
    one, two, three = ("".join(rng.choice(list("ACGT"), size)) for size in (5003, 1200, 61))
    one = one[:100] + "N" * 200 + one[300:1000] + one[1000:1500].lower() + one[1500:]
    two = two[:400] + "RYSWKMBDHVN" + "ryswkmbdhvn" + two[422:]
    return {"chr1": one, "chr2": two, "MT": three}


@pytest.fixture
def toy_fasta(tmp_path: Path, toy_sequences: dict[str, str]) -> Path:
    """Plain FASTA of `toy_sequences` in lines of 60 bases, without an index."""
    path = tmp_path / "toy.fa"
    with open(path, "w", encoding="ascii") as handle:
        for name, sequence in toy_sequences.items():
            handle.write(f">{name} a toy contig\n")
            handle.writelines(sequence[i : i + 60] + "\n" for i in range(0, len(sequence), 60))
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint folder of a two-block Hawk with random weights, also where training starts from zeros."""
    import torch

    from lrgenome.config import HawkConfig
    from lrgenome.models.checkpoint import save_model
    from lrgenome.models.hawk import build

    model = build(
        HawkConfig(layers=2, width=16, recurrent_width=32, heads=2, mlp_width=24, half_life_max=200.0), seed=5
    )
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(model, folder)
    return folder


@pytest.fixture(scope="session")
def lrgenome(tiny_model: Path) -> Callable[..., Result]:
    """Run a command in this process with the tiny model on one thread.

    An exit code that is not the one expected, and every exception that is no exit, fails the test.
    """

    def run(*args: object, code: int = 0, stdin: bytes | None = None, **env: str) -> Result:
        ours = dict.fromkeys(os.environ) | options_from_environment(tiny_model) | env
        if "--gpu" in args:
            ours["LRGENOME_DEVICE"] = None
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, env=ours)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def spawn(tiny_model: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a command as a process of its own."""
    started = []

    def start(*args: object, **options: object) -> subprocess.Popen[bytes]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options = {**pipes, "env": options_from_environment(tiny_model), **options}
        started.append(subprocess.Popen([sys.executable, "-m", "lrgenome", *map(str, args)], **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def finish(spawn: Callable[..., subprocess.Popen[bytes]]) -> Callable[..., str]:
    """Run a command as a process of its own; returns what it wrote to stderr."""

    def run(*args: object, code: int = 0, **options: object) -> str:
        process = spawn(*args, **options)
        _, said = process.communicate(timeout=120)
        assert process.returncode == code, said.decode()
        return said.decode()

    return run


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(
    lrgenome: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """What each command writes when nothing disturbs it."""
    place = Place(tmp_path_factory.mktemp("undisturbed"))
    for command in place.names:
        lrgenome(*place.arguments(command, "-q"))
    return {command: place.content(name) for command, name in place.names.items()}
