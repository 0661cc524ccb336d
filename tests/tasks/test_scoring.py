"""Scores of alleles against the definition, written out in loops on whole windows in float64."""

import numpy as np
import pytest
import torch

from lrgenome.engine.sweep import Chunk
from lrgenome.errors import NumericalError
from lrgenome.io import alleles
from lrgenome.io.fasta import Fasta
from lrgenome.io.vcf import VcfRecord
from lrgenome.tasks.scoring import Scores, WindowScorer, distances
from lrgenome.tasks.variants import VariantPlanner

from .slow import ALLELES, CONTEXT, FLANK, anchored, genome, slow_scores


def plan_all(tmp_path, sequence, alleles, context=CONTEXT):
    """Plan minimal alleles through VCF records that carry an anchor base where they must."""
    path = tmp_path / "one.fa"
    path.write_text(f">one\n{sequence}\n")
    plans = []
    with Fasta(path) as fasta:
        planner = VariantPlanner(fasta, context, check_ref="error", alias="none")
        for allele in alleles:
            start, ref, alt = anchored(sequence, allele)
            record = VcfRecord("one", start, ".", ref, (alt,), "", 0, 1)
            plans.append(planner.plan(record)[0].windows)
    return [(windows, f"allele {i}") for i, windows in enumerate(plans)]


@pytest.fixture
def short_flank(monkeypatch):
    monkeypatch.setattr(alleles, "FLANK", FLANK)


def as_array(scores):
    return np.array([[np.nan if value is None else value for value in row[:4]] for row in scores])


def score(runner, work, strand="both", batch_size=1):
    return WindowScorer(runner, strand=strand, batch_size=batch_size).score(work)


@pytest.mark.parametrize("strand", ["both", "forward"])
def test_scores_are_those_of_the_definition(slow_model, runner, short_flank, tmp_path, strand):
    sequence = genome()
    work = plan_all(tmp_path, sequence, ALLELES.values())
    got = score(runner, work, strand)
    for (name, (start, ref, alt)), row in zip(ALLELES.items(), got, strict=True):
        expected = slow_scores(slow_model, sequence, (start, ref, alt), strand=strand)
        if len(ref) != len(alt):
            assert row.llr is None, name
        else:
            assert row.llr == pytest.approx(expected[0], rel=1e-4, abs=1e-6), name
        assert row[1:3] == pytest.approx(expected[1:3], rel=1e-4, abs=1e-9), name
        # A difference of two sums over some sixty bases, each rounded in float32.
        assert row.pll_diff == pytest.approx(expected[3], rel=1e-4, abs=1e-5), name


