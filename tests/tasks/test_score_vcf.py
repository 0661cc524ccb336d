"""The task behind `lrgenome score-vcf`: exact scores, whatever else is in the input; every allele counted."""

import json
import logging
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from lrgenome.errors import (
    AssemblyMismatchError,
    InputError,
    OutputError,
    OutputExistsError,
    SkippedRecordsError,
    UsageError,
)
from lrgenome.io import alleles
from lrgenome.io.scores import read_scores
from lrgenome.io.vcf import open_variants
from lrgenome.tasks import score_rows
from lrgenome.tasks.score_vcf import ScoreOutput, ScoreSettings, default_batch_size, find_fasta, run
from lrgenome.tasks.scoring import Scores

from .slow import ALLELES, CONTEXT, FLANK, anchored, genome, slow_scores

COLUMNS = ["LLR", "DIST_COS", "DIST_L2", "PLL_DIFF"]
HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture(autouse=True)
def short_flank(monkeypatch):
    monkeypatch.setattr(alleles, "FLANK", FLANK)


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "one.fa"
    path.write_text(f">one\n{genome()}\n")
    return path


def lines_of(alleles):
    """Write minimal alleles as records, with an anchor base where they need one."""
    sequence = genome()
    for allele in alleles:
        start, ref, alt = anchored(sequence, allele)
        yield f"one\t{start + 1}\t.\t{ref}\t{alt}\t.\t.\t.\n"


@pytest.fixture
def vcf(tmp_path):
    """All of `ALLELES`, and what cannot be scored between them."""
    lines = list(lines_of(ALLELES.values()))
    lines[2:2] = ["one\t401\t.\tA\t<DEL>\t.\t.\t.\n", "two\t5\trs1\tA\tC,G\t.\t.\t.\n"]
    lines.append("one\t401\t.\tA\tC,G,*,T\t.\t.\t.\n")
    path = tmp_path / "in.vcf"
    path.write_text(HEADER + "".join(lines))
    return path


@pytest.fixture
def score(tiny, runner, fasta, vcf, tmp_path):
    """Run the task and return its output's path."""

    def go(source=None, *, out="out.tsv", use=None, batch_size=1, dry_run=False, **options):
        kinds = [ScoreSettings.__dataclass_fields__, ScoreOutput.__dataclass_fields__]
        ours, target = ({k: v for k, v in options.items() if k in kind} for kind in kinds)
        path = tmp_path / out
        settings = ScoreSettings(**{"context": CONTEXT, **ours})
        counts = run(
            str(source or vcf), options.get("fasta", fasta), tiny, use or runner, settings,
            ScoreOutput(**{"path": str(path), **target}),
            batch_size=batch_size, tmpdir=tmp_path, dry_run=dry_run,
        )  # fmt: skip
        go.counts = counts
        return path

    return go


def rows(path):
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def table(path):
    return np.array([[row[c] for c in COLUMNS] for row in read_scores(path)], float)


def test_the_output_is_what_the_definition_gives(score, slow_model, tmp_path):
    path = tmp_path / "few.vcf"
    path.write_text(HEADER + "".join(lines_of(ALLELES.values())))
    found = list(read_scores(score(path)))
    for row, (start, ref, alt) in zip(found, ALLELES.values(), strict=True):
        llr, *others = slow_scores(slow_model, genome(), (start, ref, alt))
        assert row["LLR"] == (pytest.approx(llr, rel=1e-4, abs=1e-6) if len(ref) == len(alt) else None)
        assert [row[c] for c in COLUMNS[1:]] == pytest.approx(others, rel=1e-4, abs=1e-5)
        assert row["DIST_COS"] == pytest.approx(others[0], rel=1e-4)
        assert row["STATUS"] == (("EDGE",) if not 75 <= start <= 900 - 76 else ("OK",))
        assert row["ERR_EST"] is None


def test_every_allele_has_its_row_in_order(score, vcf):
    out = score()
    keys = [tuple(line.split("\t")[:5]) for line in rows(out)]
    with open_variants(vcf) as source:
        expected = [
            (r.chrom, str(r.pos + 1), r.id, r.ref, alt) for r in source.records() for alt in r.alts or (".",)
        ]
    assert keys == expected
    assert sum(score.counts.values()) == len(keys)
    assert score.counts["CONTIG_MISSING"] == 2 and score.counts["ALT_STAR"] == 1
    scored = [row for row in read_scores(out) if row["DIST_L2"] is not None]
    assert len(scored) == score.counts["OK"] + score.counts["EDGE"]


