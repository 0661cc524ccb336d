"""Our files in the hands of other programs, by the code that docs/formats.md shows."""

import csv
import shutil
import subprocess

import h5py
import numpy as np
import pysam
import pytest

from lrgenome.io.scores import read_scores

from .conftest import BINS, CONTEXT, DOCS, FASTA, REGION, VCF
from .pages import blocks

PAGE, SECTION = DOCS / "formats.md", "Reading it elsewhere"
# Records that a careless reader would misread: an ID that looks missing, a quote, no score, an ALT that is *.
ODD = (
    "20\t1600130\tNA\tA\t<INS>\t.\tPASS\t.\n"
    "20\t1600131\tid#1\tA\tC,G,*\t.\tPASS\t.\n"
    '20\t1600132\t"q\tN\tC\t.\tPASS\t.\n'
)


@pytest.fixture(scope="module")
def place(lrgenome, tmp_path_factory):
    """A folder with all files that the section names."""
    folder = tmp_path_factory.mktemp("readers")
    lines = VCF.read_text().splitlines(keepends=True)
    (folder / "v.vcf").write_text("".join([*lines[:-1], ODD, lines[-1]]))
    with pysam.FastaFile(str(FASTA)) as fasta:
        bases = fasta.fetch("20", 1_600_129, 1_600_131)
    text = (folder / "v.vcf").read_text()
    text = text.replace("NA\tA\t", f"NA\t{bases[0]}\t").replace("id#1\tA\t", f"id#1\t{bases[1]}\t")
    text = text.replace("\tC,G,*\t", "\t" + ",".join([b for b in "CGTA" if b != bases[1]][:2]) + ",*\t")
    (folder / "v.vcf").write_text(text)
    pysam.tabix_compress(str(folder / "v.vcf"), str(folder / "variants.vcf.gz"))
    pysam.tabix_index(str(folder / "variants.vcf.gz"), preset="vcf")
    for name in ("scores.tsv.gz", "scores.vcf.gz", "scores.bcf"):
        lrgenome("score-vcf", folder / "v.vcf", "-f", FASTA, "--context", CONTEXT, "-q", "-W", "-o", folder / name)
    for name in ("embeddings.h5", "embeddings.h5ad"):
        lrgenome("embed", FASTA, "--context", BINS, "-r", REGION, "-q", "-o", folder / name)
    return folder


@pytest.fixture(scope="module")
def rows(place):
    return list(read_scores(place / "scores.tsv.gz"))


