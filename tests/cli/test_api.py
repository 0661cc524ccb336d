"""The Python API gives what the commands write."""

import subprocess
import sys

import numpy as np
import pytest

import lrgenome as api
from lrgenome import errors


@pytest.fixture
def model(tiny_model):
    with api.load(tiny_model, device="cpu", threads=1) as loaded:
        yield loaded


INTERVALS = [("chr1", 310, 420), ("2", 400, 800), ("chr1", 4990, 5003), ("M", 0, 61), ("chr1", 290, 1300)]


@pytest.mark.parametrize("strand", ["forward", "both"])
def test_embeddings_are_those_of_the_command(model, lrgenome, toy_fasta, tmp_path, strand):
    bed = tmp_path / "i.bed"
    bed.write_text("".join(f"{chrom}\t{start}\t{end}\n" for chrom, start, end in INTERVALS))
    more = ("--context", "500", "--strand", strand, "--precision", "float32", "-o", tmp_path / "o.h5")
    lrgenome("embed", toy_fasta, "--bed", bed, *more)
    found = model.embed(toy_fasta, INTERVALS, context=500, strand=strand)
    with api.read_embeddings(tmp_path / "o.h5") as rows:
        assert np.array_equal(found, rows.embeddings[:]) and found.dtype == np.float32
    one = model.embed(toy_fasta, INTERVALS[1:2], context="0.5kbp", strand=strand)
    assert np.array_equal(one, found[1:2])


def test_every_base_of_intervals(model, toy_fasta):
    rows = [("chr1", 400, 430), ("chr2", 0, 30)]
    found = model.embed(toy_fasta, rows, pool="none", layer=1)
    assert found.shape == (2, 30, model.width)
    assert np.allclose(found.mean(1), model.embed(toy_fasta, rows, layer=1), atol=1e-6)
    assert model.embed(toy_fasta, []).shape == (0, model.width)


def test_scores_are_those_of_the_command(model, lrgenome, toy_fasta, toy_vcf, toy_lines):
    for exact in (False, True):
        table = lrgenome("score-vcf", toy_vcf, "-f", toy_fasta, "--context", "400",
                         *(["--exact-windows"] if exact else []), "-q").stdout  # fmt: skip
        rows = [line.split("\t") for line in table.splitlines() if not line.startswith("#")]
        variants = [(c[0], int(c[1]), c[3], c[4]) for c in (line.split("\t") for line in toy_lines)]
        found = model.score(toy_fasta, variants, context=400, exact_windows=exact)
        assert len(found) == len(rows) > 50
        for score, row in zip(found, rows, strict=True):
            assert (score.chrom, str(score.pos), score.ref, score.alt) == (row[0], row[1], row[3], row[4])
            values = (score.llr, score.dist_cos, score.dist_l2, score.pll_diff, score.err_est)
            assert ["." if v is None else f"{v:.6g}" for v in values] == row[5:10] and score.status == row[10]
            assert score.predictions == {}
    assert {"OK", "ALT_STAR", "ALT_MISSING"} <= {score.status for score in found}
    assert model.score(toy_fasta, []) == []


def test_a_symbolic_allele_has_its_end(model, toy_fasta, toy_sequences):
    ref = toy_sequences["chr1"][2000]
    (symbolic,) = model.score(toy_fasta, [("1", 2001, ref, "<DEL>", "END=2011")], context=400, exact_windows=True)
    whole = toy_sequences["chr1"][2000:2011]
    (written,) = model.score(toy_fasta, [("1", 2001, whole, whole[0])], context=400, exact_windows=True)
    assert symbolic.status == written.status == "OK"
    assert symbolic.pll_diff == pytest.approx(written.pll_diff)
    (without,) = model.score(toy_fasta, [("1", 2001, ref, "<DEL>")], context=400)
    assert without.status == "ALT_SYMBOLIC" and without.pll_diff is None


