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
