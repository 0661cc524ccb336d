"""The task behind `lrgenome embed`: rows, values against the definition, whatever else is asked for."""

from itertools import pairwise
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrgenome.dna import N, encode
from lrgenome.engine.sweep import Chunk
from lrgenome.errors import BedError, NumericalError, OutputExistsError, UsageError
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.io.fasta import Fasta
from lrgenome.io.hdf5 import read_embeddings
from lrgenome.io.hdf5_reader import ROW_COLUMNS
from lrgenome.tasks import embed as task
from lrgenome.tasks.embed import Embedder, EmbedSettings, Row, find_rows, groups, run

STRANDS = {"forward": (FORWARD,), "reverse": (REVERSE,), "both": (FORWARD, REVERSE)}
BINS = {"context": 300, "bin_size": 128}
"""Cores of 256 bp, two bins each, with 75 bp of halo."""


@pytest.fixture
def fasta(toy_fasta):
    with Fasta(toy_fasta) as opened:
        yield opened


@pytest.fixture
def bed(tmp_path):
    """Unsorted intervals: in one core, across one edge and across three, twice the same, on two contigs."""
    path = tmp_path / "intervals.bed"
    path.write_text(
        "chr2\t350\t460\tcodes\nchr1\t290\t310\tedge\nchr1\t700\t1650\tlong\nM\t0\t61\n"
        "chr1\t10\t11\tone base\nchr1\t290\t310\tagain\n1\t4990\t5003\tend\n"
    )
    return path


@pytest.fixture
def embed(tiny, runner, toy_fasta, tmp_path):
    """Run the task and return its output's path."""

    def go(out="out.h5", *, use=None, **options):
        ours = {k: v for k, v in options.items() if k in EmbedSettings.__dataclass_fields__}
        rest = {k: v for k, v in options.items() if k not in ours}
        path = tmp_path / out
        defaults = {
            "dtype": "float32", "compression": "gzip", "resume": False, "no_clobber": False,
            "no_version": False, "dry_run": False,
        }  # fmt: skip
        run(toy_fasta, path, tiny, use or runner, EmbedSettings(**ours), **{**defaults, **rest})
        return path

    return go


def load(path):
    """Read all columns and the attributes."""
    with read_embeddings(path) as file:
        columns = {name: getattr(file, name)[:] for name in ("embeddings", *ROW_COLUMNS)}
        return columns | {"attrs": file.attrs}


def slow_rows(slow, sequences, rows, *, core, halo, strand="forward", layers=None, pool=True):
    """Average, base by base, the states that each base has in the window of its own core."""
    windows = {}

    def state(contig, position):
        number = position // core
        if (contig, number) not in windows:
            sequence = sequences[contig]
            start = max(0, number * core - halo)
            end = min(len(sequence), min(len(sequence), (number + 1) * core) + halo)
            states = [slow.states(sequence[start:end], way, layers) for way in STRANDS[strand]]
            windows[contig, number] = start, sum(states) / len(states)
        start, states = windows[contig, number]
        return states[position - start]

    found = [[state(contig, i) for i in range(start, end)] for contig, start, end in rows]
    return np.array([np.mean(states, 0) for states in found]) if pool else np.array(found)


def close(got, expected, tolerance=1e-4):
    return np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def test_bins_of_a_genome(embed, slow_model, toy_sequences):
    """Ragged last bins, a contig shorter than a bin, N and IUPAC codes; each value is the definition's."""
    out = load(embed(**BINS))
    expected = [
        (contig, start, min(start + 128, len(text)))
        for contig, text in toy_sequences.items()
        for start in range(0, len(text), 128)
    ]
    rows = list(zip(out["chrom"], out["start"], out["end"], strict=True))
    assert rows == expected and expected[-1] == ("MT", 0, 61)
    assert set(out["strand"]) == {"+"} and set(out["name"]) == {""}
    n_frac = [(encode(toy_sequences[c][a:b]) == N).mean() for c, a, b in expected]
    np.testing.assert_allclose(out["n_frac"], n_frac, rtol=1e-6)
    assert close(out["embeddings"], slow_rows(slow_model, toy_sequences, rows, core=256, halo=75))


