from pathlib import Path

import pytest

from lrgenome.errors import ManifestError
from lrgenome.io.fasta import Fasta
from lrgenome.io.manifest import ManifestEntry, read_data_sets, read_manifest, split_intervals

HEADER = "path\tweight\tname\tholdout\tvalidation\n"
CONTIGS = {"20": 1000, "IV": 500, "1:100-200": 101}


def write(tmp_path, text, newline="\n"):
    path = tmp_path / "manifest.tsv"
    path.write_text(text, encoding="utf-8", newline=newline)
    return path


def test_reads_entries(tmp_path, toy_fasta):
    (tmp_path / "sub").mkdir()
    other = tmp_path / "sub" / "b.fa"
    other.write_text(">a\nACGT\n")
    text = (
        "# training data\n\nlicence\tweight\tpath\tname\tvalidation\tholdout\n"
        f"MIT\t0.5\ttoy.fa\ttoy\tchr2; MT\tchr1:1-1,000;\n#x\nCC0\t1e1\t{other}\tb\t\t.\n"
    )
    entries = read_manifest(write(tmp_path, text, "\r\n"))
    assert entries == [
        ManifestEntry(toy_fasta, 0.5, "toy", ("chr1:1-1,000",), ("chr2", "MT")),
        ManifestEntry(other, 10.0, "b"),
    ]
    with Fasta(entries[0].path) as fasta:
        splits = split_intervals(entries[0], fasta.contigs)
    assert splits.train == [("chr1", 1000, 5003)]
    assert splits.holdout == [("chr1", 0, 1000)]
    assert splits.validation == [("chr2", 0, 1200), ("MT", 0, 61)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got no genome"),
        (HEADER, "got no genome"),
        (
            "path\tweight\tname\thold_out\tvalidation\n",
            "line 1: got the header .* expected it to have holdout",
        ),
        ("path\tpath\tweight\tname\tholdout\tvalidation\n", "line 1: the header has path more than once"),
        ("toy.fa\t1\ttoy\t.\t.\n", "line 1: got the header"),
        (HEADER + "toy.fa\t1\ttoy\t.\n", "line 2: got 4 tab-separated columns, expected 5"),
        (HEADER + "toy.fa 1 toy . .\n", "line 2: got 1 tab-separated columns"),
        (HEADER + "toy.fa\t0\ttoy\t.\t.\n", "line 2: got weight '0', expected a positive number"),
        (HEADER + "toy.fa\tinf\ttoy\t.\t.\n", "line 2: got weight 'inf'"),
        (HEADER + "toy.fa\tnan\ttoy\t.\t.\n", "line 2: got weight 'nan'"),
        (HEADER + "toy.fa\t\ttoy\t.\t.\n", "line 2: got weight ''"),
        (HEADER + "toy.fa\t1\t\t.\t.\n", "line 2: got an empty name"),
        (HEADER + "no.fa\t1\ttoy\t.\t.\n", "line 2: there is no FASTA file .*no.fa"),
        (HEADER + "toy.fa\t1\ta\t.\t.\n./toy.fa\t1\tb\t.\t.\n", "line 3: .*toy.fa is in the manifest twice"),
        (HEADER + "toy.fa\t1\ta\t.\t.\nx.fa\t1\ta\t.\t.\n", "line 3: the name 'a' occurs twice"),
    ],
)
def test_damaged_manifests(tmp_path, toy_fasta, text, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(write(tmp_path, text))


def test_the_projects_own_manifest():
    path = Path(__file__).resolve().parents[2] / "data_manifest.tsv"
    sets, trained = read_data_sets(path), read_manifest(path, check_files=False)
    assert {one.name for one in trained} <= {one.name for one in sets if one.kind == "genome"}
    assert all(one.url or one.sha256 for one in sets)
    held = {region for one in trained for region in one.holdout}
    assert held == {"20:1-10000000", "IV", "1:1-3000000"}
    assert {"hg19", "hg38", "glrb_eqtl", "multi_species"} <= {one.name for one in sets}


def test_rows_without_a_weight_and_other_kinds_are_not_trained_on(tmp_path, toy_fasta):
    text = "kind\t" + HEADER + "genome\ttoy.fa\t1\ttoy\t.\t.\ngenome\tno.fa\t.\tb\t.\t.\ntable\tno.csv\t1\tc\t.\t.\n"
    (entry,) = read_manifest(write(tmp_path, text))
    assert entry.name == "toy"
    with pytest.raises(ManifestError, match="got no genome"):
        read_manifest(write(tmp_path, "kind\t" + HEADER + "genome\tno.fa\t.\tb\t.\t.\n"))


def test_unreadable_manifests(tmp_path):
    with pytest.raises(ManifestError, match="cannot be read: No such file"):
        read_manifest(tmp_path / "none.tsv")
    (tmp_path / "binary.tsv").write_bytes(b"\xff\x00\x01")
    with pytest.raises(ManifestError, match="not text"):
        read_manifest(tmp_path / "binary.tsv")


def test_files_need_not_be_checked(tmp_path):
    (entry,) = read_manifest(write(tmp_path, HEADER + "no.fa\t1\ttoy\t.\t.\n"), check_files=False)
    assert entry.path == tmp_path / "no.fa"


def entry(holdout=(), validation=()):
    return ManifestEntry("x.fa", 1.0, "x", tuple(holdout), tuple(validation))


def test_splits_cover_the_genome_without_overlap():
    splits = split_intervals(
        entry(["20:1-100", "20:51-150", "1:100-200"], ["20:151-200", "IV:401-500"]), CONTIGS
    )
    assert splits.holdout == [("20", 0, 150), ("1:100-200", 0, 101)]
    assert splits.validation == [("20", 150, 200), ("IV", 400, 500)]
    assert splits.train == [("20", 200, 1000), ("IV", 0, 400)]
    assert sum(end - start for part in splits for _, start, end in part) == sum(CONTIGS.values())


def test_nothing_is_held_out_by_default():
    assert split_intervals(entry(), CONTIGS).train == [("20", 0, 1000), ("IV", 0, 500), ("1:100-200", 0, 101)]


@pytest.mark.parametrize(
    ("holdout", "validation", "message"),
    [
        (["V"], [], "'x', column holdout: .*no contig 'V'"),
        ([], ["20:1-1001"], "column validation: .*<= 1,000"),
        (["20:5-4"], [], "column holdout"),
        (["20:1-100"], ["20:100-200"], "validation and holdout overlap at 20:100-100"),
        (["20"], ["20:100-200"], "validation and holdout overlap at 20:100-200"),
    ],
)
def test_bad_regions(holdout, validation, message):
    with pytest.raises(ManifestError, match=message):
        split_intervals(entry(holdout, validation), CONTIGS)
