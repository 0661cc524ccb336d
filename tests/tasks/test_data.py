"""`lrgenome data`: a manifest's files are listed, fetched from a server on this machine, and verified."""

import gzip
import hashlib
import json
import logging

import pysam
import pytest
from file_server import Server
from typer.testing import CliRunner

from lrgenome.cli.app import app
from lrgenome.io import download
from lrgenome.io.fasta import Fasta
from lrgenome.io.manifest import read_data_sets, read_manifest
from lrgenome.tasks.data import read_receipt, receipt_path
from lrgenome.training.data import Corpus

SEQUENCE = "ACGTTGCA" * 500
PLAIN = f">one\n{SEQUENCE}\n>two\nACGTN\n".encode()
HEADER = "name\tkind\tspecies\tassembly\tpath\turl\tsha256\tbytes\tlicence\tweight\tholdout\tvalidation\tsource\n"


@pytest.fixture(autouse=True)
def as_found(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "_WAIT", 0.001)
    logger = logging.getLogger("lrgenome")
    level, propagate = logger.level, logger.propagate
    yield
    for own in list(logger.handlers):
        logger.removeHandler(own)
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture
def server():
    made = Server()
    made.files = {"/gzip.fa.gz": gzip.compress(PLAIN), "/plain.fa": PLAIN, "/table.csv": b"a,b\n1,2\n"}
    yield made
    made.close()


@pytest.fixture
def manifest(server, tmp_path):
    def digest(path):
        return hashlib.sha256(server.files[path]).hexdigest()

    rows = [
        ("toy", "genome", "Toy toy", "T1", "data/toy.fa.gz", "/gzip.fa.gz", digest("/gzip.fa.gz"),
         str(len(server.files["/gzip.fa.gz"])), "CC0", "1", "two", "one:1-100", "here"),
        ("copy", "genome", ".", ".", "data/copy.fa.gz", "/plain.fa", ".", ".", ".", ".", ".", ".", "."),
        ("bare", "genome", ".", ".", "data/bare.fa", "/gzip.fa.gz", digest("/gzip.fa.gz"), ".", ".", ".", ".", ".",
         "."),
        ("table", "benchmark", ".", "hg38", "data/table.csv", "/table.csv", digest("/table.csv"), "8", "MIT", ".", ".",
         ".", "."),
        ("kept", "labels", ".", ".", "data/kept.tsv", "", ".", ".", ".", ".", ".", ".", "a package"),
    ]  # fmt: skip
    path = tmp_path / "data_manifest.tsv"
    lines = ["\t".join((*row[:5], server.address + row[5] if row[5] else ".", *row[6:])) for row in rows]
    path.write_text("# data\n" + HEADER + "\n".join(lines) + "\n")
    return path


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_a_manifest_goes_round(manifest, tmp_path):
    listed = run("list", "--manifest", manifest).stdout.splitlines()
    assert listed[0] == "name\tkind\tspecies\tassembly\tbytes\tlicence\tstate"
    assert [line.split("\t")[-1] for line in listed[1:]] == ["missing"] * 4 + ["no address"]
    fetched = run("fetch", "--manifest", manifest)
    assert fetched.stdout == "".join(f"{name}\tfetched\n" for name in ("toy", "copy", "bare", "table"))
    assert "kept: the manifest has no address" in fetched.stderr and "it is from a package" in fetched.stderr
    assert "copy: the manifest has no sha256 for it; what came has" in fetched.stderr
    verified = run("verify", "--manifest", manifest).stdout.split()
    assert verified == ["toy", "ok", "copy", "ok", "bare", "ok", "table", "ok", "kept", "missing"]
    for name in ("toy.fa.gz", "copy.fa.gz", "bare.fa"):
        with Fasta(tmp_path / "data" / name) as fasta:
            assert fasta.contigs == {"one": 4000, "two": 5}
        assert (tmp_path / "data" / f"{name}.fai").is_file()
    assert pysam.BGZFile(str(tmp_path / "data" / "copy.fa.gz")).read(10_000) == PLAIN
    assert not list(tmp_path.glob("data/*.raw")) and not list(tmp_path.glob("data/*.partial"))
    # What was fetched is what is trained on: of the rows with a weight.
    (entry,) = read_manifest(manifest)
    assert entry.name == "toy" and entry.holdout == ("two",) and entry.validation == ("one:1-100",)
    with Corpus(manifest, 64) as corpus:
        assert corpus.names == ["toy"]
    assert [one.bytes for one in read_data_sets(manifest)] == [len(gzip.compress(PLAIN)), None, None, 8, None]


