"""What goes wrong: each fault has its exit code and message, and no file that looks whole is left behind."""

import os
import re
import resource
import shutil
import subprocess

import pysam
import pytest
import torch
from places import COLUMNS, HEADER

from lrgenome.models.checkpoint import load_model, save_model
from lrgenome.tasks import setup

COMMANDS = ("score-vcf", "embed")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_clobber(lrgenome, place, command):
    name = place.names[command]
    (place.folder / name).write_text("mine")
    result = lrgenome(*place.arguments(command, "--no-clobber"), code=2)
    assert "exists already and --no-clobber is set" in result.stderr
    assert place.outputs() == [name] and (place.folder / name).read_text() == "mine"


@pytest.mark.parametrize("command", COMMANDS)
def test_output_that_cannot_be_written(lrgenome, place, monkeypatch, command):
    suffix = {"score-vcf": "tsv", "embed": "h5"}[command]
    assert "does not exist" in lrgenome(*place.arguments(command, out=f"none/o.{suffix}"), code=3).stderr
    (place.folder / f"folder.{suffix}").mkdir()
    assert "it is a folder" in lrgenome(*place.arguments(command, out=f"folder.{suffix}"), code=3).stderr
    (place.folder / "locked").mkdir(mode=0o555)
    if os.geteuid() == 0:  # to whom nothing is forbidden
        monkeypatch.setattr(os, "access", lambda path, mode, **options: "locked" not in os.fspath(path))
    result = lrgenome(*place.arguments(command, out=f"locked/o.{suffix}"), code=3)
    assert "no permission to create files in" in result.stderr
    assert not list((place.folder / "locked").iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB."""
    folder = tmp_path / "v.disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip(f"no small file system can be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(lrgenome, undisturbed, small_disk, place, command):
    name, filler = place.names[command], small_disk / "filler"
    filler.write_bytes(bytes((16 << 20) - (8_192 if command == "score-vcf" else 1_500_000)))
    result = lrgenome(*place.arguments(command, out=f"v.disk/{name}"), code=3)
    assert "disk full" in result.stderr or "No space left on device" in result.stderr
    assert sorted(p.name for p in small_disk.iterdir()) == ["filler", f"{name}.partial"]
    filler.unlink()
    lrgenome(*place.arguments(command, "--resume", out=f"v.disk/{name}"))
    assert place.content(f"v.disk/{name}") == undisturbed[command]


@pytest.mark.parametrize(("command", "limit"), [("score-vcf", 6_000), ("embed", 200_000)])
def test_a_file_that_may_not_grow(finish, lrgenome, undisturbed, place, command, limit):
    """As with a quota or a full disk, writing fails; here in the middle of a write."""
    name = place.names[command]
    said = finish(
        *place.arguments(command),
        code=3,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "lrgenome: error: cannot write" in said and "Traceback" not in said
    assert name not in place.outputs()
    lrgenome(*place.arguments(command, "--resume"))
    assert place.content(name) == undisturbed[command] and place.outputs() == [name]


def test_a_reader_that_leaves(spawn, place):
    process = spawn(
        "score-vcf", place.vcf, "-f", place.fasta, "--context", "200", "--strand", "forward", "-q"
    )
    assert process.stdout.readline() == b"##lrgenome-scores-version=1\n"
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_a_named_pipe_is_written_and_stays(finish, lrgenome, undisturbed, place):
    pipe = place.folder / "v.pipe.tsv"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        finish(*place.arguments("score-vcf", out=pipe.name))
        assert reader.communicate(timeout=60)[0] == undisturbed["score-vcf"]
    assert pipe.is_fifo() and place.outputs() == []
    os.mkfifo(place.folder / "v.pipe.vcf")
    said = lrgenome(*place.arguments("score-vcf", out="v.pipe.vcf"), code=2).stderr
    assert "a pipe or device, expected its name to end in .tsv" in said


def test_a_dash_is_no_file(lrgenome, place, monkeypatch):
    monkeypatch.chdir(place.folder)
    said = lrgenome("embed", place.fasta, "-o", "-", code=2).stderr
    assert "HDF5 cannot be written to standard output" in said
    said = lrgenome(*place.arguments("score-vcf", "--summary", "-"), code=2).stderr
    assert "--summary: got -, expected a file" in said
    assert place.outputs() == []


def test_standard_output_that_is_full(finish, place):
    with open("/dev/full", "wb") as full:
        args = ("score-vcf", place.vcf, "-f", place.fasta, "--context", "200", "--strand", "forward", "-q")
        said = finish(*args, code=3, stdout=full)
    assert said.startswith("lrgenome: error: cannot write standard output: No space left on device")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["plain", "bgzf", "damaged bgzf", "none", "gzip"])
def test_genomes_that_are_damaged(lrgenome, place, command, kind):
    fasta, packed = place.fasta, place.folder / "g.fa.gz"
    pysam.tabix_compress(str(fasta), str(packed))
    name = "g.fa" if kind in ("plain", "none") else "g.fa.gz"
    lrgenome(*place.arguments(command, "--dry-run", fasta=name))
    if kind == "plain":
        fasta.write_bytes(fasta.read_bytes()[:20_000])
    elif kind == "bgzf":
        packed.write_bytes(packed.read_bytes()[:-2_000])
    elif kind == "damaged bgzf":
        data = bytearray(packed.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
        packed.write_bytes(data)
        for index in place.folder.glob("g.fa.gz.*"):
            os.utime(index)
    elif kind == "gzip":
        subprocess.run(["gzip", "-kf", str(fasta)], check=True)
    else:
        fasta.unlink()
    result = lrgenome(*place.arguments(command, fasta=name), code=3)
    assert f"lrgenome: error: {place.folder / name}" in result.stderr
    assert not [p for p in place.outputs() if not p.endswith(".partial")]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut in a line", "got 4 columns and no line end, expected 8 (truncated?)"),
        ("cut bgzf", "got BGZF without its end marker: the file is truncated"),
        ("cut gzip", "got compressed data that ends too early"),
        ("other bases", "20 of 20 REF alleles differ from g.fa: wrong assembly?"),
        ("other contigs", "no contig in common: the variants are on two, g.fa has one"),
        ("no header", "expected VCF or BCF"),
        ("empty", "got an empty file"),
        ("missing", "no such file"),
    ],
)
def test_variants_that_are_damaged(lrgenome, place, kind, message):
    path = place.vcf
    text = path.read_text()
    other = text.translate(str.maketrans("ACGT", "CATG")).replace("#TOGCK", "#CHROM")
    changed = {
        "cut in a line": text[: text.rindex("one\t") + 12],
        "no header": text[text.index("one\t") :], "empty": "",
        "other contigs": text.replace("one\t", "two\t"),
        "other bases": HEADER + COLUMNS + other[other.index("one\t") :],
    }  # fmt: skip
    if kind == "cut bgzf":
        pysam.tabix_compress(str(path), str(place.folder / "v.gz"))
        path.write_bytes((place.folder / "v.gz").read_bytes()[:-28])
    elif kind == "cut gzip":
        subprocess.run(["gzip", "-k", str(path)], check=True)
        path.write_bytes((place.folder / "v.vcf.gz").read_bytes()[:-500])
    elif kind == "missing":
        path.unlink()
    else:
        path.write_text(changed[kind])
    result = lrgenome(*place.arguments("score-vcf"), code=3)
    assert message in result.stderr and place.outputs() == []


def test_a_header_without_contigs_is_no_fault(lrgenome, place):
    lrgenome(*place.arguments("score-vcf", "-W", out="o.bcf"))
    with pysam.VariantFile(str(place.folder / "o.bcf")) as file:
        assert sum(1 for _ in file.fetch("one")) == place.RECORDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_gpu_that_is_not_there(lrgenome, place, command):
    result = lrgenome(*place.arguments(command, "--gpu", "99"), code=4)
    assert "lrgenome: error: cuda:99: expected a device" in result.stderr and place.outputs() == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no folder", "no such folder; expected one with config.json and model.safetensors"),
        ("no weights", "no such file"),
        ("cut weights", "damaged or not safetensors"),
        ("no settings", "No such file or directory"),
        ("bad settings", "not JSON"),
        ("other settings", "has shape"),
        ("nan", "holds values that are not finite numbers"),
    ],
)
def test_models_that_are_damaged(lrgenome, tiny_model, place, command, kind, message):
    folder = place.folder / "v.model"
    shutil.copytree(tiny_model, folder)
    weights, settings = folder / "model.safetensors", folder / "config.json"
    if kind == "no folder":
        shutil.rmtree(folder)
    elif kind == "no weights":
        weights.unlink()
    elif kind == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "no settings":
        settings.unlink()
    elif kind == "bad settings":
        settings.write_text(settings.read_text()[:-5])
    elif kind == "other settings":
        settings.write_text(settings.read_text().replace('"mlp_width": 24', '"mlp_width": 20'))
    else:
        spoil(folder, "final_norm", float("nan"))
    result = lrgenome(*place.arguments(command, "-m", folder), code=5)
    assert message in result.stderr and place.outputs() == []


def spoil(folder, name, value):
    model = load_model(folder).model
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[0] = value
    save_model(model, folder)


@pytest.mark.parametrize("command", COMMANDS)
def test_states_that_overflow(lrgenome, tiny_model, place, command):
    folder = place.folder / "v.model"
    shutil.copytree(tiny_model, folder)
    for name in ("blocks.0.up_bias", "blocks.0.down_weight"):
        spoil(folder, name, 3e38)
    result = lrgenome(*place.arguments(command, "-m", folder), code=1)
    assert "not finite numbers" in result.stderr and "one:" in result.stderr
    assert all(name.endswith(".partial") for name in place.outputs())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("store", ["auto", "ram", "disk"])
def test_memory_that_is_not_there(lrgenome, place, monkeypatch, command, store):
    monkeypatch.setattr(setup, "free_memory", lambda device, limit=None: 50_000)
    result = lrgenome(*place.arguments(command, "--store", store), code=137)
    assert re.search(r"a window of \d[\d,]+ bp needs \d\.\d\d MB of memory", result.stderr)
    assert "; free are 0.05 MB of memory and " in result.stderr
    assert place.outputs() == []


@pytest.mark.parametrize("command", COMMANDS)
def test_memory_that_runs_out(lrgenome, place, monkeypatch, command):
    def full(*args, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr("lrgenome.engine.runner.stream", full)
    result = lrgenome(*place.arguments(command), code=137)
    assert result.stderr.splitlines()[-1].startswith("lrgenome: error: out of memory: ")
    assert all(name.endswith(".partial") for name in place.outputs())
