"""Scores from boundary states against whole tiles rerun in float64, and against nothing else in the input."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lrgenome.cli.app import app
from lrgenome.dna import MASK, complement, encode, reverse_complement
from lrgenome.engine.runner import Runner
from lrgenome.errors import UsageError
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.io import alleles
from lrgenome.io.fasta import Fasta
from lrgenome.io.vcf import VcfRecord
from lrgenome.tasks import tiles
from lrgenome.tasks.regions import lay_out
from lrgenome.tasks.tiles import TileScorer
from lrgenome.tasks.variants import AlleleEdit, VariantPlanner
from lrgenome.tasks.verification import Verification

from .slow import ALLELES, anchored, genome

CONTEXT, FLANK, REGION, EVERY = 200, 30, 128, 16
SETTINGS = {"region_size": REGION, "state_every": EVERY, "tolerance": 1e9}


@pytest.fixture(autouse=True)
def short_flank(monkeypatch):
    monkeypatch.setattr(alleles, "FLANK", FLANK)


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "one.fa"
    path.write_text(f">one\n{genome()}\n")
    with Fasta(path) as opened:
        yield opened


def plan(fasta, *alleles):
    planner = VariantPlanner(fasta, CONTEXT, check_ref="error", alias="none", tiles=True)
    work = []
    for number, allele in enumerate(alleles):
        start, ref, alt = anchored(genome(), allele)
        (planned,) = planner.plan(VcfRecord("one", start, ".", ref, (alt,), "", 0, 1))
        work.append((planned.edit, f"allele {number}"))
    return work


def scorer(runner, fasta, **options) -> TileScorer:
    return TileScorer(runner, fasta, CONTEXT, **{"strand": "both", **SETTINGS, **options})


def score(runner, fasta, work, **options):
    found = dict(one for one in scorer(runner, fasta, **options).score(work) if one is not None)
    assert sorted(found) == list(range(len(work)))
    return np.array([[np.nan if v is None else v for v in found[i][:5]] for i in range(len(work))])


def slow_tile_scores(slow, allele) -> np.ndarray:
    """Score a minimal allele on its tile, whole, in float64."""
    sequence, (start, ref, alt) = genome(), allele
    core = (start + len(ref) // 2) // CONTEXT
    low, high = max(0, core * CONTEXT - CONTEXT // 2), min(len(sequence), (core + 1) * CONTEXT + CONTEXT // 2)
    tile, at = encode(sequence[low:high]), start - low
    altered = np.concatenate([tile[:at], encode(alt), tile[at + len(ref) :]])
    totals = []
    for way in (FORWARD, REVERSE):

        def seen(ids, way=way):
            return complement(ids) if way == REVERSE else ids

        pooled = []
        for window, size in ((tile, len(ref)), (altered, len(alt))):
            states = slow.states(window, way)
            log_p, span = slow.log_p(states), slice(max(0, at - FLANK), at + size + FLANK)
            bases = window[span]
            known = np.isin(bases, encode("ACGT"))
            likelihood = log_p[span][np.arange(len(bases)), seen(bases)][known].sum()
            pooled.append((states[span].mean(0), likelihood))
        llr = np.nan
        if len(ref) == len(alt):
            sites = [at + i for i in range(len(ref)) if ref[i] != alt[i]]
            masked = tile.copy()
            masked[sites] = MASK
            log_p = slow.log_p(slow.states(masked, way))
            llr = sum(log_p[s, seen(encode(alt))[s - at]] - log_p[s, seen(encode(ref))[s - at]] for s in sites)
        (u, ref_likelihood), (v, alt_likelihood) = pooled
        cosine = 1.0 - (u @ v) / np.sqrt((u @ u) * (v @ v))
        totals.append([llr, cosine, np.linalg.norm(u - v), alt_likelihood - ref_likelihood])
    return np.mean(totals, 0)


@pytest.mark.parametrize("name", ALLELES)
def test_a_region_as_large_as_the_tile_is_exact(slow_model, runner, fasta, name):
    (row,) = score(runner, fasta, plan(fasta, ALLELES[name]), region_size=4096)
    np.testing.assert_allclose(row[:4], slow_tile_scores(slow_model, ALLELES[name]), rtol=1e-3, atol=2e-5)
    assert row[4] == 0.0


def test_regions_come_close_and_say_how_close(slow_model, runner, fasta):
    rows = score(runner, fasta, plan(fasta, *ALLELES.values()))
    for (name, allele), row in zip(ALLELES.items(), rows, strict=True):
        expected = slow_tile_scores(slow_model, allele)
        off = np.abs(row[:4] - expected)
        told = off[3] if np.isnan(off[0]) else off[0]
        assert told <= row[4] + 2e-5, (name, off, row[4])
        assert np.nanmax(off) < 0.05 * max(1.0, np.nanmax(np.abs(expected))), name


def test_a_tolerance_widens_the_region_until_it_is_met(slow_model, runner, fasta):
    work = plan(fasta, *ALLELES.values())
    loose, tight = score(runner, fasta, work), score(runner, fasta, work, tolerance=1e-4)
    assert (loose[:, 4] > 1e-4).any()
    assert (tight[:, 4] <= np.where(np.isnan(tight[:, 0]), 50e-4, 1e-4)).all()
    exact = np.array([slow_tile_scores(slow_model, allele) for allele in ALLELES.values()])
    off = np.abs(tight[:, :4] - exact)
    assert np.where(np.isnan(off[:, 0]), off[:, 3] / 50, off[:, 0]).max() < 2e-4


def test_regions_of_any_size_need_one_pass_over_the_tile(tiny, fasta):
    work = plan(fasta, *ALLELES.values())
    kept = []

    class Counting(Runner):
        def stream(self, ids, **options):
            kept.append(options.get("recorder"))
            return super().stream(ids, **options)

    options = {"free_ram": lambda: 1 << 40, "free_disk": lambda: 0}
    with Counting(tiny.model, torch.device("cpu"), **options) as runner:
        rows = score(runner, fasta, work, tolerance=1e-5, region_size=2 * FLANK + 2 * EVERY)
    assert (rows[:, 4] == 0.0).any(), "none was run whole"
    cores = {edit.core(CONTEXT) for edit, _ in work}
    assert sum(recorder is not None for recorder in kept) == 2 * len(cores)


def test_a_long_pass_is_said(runner, fasta, monkeypatch, caplog):
    work = plan(fasta, ALLELES["snv"])
    with caplog.at_level("INFO"):
        score(runner, fasta, work)
        assert not [line for line in caplog.messages if line.startswith("pass over")]
        monkeypatch.setattr(tiles, "_LONG_PASS", 100)
        score(runner, fasta, work)
    said = [line for line in caplog.messages if line.startswith("pass over one:")]
    assert [line.rsplit(", ")[1] for line in said] == ["forward strand", "reverse strand"]


def test_whole_tiles_share_the_run_of_the_reference(tiny, fasta):
    first, *_ = work = [one for one in plan(fasta, *ALLELES.values()) if one[0].substitution]
    work = [one for one in work if one[0].core(CONTEXT) == first[0].core(CONTEXT)]
    runs = []

    class Counting(Runner):
        def stream(self, ids, **options):
            runs.append(ids.shape)
            return super().stream(ids, **options)

    options = {"free_ram": lambda: 1 << 40, "free_disk": lambda: 0}
    with Counting(tiny.model, torch.device("cpu"), **options) as runner:
        together = list(scorer(runner, fasta).exact(work))
        assert len(work) > 1 and len(runs) == 2 * (1 + 2 * len(work))
        alone = [next(scorer(runner, fasta).exact([one])) for one in work]
    assert together == alone


def test_alleles_do_not_wait_for_slower_ones_far_behind(runner, monkeypatch, fasta):
    monkeypatch.setattr(tiles, "_TOGETHER", 2)
    (one,) = plan(fasta, ALLELES["snv"])
    calls = []
    monkeypatch.setattr(TileScorer, "_tolerated", lambda self, scores: calls.append(1) or len(calls) > 1)
    found = [one for one in scorer(runner, fasta, tolerance=1e-3).score([one] * 5)]
    # The first misses its tolerance and comes after its neighbour, but before the third is begun.
    assert [None if one is None else one[0] for one in found] == [1, 0, None, 2, 3, None, 4, None]


def test_a_duplication_comes_with_the_records_beside_it(runner, monkeypatch, fasta):
    monkeypatch.setattr(tiles, "_TOGETHER", 1)
    (snv,) = plan(fasta, ALLELES["snv"])
    at = snv[0].start
    # It is an insertion behind the SNV, of a record before it.
    long = (event("DUP", at - 20, at + 15), "long")
    assert long[0].core(CONTEXT) == snv[0].core(CONTEXT) and long[0].start > at
    assert [one[0] for one in scorer(runner, fasta).score([long, snv]) if one is not None] == [0, 1]


@pytest.mark.parametrize(("llr", "pll", "most"), [(-3.0, 40.0, 0.01), (None, 0.0, 0.5), (None, -150.0, 2.0)])
def test_the_tolerance_of_a_likelihood_grows_with_it(runner, fasta, llr, pll, most):
    made = scorer(runner, fasta, tolerance=0.01)
    assert made._tolerated(tiles.TileScores(llr, 0.1, 0.1, pll, 0.0)) == pytest.approx(most)


def test_a_score_does_not_depend_on_the_other_variants(make_runner, fasta):
    work = plan(fasta, *ALLELES.values())
    together = score(make_runner(), fasta, work)
    for i, one in enumerate(work):
        alone = score(make_runner(), fasta, [one])
        assert alone.tobytes() == together[i : i + 1].tobytes()
    backwards = score(make_runner(), fasta, work[::-1])[::-1]
    assert backwards.tobytes() == together.tobytes()


def test_little_memory_means_more_passes_and_the_same_scores(tiny, monkeypatch, fasta):
    work = plan(fasta, *ALLELES.values())
    passes = []

    class Counting(Runner):
        def stream(self, ids, **options):
            passes.append(ids.shape)
            return super().stream(ids, **options)

    def run(free):
        options = {"free_ram": lambda: free, "free_disk": lambda: 0}
        with Counting(tiny.model, torch.device("cpu"), **options) as runner:
            return score(runner, fasta, work)

    plenty, many = run(1 << 40), len(passes)
    passes.clear()
    monkeypatch.setattr(tiles, "_SHARE", 0.09)
    short = run(1 << 20)
    assert len(passes) > many
    assert short.tobytes() == plenty.tobytes()


def test_regions_lie_on_the_grid(runner, fasta):
    made = scorer(runner, fasta)
    for edit, _ in plan(fasta, ALLELES["snv"], ALLELES["complex"]):
        tile = made.tile(edit)
        assert tile[:3] == ("one", 300, 700) and len(tile.ids) == 400
        layout = lay_out(edit, tile, REGION, EVERY)
        (reference,), (altered,) = layout.reference, layout.altered
        assert (reference.left, reference.right) == (altered.left, altered.right)
        for piece in (reference, layout.masked or reference):
            assert (piece.left.at + 300) % EVERY == 0 and (piece.right.at + 300) % EVERY == 0
        at, behind = edit.start - 300, edit.start - 300 + len(edit.ref)
        assert at - reference.left.at >= REGION // 2 and reference.right.at - behind >= REGION // 2
        assert (tile.ids[reference.left.at : reference.right.at] == reference.ids).all()
        assert lay_out(edit, tile, REGION << 5, EVERY) is None


def event(kind: str, start: int, end: int) -> AlleleEdit:
    ids, nothing = encode(genome()[start:end]), encode("")
    if kind == "DUP":
        return AlleleEdit("one", end, nothing, ids, False, (), "DUP")
    return AlleleEdit("one", start, ids, reverse_complement(ids) if kind == "INV" else nothing, False, (), kind)


EVENTS = [event(kind, 420, 680) for kind in ("DEL", "DUP", "INV")] + [
    event("DEL", 420, 680)._replace(kind="SEQ", alt=encode("GATTACA")),
    event("DUP", 420, 680)._replace(kind="SEQ"),
]


@pytest.mark.parametrize("edit", EVENTS, ids=lambda edit: edit.kind)
def test_large_events_are_scored_from_their_junctions(runner, fasta, edit):
    made = TileScorer(runner, fasta, 600, strand="both", region_size=96, state_every=16, tolerance=1e9)
    layout = lay_out(edit, made.tile(edit), 96, 16)
    if edit.kind != "SEQ" or not len(edit.alt) > 96:
        assert max(len(piece.ids) for piece in layout.pieces()) < len(edit.ref) + len(edit.alt) - 60
    ((_, got),) = [one for one in made.score([(edit, "event")]) if one is not None]
    (exact,) = made.exact([(edit, "event")])
    assert got.llr is None and exact.llr is None
    assert abs(got.dist_l2 - exact.dist_l2) < 0.05 * exact.dist_l2
    assert abs(got.pll_diff - exact.pll_diff) < max(got.err_est, 0.02 * abs(exact.pll_diff))
    forward = TileScorer(runner, fasta, 600, strand="forward", region_size=96, state_every=16, tolerance=1e9)
    ((_, one),) = [one for one in forward.score([(edit, "event")]) if one is not None]
    assert abs(one.dist_l2 - next(forward.exact([(edit, "event")])).dist_l2) < 0.05 * one.dist_l2


@pytest.mark.parametrize("edit", EVENTS, ids=lambda edit: edit.kind)
def test_events_widen_to_the_whole_tile_where_they_must(make_runner, fasta, edit):
    made = TileScorer(make_runner(), fasta, 600, strand="both", region_size=96, state_every=16, tolerance=1e-12)
    ((_, got),) = [one for one in made.score([(edit, "event")]) if one is not None]
    assert [got] == list(made.exact([(edit, "event")]))


@pytest.mark.parametrize("size", [2, 5])
def test_batches_of_regions_give_the_scores_of_single_ones(make_runner, fasta, size):
    work = [*plan(fasta, *ALLELES.values()), *((edit, "event") for edit in EVENTS if len(edit.alt) <= 100)]
    single, several = (score(make_runner(), fasta, work, batch_size=n) for n in (1, size))
    np.testing.assert_allclose(several, single, rtol=1e-3, atol=2e-5)
    alone = np.concatenate([score(make_runner(), fasta, [one], batch_size=size) for one in work])
    np.testing.assert_allclose(several, alone, rtol=1e-4, atol=1e-6)


def test_states_may_lie_on_disk(tiny, make_runner, fasta, tmp_path):
    work = plan(fasta, *ALLELES.values())
    options = {"free_ram": lambda: 1 << 40, "free_disk": lambda: 1 << 40, "tmpdir": tmp_path}
    with Runner(tiny.model, torch.device("cpu"), store="disk", **options) as on_disk:
        assert score(on_disk, fasta, work).tobytes() == score(make_runner(), fasta, work).tobytes()


def test_wildtype_scores_are_read_off_the_unmasked_tile(slow_model, runner, fasta):
    work = plan(fasta, *ALLELES.values())
    made = scorer(runner, fasta, llr="wildtype", tolerance=1e-6)
    found = dict(one for one in made.score(work) if one is not None)
    exact = [next(made.exact([one])) for one in work]
    for i, (edit, _) in enumerate(work):
        if not edit.substitution:
            np.testing.assert_allclose(found[i][1:4], exact[i][1:4], rtol=1e-3, atol=2e-5)
            continue
        tile, expected = made.tile(edit), []
        for way in (FORWARD, REVERSE):
            log_p = slow_model.log_p(slow_model.states(tile.ids, way))
            seen = complement if way == REVERSE else np.asarray
            rows = [edit.start - tile.start + site for site in edit.sites]
            refs, alts = (seen(of[list(edit.sites)]) for of in (edit.ref, edit.alt))
            expected.append((log_p[rows, alts] - log_p[rows, refs]).sum())
        assert found[i].llr == pytest.approx(np.mean(expected), abs=2e-5)
        assert found[i][1:] == (None, None, None, 0.0, ())


def test_verification_says_how_far_off_scores_are(runner, fasta, caplog):
    work = plan(fasta, *ALLELES.values())
    made = scorer(runner, fasta)
    check, none = Verification(made, 4, seed=3), Verification(made, 0, seed=3)
    for i, got in (one for one in made.score(work) if one is not None):
        check.see(*work[i], got)
        none.see(*work[i], got)
    with caplog.at_level("INFO", logger="lrgenome"):
        none.report()
        assert not caplog.messages
        check.report()
    text = "\n".join(caplog.messages)
    assert f"scoring 4 of {len(work)} alleles again" in text
    assert "largest difference of LLR" in text and "largest difference of DIST_L2" in text
    assert "within ERR_EST: 4 of 4" in text
    (exact,) = made.exact(work[:1])
    same, other = check.differences([(*work[0], exact), (*work[0], exact._replace(llr=99.0))])
    assert set(same[3].values()) == {0.0} and other[3]["LLR"] > 90


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region_size": 91}, "--region-size: got 91, expected at least 92"),
        ({"tolerance": 0.0}, "--tolerance: got 0.0"),
        ({"state_every": 0}, "--state-every: got 0"),
        ({"llr": "raw"}, "--llr: got 'raw', expected one of masked, wildtype"),
    ],
)
def test_settings_that_cannot_be(runner, fasta, options, message):
    with pytest.raises(UsageError, match=message):
        scorer(runner, fasta, **options)


def test_the_command_writes_the_same_rows_whatever_the_shards(tiny_model, fasta, tmp_path):
    sequence, records = genome(), []
    for allele in (*ALLELES.values(), (610, sequence[610], "<DEL>"), (611, sequence[611], "N")):
        start, ref, alt = allele if allele[2] in ("<DEL>", "N") else anchored(sequence, allele)
        records.append((start + 1, f"one\t{start + 1}\t.\t{ref.upper()}\t{alt}\t.\t.\t.\n"))
    head = "##fileformat=VCFv4.2\n##contig=<ID=one,length=900>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    vcf = tmp_path / "v.vcf"
    vcf.write_text(head + "".join(text for _, text in sorted(records)))
    options = ["--fasta", str(fasta.path), "--model", str(tiny_model), "--context", "200", "--region-size", "128",
               "--state-every", "16", "-t", "1", "--no-version"]  # fmt: skip

    def run(out, *more):
        result = CliRunner().invoke(app, ["score-vcf", str(vcf), "-o", str(tmp_path / out), *options, *more])
        assert result.exit_code == 0, result.output
        return (tmp_path / out).read_text()

    whole = run("whole.tsv")
    parts = [run(f"{i}.tsv", "--shard", f"{i}/3", "--header", "always" if i == 1 else "never") for i in (1, 2, 3)]
    assert "".join(parts) == whole
    rows = [line.split("\t") for line in whole.splitlines() if not line.startswith("#")]
    assert len(rows) == len(records)
    assert [row[-1] for row in rows].count("ALT_SYMBOLIC") == 1
    assert all(row[9] != "." for row in rows if row[-1] in ("OK", "EDGE"))
    assert "boundary-states" in whole


def test_boundary_states_are_of_recurrent_models_with_exact_transfer(tiny_model, fasta, tmp_path):
    vcf = tmp_path / "v.vcf"
    vcf.write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\none\t401\t.\tA\tG\t.\t.\t.\n")
    options = ["--fasta", str(fasta.path), "--model", str(tiny_model), "--boundary-states", "--transfer", "none"]
    result = CliRunner().invoke(app, ["score-vcf", str(vcf), "-o", str(tmp_path / "o.tsv"), *options])
    assert result.exit_code == 2
    assert "got --transfer none, expected a recurrent model and --transfer exact" in " ".join(result.output.split())