@pytest.mark.parametrize(
    ("strand", "layer", "mark"),
    [
        ("forward", None, "+"),
        ("reverse", None, "-"),
        ("both", None, "."),
        ("forward", 1, "+"),
        ("both", 1, "."),
        ("forward", 2, "+"),
    ],
)
def test_intervals_strands_and_layers(embed, slow_model, toy_sequences, bed, strand, layer, mark):
    out = load(embed(bed=bed, context=256, strand=strand, layer=layer))
    rows = list(zip(out["chrom"], out["start"], out["end"], strict=True))
    assert rows[:2] == [("chr2", 350, 460), ("chr1", 290, 310)] and rows[3][0] == "MT" and len(rows) == 7
    assert list(out["name"]) == ["codes", "edge", "long", "", "one base", "again", "end"]
    assert set(out["strand"]) == {mark}
    raw = 1 if layer == 1 else None
    expected = slow_rows(slow_model, toy_sequences, rows, core=256, halo=64, strand=strand, layers=raw)
    assert close(out["embeddings"], expected)
    assert out["attrs"]["layer"] == (layer or 2) and out["attrs"]["final_norm"] == (layer != 1)
    assert (out["embeddings"][1] == out["embeddings"][5]).all()


@pytest.mark.parametrize("strand", ["forward", "both"])
def test_every_base_of_intervals(embed, slow_model, toy_sequences, tmp_path, strand):
    bed = tmp_path / "equal.bed"
    bed.write_text("chr1\t500\t540\nchr2\t0\t40\nchr1\t4963\t5003\n")
    out = load(embed(bed=bed, context=256, pool="none", strand=strand))
    assert out["embeddings"].shape == (3, 40, 16)
    rows = list(zip(out["chrom"], out["start"], out["end"], strict=True))
    expected = slow_rows(slow_model, toy_sequences, rows, core=256, halo=64, strand=strand, pool=False)
    assert close(out["embeddings"], expected)
    pooled = load(embed("pooled.h5", bed=bed, context=256, strand=strand))["embeddings"]
    np.testing.assert_allclose(out["embeddings"].mean(1), pooled, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 100, 405, 406, 1_000])
def test_chunks_do_not_matter(embed, make_runner, tmp_path, chunk):
    bed = tmp_path / "few.bed"
    bed.write_text("chr1\t250\t260\nchr1\t1000\t1300\n" if chunk < 10 else "chr1\t0\t5003\nMT\t5\t8\n")
    whole = load(embed("whole.h5", bed=bed, context=256))["embeddings"]
    cut = load(embed("cut.h5", bed=bed, context=256, use=make_runner(chunk=chunk)))["embeddings"]
    assert close(cut, whole, 5e-5)


def same(one, two):
    return all(np.array_equal(one[name], two[name]) for name in ("embeddings", *ROW_COLUMNS))


def test_the_store_does_not_matter(embed, make_runner):
    ram, disk = (load(embed(f"{s}.h5", use=make_runner(chunk=60, store=s), **BINS)) for s in ("ram", "disk"))
    assert same(ram, disk) and ram["attrs"] == disk["attrs"]


def test_a_row_does_not_depend_on_the_other_rows(embed, bed, tmp_path):
    together = load(embed(bed=bed, context=256))["embeddings"]
    for i, line in enumerate(bed.read_text().splitlines()):
        (tmp_path / "alone.bed").write_text(line + "\n")
        (alone,) = load(embed("alone.h5", bed=tmp_path / "alone.bed", context=256))["embeddings"]
        assert (alone == together[i]).all()


@pytest.mark.parametrize("kind", ["bins", "bed"])
@pytest.mark.parametrize("parts", [2, 5])
def test_shards_together_are_the_whole(embed, bed, kind, parts):
    how = {"context": 256, "bed": bed} if kind == "bed" else BINS
    whole = load(embed(**how))
    shards = [load(embed(f"{i}.h5", **how, shard=f"{i}-of-{parts}")) for i in range(1, parts + 1)]
    for name in ("embeddings", *ROW_COLUMNS):
        assert np.array_equal(np.concatenate([shard[name] for shard in shards]), whole[name])