def test_the_flank_is_768_bp(slow_model, runner, tmp_path):
    rng = np.random.default_rng(4)
    sequence = "".join(rng.choice(list("ACGT"), 2_500))
    start, ref = 1_200, sequence[1_200]
    alt = "A" if ref != "A" else "C"
    (row,) = score(runner, plan_all(tmp_path, sequence, [(start, ref, alt)], 2_001), "forward")
    expected = slow_scores(
        slow_model, sequence, (start, ref, alt), strand="forward", context=2_001, flank=768
    )
    assert list(row[:4]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("chunk", [37, 10_000])
@pytest.mark.parametrize("kind", ["mnv", "deletion", "insertion"])
def test_of_a_long_allele_only_the_ends_count(slow_model, make_runner, short_flank, tmp_path, chunk, kind):
    """Of more than two flanks, here 60 bp."""
    sequence = genome()
    # No indel ends with the base before it.
    size = next(n for n in range(70, 76) if sequence[599 + n] != sequence[599])
    ref, other = sequence[600 : 600 + size], "A" if sequence[599] != "A" else "C"
    allele = {
        "mnv": (600, ref, ref.translate(str.maketrans("ACGT", "CATG"))),
        "deletion": (600, ref, ""),
        "insertion": (600, "", "ACGTT" * 14 + other),
    }[kind]
    ((windows, _),) = work = plan_all(tmp_path, sequence, [allele])
    assert (len(windows.ref_spans), len(windows.alt_spans)) == tuple(1 + (len(s) > 2 * FLANK) for s in allele[1:])
    (row,) = score(make_runner(chunk=chunk), work)
    expected = slow_scores(slow_model, sequence, allele)
    assert row.llr == (pytest.approx(expected[0], rel=1e-4) if kind == "mnv" else None)
    assert row[1:4] == pytest.approx(expected[1:], rel=1e-4)


def edited(sequence, start, ref, alt):
    return sequence[:start] + alt + sequence[start + len(ref) :]


@pytest.mark.parametrize("name", ["snv", "mnv", "left edge", "near an N"])
def test_exchanging_ref_and_alt_on_the_edited_genome_turns_the_sign(runner, tmp_path, name):
    sequence, (start, ref, alt) = genome(), ALLELES[name]
    (one,) = score(runner, plan_all(tmp_path, sequence, [(start, ref, alt)]))
    (two,) = score(runner, plan_all(tmp_path, edited(sequence, start, ref, alt), [(start, alt, ref)]))
    # The masked windows are the same bytes, so that nothing rounds differently.
    assert one.llr == -two.llr != 0
    assert (one.dist_cos, one.dist_l2, one.pll_diff) == (two.dist_cos, two.dist_l2, -two.pll_diff)


@pytest.mark.parametrize(("start", "alt"), [(300, "GATTACA"), (350, "GTACA")])
def test_an_insertion_is_as_far_as_the_deletion_that_undoes_it(runner, tmp_path, start, alt):
    # The whole contig is the window, since the windows of the two alleles are centred apart.
    sequence = genome()
    (there,) = score(runner, plan_all(tmp_path, sequence, [(start, "", alt)], 2_000))
    (back,) = score(runner, plan_all(tmp_path, edited(sequence, start, "", alt), [(start, alt, "")], 2_000))
    assert there.llr is back.llr is None
    assert there[1:3] == back[1:3] and there.pll_diff == -back.pll_diff


def test_an_alt_equal_to_ref_scores_zero(runner, tmp_path):
    (windows, _), *_ = plan_all(tmp_path, genome(), [(400, "A", "A"), (400, "A", "G")])
    assert score(runner, [(windows, "")]) == [Scores(0.0, 0.0, 0.0, 0.0)]


def test_only_equal_sequences_are_at_no_distance(runner, tmp_path):
    alleles = [(start, base, new) for start, base in ((400, "A"), (423, None)) for new in "ACGT"]
    sequence = genome()
    alleles = [(start, base or sequence[start], new) for start, base, new in alleles]
    for (_, ref, alt), row in zip(alleles, score(runner, plan_all(tmp_path, sequence, alleles)), strict=True):
        assert (row.dist_cos == 0.0) == (row.dist_l2 == 0.0) == (ref == alt)
        assert row.dist_cos >= 0 and row.dist_l2 >= 0


def turned(text):
    return text.translate(str.maketrans("ACGTNRYacgt", "TGCANYRtgca"))[::-1]


def test_the_reverse_complement_has_the_same_scores(runner, tmp_path):
    """An odd context is centred on a single base either way, and so is one beyond the contig on anything."""
    sequence = genome()
    short, long = ["snv", "mnv", "left edge"], ["insertion", "deletion", "complex"]
    for context, names in ((CONTEXT, short), (2_000, long)):
        alleles = [ALLELES[name] for name in names]
        there = score(runner, plan_all(tmp_path, sequence, alleles, context))
        back = [(len(sequence) - start - len(ref), turned(ref), turned(alt)) for start, ref, alt in alleles]
        again = score(runner, plan_all(tmp_path, turned(sequence), back, context))
        np.testing.assert_allclose(as_array(there), as_array(again), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 37, 150, 151, 1_000])