def test_fetching_again_asks_the_server_nothing(manifest, server):
    run("fetch", "--manifest", manifest)
    asked = len(server.requests)
    assert run("fetch", "--manifest", manifest).stdout == "" and len(server.requests) == asked


def test_names_and_kinds_choose(manifest, tmp_path):
    run("fetch", "table", "--manifest", manifest)
    assert [path.name for path in sorted((tmp_path / "data").iterdir())] == ["table.csv", "table.csv.receipt.json"]
    assert run("list", "--kind", "labels", "--kind", "benchmark", "--manifest", manifest).stdout.count("\n") == 3
    assert "got 'tabel', " in run("list", "tabel", "--manifest", manifest, code=2).stderr
    assert "--kind: got 'genomes'" in run("verify", "--kind", "genomes", "--manifest", manifest, code=2).stderr
    assert "no address" in run("fetch", "kept", "--manifest", manifest, code=2).stderr


def test_offline_forbids_the_network(manifest, server):
    result = run("fetch", "toy", "table", "--offline", "--manifest", manifest, code=2)
    assert "--offline: missing are toy, table" in result.stderr and not server.requests
    run("fetch", "table", "--manifest", manifest)
    assert run("fetch", "table", "--offline", "--manifest", manifest).stdout == ""


def test_what_is_changed_is_found(manifest, tmp_path):
    run("fetch", "--manifest", manifest)
    for name in ("table.csv", "copy.fa.gz"):
        with open(tmp_path / "data" / name, "ab") as handle:
            handle.write(b"x")
    receipt_path(tmp_path / "data" / "bare.fa").unlink()
    (tmp_path / "data" / "kept.tsv").write_text("mine")
    result = run("verify", "--manifest", manifest, code=3)
    assert result.stdout.split() == [
        "toy", "ok", "copy", "mismatch", "bare", "mismatch", "table", "mismatch", "kept", "unpinned",
    ]  # fmt: skip
    assert "not what the manifest or the receipt says: copy, bare, table" in result.stderr


def test_another_file_than_the_manifests_is_refused(manifest, server, tmp_path):
    server.files["/table.csv"] = b"a,b\n3,4\n"
    result = run("fetch", "table", "--manifest", manifest, code=3)
    assert "thrown away" in result.stderr and not list((tmp_path / "data").iterdir())


def test_a_page_in_place_of_a_genome_is_refused(manifest, server, tmp_path):
    server.files["/plain.fa"] = b"<html>please log in</html>\n"
    assert "lrgenome: error:" in run("fetch", "copy", "--manifest", manifest, code=3).stderr
    server.files["/plain.fa"] = gzip.compress(PLAIN)[:-20]
    assert "is damaged" in run("fetch", "copy", "--manifest", manifest, code=3).stderr