@pytest.mark.parametrize("chunk", [1, 3, 37, 150, 1_000])
def test_chunks_do_not_matter(score, make_runner, tmp_path, chunk):
    path = tmp_path / "few.vcf"
    few = list(ALLELES.values())[: 2 if chunk < 10 else None]
    path.write_text(HEADER + "".join(lines_of(few)))
    whole = table(score(path, out="whole.tsv"))
    cut = table(score(path, out="cut.tsv", use=make_runner(chunk=chunk)))
    tolerance = 5e-5 * np.nanmax(np.abs(whole), 0) + 1e-6
    assert (np.isnan(whole) == np.isnan(cut)).all() and (
        np.nan_to_num(np.abs(whole - cut)) <= tolerance
    ).all()


def test_the_store_leaves_no_trace_in_the_bytes(score, make_runner):
    ram = score(out="ram.tsv", use=make_runner(chunk=40, store="ram"))
    disk = score(out="disk.tsv", use=make_runner(chunk=40, store="disk"))
    assert ram.read_bytes() == disk.read_bytes()


def test_batches_agree(score):
    one, three = table(score(out="one.tsv")), table(score(out="three.tsv", batch_size=3))
    np.testing.assert_allclose(three, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_row_does_not_depend_on_the_other_records(score, vcf, tmp_path, batch_size):
    together = rows(score(batch_size=batch_size))
    alone = []
    for line in vcf.read_text().splitlines(keepends=True)[2:]:
        path = tmp_path / "alone.vcf"
        if line.startswith("two"):
            line += "one\t5\t.\tN\tA\t.\t.\t.\n"
        path.write_text(HEADER + line)
        found = rows(score(path, out="alone.tsv", batch_size=batch_size))
        alone += found[:2] if line.startswith("two") else found
    assert alone == together


@pytest.mark.parametrize("parts", [1, 3, 4, 20])
def test_shards_together_are_the_whole(score, parts):
    whole = score().read_bytes()
    spelled = ["{}/{}", "{}-of-{}"]
    shards = [
        score(out=f"{part}.tsv", shard=spelled[part % 2].format(part, parts)).read_bytes()
        for part in range(1, parts + 1)
    ]
    assert b"".join(shards) == whole


def test_the_header_of_shards(score):
    assert score(shard="2/3").read_text().startswith("one")
    assert score(shard="2/3", header="always").read_text().startswith("##")
    assert score(header="never").read_text().startswith("one")


def test_blocks_of_records_do_not_matter(score, monkeypatch):
    whole = score().read_bytes()
    monkeypatch.setattr(score_rows, "_BLOCK_RECORDS", 2)
    assert score().read_bytes() == whole


def test_regions_choose_overlapping_records(score, tmp_path):
    all_rows = rows(score())
    bed = tmp_path / "regions.bed"
    bed.write_text("one\t300\t360\n")
    chosen = rows(score(regions=("one:421-600",), regions_file=bed))
    # The deletion's anchor is base 350; the insertion's, base 300, lies outside the interval.
    inside = {"350", "421", "501"}
    assert chosen == [row for row in all_rows if row.split("\t")[1] in inside and row.startswith("one")]
    assert {row.split("\t")[1] for row in chosen} == inside


def test_a_region_without_records_gives_a_header(score):
    out = score(regions=("one:600-610",))
    assert rows(out) == [] and out.read_text().splitlines()[-1].startswith("#CHROM")
    assert score.counts == {}


def test_shards_of_missing_contigs_are_no_other_assembly(score, tmp_path):
    """What a whole run accepts, its shards accept."""
    path = tmp_path / "late.vcf"
    path.write_text(HEADER + "two\t5\t.\tA\tC\t.\t.\t.\n" * 3 + "".join(lines_of([ALLELES["snv"]])))
    whole = score(path).read_text()
    assert "".join(score(path, shard=f"{i}/2").read_text() for i in (1, 2)) == whole


def test_shards_of_mismatches_are_no_other_assembly(score, tmp_path):
    path = tmp_path / "half.vcf"
    wrong = "one\t401\t.\tC\t<DEL>\t.\t.\t.\n" * 30
    path.write_text(HEADER + "".join(lines_of(list(ALLELES.values()) * 4)) + wrong)
    whole = score(path).read_text()
    assert "".join(score(path, shard=f"{i}/2").read_text() for i in (1, 2)) == whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("two\t5\t.\tA\tC\t.\t.\t.\n", "no contig in common"),
        ("one\t401\t.\tC\t<DEL>\t.\t.\t.\n" * 20, "wrong assembly"),
    ],
)
def test_another_assembly_is_found_before_any_scoring(score, tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(score_rows, "WindowScorer", None)
    path = tmp_path / "other.vcf"
    path.write_text(HEADER + text)
    with pytest.raises(AssemblyMismatchError, match=message):
        score(path)
    assert not list(tmp_path.glob("out.tsv*"))


def test_a_reference_that_has_other_bases(score, tmp_path, monkeypatch):
    path = tmp_path / "mismatch.vcf"
    path.write_text(HEADER + "one\t401\t.\tC\tG\t.\t.\t.\n" + "".join(lines_of(ALLELES.values())))
    (row, *_) = read_scores(score(path))
    path.write_text(HEADER + "one\t401\t.\tA\tG\t.\t.\t.\n")
    (right,) = read_scores(score(path, out="right.tsv"))
    assert row["STATUS"] == ("REF_MISMATCH",) and [row[c] for c in COLUMNS] == [right[c] for c in COLUMNS]
    path.write_text(HEADER + "one\t401\t.\tC\tG\t.\t.\t.\n")
    (skipped,) = read_scores(score(path, check_ref="skip"))
    assert skipped["STATUS"] == ("REF_MISMATCH",) and [skipped[c] for c in COLUMNS] == [None] * 4
    with pytest.raises(InputError, match="REF is C, the FASTA has A there"):
        score(path, check_ref="error", out="error.tsv")
    assert not (tmp_path / "error.tsv").exists()
    # Outside the region it is nobody's business.
    path.write_text(path.read_text() + "".join(lines_of([ALLELES["mnv"]])))
    score(path, check_ref="error", regions=("one:450-600",))


def test_strict_fails_when_all_is_written(score, vcf, tmp_path):
    with pytest.raises(SkippedRecordsError, match=r"2 CONTIG_MISSING.*the output is complete"):
        score(strict=True)
    assert (tmp_path / "out.tsv").exists()
    path = tmp_path / "good.vcf"
    path.write_text(HEADER + "".join(lines_of(ALLELES.values())))
    score(path, strict=True)


@pytest.mark.parametrize(("check_ref", "fails"), [("warn", False), ("skip", True)])
def test_mismatches_that_are_skipped_fail_under_strict(score, tmp_path, check_ref, fails):
    path = tmp_path / "mismatch.vcf"
    path.write_text(HEADER + "one\t401\t.\tC\tG\t.\t.\t.\n")
    if not fails:
        score(path, strict=True, check_ref=check_ref)
        return
    with pytest.raises(SkippedRecordsError, match="1 REF_MISMATCH"):
        score(path, strict=True, check_ref=check_ref)


def test_counts_are_logged_and_written(score, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lrgenome"), "propagate", True)
    caplog.set_level(logging.INFO, "lrgenome")
    score(summary=tmp_path / "counts.json")
    written = json.loads((tmp_path / "counts.json").read_text())
    counts = {"records": 12, "alleles": 16, "skipped": 4, "statuses": score.counts}
    assert {name: written[name] for name in counts} == counts and written["shard"] == "1/1"
    assert written["settings"]["context"] == CONTEXT
    assert any("ALT_SYMBOLIC" in message for message in caplog.messages)
    assert "contig two of the VCF is not in one.fa" in caplog.messages


def test_an_impossible_summary_is_refused_before_any_work(score, tmp_path):
    with pytest.raises(OutputError, match=r"the folder .* does not exist"):
        score(summary=tmp_path / "none" / "counts.json")
    assert not list(tmp_path.glob("out.tsv*"))


def test_a_dry_run_counts_and_writes_nothing(score, tmp_path, capsys):
    score()
    before = set(tmp_path.iterdir()) - {tmp_path / "out.tsv"}
    (tmp_path / "out.tsv").unlink()
    score(dry_run=True)
    said = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert set(tmp_path.iterdir()) == before
    assert (said["records"], said["alleles"], said["CONTIG_MISSING"]) == ("12", "16", "2")
    assert said["context"] == "151bp" and int(said["expected_seconds"]) >= 0
    assert 0 < int(said["bases_to_run"]) < 16 * 6 * 160


def test_a_dry_run_counts_alleles_once(score, tmp_path, capsys):
    path = tmp_path / "joined.vcf"
    path.write_text(HEADER + "one\t401\t.\tC\tG\t.\t.\t.\none\t4\t.\tC\tG,<DEL>\t.\t.\t.\n")
    score(path, dry_run=True)
    assert "alleles\t3\n" in capsys.readouterr().out


def test_the_fasta_of_the_header_is_used_where_it_is_there(score, fasta, tmp_path):
    path = tmp_path / "named.vcf"
    records = "".join(lines_of([ALLELES["snv"]]))
    path.write_text(f"##fileformat=VCFv4.2\n##reference=file://{fasta}\n{HEADER.splitlines()[1]}\n{records}")
    assert rows(score(path, fasta=None)) == rows(score(path, out="given.tsv"))
    path.write_text(path.read_text().replace(str(fasta), "/nowhere/hg19.fa"))
    with pytest.raises(UsageError, match=r"--fasta: none given, .* ##reference is '/nowhere/hg19.fa'"):
        score(path, fasta=None)
    with open_variants(tmp_path / "named.vcf") as source:
        assert find_fasta(Path("mine.fa"), source) == Path("mine.fa")


def test_without_any_fasta(score, vcf):
    with pytest.raises(UsageError, match="--fasta: none given, and the header names none"):
        score(fasta=None)


def test_no_clobber_keeps_what_is_there(score, tmp_path):
    (tmp_path / "out.tsv").write_text("mine")
    with pytest.raises(OutputExistsError):
        score(no_clobber=True)
    assert (tmp_path / "out.tsv").read_text() == "mine"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ScoreSettings, {"strand": "reverse"}, "--strand: got 'reverse', expected one of both, forward"),
        (ScoreOutput, {"header": "maybe"}, "--header: got 'maybe', expected auto, always or never"),
        (ScoreOutput, {"resume": True}, "--resume: got standard output, expected --output FILE"),
    ],
)
def test_settings_that_cannot_be(kind, options, message):
    with pytest.raises(UsageError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("text", "device", "length", "size"),
    [("auto", "cpu", 12_000, 1), ("auto", "cuda", 12_000, 10), ("auto", "cuda", 100, 64),
     ("auto", "cuda", 1_000_000, 1), ("7", "cpu", 12_000, 7)],
)  # fmt: skip
def test_batch_sizes(text, device, length, size):
    assert default_batch_size(text, torch.device(device), length) == size


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", ""])
def test_batch_sizes_that_cannot_be(text):
    with pytest.raises(UsageError, match=r"--batch-size: got .* expected auto or a whole number"):
        default_batch_size(text, torch.device("cpu"), 100)


class Stub:
    """Scores nothing, at once."""

    def __init__(self, runner, **options):
        pass

    def score(self, work):
        return [Scores(0.0, 0.0, 0.0, 0.0) for _ in work]


def test_memory_does_not_grow_with_the_number_of_records(score, tmp_path, monkeypatch):
    monkeypatch.setattr(score_rows, "WindowScorer", Stub)
    peaks = []
    for count in (200, 200, 2_000, 6_000):
        path = tmp_path / "many.vcf"
        snvs = ([100 + i % 90, None, "A"] for i in range(count))
        letters = genome().upper()
        path.write_text(HEADER + "".join(lines_of((s, letters[s], a) for s, _, a in snvs)))
        tracemalloc.start()
        score(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The first run imports and compiles; the others differ by less than a tenth of a block of records.
    assert all(later < 1.1 * earlier for earlier, later in pairwise(peaks[1:])), peaks
