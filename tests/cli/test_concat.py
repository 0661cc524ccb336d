"""Parts of embeddings joined are the run that was not parted."""

import h5py
import numpy as np
import pytest

from lrgenome.errors import UsageError
from lrgenome.io.hdf5 import RowRange, read_embeddings
from lrgenome.tasks import concat


@pytest.fixture
def genome(tmp_path, toy_fasta):
    return toy_fasta


@pytest.fixture
def embed(lrgenome, genome, tmp_path):
    def run(name, *more):
        lrgenome("embed", genome, "--bin-size", "50", "--context", "500", "-o", tmp_path / name, "-q", *more)
        return tmp_path / name

    return run


def content(path):
    with h5py.File(path) as file:
        datasets = {}
        file.visititems(lambda name, item: datasets.update({name: item[:]}) if isinstance(item, h5py.Dataset) else None)
        return {name: np.asarray(values).tolist() for name, values in datasets.items()}, {
            name: np.asarray(value).tolist() for name, value in file.attrs.items()
        }


@pytest.mark.parametrize("more", [(), ("--dtype", "float16"), ("-r", "chr1:101-900,chr2")])
def test_shards_in_any_order_are_the_whole_run(lrgenome, embed, tmp_path, more):
    whole = embed("whole.h5", *more)
    parts = [embed(f"part-{i}.h5", "--shard", f"{i}/5", *more) for i in (3, 1, 5, 2, 4)]
    lrgenome("concat", *parts, "-o", tmp_path / "joined.h5")
    assert content(tmp_path / "joined.h5") == content(whole)


def test_intervals_of_one_length(lrgenome, embed, tmp_path):
    bed = tmp_path / "i.bed"
    bed.write_text("".join(f"chr1\t{k}\t{k + 30}\tname{k}\n" for k in range(0, 4000, 70)))
    more = ("--bed", bed, "--pool", "none")
    whole = embed("whole.h5", *more)
    parts = [embed(f"part-{i}.h5", "--shard", f"{i}/3", *more) for i in (1, 2, 3)]
    lrgenome("concat", *parts, "-o", tmp_path / "joined.h5")
    assert content(tmp_path / "joined.h5") == content(whole)


def test_chromosomes_are_the_whole_genome(lrgenome, embed, tmp_path):
    whole = embed("whole.h5")
    parts = [embed(f"{name}.h5", "-r", name) for name in ("chr2", "MT", "chr1")]
    lrgenome("concat", *parts, "-o", tmp_path / "joined.h5")
    assert content(tmp_path / "joined.h5") == content(whole)


def test_intervals_of_other_files_come_in_their_order(lrgenome, embed, tmp_path):
    for name, low in (("b", 1000), ("a", 200)):
        (tmp_path / f"{name}.bed").write_text(f"chr1\t{low}\t{low + 90}\t{name}\n")
    parts = [embed(f"{name}.h5", "--bed", tmp_path / f"{name}.bed") for name in ("b", "a")]
    lrgenome("concat", *parts, "-o", tmp_path / "joined.h5")
    with read_embeddings(tmp_path / "joined.h5") as rows:
        assert rows.name[:].tolist() == ["b", "a"] and rows.start[:].tolist() == [1000, 200]


def test_as_anndata(lrgenome, embed, tmp_path):
    anndata = pytest.importorskip("anndata")
    parts = [embed(f"part-{i}.h5", "--shard", f"{i}/2") for i in (1, 2)]
    lrgenome("concat", *parts, "-o", tmp_path / "joined.h5ad")
    table = anndata.read_h5ad(tmp_path / "joined.h5ad")
    with read_embeddings(embed("whole.h5")) as whole:
        assert np.array_equal(table.X, whole.embeddings[:])


def test_what_does_not_belong_together(lrgenome, embed, tmp_path, genome):
    parts = {i: embed(f"part-{i}.h5", "--shard", f"{i}/3") for i in (1, 2, 3)}
    out = ("-o", tmp_path / "joined.h5")

    def refused(*given, code=3):
        said = lrgenome("concat", *given, *out, code=code).stderr
        assert not (tmp_path / "joined.h5").exists() and not (tmp_path / "joined.h5.partial").exists()
        return said

    assert "in none of the parts: a shard is missing" in refused(parts[1], parts[3])
    assert "in none of the parts: a shard is missing" in refused(parts[1], parts[2])
    assert "given twice" in refused(parts[1], parts[2], parts[1], code=2)
    before = parts[1].read_bytes()
    for name in (parts[1], tmp_path / "." / parts[1].name):
        with pytest.raises(UsageError, match="is one of the parts"):
            concat.run([*parts.values()], name)
    assert parts[1].read_bytes() == before
    copy = tmp_path / "copy.h5"
    copy.write_bytes(parts[2].read_bytes())
    assert "which another part has too" in refused(parts[1], parts[2], copy, parts[3])
    other = embed("other.h5", "--strand", "both", "--shard", "2/3")
    assert "its strand is 'both', expected 'forward' as in" in refused(parts[1], other, parts[3])
    other = embed("other.h5", "--bin-size", "60", "--shard", "2/3")
    assert "its bin_size is 60, expected 50" in refused(parts[1], other, parts[3])
    other = embed("other.h5", "-r", "chr1:1-200")
    assert "of a run that" in refused(parts[1], other)
    again = embed("again.h5", "-r", "chr1:151-300")
    assert "is in another part too" in refused(other, again)
    assert "cannot be read as HDF5" in refused(parts[1], genome)
    said = lrgenome("concat", parts[1], parts[2], parts[3], "-o", parts[1], code=2).stderr
    assert "which is the input PART" in said and RowRange.parse(content(parts[1])[1]["rows"]).low == 0


def test_a_log_is_not_written_into_a_part(lrgenome, embed, tmp_path):
    part = embed("part.h5")
    before = part.read_bytes()
    said = lrgenome("concat", part, "-o", tmp_path / "joined.h5", "--log-file", part, code=2).stderr
    assert "--log-file: got" in said and part.read_bytes() == before


def test_rows_of_another_form():
    with pytest.raises(ValueError, match="expected LOW-HIGH of TOTAL:DIGEST"):
        RowRange.parse("0-5:abc")
    assert str(RowRange.parse("0-5 of 9:abc")) == "0-5 of 9:abc"


def test_a_damaged_part(lrgenome, embed, tmp_path):
    parts = [embed(f"part-{i}.h5", "--shard", f"{i}/2") for i in (1, 2)]
    data = bytearray(parts[1].read_bytes())
    with h5py.File(parts[1]) as file:
        chunk = file["embeddings"].id.get_chunk_info(0)
    data[chunk.byte_offset + 20 : chunk.byte_offset + 60] = bytes(40)
    parts[1].write_bytes(data)
    said = lrgenome("concat", *parts, "-o", tmp_path / "joined.h5", code=3).stderr
    assert "part-2.h5: rows from 0 on cannot be read" in said
    assert not (tmp_path / "joined.h5").exists()
