import gzip
import io
import itertools
import sys
from pathlib import Path

import pysam
import pytest

from lrgenome.errors import OutputError, UsageError
from lrgenome.io.alleles import classify
from lrgenome.io.atomic import partial_path
from lrgenome.io.scores import (
    ScoreJournal,
    ScoreRow,
    check_score_suffix,
    format_rows,
    header_text,
    publish_scores,
    read_scores,
)
from lrgenome.io.vcf import open_variants

VARIANTS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "variants"
SETTINGS = {"model": "toy", "context": 12000}
VCF = (
    "##fileformat=VCFv4.2\n"
    '##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">\n'
    "##contig=<ID=20>\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    "20\t5\trs1\tA\tC,<DEL>\t.\tPASS\tDP=3\n"
    "20\t7\t.\tg\t.\t.\t.\t.\n"
    "20\t9\t.\tN\tT\t.\t.\tDP=1\n"
)
UNDECLARED = VCF.replace("##contig=<ID=20>\n", "").replace(
    "20\t9\t.\tN\tT\t.\t.\tDP=1\n", "1:5-9\t2\t.\tN\tT\t.\tq10;s50\tDP=1;NEW=a,b;FLAG\n"
)


def score(record):
    """One row an allele, with a value that depends on the record alone."""
    for alt in record.alts or (".",):
        status = classify(record.ref, alt)
        value = None if status else -(record.pos % 97) / 7
        yield ScoreRow(value, value, None, float("nan"), None, (status or "OK", "EDGE"))


def rows_of(record):
    return format_rows(record, list(score(record)))


def make_source(folder, text=VCF):
    (folder / "in.vcf").write_text(text)
    return open_variants(folder / "in.vcf")


def run(source, output, resume=False, header=None, **options):
    """Score every record, as a command does."""
    journal = partial_path(output)
    with ScoreJournal(journal, header or header_text(SETTINGS), resume) as out:
        done = out.resume_from(source.records()) if resume else 0
        for record in source.records(done):
            out.append(rows_of(record))
    publish_scores(journal, output, source, **options)
    return done


def text_of(path):
    return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()


def test_suffixes():
    assert check_score_suffix("a.b.vcf.GZ", write_index=True) == ".vcf.gz"
    assert check_score_suffix("-") == ".tsv"
    for bad in ("a.txt", "a", "a.gz", "a.csv"):
        with pytest.raises(UsageError, match="expected a name ending in"):
            check_score_suffix(bad)
    with pytest.raises(UsageError, match="to index"):
        check_score_suffix("a.tsv", write_index=True)


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz"])
def test_table_reads_back(tmp_path, suffix):
    output = tmp_path / f"out{suffix}"
    with make_source(tmp_path) as source:
        run(source, output)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["in.vcf", output.name])
    rows = list(read_scores(output))
    assert [(r["CHROM"], r["POS"], r["ID"], r["REF"], r["ALT"]) for r in rows] == [
        ("20", 5, "rs1", "A", "C"),
        ("20", 5, "rs1", "A", "<DEL>"),
        ("20", 7, ".", "g", "."),
        ("20", 9, ".", "N", "T"),
    ]
    assert rows[0]["LLR"] == pytest.approx(-4 / 7, rel=1e-5)
    assert rows[0]["DIST_L2"] is rows[0]["PLL_DIFF"] is rows[1]["LLR"] is None
    assert rows[1]["STATUS"] == ("ALT_SYMBOLIC", "EDGE")


def test_shards_concatenate(tmp_path):
    with make_source(tmp_path) as source:
        run(source, tmp_path / "whole.tsv")
        parts = []
        for index in (0, 1):
            output = tmp_path / f"{index}.tsv.gz"

            def ours(index=index):
                return itertools.islice(source.records(), 2 * index, 2 * index + 2)

            with ScoreJournal(partial_path(output), header_text(SETTINGS)) as journal:
                for rec in ours():
                    journal.append(rows_of(rec))
            publish_scores(partial_path(output), output, source, header=index == 0, records=ours)
            parts.append(output.read_bytes())
    (tmp_path / "cat.tsv.gz").write_bytes(b"".join(parts))
    assert text_of(tmp_path / "cat.tsv.gz") == text_of(tmp_path / "whole.tsv")
    assert len(list(read_scores(tmp_path / "cat.tsv.gz"))) == 4


