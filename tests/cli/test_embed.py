"""`lrgenome embed` from its command line: the files it writes, its options, real contigs."""

from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest

from lrgenome.io.hdf5 import read_embeddings
from lrgenome.io.hdf5_reader import ROW_COLUMNS

BINS = ("--context", "300", "--bin-size", "128", "--precision", "float32")


@pytest.fixture
def embed(lrgenome, toy_fasta):
    def run(*args, code=0, **options):
        return lrgenome("embed", toy_fasta, *BINS, *args, code=code, **options)

    return run


@pytest.fixture
def bed(tmp_path):
    path = tmp_path / "some.bed"
    path.write_text("chr2\t350\t460\tcodes\nchr1\t290\t310\tedge\nM\t0\t61\nchr1\t700\t1650\tlong\n")
    return path


def load(path):
    with read_embeddings(path) as file:
        return {name: getattr(file, name)[:] for name in ("embeddings", *ROW_COLUMNS)}, file.attrs


def same(one, two):
    return all(np.array_equal(one[0][name], two[0][name]) for name in one[0])


def test_bins(embed, toy_sequences, tmp_path):
    result = embed("-o", tmp_path / "a.h5")
    columns, attrs = load(tmp_path / "a.h5")
    rows = sum(-(-len(text) // 128) for text in toy_sequences.values())
    assert columns["embeddings"].shape == (rows, 16) and columns["embeddings"].dtype == np.float32
    assert (attrs["context"], attrs["bin_size"], attrs["model"]) == (300, 128, "tiny")
    assert f"INFO {rows} rows of 16 values: about 0.0 MB before compression" in result.stderr
    assert result.stdout == "" and not list(tmp_path.glob("*.partial*"))


def test_the_defaults(lrgenome, toy_fasta, tmp_path):
    lrgenome("embed", toy_fasta, "-o", tmp_path / "a.h5")
    columns, attrs = load(tmp_path / "a.h5")
    assert (attrs["context"], attrs["bin_size"], attrs["pool"]) == (100_000, 1_024, "mean")
    assert attrs["strand"] == "forward" and attrs["layer"] == 2 and attrs["final_norm"]
    assert len(columns["start"]) == 5 + 2 + 1


def test_plain_readers_can_read_it(embed, tmp_path):
    embed("-o", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["format"] == "lrgenome-embeddings" and file.attrs["format_version"] == 1
        data = file["embeddings"]
        assert (data.compression, data.compression_opts, data.shuffle) == ("gzip", 4, True)
        assert file["chrom"].asstr()[0] == "chr1" and file["done"][:].all()


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_half_precision(embed, tmp_path, compression):
    embed("-o", tmp_path / "a.h5")
    embed("-o", tmp_path / "b.h5", "--dtype", "float16", "--compression", compression)
    full, half = load(tmp_path / "a.h5")[0]["embeddings"], load(tmp_path / "b.h5")[0]["embeddings"]
    assert half.dtype == np.float16 and np.array_equal(half, full.astype(np.float16))


@pytest.mark.parametrize("kind", ["bins", "bed"])
def test_anndata(embed, bed, tmp_path, kind):
    args = ("--bed", bed) if kind == "bed" else ()
    embed("-o", tmp_path / "a.h5", *args)
    embed("-o", tmp_path / "a.h5ad", *args)
    columns, attrs = load(tmp_path / "a.h5")
    data = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert np.array_equal(data.X, columns["embeddings"])
    for name in ROW_COLUMNS:
        assert np.array_equal(data.obs[name].to_numpy(), columns[name])
    assert data.uns["sha256"] == attrs["sha256"]
    assert sorted(p.name for p in tmp_path.glob("a.*")) == ["a.h5", "a.h5ad"]


def test_states_of_every_base(embed, tmp_path):
    path = tmp_path / "equal.bed"
    path.write_text("chr1\t250\t262\nMT\t0\t12\n")
    embed("-o", tmp_path / "a.h5", "--bed", path, "--pool", "none")
    assert load(tmp_path / "a.h5")[0]["embeddings"].shape == (2, 12, 16)
    result = embed("-o", tmp_path / "a.h5ad", "--bed", path, "--pool", "none", code=2)
    assert "an .h5ad file has one vector a row" in result.stderr


def test_intervals_from_standard_input(embed, bed, tmp_path):
    embed("-o", tmp_path / "a.h5", "--bed", bed)
    embed("-o", tmp_path / "b.h5", "--bed", "-", stdin=bed.read_bytes())
    assert same(load(tmp_path / "a.h5"), load(tmp_path / "b.h5"))


def test_strands(embed, bed, tmp_path):
    found = {}
    for strand in ("forward", "reverse", "both"):
        embed("-o", tmp_path / "a.h5", "--bed", bed, "--strand", strand)
        columns, _ = load(tmp_path / "a.h5")
        found[strand] = columns["embeddings"]
        assert set(columns["strand"]) == {{"forward": "+", "reverse": "-", "both": "."}[strand]}
    mean = (found["forward"] + found["reverse"]) / 2
    np.testing.assert_allclose(found["both"], mean, rtol=1e-5, atol=1e-6)


def test_inner_layers_are_raw(embed, tmp_path):
    for layer in (1, 2):
        embed("-o", tmp_path / f"{layer}.h5", "--layer", layer)
    embed("-o", tmp_path / "last.h5")
    one, two, last = (load(tmp_path / f"{name}.h5") for name in (1, 2, "last"))
    assert same(two, last) and not np.allclose(one[0]["embeddings"], two[0]["embeddings"], atol=1e-2)
    assert not one[1]["final_norm"] and two[1]["final_norm"]


@pytest.mark.parametrize(
    "options", [["--chunk", "3"], ["--chunk", "1kbp"], ["--chunk", "99"], ["--store", "disk"]]
)
def test_speed_knobs_do_not_change_the_values(embed, bed, tmp_path, options):
    embed("-o", tmp_path / "a.h5", "--bed", bed)
    embed("-o", tmp_path / "b.h5", "--bed", bed, *options)
    one, two = (load(tmp_path / f"{name}.h5")[0]["embeddings"] for name in "ab")
    assert np.abs(one - two).max() <= (0 if "disk" in options else 5e-5) * np.abs(one).max()


def test_shards_and_regions(embed, tmp_path):
    embed("-o", tmp_path / "a.h5")
    whole, _ = load(tmp_path / "a.h5")
    parts = []
    for shard in ("1/3", "2-of-3", "3/3"):
        embed("-o", tmp_path / "b.h5", "--shard", shard)
        parts.append(load(tmp_path / "b.h5")[0])
    for name in whole:
        assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])
    embed("-o", tmp_path / "b.h5", "-r", "2:1-200,MT", "-r", "1:4,900")
    part, _ = load(tmp_path / "b.h5")
    places = list(zip(part["chrom"], part["start"], strict=True))
    assert places == [("chr1", 4864), ("chr1", 4992), ("chr2", 0), ("chr2", 128), ("MT", 0)]
    keys = list(zip(whole["chrom"], whole["start"], strict=True))
    assert np.array_equal(part["embeddings"], whole["embeddings"][[keys.index(place) for place in places]])


def test_the_same_bytes_twice(embed, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        embed("-o", tmp_path / folder / "a.h5", "--no-version")
    assert (tmp_path / "one" / "a.h5").read_bytes() == (tmp_path / "two" / "a.h5").read_bytes()


def test_every_option_may_come_from_the_environment(lrgenome, embed, toy_fasta, bed, tmp_path):
    options = {
        "--strand": "both", "--context": "150bp", "--regions": "chr1", "--shard": "1/2", "--layer": "1",
        "--chrom-alias": "none", "--chunk": "70", "--transfer": "none", "--precision": "float32",
        "--store": "disk", "--tmpdir": tmp_path, "--dtype": "float16", "--compression": "none",
        "--bin-size": "64", "--output": tmp_path / "a.h5",
    }  # fmt: skip
    embed(*(str(x) for pair in options.items() for x in pair))
    options["--output"] = tmp_path / "b.h5"
    env = {"LRGENOME_" + name[2:].upper().replace("-", "_"): str(value) for name, value in options.items()}
    result = lrgenome("embed", LRGENOME_FASTA=str(toy_fasta), LRGENOME_QUIET="1", **env)
    one, two = load(tmp_path / "a.h5"), load(tmp_path / "b.h5")
    assert same(one, two) and one[1] == two[1] and result.output == ""
    assert (one[1]["chunk"], one[1]["transfer"], one[1]["layer"], one[1]["bin_size"]) == (70, "none", 1, 64)


def test_a_dry_run_writes_nothing(embed, tmp_path):
    before = {*tmp_path.iterdir(), tmp_path / "toy.fa.fai"}
    result = embed("--dry-run", "-o", tmp_path / "a.h5")
    said = dict(line.split("\t") for line in result.stdout.splitlines())
    assert said["rows"] == "51" and set(said) == {"rows", "bytes", "bases_to_run", "expected_seconds"}
    assert set(tmp_path.iterdir()) == before


def test_what_is_said(embed, tmp_path):
    normal = embed("-o", tmp_path / "a.h5").stderr
    assert "INFO device: cpu (CPU)" in normal and "INFO windows of 406 bp: 0.00 GB of memory" in normal
    assert embed("-o", tmp_path / "a.h5", "-q").stderr == ""
    verbose = embed("-o", tmp_path / "a.h5", "-v", "--log-file", tmp_path / "run.log").stderr
    assert "DEBUG" in verbose and (tmp_path / "run.log").read_text() == verbose


@pytest.mark.parametrize(
    ("args", "bed_text", "code", "message"),
    [
        (["--layer", "3"], None, 2, "--layer: got 3, expected 1 to 2"),
        (["--layer", "0"], None, 2, "--layer: got 0, expected 1 to 2"),
        (["--pool", "none"], None, 2, "--pool none needs --bed"),
        (["--strand", "-"], None, 2, "--strand: got '-'"),
        (["--dtype", "int8"], None, 2, "got dtype 'int8'"),
        (["--compression", "lzma"], None, 2, "lzma"),
        (["--shard", "5/4"], None, 2, "--shard: got '5/4'"),
        (["-r", "chr9"], None, 2, "there is no contig 'chr9'"),
        (["-o", "/dev/null"], None, 2, "HDF5 cannot be written to a pipe or device"),
        ([], "", 3, "no interval to embed"),
        ([], "chr1\t5000\t5004\n", 3, "interval 1: got end 5004, expected at most 5003, the length of chr1"),
        ([], "chr9\t1\t4\n", 3, "contig 'chr9' is not in toy.fa"),
        ([], "chr1\t1\n", 3, "line 1: got 2 columns, expected at least 3"),
        ([], "chr1\tone\t2\n", 3, "line 1: got start 'one', expected a whole number"),
    ],
)
def test_what_cannot_be(embed, tmp_path, args, bed_text, code, message):
    if bed_text is not None:
        (tmp_path / "bad.bed").write_text(bed_text)
        args = ["--bed", tmp_path / "bad.bed"]
    result = embed("-o", tmp_path / "a.h5", *args, code=code)
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.glob("a.h5*"))


def test_contigs_named_like_regions(lrgenome, shared_data, tmp_path):
    loci = shared_data / "genomes" / "homo_sapiens.GRCh37.loci.fa.gz"
    index = Path(f"{loci}.fai").read_text(encoding="ascii").splitlines()
    name, length = next((f[0], int(f[1])) for f in map(str.split, index) if int(f[1]) < 40_000)
    assert ":" in name and "-" in name
    lrgenome("embed", loci, "-o", tmp_path / "a.h5", "-r", name, "--context", "5kbp")
    columns, attrs = load(tmp_path / "a.h5")
    assert set(columns["chrom"]) == {name} and columns["end"][-1] == length
    assert (attrs["core"], attrs["halo"]) == (5_120, 1_250)


def test_the_strand_of_a_bed_file_is_not_used_and_that_is_said(lrgenome, place):
    bed = place.folder / "v.bed"
    bed.write_text("one\t100\t200\ta\t0\t+\none\t100\t200\tb\t0\t-\n")
    result = lrgenome("embed", place.fasta, "--bed", bed, "-o", place.folder / "o.h5")
    assert "interval 2: column 6 says -, but rows are on the strand of --strand" in result.stderr
    assert "column 6" not in lrgenome(
        "embed", place.fasta, "--bed", bed, "-o", place.folder / "o.h5", "--strand", "reverse"
    ).stderr
