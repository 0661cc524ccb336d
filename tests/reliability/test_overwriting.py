"""What is there already: inputs are never lost, outputs are replaced whole, and two runs never mix."""

import os
import signal
import time

import pytest

from lrgenome.io.lock import held, open_alone

from .conftest import some

WORDS = "and would be lost"


def score(place, *more):
    return ["score-vcf", place.vcf, "-f", place.fasta, "--context", "200", "--strand", "forward", *more]


@pytest.fixture
def inputs(place):
    """Say what the inputs hold, to see later that they hold it still."""
    before = {path: path.read_bytes() for path in (place.vcf, place.fasta)}
    yield before
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("kind", ["itself", "symbolic link", "hard link", "partial", "another spelling"])
@pytest.mark.parametrize("what", ["vcf", "fasta"])
@pytest.mark.parametrize("option", ["--output", "--summary", "--log-file"])
def test_an_output_that_is_an_input(lrgenome, place, inputs, option, what, kind):
    source = getattr(place, what)
    name = place.folder / "o.vcf"
    if kind == "itself":
        name = source
    elif kind == "another spelling":
        name = place.folder / ".." / place.folder.name / source.name
    elif kind == "symbolic link":
        name.symlink_to(source)
    elif kind == "hard link":
        name.hardlink_to(source)
    else:
        # The name under which the output would be written until it is whole.
        inputs[place.folder / "o.vcf.partial"] = source.read_bytes()
        (place.folder / "o.vcf.partial").write_bytes(source.read_bytes())
        setattr(place, what, place.folder / "o.vcf.partial")
    args = score(place, option, name)
    if option != "--output":
        args += ["-o", place.folder / "o.tsv"]
    said = lrgenome(*args, code=2).stderr
    assert f"lrgenome: error: {option}: got {name}, which is" in said and WORDS in said
    assert not (place.folder / "o.tsv").exists()


@pytest.mark.parametrize("option", ["--track", "--plot"])
def test_a_picture_that_is_an_input(lrgenome, place, option):
    suffix = {"--track": "bedgraph", "--plot": "png"}[option]
    name = place.folder / f"o.{suffix}"
    name.symlink_to(place.fasta)
    before = place.fasta.read_bytes()
    args = ["score-vcf", "--saturate", "one:301-302", "-f", place.fasta, option, name]
    assert WORDS in lrgenome(*args, code=2).stderr
    assert place.fasta.read_bytes() == before


def test_outputs_of_other_commands_that_are_inputs(lrgenome, place, tiny_model):
    bed, manifest = place.folder / "v.bed", place.folder / "v.tsv"
    bed.write_text("one\t0\t100\n")
    manifest.write_text("path\tname\ng.fa\tone\n")
    table = place.folder / "v.labels.tsv"
    table.write_text("CHROM\tSTART\tEND\ty\none\t300\t400\t1\n")
    addresses = place.folder / "v.txt"
    addresses.write_text("https://example.org/a.fa.gz\n")
    kept = {path: path.read_bytes() for path in (bed, manifest, table, place.fasta, addresses)}
    weights = {path: path.read_bytes() for path in tiny_model.iterdir()}
    fasta, out = place.fasta, place.folder / "o"
    for args in (
        ["embed", fasta, "-o", fasta], ["embed", fasta, "--bed", bed, "-o", bed],
        ["embed", fasta, "-o", place.folder / "o.h5", "--log-file", fasta],
        ["embed", fasta, "-o", tiny_model / "model.safetensors"],
        ["pretrain", manifest, "-o", out, "--log-file", manifest],
        ["pretrain", manifest, "-o", out, "--init", tiny_model, "--log-file", tiny_model / "config.json"],
        ["pretrain", manifest, "-o", tiny_model, "--init", tiny_model],
        ["finetune", "--table", table, "--label", "y", "-f", fasta, "-o", out, "--log-file", table],
        ["finetune", "--table", table, "--label", "y", "-f", fasta, "-o", tiny_model],
        ["extrapolate", "-f", fasta, "-o", out, "--log-file", fasta],
        ["extrapolate", "-f", fasta, "-m", tiny_model, "-o", tiny_model],
        ["data", "fetch", "--manifest", manifest, "--log-file", manifest],
        ["data", "expand", addresses, "-o", addresses],
    ):  # fmt: skip
        said = lrgenome(*args, code=2).stderr
        assert WORDS in said or "would be replaced; expected another" in said, args
    assert {path: path.read_bytes() for path in kept} == kept and not out.exists()
    assert {path: path.read_bytes() for path in tiny_model.iterdir()} == weights