def test_receipts_say_what_came(manifest, server, tmp_path):
    run("fetch", "toy", "--manifest", manifest)
    path = tmp_path / "data" / "toy.fa.gz"
    receipt, raw = read_receipt(path), server.files["/gzip.fa.gz"]
    assert receipt is not None and receipt.url.endswith("/gzip.fa.gz")
    assert (receipt.sha256, receipt.bytes) == (hashlib.sha256(raw).hexdigest(), len(raw))
    assert receipt.stored_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    receipt_path(path).write_text(json.dumps({"url": "x"}))
    assert read_receipt(path) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a\tgenome\t.\t.\tx.fa\tfile:///etc/passwd\t.\t.\t.\t.\t.\t.\t.", "got the url 'file:///etc/passwd'"),
        ("a\tgenome\t.\t.\tx.fa\t.\tabc\t.\t.\t.\t.\t.\t.", "got the sha256 'abc', expected 64 hexadecimal digits"),
        ("a\tgenome\t.\t.\tx.fa\t.\t.\t1e6\t.\t.\t.\t.\t.", "got '1e6' bytes, expected a whole number"),
        ("a\t.\t.\t.\tx.fa\t.\t.\t.\t.\t.\t.\t.\t.", "got an empty kind"),
        ("toy\tgenome\t.\t.\tx.fa\t.\t.\t.\t.\t.\t.\t.\t.", "'toy' has the name or path of 'toy'"),
        ("a\tgenome\t.\t.\tdata/../data/toy.fa.gz\t.\t.\t.\t.\t.\t.\t.\t.", "'a' has the name or path of 'toy'"),
    ],
)
def test_rows_that_are_none(manifest, row, message):
    manifest.write_text(manifest.read_text() + row + "\n")
    result = run("list", "--manifest", manifest, code=3)
    assert f"line 8: {message}" in result.stderr


def test_a_list_of_addresses_becomes_a_manifest_by_accession(server, tmp_path):
    listed = tmp_path / "urls.csv"
    ncbi = "https://ftp.ncbi.nlm.nih.gov/genomes/all/GCF/000/146/045/GCF_000146045.2_R64_genomic.fna.gz"
    listed.write_text(f"species,urls\nyeast,{ncbi}\nours,{server.address}/gzip.fa.gz\nnothing,\n")
    out = tmp_path / "manifest.tsv"
    result = CliRunner().invoke(app, ["data", "expand", str(listed), "-o", str(out), "--weight", "0.5"])
    assert result.exit_code == 0 and result.output == "genomes\t2\n"
    sets = read_data_sets(out)
    assert [(one.name, one.assembly, one.url) for one in sets] == [
        ("GCF_000146045.2", "GCF_000146045.2", ncbi), ("gzip", "gzip", f"{server.address}/gzip.fa.gz"),
    ]  # fmt: skip
    # From there on it is as any other: fetched, and trained on.
    assert CliRunner().invoke(app, ["data", "fetch", "gzip", "--manifest", str(out)]).exit_code == 0
    (ours,) = [one for one in read_manifest(out, check_files=False) if one.name == "gzip"]
    assert ours.path.is_file() and ours.weight == 0.5
    twice = "line 2: GCF_000146045.2 is there a second time"
    for text, message in ((f"{ncbi}\n{ncbi}\n", twice), ("a\n", "no address")):
        listed.write_text(text)
        result = CliRunner().invoke(app, ["data", "expand", str(listed), "-o", str(out)])
        assert result.exit_code == 3 and message in " ".join(result.output.split())


def test_the_demo_data_is_written_whole(tmp_path):
    demo = tmp_path / "new" / "demo"
    named = run("demo", "-o", demo).stdout.splitlines()
    assert named == sorted(str(path) for path in demo.iterdir())
    with Fasta(demo / "GRCh37.chr20.first-2Mbp.fa.gz") as fasta:
        assert len(fasta.fetch("20", 0, 2_000_000)) == 2_000_000
    # The manifest can be trained on, and the labels are what the guide says they are.
    (genome,) = read_manifest(demo / "manifest.tsv")
    assert genome.path.parent == demo and genome.holdout and genome.validation
    sequence = pysam.FastaFile(str(genome.path)).fetch("20")
    rows = [line.split("\t") for line in (demo / "intervals.tsv").read_text().splitlines()[1:]]
    assert [row[3] for row in rows].count("1") == [row[3] for row in rows].count("0") == 111
    for _, start, end, label in rows:
        piece = sequence[int(start) : int(end)]
        c, g = piece.count("C"), piece.count("G")
        assert (c + g > 200 and piece.count("CG") * 400 > 0.6 * c * g) == (label == "1")
    (demo / "demo.vcf").write_text("mine")
    run("demo", "-o", demo, "--no-clobber", code=2)
    assert (demo / "demo.vcf").read_text() == "mine"
    run("demo", "-o", demo / "demo.vcf", code=3)
    run("demo", "-o", demo)
    assert (demo / "demo.vcf").read_text().startswith("##fileformat")