def tool(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def out(*command, cwd):
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pandas(place, rows, monkeypatch):
    pytest.importorskip("pandas")
    code, _ = blocks(PAGE, "python", SECTION)
    monkeypatch.chdir(place)
    names: dict[str, object] = {}
    exec(code, names)
    scores = names["scores"]
    assert list(scores.columns) == list(rows[0]) and len(scores) == len(rows)
    assert scores.dtypes["POS"] == np.int64
    assert all(scores.dtypes[name] == np.float64 for name in ("LLR", "DIST_COS", "DIST_L2", "PLL_DIFF", "ERR_EST"))
    for name in ("CHROM", "ID", "REF", "ALT"):
        assert scores[name].tolist() == [row[name] for row in rows]
    for name in ("LLR", "PLL_DIFF"):
        np.testing.assert_array_equal(scores[name], [np.nan if row[name] is None else row[name] for row in rows])
    assert {"NA", "id#1", '"q', "."} <= set(scores["ID"]) and set(scores["CHROM"]) == {"20"}
    assert scores["STATUS"].tolist() == ["&".join(row["STATUS"]) for row in rows]


def test_h5py_and_anndata(place, monkeypatch):
    pytest.importorskip("anndata")
    _, code = blocks(PAGE, "python", SECTION)
    monkeypatch.chdir(place)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["embeddings"].dtype == np.float32 and set(names["chrom"]) == {"20"}
    np.testing.assert_array_equal(names["cells"].X, names["embeddings"])
    assert names["cells"].obs["chrom"].tolist() == names["chrom"].tolist()


def test_r(place, rows):
    rscript = tool("Rscript")
    found = subprocess.run([rscript, "-e", "library(rhdf5)"], capture_output=True)
    if found.returncode:
        pytest.skip("needs rhdf5 of Bioconductor")
    (code,) = blocks(PAGE, "r", SECTION)
    check = """
write.table(scores, "r.tsv", sep = "\\t", quote = FALSE, row.names = FALSE, na = "missing")
write.table(format(embeddings, digits = 9), "r.embeddings", quote = FALSE, row.names = FALSE, col.names = FALSE)
write.table(bins, "r.bins", quote = FALSE, row.names = FALSE, col.names = FALSE)
cat(model, class(scores$POS), class(scores$LLR), is.numeric(bins$start))
"""
    (place / "check.R").write_text(code + check)
    assert out(rscript, "check.R", cwd=place).split() == ["tiny", "integer", "numeric", "TRUE"]
    with open(place / "r.tsv") as handle:
        theirs = list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
    for name in ("ID", "ALT", "STATUS"):
        expected = ["&".join(r[name]) if name == "STATUS" else r[name] for r in rows]
        assert [r[name].replace("missing", ".") for r in theirs] == expected
    llr = [None if r["LLR"] == "missing" else float(r["LLR"]) for r in theirs]
    assert llr == [r["LLR"] for r in rows]
    with h5py.File(place / "embeddings.h5") as file:
        np.testing.assert_allclose(np.loadtxt(place / "r.embeddings"), file["embeddings"][:], rtol=1e-6)
        bins = np.loadtxt(place / "r.bins", dtype=str)
        assert bins[:, 0].tolist() == file["chrom"].asstr()[:].tolist()
        assert np.array_equal(bins[:, 1:].astype(float), np.stack([file["start"][:], file["end"][:]], 1))


def test_tabix(place, rows):
    tabix = tool("tabix")
    command = next(line for line in blocks(PAGE, "bash", SECTION)[0].splitlines() if line.startswith("tabix"))
    found = out(tabix, *command.split()[1:], cwd=place).splitlines()
    expected = [row for row in rows if 1_600_000 <= row["POS"] <= 1_700_000]
    assert [line.split("\t")[4] for line in found] == [row["ALT"] for row in expected] and len(found) == 6
    header = out(tabix, "-H", "scores.tsv.gz", cwd=place)
    assert header.startswith("##lrgenome-scores-version=1\n") and "\n#CHROM\tPOS\t" in header


def by_bcftools(place, start):
    """Run the line of the section that begins so."""
    tool("bcftools")
    (line,) = [line for line in blocks(PAGE, "bash", SECTION)[0].splitlines() if line.startswith(f"bcftools {start}")]
    return out("bash", "-euo", "pipefail", "-c", line, cwd=place).splitlines()


def test_bcftools_query(place, rows):
    values = {}
    for line in by_bcftools(place, "query"):
        chrom, pos, ref, alts, llrs, statuses = line.split("\t")
        for alt, llr, status in zip(alts.split(","), llrs.split(","), statuses.split(","), strict=True):
            values[chrom, int(pos), ref, alt] = (None if llr == "." else float(llr), tuple(status.split("&")))
    assert len(values) == len(rows)
    for row in rows:
        llr, status = values[row["CHROM"], row["POS"], row["REF"], row["ALT"]]
        assert status == row["STATUS"] and llr == (None if row["LLR"] is None else pytest.approx(row["LLR"], rel=1e-5))


def records(lines):
    return [line.split("\t") for line in lines if not line.startswith("#")]


def test_bcftools_view_and_norm(place, rows):
    low = {row["POS"] for row in rows if row["LLR"] is not None and row["LLR"] < 0}
    assert {int(r[1]) for r in records(by_bcftools(place, "view"))} == low and 10 < len(low) < len(rows)
    split = records(by_bcftools(place, "norm"))
    assert len(split) == len(rows)
    for record, row in zip(split, rows, strict=True):
        info = dict(entry.partition("=")[::2] for entry in record[7].split(";"))
        assert record[4] == row["ALT"] and info["LRG_STATUS"] == "&".join(row["STATUS"])
        assert (info.get("LRG_LLR", ".") == ".") == (row["LLR"] is None)
        assert row["LLR"] is None or float(info["LRG_LLR"]) == pytest.approx(row["LLR"], rel=1e-5)


def test_bcftools_annotate(place, rows):
    carried = records(by_bcftools(place, "annotate"))
    with pysam.VariantFile(str(place / "scores.vcf.gz")) as file:
        own = [(r.pos, r.info.get("LRG_STATUS")) for r in file]
    assert [int(r[1]) for r in carried] == [pos for pos, _ in own]
    # An annotation belongs to a site: where several records share one, bcftools matches REF and ALT.
    for record, (_, status) in zip(carried, own, strict=True):
        assert f"LRG_STATUS={','.join(status)}" in record[7]


def test_bcftools_reads_bcf_and_vcf_alike(place):
    bcftools = tool("bcftools")
    texts = [out(bcftools, "view", "-H", name, cwd=place) for name in ("scores.vcf.gz", "scores.bcf")]
    assert texts[0] == texts[1] and texts[0].count("\n") == 68
    said = subprocess.run([bcftools, "view", "scores.vcf.gz"], cwd=place, capture_output=True, text=True).stderr
    assert said == ""
    assert out(bcftools, "index", "-n", "scores.bcf", cwd=place).strip() == "68"