def test_chunks_do_not_matter(make_runner, short_flank, tmp_path, chunk):
    names = ["mnv", "insertion"] if chunk < 10 else list(ALLELES)
    work = plan_all(tmp_path, genome(), [ALLELES[name] for name in names])
    whole, cut = (as_array(score(make_runner(chunk=c), work)) for c in (10_000, chunk))
    largest = np.nanmax(np.abs(whole), 0)
    assert (np.nan_to_num(np.abs(cut - whole)) <= 5e-5 * largest + 1e-7).all()


def test_batches_do_not_matter(make_runner, short_flank, tmp_path):
    work = plan_all(tmp_path, genome(), ALLELES.values())
    one, three = (as_array(score(make_runner(), work, batch_size=n)) for n in (1, 3))
    np.testing.assert_allclose(three, one, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_score_does_not_depend_on_the_other_alleles(make_runner, short_flank, tmp_path, batch_size):
    work = plan_all(tmp_path, genome(), ALLELES.values())
    together = score(make_runner(), work, batch_size=batch_size)
    alone = [score(make_runner(), [one], batch_size=batch_size)[0] for one in work]
    backwards = score(make_runner(), work[::-1], batch_size=batch_size)[::-1]
    assert together == alone == backwards


def test_alleles_of_one_record_share_passes(runner, tmp_path, monkeypatch):
    ran = []
    stream = runner.stream
    monkeypatch.setattr(runner, "stream", lambda ids, **options: ran.append(ids) or stream(ids, **options))
    work = plan_all(tmp_path, genome(), [(400, "A", "C"), (400, "A", "G"), (400, "A", "T")])
    score(runner, work, "forward")
    # One reference, one masked window, three alternatives; the reference is not run for each.
    assert len(ran) == 5


def test_nothing_to_score(runner):
    assert score(runner, []) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_states_that_are_not_finite_are_an_error_with_their_place(runner, tmp_path, monkeypatch, bad):
    def broken(ids, **options):
        yield Chunk(0, ids.shape[1], torch.full((*ids.shape, 16), bad))

    monkeypatch.setattr(runner, "stream", broken)
    with pytest.raises(NumericalError, match=r"allele 0: the model gave scores that are not finite numbers"):
        score(runner, plan_all(tmp_path, genome(), [(400, "A", "C")]))


def test_batches_are_halved_when_the_gpu_is_full(runner, short_flank, tmp_path, monkeypatch):
    sizes = []
    stream = runner.stream

    def small(ids, **options):
        sizes.append(ids.shape[0])
        if ids.shape[0] > 2:
            raise torch.cuda.OutOfMemoryError("no room")
        yield from stream(ids, **options)

    work = plan_all(tmp_path, genome(), ALLELES.values())
    expected = score(runner, work, batch_size=2)
    monkeypatch.setattr(runner, "stream", small)
    scorer = WindowScorer(runner, strand="both", batch_size=8)
    assert scorer.score(work) == expected
    assert scorer.batch_size == 2 and sizes[:3] == [8, 4, 2] and set(sizes[3:]) == {2}


def test_a_single_window_that_does_not_fit_is_an_error(runner, tmp_path, monkeypatch):
    def full(ids, **options):
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(runner, "stream", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        score(runner, plan_all(tmp_path, genome(), [(400, "A", "C")]), batch_size=4)


def test_distances_by_hand():
    e1, e2 = np.array([1.0, 0.0]), np.array([0.0, 2.0])
    assert distances(e1, e2) == pytest.approx((1.0, np.sqrt(5)))
    assert distances(e1, -3 * e1) == pytest.approx((2.0, 4.0))
    assert distances(e1, 5 * e1) == (0.0, 4.0)
    zero = np.zeros(2)
    assert distances(zero, zero) == (0.0, 0.0)
    assert distances(zero, e2) == distances(e2, zero) == (1.0, 2.0)


def test_small_distances_do_not_cancel():
    """1 - cos of vectors 1e-9 apart is 5e-19; computed as one minus the cosine it would be 0."""
    u = np.array([1.0, 0.0, 0.0])
    assert distances(u, np.array([1.0, 1e-9, 0.0])) == pytest.approx((5e-19, 1e-9))
