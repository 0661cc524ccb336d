"""Standard streams, locales, names of files, and options from the environment."""

import os
import pty
import subprocess
import sys

import h5py
import pytest
from places import options_from_environment

from lrgenome.io.scores import read_scores

NAMES = ["-a dash", "'quotes\" two\nlines\tümlaut-日本;$(x)`y`100%s"]


def score(jobs, *more, vcf=None, fasta=None):
    return ["score-vcf", vcf or jobs.vcf, "-f", fasta or jobs.fasta, "--context", "200", "--strand", "forward", *more]


@pytest.mark.parametrize("closed", [[2], [0, 2], [0, 1, 2]])
def test_closed_streams(run, jobs, tiny_model, whole, closed):
    """No file of the run gets the number of a closed stream, into which libraries write messages."""
    run(*jobs.job("score-vcf.tsv", tiny_model), closed=closed)
    assert jobs.outcome("score-vcf.tsv") == whole("score-vcf.tsv")[0]


def test_closed_standard_output_that_is_wanted(run, jobs):
    """What nobody reads is no error, as with >/dev/null."""
    run(*score(jobs), closed=[1])


def test_closed_standard_input_that_is_wanted(run, jobs):
    said = run(*score(jobs, vcf="-"), closed=[0], code=2).stderr
    assert said.splitlines()[-1] == "lrgenome: error: standard input: is closed, expected VCF or BCF"
    said = run("embed", jobs.fasta, "--bed", "-", "-o", jobs.folder / "o.h5", closed=[0], code=2).stderr
    assert "standard input: is closed, expected BED" in said


def test_empty_standard_input(run, jobs):
    assert "standard input: got an empty file, expected VCF or BCF" in run(*score(jobs, vcf="-"), code=3).stderr


def test_a_terminal_as_standard_input(run, jobs):
    leader, follower = pty.openpty()
    try:
        said = run(*score(jobs, vcf="-"), stdin=follower, code=2).stderr
    finally:
        os.close(leader)
        os.close(follower)
    assert "standard input: got a terminal, expected VCF or BCF from a pipe or a file" in said


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files(run, jobs, name):
    jobs.vcf = jobs.vcf.rename(jobs.folder / f"{name}.vcf")
    jobs.fasta = jobs.fasta.rename(jobs.folder / f"{name}.fa")
    out, log = jobs.folder / f"{name}.tsv", jobs.folder / f"{name}.log"
    if name.startswith("-"):
        # As with every program, after -- or with ./ before it.
        args = score(jobs, "-o", f"./{out.name}", "--", jobs.vcf.name, fasta=f"./{jobs.fasta.name}")
        args.remove(jobs.vcf)
    else:
        args = score(jobs, "-o", out, "--log-file", log)
    run(*args, cwd=jobs.folder)
    assert len(list(read_scores(out))) == 60
    run("embed", jobs.fasta, "-o", jobs.folder / f"{name}.h5", "--context", "2kbp")
    with h5py.File(jobs.folder / f"{name}.h5") as file:
        assert file.attrs["complete"]


def test_a_name_that_is_no_text(run, jobs):
    name = os.fsdecode(b"caf\xe9")
    jobs.vcf, jobs.fasta = (path.rename(jobs.folder / f"{name}{path.suffix}") for path in (jobs.vcf, jobs.fasta))
    log = jobs.folder / "v.log"
    run(*score(jobs, "-o", jobs.folder / f"{name}.tsv", "--log-file", log, "-v"))
    assert len(list(read_scores(jobs.folder / f"{name}.tsv"))) == 60
    said = run(*score(jobs, vcf=jobs.folder / f"{name}.none", fasta=jobs.fasta), code=3).stderr
    assert "no such file" in said
    run("embed", jobs.fasta, "-o", jobs.folder / f"{name}.h5", "--context", "2kbp")