def test_plain_table_without_header_or_version(tmp_path):
    with make_source(tmp_path) as source:
        run(source, tmp_path / "bare.tsv", header=header_text(SETTINGS), no_version=True)
        assert "##tool" not in text_of(tmp_path / "bare.tsv")
        journal = tmp_path / "bare.tsv.partial"
        (tmp_path / "bare.tsv").rename(journal)
        publish_scores(journal, tmp_path / "bare.tsv", source, header=False)
    assert text_of(tmp_path / "bare.tsv").startswith("20\t5\t")
    assert not journal.exists()


def test_standard_output(tmp_path, monkeypatch):
    out = type("Out", (), {"buffer": io.BytesIO()})
    monkeypatch.setattr(sys, "stdout", out)
    journal = tmp_path / "j.partial"
    with make_source(tmp_path) as source:
        with ScoreJournal(journal, header_text(SETTINGS)) as handle:
            handle.append("".join(map(rows_of, source.records())))
        text = journal.read_bytes()
        publish_scores(journal, "-", source)
    assert out.buffer.getvalue() == text
    assert not journal.exists()


@pytest.mark.parametrize("suffix", [".vcf", ".vcf.gz", ".bcf"])
@pytest.mark.parametrize("text", [VCF, UNDECLARED], ids=["declared", "undeclared"])
def test_vcf_reads_back_with_every_field(tmp_path, suffix, text, capfd):
    output = tmp_path / f"out{suffix}"
    with make_source(tmp_path, text) as source:
        run(source, output)
        expected = [r.line.split("\t") for r in source.records()]
    with open_variants(output) as source:
        got = [r.line.split("\t") for r in source.records()]
        meta = source.meta
    assert [line[:7] for line in got] == [line[:7] for line in expected]
    for new, old in zip(got, expected, strict=True):
        assert new[7].startswith("LRG_LLR=" if old[7] == "." else f"{old[7]};LRG_LLR=")
    assert sum("##INFO=<ID=LRG_" in line for line in meta) == 2
    assert sum(line.startswith("##lrgenome=lrgenome ") for line in meta) == 1
    if suffix == ".bcf" or text == VCF:
        with pysam.VariantFile(str(output)) as handle:
            first, second, third = handle
            assert first.info["LRG_LLR"] == (pytest.approx(-4 / 7, rel=1e-5), None)
            assert first.info["LRG_STATUS"] == ("OK&EDGE", "ALT_SYMBOLIC&EDGE")
            assert second.info["LRG_STATUS"] == ("ALT_MISSING&EDGE",)
            assert third.info["DP"] == 1
    capfd.readouterr()


def test_scoring_again_replaces_the_earlier_fields(tmp_path):
    with make_source(tmp_path) as source:
        run(source, tmp_path / "one.vcf")
    with open_variants(tmp_path / "one.vcf") as source:
        run(source, tmp_path / "two.vcf")
    assert text_of(tmp_path / "two.vcf") == text_of(tmp_path / "one.vcf")


def test_no_version_in_vcf(tmp_path):
    with make_source(tmp_path) as source:
        run(source, tmp_path / "a.vcf", no_version=True)
    assert "lrgenome" not in text_of(tmp_path / "a.vcf")


