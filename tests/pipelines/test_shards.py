"""What a shard guarantees: parts of the input, in order, each once, whatever their number."""

import tempfile
from pathlib import Path

import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrgenome.io.fasta import Fasta
from lrgenome.io.vcf import open_variants
from lrgenome.tasks.score_vcf import select
from lrgenome.tasks.variants import VariantPlanner

from .conftest import FASTA, SCORE, VCF, text_of

HEAD = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
positions = st.lists(st.integers(1, 2_000_000), min_size=1, max_size=60)


@settings(max_examples=40, deadline=None)
@given(positions, st.integers(1, 70), st.sampled_from([500, 12_000, 1_000_000]), st.booleans(), st.booleans())
def test_shards_have_every_record_once_in_order(places, parts, context, tiles, in_order):
    """Unsorted too, more shards than records too, with tiles that are shared and that are not."""
    places = sorted(places) if in_order else places
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.vcf"
        path.write_text(HEAD + "".join(f"20\t{p}\tid{i}\tN\tC\t.\t.\t.\n" for i, p in enumerate(places)))
        with open_variants(str(path), None) as source, Fasta(FASTA) as fasta:
            planner = VariantPlanner(fasta, context, check_ref="warn", alias="auto", tiles=tiles)
            shards = [select(source, planner, None, (i, parts)) for i in range(1, parts + 1)]
            found = [record.id for shard in shards for record in shard.records()]
    assert found == [f"id{i}" for i in range(len(places))]
    assert sum(shard.total for shard in shards) == len(places)


@pytest.mark.parametrize("end", ["tsv.gz", "vcf.gz"])
def test_more_shards_than_records(lrgenome, tmp_path, end):
    """Some are empty, and joined they are the whole all the same."""
    few = tmp_path / "few.vcf"
    few.write_text("".join(VCF.read_text().splitlines(keepends=True)[:7]))
    how = (*SCORE[:1], few, *SCORE[2:4], "--context", "2kbp", "-q")
    lrgenome(*how, "-o", tmp_path / f"whole.{end}")
    for i in range(1, 6):
        lrgenome(*how, "-o", tmp_path / f"{i}.{end}", "--shard", f"{i}-of-5")
    parts = [(tmp_path / f"{i}.{end}").read_bytes() for i in range(1, 6)]
    (tmp_path / f"joined.{end}").write_bytes(b"".join(parts))
    assert text_of(tmp_path / f"joined.{end}") == text_of(tmp_path / f"whole.{end}")
    assert sum(text_of(tmp_path / f"{i}.{end}") in (b"",) for i in range(2, 6)) >= 1
    if end == "vcf.gz":
        pysam.tabix_index(str(tmp_path / f"joined.{end}"), preset="vcf")
        with pysam.VariantFile(str(tmp_path / f"joined.{end}")) as file:
            assert sum(1 for _ in file.fetch("20")) == 3


def test_joined_shards_are_bgzf_with_one_header(lrgenome, whole, tmp_path):
    """Blocks of all parts, and end markers between them, which readers skip; the table of a whole run."""
    parts = []
    for i in (1, 2, 3):
        lrgenome(*SCORE, "-q", "-o", tmp_path / f"{i}.tsv.gz", "--shard", f"{i}-of-3")
        parts.append((tmp_path / f"{i}.tsv.gz").read_bytes())
    joined = b"".join(parts)
    (tmp_path / "joined.tsv.gz").write_bytes(joined)
    at, seen = 0, 0
    while at < len(joined):
        assert joined[at : at + 4] == b"\x1f\x8b\x08\x04" and joined[at + 12 : at + 14] == b"BC"
        at += int.from_bytes(joined[at + 16 : at + 18], "little") + 1
        seen += 1
    assert at == len(joined) and seen == 6
    text = text_of(tmp_path / "joined.tsv.gz")
    assert text == (whole / "scores.tsv").read_bytes() and text.count(b"#CHROM") == 1
    pysam.tabix_index(str(tmp_path / "joined.tsv.gz"), seq_col=0, start_col=1, end_col=1)
    with pysam.TabixFile(str(tmp_path / "joined.tsv.gz")) as table:
        assert len(list(table.fetch("20", 1_373_825, 1_373_845))) == 60


@pytest.mark.parametrize(("end", "how"), [("vcf.gz", "--naive -Oz"), ("bcf", "--no-version -Ob")])
def test_variants_of_shards_are_joined_by_bcftools(lrgenome, whole, shell, tmp_path, end, how):
    """Each with a header; byte for byte where lines are kept."""
    for i in (1, 2, 3):
        out = tmp_path / f"{i}.{end}"
        lrgenome(*SCORE, "-q", "-o", out, "--shard", f"{i}-of-3", "--header", "always")
    shell(f"bcftools concat {how} -o joined.{end} 1.{end} 2.{end} 3.{end}; bcftools index joined.{end}", tmp_path)
    if end == "vcf.gz":
        assert text_of(tmp_path / "joined.vcf.gz") == (whole / "scores.vcf").read_bytes()
    with pysam.VariantFile(str(tmp_path / f"joined.{end}")) as ours:
        with pysam.VariantFile(str(whole / "scores.vcf")) as theirs:
            assert [str(r) for r in ours] == [str(r) for r in theirs]
        assert sum(1 for _ in ours.fetch("20", 1_600_000, 1_700_000)) == 1