def test_a_reference_that_only_the_header_names(lrgenome, place):
    """The output has a name that a FASTA should not have; that is no reason to lose it."""
    genome = place.folder / "g.tsv"
    place.fasta.rename(genome)
    before = genome.read_bytes()
    place.vcf.write_text(place.vcf.read_text().replace("#CHROM", f"##reference=file://{genome}\n#CHROM"))
    said = lrgenome("score-vcf", place.vcf, "--context", "200", "-o", genome, code=2).stderr
    assert f"got {genome}, which is the reference" in said and genome.read_bytes() == before


def test_what_a_shell_appends_to_the_input(run, place, inputs):
    with open(place.vcf, "ab") as appended:
        said = run(*score(place), code=2, stdout=appended.fileno()).stderr
    assert "--output: got -, which is the input VCF" in said


def test_two_outputs_of_one_name(lrgenome, place):
    both = place.folder / "o.tsv"
    said = lrgenome(*score(place, "-o", both, "--summary", both), code=2).stderr
    assert f"--summary: got {both}, which --output is too; expected two files" in said
    said = lrgenome(*score(place, "-o", both, "--log-file", place.folder / "." / "o.tsv"), code=2).stderr
    assert "which --output is too" in said and not both.exists()


def test_two_inputs_from_one_stream(lrgenome, place):
    said = lrgenome("score-vcf", "-", "-f", place.fasta, "-R", "-", code=2).stderr
    assert "VCF and --regions-file: got standard input for both" in said


def test_what_is_there_is_replaced_only_by_what_is_whole(start, jobs, tiny_model):
    out = jobs.out("score-vcf.tsv")
    out.write_text("earlier")
    command = start(*jobs.job("score-vcf.tsv", tiny_model))
    while command.poll() is None and not jobs.begun("score-vcf.tsv"):
        time.sleep(0.002)
    assert out.read_text() == "earlier" or command.poll() is not None
    assert command.wait() == 0 and out.read_text().startswith("##lrgenome-scores-version")


def test_no_clobber_of_folders(lrgenome, place, tiny_model):
    manifest = place.folder / "v.tsv"
    manifest.write_text("path\tname\ng.fa\tone\n")
    table = place.folder / "v.labels.tsv"
    table.write_text("CHROM\tSTART\tEND\ty\none\t300\t400\t1\n")
    out = place.folder / "o"
    out.mkdir()
    for name, args in (
        ("model.safetensors", ["pretrain", manifest, "--init", tiny_model]),
        ("metrics.json", ["finetune", "--table", table, "--label", "y", "-f", place.fasta]),
        ("report.html", ["extrapolate", "-f", place.fasta]),
    ):
        (out / name).write_text("mine")
        assert "--no-clobber" in lrgenome(*args, "-o", out, "--no-clobber", code=2).stderr
        assert (out / name).read_text() == "mine"


@pytest.mark.parametrize("name", some(("score-vcf.tsv.gz", "embed.h5", "pretrain", "extrapolate"),
                                      "score-vcf.tsv.gz", "embed.h5", "pretrain"))  # fmt: skip
def test_two_runs_to_one_output(start, run, jobs, tiny_model, whole, name):
    """The second is refused while the first runs, whether it would resume or not; the first does not notice."""
    first = start(*jobs.job(name, tiny_model))
    while first.poll() is None and not jobs.begun(name):
        time.sleep(0.002)
    # Stopped it holds its output as well.
    first.send_signal(signal.SIGSTOP)
    try:
        for more in ([], ["--resume"]):
            said = run(*jobs.job(name, tiny_model), *more, code=3).stderr
            assert " is writing " in said.splitlines()[-1] and "; wait for it, or choose another" in said
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait() == 0 and jobs.outcome(name) == whole(name)[0]
    assert jobs.left(name) == []


def test_a_lock_counts_only_while_the_name_leads_to_it(tmp_path):
    """Between opening and locking, the other process may have given the file its final name."""
    name, final = tmp_path / "a.partial", tmp_path / "a"
    with open_alone(name, "wb", buffering=0) as first:
        first.write(b"whole")
        os.rename(name, final)
        with open_alone(name, "wb", buffering=0) as second:
            second.write(b"next")
    assert final.read_bytes() == b"whole" and name.read_bytes() == b"next"


def test_a_lock_that_a_kill_left_behind_is_taken_over(tmp_path):
    (tmp_path / ".lock").touch()
    with held(tmp_path / ".lock"):
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


def test_a_file_system_without_locks_is_said(lrgenome, place, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = lrgenome(*score(place, "-o", place.folder / "o.tsv")).stderr
    assert "this file system has no locks (Function not implemented); see that no other run writes it" in said
    lrgenome("embed", place.fasta, "-o", place.folder / "o.h5", "--context", "20kbp")