@pytest.mark.parametrize("suffix", [".vcf", ".vcf.gz", ".bcf"])
def test_only_bcf_keeps_its_header_when_none_is_wanted(tmp_path, suffix):
    output = tmp_path / f"a{suffix}"
    with make_source(tmp_path) as source:
        with ScoreJournal(partial_path(output), header_text(SETTINGS)) as journal:
            journal.append("".join(map(rows_of, source.records())))
        publish_scores(partial_path(output), output, source, header=False)
    if suffix == ".bcf":
        with open_variants(output) as scored:
            assert len(list(scored.records())) == 3
    else:
        assert text_of(output).startswith("20\t5\trs1\t")
        assert text_of(output).count("\n") == 3


def test_bytes_are_the_same_each_time(tmp_path):
    for suffix in (".tsv.gz", ".vcf.gz", ".bcf"):
        found = set()
        for name in ("a", "b"):
            with make_source(tmp_path) as source:
                run(source, tmp_path / f"{name}{suffix}", write_index=True)
            found.add((tmp_path / f"{name}{suffix}").read_bytes())
        assert len(found) == 1


@pytest.mark.parametrize(("suffix", "index"), [(".tsv.gz", "tbi"), (".vcf.gz", "tbi"), (".bcf", "csi")])
def test_index(tmp_path, suffix, index):
    output = tmp_path / f"out{suffix}"
    (tmp_path / f"out{suffix}.csi").write_bytes(b"stale")
    with make_source(tmp_path) as source:
        run(source, output, write_index=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["in.vcf", output.name, f"{output.name}.{index}"]
    )
    if suffix == ".tsv.gz":
        with pysam.TabixFile(str(output)) as table:
            assert [row.split("\t")[1] for row in table.fetch("20", 6, 9)] == ["7", "9"]
    else:
        with pysam.VariantFile(str(output)) as handle:
            assert [r.pos for r in handle.fetch("20", 6, 9)] == [7, 9]


def test_index_of_a_contig_too_long_for_tbi_and_of_position_zero(tmp_path):
    text = VCF.replace("20\t5\t", "20\t0\t").replace("20\t9\t", "20\t700000000\t")
    with make_source(tmp_path, text) as source:
        run(source, tmp_path / "a.tsv.gz", write_index=True)
    assert (tmp_path / "a.tsv.gz.csi").exists()
    with pysam.TabixFile(str(tmp_path / "a.tsv.gz"), index=str(tmp_path / "a.tsv.gz.csi")) as table:
        assert len(list(table.fetch("20", 699999999, 700000000))) == 1


@pytest.mark.parametrize("suffix", [".tsv.gz", ".vcf.gz", ".bcf"])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("20\t9", "20\t6", "20:6 comes after 20:7"), ("20\t7", "19\t7", "20:9 comes after another contig")],
)
def test_unsorted_output_is_kept_but_not_indexed(tmp_path, suffix, old, new, message):
    output = tmp_path / f"out{suffix}"
    with make_source(tmp_path, VCF.replace(old, new)) as source:
        with pytest.raises(OutputError, match=rf"whole.*not sorted: {message}"):
            run(source, output, write_index=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["in.vcf", output.name])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("DP=1\n", "DP=1\tGT\t0|1\n", "line 7 of the input has 10 columns, its header 8"),
        ("20\t9\t", "20\t5000000000\t", "BCF"),
    ],
)
def test_records_that_bcf_cannot_hold_are_said(tmp_path, capfd, old, new, message):
    output = tmp_path / "out.bcf"
    with make_source(tmp_path, VCF.replace(old, new)) as source:
        with pytest.raises(OutputError, match=rf"{message}.*vcf\.gz"):
            run(source, output)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.vcf", "out.bcf.partial"]
    capfd.readouterr()


def test_a_journal_killed_at_any_byte_and_resumed_gives_the_same_bytes(tmp_path):
    output = tmp_path / "out.tsv"
    with make_source(tmp_path) as source:
        run(source, output)
        whole = output.read_bytes()
        records = [rows_of(r) for r in source.records()]
        ends = [len(whole) - sum(map(len, records[i:])) for i in range(len(records) + 1)]
        for cut in range(len(whole) + 1):
            partial_path(output).write_bytes(whole[:cut])
            assert run(source, output, resume=True) == sum(end <= cut for end in ends[1:])
            assert output.read_bytes() == whole


