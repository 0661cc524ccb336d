"""Tables of labelled rows, with what can be wrong with them."""

import gzip

import numpy as np
import pytest

from lrgenome.errors import InputError, UsageError
from lrgenome.io.examples import read_rows
from lrgenome.io.user_table import read_table


def write(path, text: str):
    path.write_text(text)
    return path


def test_variants_intervals_and_what_else_is_there(tmp_path):
    text = "chrom,POS,REF,ALT,y,split,where\n1,5,a,G,1,train,x\n2,9,AC,A,0,test,w\n2,9,A,T,,,x\n"
    variants = write(tmp_path / "v.csv", text)
    found = read_table(variants, ["y"], tissue="where")
    assert found.kind == "classes" and found.variants and found.summit and len(found) == 3
    assert found.start.tolist() == [4, 8, 8] and found.end.tolist() == [5, 10, 9] and found.ref.tolist()[0] == "A"
    assert found.split.tolist() == ["train", "test", ""] and found.tissues == ("w", "x")
    assert np.isnan(found.labels[2, 0]) and found.name_of(1) == "line 3 (2:9 A)"
    text = "##made by hand\n#chrom\tstart\tend\tstrand\ta\tb\tgene\n1\t0\t10\t-\t0.5\t2\tg\n1\t5\t9\t+\tNA\t.\th\n"
    bed = write(tmp_path / "b.tsv", text)
    found = read_table(bed, ["a", "b"], group="gene")
    assert found.kind == "numbers" and not found.variants and found.reverse.tolist() == [True, False]
    assert found.start.tolist() == [0, 5] and found.outputs == ("a", "b") and found.line.tolist() == [3, 4]
    assert found.take(np.array([1])).group.tolist() == ["h"]
    query = write(tmp_path / "q.tsv", "#[1]CHROM\t[2]POS\t[3]REF\t[4]ALT\t[5](null)LABEL\n1\t5\tA\tG\t1\n")
    assert read_table(query, ["(null)LABEL"]).start.tolist() == [4]
    stranded = write(tmp_path / "s.tsv", "CHROM\tSTART\tEND\tSTRAND\ty\n1\t0\t9\t-1\t0\n1\t0\t9\t1\t1\n")
    assert read_table(stranded, ["y"]).reverse.tolist() == [True, False]
    many = write(tmp_path / "m.tsv", "CHROM\tSTART\tEND\ta\tb\n1\t0\t10\t1\t0\n")
    assert read_table(many, ["a", "b"]).kind == "labels" and read_table(many, ["a"], kind="numbers").kind == "numbers"


def test_other_containers(tmp_path):
    text = "CHROM\tSTART\tEND\ty\n1\t0\t10\t1\n"
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(text.encode()))
    assert len(read_table(tmp_path / "t.tsv.gz", ["y"])) == 1
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"CHROM": ["1", "2"], "START": [0, 3], "END": [10, 9], "y": [1.5, None]})
    parquet.write_table(table, tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet", ["y"])
    assert found.start.tolist() == [0, 3] and np.isnan(found.labels[1, 0]) and found.kind == "numbers"
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_table(tmp_path / "bad.parquet", ["y"])


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ("", ["y"], "got an empty table"),
        ("CHROM\tSTART\tEND\ty\n", ["y"], "got no rows"),
        ("CHROM\tSTART\tEND\ty\n1\t0\t10\n", ["y"], "line 2: got 3 cells, expected 4"),
        ("CHROM\tSTART\tEND\ty\n1\t0\t10\tx\n", ["y"], "line 2, column y: got 'x', expected a number"),
        ("CHROM\tSTART\tEND\ty\n1\t0\t10\tinf\n", ["y"], "line 2: got an infinite label"),
        ("CHROM\tSTART\tEND\ty\n1\t10\t10\t1\n", ["y"], "line 2: got 10-10, expected a start below the end"),
        ("CHROM\tSTART\tEND\ty\n1\t-1\t10\t1\n", ["y"], "column START: got '-1', expected a whole number >= 0"),
        ("CHROM\tPOS\tREF\tALT\ty\n1\t0\tA\tC\t1\n", ["y"], "column POS: got '0', expected a whole number >= 1"),
        ("CHROM\tPOS\tREF\tALT\ty\n1\t1\tA\t<DEL>\t1\n", ["y"], "column ALT: got '<DEL>', expected bases"),
        ("CHROM\tPOS\tREF\tALT\ty\tsplit\n1\t1\tA\tC\t1\tlearn\n", ["y"], "got split 'learn'"),
        ("CHROM\tSTART\tEND\tSTRAND\ty\n1\t0\t10\t?\t1\n", ["y"], "line 2: got strand '\\?'"),
        ("chromosomes\tPOS\ty\n1\t1\t1\n", ["y"], "expected columns CHROM POS REF ALT, or CHROM START END"),
        ("CHROM\tSTART\tEND\ty\n1\t0\t10\t1\n", ["z"], "no column 'z'"),
        ("CHROM\tSTART\tEND\ty\ty\n1\t0\t10\t1\t1\n", ["y"], "column 'y' is there more than once"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, labels, message):
    with pytest.raises(InputError, match=message):
        read_table(write(tmp_path / "t.tsv", text), labels)


def test_what_does_not_go_together(tmp_path):
    path = write(tmp_path / "t.tsv", "CHROM\tSTART\tEND\ta\tb\n1\t0\t10\t1\t0.5\n")
    with pytest.raises(UsageError, match="--label: got none"):
        read_table(path, [])
    with pytest.raises(InputError, match="got labels other than 0 and 1, expected none for --kind classes"):
        read_table(path, ["b"], kind="classes")
    with pytest.raises(UsageError, match="--kind classes: got 2 labels"):
        read_table(write(tmp_path / "u.tsv", "CHROM\tSTART\tEND\ta\tb\n1\t0\t10\t1\t0\n"), ["a", "b"], kind="classes")
    with pytest.raises(InputError, match="cannot be read as a table"):
        list(read_rows(tmp_path / "none.csv"))
    with pytest.raises(InputError, match="cannot be read as a table"):
        (tmp_path / "binary.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
        list(read_rows(tmp_path / "binary.csv"))
