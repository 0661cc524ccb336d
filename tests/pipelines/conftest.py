"""What the tests of pipelines share: real tools on PATH, the demo data, and runs of `lrgenome` to compare with."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pysam
import pytest
from click.testing import Result
from places import as_found  # noqa: F401
from typer.testing import CliRunner

from lrgenome.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PIPELINES = DOCS / "pipelines"
DEMO = ROOT / "lrgenome" / "assets" / "demo"
FASTA = DEMO / "GRCh37.chr20.first-2Mbp.fa.gz"
VCF = DEMO / "demo.vcf"
RECORDS = 65

# The htslib and bcftools that pysam brings, where there are no others.
_BUNDLED = {
    "bcftools": "import pysam.bcftools as b; a = sys.argv[1:]; "
    "sys.stdout.buffer.write(getattr(b, a[0])(*a[1:], catch_stdout=False, split_lines=False) or b'')",
    "tabix": "import pysam, argparse; p = argparse.ArgumentParser(); "
    "[p.add_argument(*n.split()) for n in ('-p --preset', '-s --sequence', '-b --begin', '-e --end', 'file')]; "
    "[p.add_argument(*n.split(), action='store_true') for n in ('-f --force', '-C --csi')]; "
    "p.add_argument('--version', action='version', version='tabix (htslib) ' + pysam.version.__htslib_version__); "
    "g = p.parse_args(); "
    "c = {} if g.preset else dict(seq_col=int(g.sequence) - 1, start_col=int(g.begin) - 1, end_col=int(g.end) - 1); "
    "pysam.tabix_index(g.file, preset=g.preset, force=g.force, csi=g.csi, **c)",
}


@pytest.fixture(scope="session")
def environment(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment where `lrgenome` is this checkout with the tiny model, and tabix and bcftools are there."""
    folder = tmp_path_factory.mktemp("bin")
    shims = {"lrgenome": f'exec "{sys.executable}" -m lrgenome "$@"\n', "python": f'exec "{sys.executable}" "$@"\n'}
    for name, code in _BUNDLED.items():
        if shutil.which(name) is None:
            shims[name] = f'exec "{sys.executable}" -c "import sys; {code}" "$@"\n'
    for name, text in shims.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(0o755)
    ours = {name: value for name, value in os.environ.items() if not name.startswith("LRGENOME_")}
    paths = [str(folder), *os.environ["PATH"].split(os.pathsep), str(Path(sys.executable).parent)]
    return ours | {
        "PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT), "LRGENOME_MODEL": str(tiny_model),
        "LRGENOME_THREADS": "1", "LRGENOME_DEVICE": "cpu", "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip


@pytest.fixture(scope="session")
def shell(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script under bash as strictly as workflow managers do, with a HOME that is no folder, as in containers."""

    def run(script: str, cwd: Path, *, code: int = 0, flags: str = "-C -e -u", **env: str):
        command = ["bash", *flags.split(), "-o", "pipefail", "-c", script]
        whole = environment | {"HOME": "/nonexistent"} | env
        done = subprocess.run(command, cwd=cwd, env=whole, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == code, f"{script}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def lrgenome(tiny_model: Path) -> Callable[..., Result]:
    """Run a command in this process with the tiny model on one thread."""

    def run(*args: object, code: int = 0) -> Result:
        ours = {name: None for name in os.environ if name.startswith("LRGENOME_")}
        ours |= {"LRGENOME_MODEL": str(tiny_model), "LRGENOME_THREADS": "1", "LRGENOME_DEVICE": "cpu"}
        result = CliRunner().invoke(app, [str(arg) for arg in args], env=ours)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture(scope="session")
def whole(lrgenome: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what runs without shards write: ``scores.tsv``, ``scores.vcf``, ``scores.json``, ``e.h5``."""
    folder = tmp_path_factory.mktemp("whole")
    lrgenome(*SCORE, "-q", "-o", folder / "scores.tsv", "--summary", folder / "scores.json")
    lrgenome(*SCORE, "-q", "-o", folder / "scores.vcf")
    lrgenome(*EMBED, "-q", "-o", folder / "e.h5")
    return folder


CONTEXT, BINS, REGION = "12kbp", "20kbp", "20:1,000,001-1,100,000"
SCORE = ("score-vcf", VCF, "-f", FASTA, "--context", CONTEXT)
EMBED = ("embed", FASTA, "--context", BINS, "-r", REGION)


def text_of(path: Path) -> bytes:
    """Return a file's content, decompressed where it is BGZF."""
    if path.suffix != ".gz":
        return path.read_bytes()
    with pysam.BGZFile(str(path), "r") as handle:
        return handle.read()