def test_states_of_a_long_sequence(model, tiny_model, toy_sequences, toy_fasta):
    sequence = toy_sequences["chr1"]
    with api.load(tiny_model, device="cpu", threads=1, chunk=97) as chunked:
        parts = list(chunked.stream(sequence, log_p=True))
    assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]] and parts[-1].end == len(sequence)
    assert len(parts) == -(-len(sequence) // 97)
    hidden, log_p = (np.concatenate([getattr(part, name) for part in parts]) for name in ("hidden", "log_p"))
    (whole,) = model.stream(sequence.encode(), log_p=True)
    assert np.abs(hidden - whole.hidden).max() < 5e-5 * np.abs(whole.hidden).max()
    assert np.abs(log_p - whole.log_p).max() < 1e-4 and (log_p < 0).all()
    with api.Fasta(toy_fasta) as fasta:
        ids = fasta.fetch("chr1", 0, len(sequence))
    assert np.array_equal(next(model.stream(ids)).hidden, whole.hidden)
    assert next(model.stream(ids)).log_p is None
    # The mean over a stretch is what embed gives of it.
    mean = model.embed(toy_fasta, [("chr1", 600, 900)], context="1Mbp")
    assert np.allclose(mean[0], whole.hidden[600:900].mean(0), atol=1e-5)


def test_the_other_strand_is_in_the_same_order(model, toy_sequences):
    from lrgenome.dna import decode, encode, reverse_complement

    sequence = toy_sequences["chr2"]
    turned = decode(reverse_complement(encode(sequence)))
    (there,) = model.stream(sequence, strand="reverse", log_p=True)
    (here,) = model.stream(turned, log_p=True)
    assert np.allclose(there.hidden, here.hidden[::-1], atol=1e-5)
    assert np.allclose(there.log_p, here.log_p[::-1, ::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, f: m.embed(f, [("chr9", 0, 5)]), errors.InputError, "interval 0: contig 'chr9' is not in toy.fa"),
        (lambda m, f: m.embed(f, [("chr1", 5, 5)]), errors.InputError, "expected 0 <= start < end <= 5003"),
        (lambda m, f: m.embed(f, [("chr1", 0, 9999)]), errors.InputError, "got chr1:0-9999"),
        (lambda m, f: m.embed(f, [("chr1",)]), errors.InputError, "expected contig, start and end"),
        (lambda m, f: m.embed(f, [("MT", 0, 5), ("MT", 0, 6)], pool="none"), errors.UsageError, "of one length"),
        (lambda m, f: m.embed(f, [("MT", 0, 5)], context="long"), errors.UsageError, "expected a length such as"),
        (lambda m, f: m.embed(f, [("MT", 0, 5)], head=True), errors.UsageError, "the model has no head"),
        (lambda m, f: m.embed(f, [("MT", 0, 5)], layer=3), errors.UsageError, "layer"),
        (lambda m, f: m.score(f, [("chr1", "x", "A", "C")]), errors.InputError, "variant 0: got"),
        (lambda m, f: m.score(f, [("9", 1, "A", "C")]), errors.AssemblyMismatchError, "no contig in common"),
        (lambda m, f: m.score(f, [("MT", 1, "A", "C")], tissues=["lung"]), errors.UsageError, "no head of variants"),
        (lambda m, f: m.embed("no.fa", [("MT", 0, 5)]), errors.FastaError, "no.fa"),
        (lambda m, f: next(m.stream("ACGJ")), errors.InputError, "got 'J' at offset 3"),
        (lambda m, f: next(m.stream("")), errors.InputError, "expected at least one base"),
        (lambda m, f: next(m.stream(np.zeros(3))), errors.InputError, "expected token ids"),
        (lambda m, f: next(m.stream("ACGT", strand="both")), errors.UsageError, "expected forward or reverse"),
        (lambda m, f: next(m.stream("ACGT", layer=1, log_p=True)), errors.UsageError, "log_p is of the last layer"),
        (lambda m, f: m.as_module("weights"), errors.UsageError, "expected one of embedding"),
        (lambda m, f: m.as_module("head"), errors.UsageError, "the model has no head"),
    ],
)
def test_bad_arguments(model, toy_fasta, call, error, message):
    with pytest.raises(error) as caught:
        call(model, toy_fasta)
    assert message in str(caught.value)


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(errors.ModelError, match="no such folder"):
        api.load(tmp_path / "none")


def test_importing_is_cheap():
    code = "import lrgenome, sys; assert 'torch' not in sys.modules; assert 'load' in dir(lrgenome); lrgenome.load; " \
           "assert 'torch' in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = api.nothing
    assert set(api.__all__) <= set(dir(api))