def test_regions_choose_whole_bins_of_the_grid(embed, tmp_path):
    whole = load(embed(**BINS))
    regions = tmp_path / "regions.bed"
    regions.write_text("MT\t60\t61\nchr1\t900\t901\n")
    part = load(
        embed("part.h5", **BINS, regions=("chr1:300-500,chr1:501-513", "2:1000"), regions_file=regions)
    )
    starts = [("chr1", 256), ("chr1", 384), ("chr1", 512), ("chr1", 896)]
    starts += [("chr2", 896), ("chr2", 1024), ("chr2", 1152), ("MT", 0)]
    assert list(zip(part["chrom"], part["start"], strict=True)) == starts
    keys = list(zip(whole["chrom"], whole["start"], strict=True))
    chosen = [keys.index(key) for key in starts]
    assert np.array_equal(part["embeddings"], whole["embeddings"][chosen])
    assert np.array_equal(part["end"], whole["end"][chosen])


def test_regions_choose_intervals_of_a_bed(embed, bed):
    out = load(embed(bed=bed, context=256, regions=("chr1:1-300", "MT")))
    assert list(out["name"]) == ["edge", "", "one base", "again"]


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 700),
    spans=st.lists(st.tuples(st.integers(0, 1199), st.integers(1, 400)), max_size=4),
    cut=st.integers(1, 9),
)
def test_bins_are_a_grid_without_gaps_or_doubles(size, spans, cut):
    genome = SimpleNamespace(contigs={"chr2": 1_200, "MT": 61})
    regions = tuple(f"chr2:{a + 1}-{min(1200, a + n)}" for a, n in spans)
    how = EmbedSettings(bin_size=size, regions=regions)
    source = find_rows(genome, how, "auto")
    rows = list(source.rows(size, 0, source.total))
    assert len(rows) == source.total
    grid = [Row(c, a, min(a + size, n), "") for c, n in genome.contigs.items() for a in range(0, n, size)]
    if regions:
        touched = {i for a, n in spans for i in range(a, min(1200, a + n))}
        grid = [row for row in grid if row.contig == "chr2" and touched & set(range(row.start, row.end))]
    assert rows == grid
    edges = [source.total * i // cut for i in range(cut + 1)]
    parts = [row for a, b in pairwise(edges) for row in source.rows(size, a, b)]
    assert parts == rows


def test_rows_are_grouped_by_core_and_by_number(fasta, monkeypatch):
    how = EmbedSettings(**BINS)
    rows = list(find_rows(fasta, how, "auto").rows(128, 0, 1_000))
    grouped = list(groups(iter(rows), how, 16))
    assert [row for group in grouped for row in group] == rows
    assert all(len({(r.contig, r.start // how.core) for r in group}) == 1 for group in grouped)
    monkeypatch.setattr(task, "_GROUP_ROWS", 3)
    bed = EmbedSettings(bed=fasta.path)
    assert {len(group) for group in groups(iter(rows[:9]), bed, 16)} == {3}
    # Bases that are kept apart take more room than means.
    monkeypatch.setattr(task, "_GROUP_BYTES", 2 * 128 * 16 * 8)
    apart = EmbedSettings(bed=fasta.path, pool="none")
    assert [len(group) for group in groups(iter(rows[:5]), apart, 16)] == [2, 2, 1]
    assert list(groups(iter([]), how, 16)) == []


@pytest.mark.parametrize(
    ("context", "bin_size", "core", "halo"),
    [(100_000, 1_024, 100_352, 25_000), (300, 128, 256, 75), (10, 128, 128, 2), (1_000, 1_000, 1_000, 250)],
)
def test_cores_are_whole_bins(context, bin_size, core, halo):
    how = EmbedSettings(context=context, bin_size=bin_size)
    assert (how.core, how.halo) == (core, halo)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "no interval to embed"),
        ("# nothing\n", {}, "no interval to embed"),
        ("chr1\t10\t20\n", {"regions": ("MT",)}, "no interval to embed"),
        ("chr1\t10\t20\nMT\t50\t62\n", {}, r"interval 2: got end 62, expected at most 61, the length of MT"),
        ("chr7\t10\t20\n", {}, "interval 1: contig 'chr7' is not in toy.fa"),
        ("chr1\t10\t20\nchr1\t10\t21\n", {"pool": "none"}, r"interval 2: got 11 bp, expected 10 as before"),
        ("chr1\t20\t20\n", {}, "expected start < end"),
    ],
)
def test_intervals_that_cannot_be(embed, tmp_path, text, options, message):
    path = tmp_path / "bad.bed"
    path.write_text(text)
    with pytest.raises(BedError, match=message):
        embed(bed=path, **options)
    assert not list(tmp_path.glob("out.h5*"))


def test_regions_past_the_end_of_a_contig_are_refused(embed, tmp_path):
    path = tmp_path / "past.bed"
    path.write_text("MT\t500\t1500\n")
    with pytest.raises(BedError, match="got MT:500-1500, expected an end of at most 61"):
        embed(regions_file=path, **BINS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 0}, "--layer: got 0, expected 1 to 2"),
        ({"layer": 3}, "--layer: got 3, expected 1 to 2"),
        ({"strand": "both ways"}, "--strand: got 'both ways', expected one of forward, reverse, both"),
        ({"pool": "max"}, "--pool: got 'max', expected mean or none"),
        ({"pool": "none"}, "--pool none needs --bed"),
        ({"shard": "1/200"}, "--shard: got 1/200, but there are only 51 rows"),
        ({"dtype": "float64"}, "got dtype 'float64', expected float32 or float16"),
    ],
)
def test_settings_that_cannot_be(embed, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        embed(**{**BINS, **options})
    assert not list(tmp_path.glob("out.h5*"))


def test_states_that_are_not_finite_are_an_error_with_their_place(embed, runner, tmp_path, monkeypatch):
    stream = runner.stream

    def broken(ids, **options):
        for part in stream(ids, **options):
            if ids.shape[1] == 61:
                part = Chunk(part.start, part.end, torch.full_like(part.hidden, float("nan")))
            yield part

    monkeypatch.setattr(runner, "stream", broken)
    with pytest.raises(NumericalError, match="hidden states that are not finite numbers at MT:1-61"):
        embed(**BINS)
    assert not (tmp_path / "out.h5").exists()


def test_attributes_say_how_it_was_made(embed, bed):
    attrs = load(embed(**BINS))["attrs"]
    assert attrs["complete"] is True and attrs["coordinate_system"] == "0-based half-open"
    assert {k: attrs[k] for k in ("context", "core", "halo", "bin_size", "stride", "pool", "strand")} == {
        "context": 300, "core": 256, "halo": 75, "bin_size": 128, "stride": 128, "pool": "mean",
        "strand": "forward",
    }  # fmt: skip
    assert attrs["model"] == "tiny" and attrs["tool"].startswith("lrgenome ")
    assert attrs["reference"].startswith("toy.fa:") and attrs["precision"] == "float32"
    attrs = load(embed(bed=bed, no_version=True))["attrs"]
    assert "tool" not in attrs and attrs["bin_size"] == attrs["stride"] == 0


def test_a_dry_run_counts_and_writes_nothing(embed, fasta, tmp_path, capsys):
    before = set(tmp_path.iterdir())
    embed(dry_run=True, strand="both", **BINS)
    assert set(tmp_path.iterdir()) == before
    said = {key: int(value) for key, value in map(str.split, capsys.readouterr().out.splitlines())}
    windows = [
        min(n, k + 256 + 75) - max(0, k - 75) for n in fasta.contigs.values() for k in range(0, n, 256)
    ]
    assert said["rows"] == 51 and said["bases_to_run"] == 2 * sum(windows)
    assert said["bytes"] >= 51 * 16 * 4


def test_no_clobber_keeps_what_is_there(embed, tmp_path):
    (tmp_path / "out.h5").write_text("mine")
    with pytest.raises(OutputExistsError):
        embed(no_clobber=True, **BINS)
    assert (tmp_path / "out.h5").read_text() == "mine"


def test_an_interrupted_run_goes_on_where_it_stopped(embed, tmp_path, monkeypatch):
    monkeypatch.setattr("lrgenome.io.hdf5.CHUNK_BYTES", 5 * 16 * 4)
    whole, calls, limits = load(embed("whole.h5", **BINS)), [], [0]
    work = Embedder.embed

    def stopping(self, rows, *rest):
        calls.extend(rows)
        if len(calls) > limits[0]:
            raise KeyboardInterrupt
        return work(self, rows, *rest)

    monkeypatch.setattr(Embedder, "embed", stopping)
    for limits[0] in (17, 30, 1_000):
        calls.clear()
        try:
            embed(resume=True, **BINS)
        except KeyboardInterrupt:
            assert not (tmp_path / "out.h5").exists()
            with h5py.File(tmp_path / "out.h5.partial") as file:
                assert not file.attrs["complete"] and file["done"][:].sum() > 0
    assert len(calls) < 51 - 30
    assert same(load(tmp_path / "out.h5"), whole)