@pytest.mark.parametrize("variables", [{"LC_ALL": "POSIX"},
                                       {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])  # fmt: skip
def test_locales(jobs, variables):
    """As a whole program: it is the interpreter that asks the locale."""
    manifest = jobs.folder / "ümlaut.tsv"
    manifest.write_text("name\tkind\tspecies\tpath\nå\tgenome\tØ\ta.fa\n", encoding="utf-8")
    args = [os.fsencode(arg) for arg in ("data", "list", "--manifest", manifest)]
    done = subprocess.run([sys.executable, "-m", "lrgenome", *args], capture_output=True, env=os.environ | variables)
    assert done.returncode == 0 and b"\tgenome\t" in done.stdout and b"Traceback" not in done.stderr, done.stderr


def test_interpreters(jobs, tiny_model, whole):
    """Without asserts and docstrings, and without the user's paths and variables of Python."""
    root = os.path.dirname(os.path.dirname(sys.modules["lrgenome"].__file__))
    code = f"import sys; sys.path.insert(0, {root!r}); from lrgenome.cli.app import main; main()"
    args = [str(arg) for arg in jobs.job("score-vcf.tsv", tiny_model)]
    env = options_from_environment(tiny_model) | {"LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-I", "-OO", "-c", code, *args], capture_output=True, env=env)
    assert done.returncode == 0, done.stderr.decode()
    assert jobs.outcome("score-vcf.tsv") == whole("score-vcf.tsv")[0]


def test_bytes_that_are_no_text(lrgenome, jobs):
    """Of headers and INFO they go out as they came in; a contig's name has to be text."""
    raw = jobs.vcf.read_bytes().replace(b"#CHROM", b"##source=caf\xe9\n#CHROM").replace(b"\t.\n", b"\tNOTE=\xff\n")
    jobs.vcf.write_bytes(raw)
    lrgenome(*score(jobs, "-o", jobs.folder / "o.vcf"))
    found = (jobs.folder / "o.vcf").read_bytes()
    assert b"##source=caf\xe9\n" in found and found.count(b"NOTE=\xff;LRG_LLR=") == 60
    jobs.fasta.write_bytes(jobs.fasta.read_bytes().replace(b">one", b">one caf\xe9 \xff"))
    lrgenome(*score(jobs, "-o", jobs.folder / "o.tsv"))
    jobs.fasta.write_bytes(jobs.fasta.read_bytes().replace(b">one", b">o\xffne"))
    assert "a contig name that is not UTF-8 text" in lrgenome(*score(jobs), code=3).stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [("THREADS", "many"), ("CONTEXT", "12 parsecs"), ("PRECISION", "half"), ("STRAND", "sideways"),
     ("RESUME", "perhaps"), ("DEVICE", "abacus"), ("MAX_MEMORY", "lots"), ("TMPDIR", "/nonexistent"), ("SHARD", "5/4"),
     ("STORE", "tape"), ("BATCH_SIZE", "-1"), ("CHECK_REF", "maybe"), ("HEADER", "no"), ("TRANSFER", "all"),
     ("REGIONS", "nowhere:1-2")],
)  # fmt: skip
def test_a_bad_value_of_a_variable_names_it(lrgenome, jobs, variable, value):
    out = ["-o", jobs.folder / "o.tsv"]
    said = lrgenome(*score(jobs, *out)[:4], *out, code=2, **{f"LRGENOME_{variable}": value}).stderr
    assert f"LRGENOME_{variable}" in said and "Traceback" not in said


def test_an_option_is_not_blamed_on_the_environment(lrgenome, jobs):
    said = lrgenome(*score(jobs, "--precision", "half"), code=2, LRGENOME_PRECISION="float32").stderr
    assert "--precision: got 'half'" in said and "LRGENOME" not in said


def test_a_variable_that_no_option_has(lrgenome, jobs):
    """A misspelt one would have no effect, and nobody would know."""
    said = lrgenome(*score(jobs, "--dry-run"), LRGENOME_TREADS="4", LRGENOME_XYZZY_PLUGH="1").stderr
    assert "lrgenome: warning: LRGENOME_TREADS is the variable of no option and has no effect; did you mean " in said
    assert "did you mean LRGENOME_THREADS?" in said and "LRGENOME_XYZZY_PLUGH is the variable of no option" in said
    # One of another command is known: pipelines set them for all.
    assert "warning" not in lrgenome(*score(jobs, "--dry-run"), LRGENOME_BIN_SIZE="512").stderr