def test_resume_without_a_partial_and_restart_with_one(tmp_path):
    output = tmp_path / "out.tsv"
    with make_source(tmp_path) as source:
        assert run(source, output, resume=True) == 0
        whole = output.read_bytes()
        partial_path(output).write_bytes(b"rubbish")
        assert run(source, output) == 0
    assert output.read_bytes() == whole


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("20\t5\trs1", "20\t6\trs1"),
        ("\tA\tC,", "\tA\tG,"),
        ("rs1", "rs2"),
        ("20\t7\t.\tg\t.\t", "20\t7\t.\tg\tT\t"),
    ],
)
def test_resume_with_another_input_is_refused(tmp_path, old, new):
    output = tmp_path / "out.tsv"
    with make_source(tmp_path) as source:
        run(source, output)
    output.rename(partial_path(output))
    before = partial_path(output).read_bytes()
    with make_source(tmp_path, VCF.replace(old, new)) as source:
        assert old not in (tmp_path / "in.vcf").read_text()
        with pytest.raises(OutputError, match="another input"):
            run(source, output, resume=True)
    assert partial_path(output).read_bytes() == before


def test_resume_with_a_shorter_input_is_refused(tmp_path):
    output = tmp_path / "out.tsv"
    with make_source(tmp_path) as source:
        run(source, output)
    output.rename(partial_path(output))
    with make_source(tmp_path, VCF[: VCF.rindex("20\t9")]) as source:
        with pytest.raises(OutputError, match="more rows than the input has"):
            run(source, output, resume=True)


@pytest.mark.parametrize("lost", [1, 2, 4])
def test_publishing_an_incomplete_journal_as_vcf_is_refused(tmp_path, lost):
    output = tmp_path / "out.vcf"
    with make_source(tmp_path) as source:
        with ScoreJournal(partial_path(output), header_text(SETTINGS)) as journal:
            journal.append("".join("".join(map(rows_of, source.records())).splitlines(True)[:-lost]))
        with pytest.raises(OutputError, match=r"line [567] of the input"):
            publish_scores(partial_path(output), output, source)
    assert partial_path(output).exists() and not output.exists()


@pytest.mark.parametrize("name", ["1000genomes.chr20_1-2Mb.b37", "clinvar.b37", "vt_indels.chr20.b37"])
def test_real_records_pass_through_every_format(tmp_path, name, capfd):
    path = VARIANTS / f"{name}.vcf.gz"
    if not path.exists():
        pytest.skip("the real variants are not on this machine")
    with open_variants(path) as source:
        records = list(source.records())
        for suffix in (".vcf.gz", ".bcf", ".tsv.gz"):
            run(source, tmp_path / f"out{suffix}", write_index=name.startswith("1000"))
    if name.startswith("1000"):
        assert len(records) == 28998
    with open_variants(tmp_path / "out.vcf.gz") as scored:
        for new, old in zip(scored.records(), records, strict=True):
            fields = new.line.split("\t")
            fields[7] = fields[7].split("LRG_LLR=")[0].rstrip(";") or "."
            assert fields == old.line.split("\t")
            values = new.line.split("LRG_LLR=")[1].split(";")[0]
            assert values.count(",") + 1 == max(1, len(old.alts))
    with open_variants(tmp_path / "out.bcf") as scored:
        for new, old in zip(scored.records(), records, strict=True):
            assert new[:5] == old[:5]
    rows = read_scores(tmp_path / "out.tsv.gz")
    for old in records:
        for alt in old.alts or (".",):
            row = next(rows)
            assert (row["CHROM"], row["POS"], row["REF"], row["ALT"]) == (
                old.chrom,
                old.pos + 1,
                old.ref,
                alt,
            )
    assert next(rows, None) is None
    capfd.readouterr()
