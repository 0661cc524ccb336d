from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrgenome.errors import BedError, UsageError
from lrgenome.tasks.selection import Regions, parse_shard, read_regions, shard_range

CONTIGS = {"20": 5_000_000, "MT": 16_569, "11:5226447-5228071": 1_625, "a,b": 100}


@pytest.mark.parametrize(
    ("text", "shard"),
    [
        (None, (1, 1)),
        ("1/4", (1, 4)),
        ("4/4", (4, 4)),
        ("1-of-4", (1, 4)),
        (" 2 / 3 ", (2, 3)),
        ("10-of-12", (10, 12)),
    ],
)
def test_shards_are_read_in_both_spellings(text, shard):
    assert parse_shard(text) == shard


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "1 of 4", "-1/4", "1/4/2", "a/b", "", "1.0/2"])
def test_other_shards_are_refused(text):
    with pytest.raises(UsageError, match=r"--shard: got .* expected I/N or I-of-N"):
        parse_shard(text)


@given(st.integers(0, 1000), st.integers(1, 60))
def test_shards_cover_everything_once_in_order(total, parts):
    ranges = [shard_range(total, (part, parts)) for part in range(1, parts + 1)]
    assert [i for low, high in ranges for i in range(low, high)] == list(range(total))
    sizes = [high - low for low, high in ranges]
    assert max(sizes) - min(sizes) <= 1


_SPAN = st.builds(
    lambda contig, start, length: (contig, start, start + length),
    st.sampled_from("ab"),
    st.integers(0, 12),
    st.integers(1, 4),
)


@given(st.lists(_SPAN, max_size=8), st.sampled_from("abc"), st.integers(-1, 16), st.integers(0, 4))
@example([("a", 2, 4)], "a", 4, 1)
@example([("a", 2, 4)], "a", 0, 2)
def test_overlaps_is_what_counting_bases_says(spans, contig, start, length):
    inside = {(name, i) for name, low, high in spans for i in range(low, high)}
    touched = any((contig, i) in inside for i in range(start, start + max(1, length)))
    assert Regions(spans).overlaps(contig, start, start + length) == touched


@given(st.lists(_SPAN, max_size=8))
def test_spans_are_merged_and_sorted(spans):
    merged = Regions(spans).spans
    for own in merged.values():
        assert all(a[1] < b[0] for a, b in pairwise(own))
    covered = {(c, i) for c, own in merged.items() for low, high in own for i in range(low, high)}
    assert covered == {(c, i) for c, low, high in spans for i in range(low, high)}


@pytest.mark.parametrize(
    ("texts", "spans"),
    [
        (["20:1-10"], {"20": [(0, 10)]}),
        (["20:1,000,001-2,000,000"], {"20": [(1_000_000, 2_000_000)]}),
        (["20:1,001-2,000,MT"], {"20": [(1_000, 2_000)], "MT": [(0, 16_569)]}),
        (["20:1-10,MT:5-5", "20:11-12"], {"20": [(0, 12)], "MT": [(4, 5)]}),
        (["20:4,999,000"], {"20": [(4_998_999, 5_000_000)]}),
        (["11:5226447-5228071"], {"11:5226447-5228071": [(0, 1_625)]}),
        (["11:5226447-5228071:10-20"], {"11:5226447-5228071": [(9, 20)]}),
        (["a,b"], {"a,b": [(0, 100)]}),
        (["chr20:1-10", "chrM"], {"20": [(0, 10)], "MT": [(0, 16_569)]}),
    ],
)
def test_regions(texts, spans):
    assert read_regions(texts, None, CONTIGS, "auto").spans == spans


def test_without_regions_there_is_no_limit():
    assert read_regions(None, None, CONTIGS, "auto") is None
    assert read_regions([], None, CONTIGS, "auto") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("21", "there is no contig '21'"),
        ("20:0-5", "expected 1 <= START"),
        ("20:9-5", "expected 1 <= START"),
        ("MT:16000-17000", "16,569, the length of 'MT'"),
        ("20:x-y", "expected START-END"),
    ],
)
def test_impossible_regions_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        read_regions([text], None, CONTIGS, "auto")


def test_names_are_exact_when_aliases_are_off():
    with pytest.raises(UsageError, match="there is no contig 'chr20'"):
        read_regions(["chr20:1-10"], None, CONTIGS, "none")


def test_a_file_adds_to_the_regions(tmp_path):
    bed = tmp_path / "regions.bed"
    bed.write_text("chr20\t5\t9\nM\t0\t16569\n")
    regions = read_regions(["20:8-12"], bed, CONTIGS, "auto")
    assert regions.spans == {"20": [(5, 12)], "MT": [(0, 16_569)]}
    with pytest.raises(BedError, match="contig 'chr20' is not in the FASTA"):
        read_regions(None, bed, CONTIGS, "none")


def test_a_file_of_another_assembly_is_refused(tmp_path):
    bed = tmp_path / "regions.bed"
    bed.write_text("MT\t16000\t16570\n")
    with pytest.raises(BedError, match=r"got MT:16000-16570, expected an end of at most 16569"):
        read_regions(None, bed, CONTIGS, "auto")
