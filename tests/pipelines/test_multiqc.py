"""`lrgenome multiqc`: the counts of runs and shards as custom content, and what MultiQC makes of it."""

import json
import re
import shutil
import subprocess

import h5py
import numpy as np
import pytest

from lrgenome.io.alleles import STATUSES

from .conftest import FASTA

SETTINGS = {"model": "tiny", "context": 12000}


def summary(folder, shard="1/1", name=None, **change):
    """Write a summary as score-vcf does."""
    what = {
        "format": "lrgenome-summary", "format_version": 1, "command": "score-vcf", "shard": shard, "records": 7,
        "alleles": 8, "skipped": 2, "statuses": {"OK": 5, "EDGE": 1, "REF_MISMATCH": 1, "ALT_STAR": 2},
        "settings": SETTINGS,
    } | change  # fmt: skip
    path = folder / (name or f"{shard.replace('/', '-of-')}.json")
    path.write_text(json.dumps(what))
    return path


def content(folder, name):
    return json.loads((folder / f"{name}_mqc.json").read_text())


def check_form(what):
    """Custom content as MultiQC's documentation describes it."""
    assert re.fullmatch(r"[a-z_]+", what["id"]) and what["plot_type"] in ("bargraph", "generalstats")
    for sample, values in what["data"].items():
        assert isinstance(sample, str) and values
        assert all(isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in values.values())
    if what["plot_type"] == "generalstats":
        columns = [name for column in what["pconfig"] for name in column]
        assert all(len(column) == 1 for column in what["pconfig"])
        assert all(header["title"] and header["description"] for c in what["pconfig"] for header in c.values())
        for column in what["pconfig"]:
            for header in column.values():
                header["format"].format(12.5)
    else:
        columns = list(what["categories"])
        assert what["pconfig"]["id"] and what["pconfig"]["title"].count(": ") == 1 and what["section_name"]
        assert all(re.fullmatch(r"#[0-9a-f]{6}", c["color"]) for c in what["categories"].values())
        assert len({c["color"] for c in what["categories"].values()}) == len(columns)
    assert all(set(values) <= set(columns) for values in what["data"].values())


def test_the_counts_of_a_run(lrgenome, whole, tmp_path):
    lrgenome("multiqc", whole / "scores.json", "-o", tmp_path / "cohort")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cohort.score_mqc.json", "cohort.status_mqc.json"]
    bars, table = content(tmp_path, "cohort.status"), content(tmp_path, "cohort.score")
    for what in (bars, table):
        check_form(what)
    counts = json.loads((whole / "scores.json").read_text())["statuses"]
    assert bars["data"] == {"cohort": {name: counts.get(name, 0) for name in STATUSES}} and counts["OK"] > 50
    assert table["data"] == {"cohort": {"alleles": 65, "scored": 100.0, "mismatch": 0.0}}


def test_shards_are_added_up_in_any_order(lrgenome, tmp_path):
    parts = [
        summary(tmp_path, "3/3", alleles=1, skipped=1, statuses={"ALT_STAR": 1}), summary(tmp_path, "1/3"),
        summary(tmp_path, "2/3", alleles=11, skipped=0, statuses={"OK": 11}),
    ]  # fmt: skip
    lrgenome("multiqc", *parts, "-o", tmp_path / "x", "--sample", "cohort one")
    bars = {name: n for name, n in content(tmp_path, "x.status")["data"]["cohort one"].items() if n}
    assert bars == {"OK": 16, "EDGE": 1, "REF_MISMATCH": 1, "ALT_STAR": 3}
    assert content(tmp_path, "x.score")["data"] == {
        "cohort one": {"alleles": 20, "scored": pytest.approx(85), "mismatch": pytest.approx(5)}
    }


def test_a_run_without_alleles(lrgenome, tmp_path):
    lrgenome("multiqc", summary(tmp_path, records=0, alleles=0, skipped=0, statuses={}), "-o", tmp_path / "x")
    assert content(tmp_path, "x.score")["data"] == {"x": {"alleles": 0}}
    check_form(content(tmp_path, "x.score"))


def test_embeddings(lrgenome, whole, tmp_path):
    lrgenome("multiqc", whole / "e.h5", "-o", tmp_path / "genome")
    (path,) = tmp_path.iterdir()
    assert path.name == "genome.embed_mqc.json"
    what = content(tmp_path, "genome.embed")
    check_form(what)
    with h5py.File(whole / "e.h5") as file:
        assert what["data"]["genome"]["rows"] == len(file["embeddings"])
        assert what["data"]["genome"]["megabases"] == (file["end"][-1] - file["start"][0]) / 1e6
    # Telomere first: the chromosome begins with 60 kbp of N.
    lrgenome("embed", FASTA, "--context", "20kbp", "-r", "20:1-65,536", "-q", "-o", tmp_path / "n.h5")
    lrgenome("multiqc", tmp_path / "n.h5", summary(tmp_path), "-o", tmp_path / "n")
    assert content(tmp_path, "n.embed")["data"]["n"]["unknown"] == pytest.approx(100 * 60_000 / 65_536)
    assert content(tmp_path, "n.score")["data"]["n"]["alleles"] == 8


@pytest.mark.parametrize(
    ("shards", "code", "message"),
    [
        (["1/3", "3/3"], 3, "got shards 1, 3 of 3, expected all of them; missing: 2"),
        (["1/2", "1/2"], 3, "got shard 1 of 2, as in"),
        (["1/2", "2/3"], 3, "got a shard of 3, expected one of 2"),
        (["1/2", ("2/2", {"settings": {**SETTINGS, "context": 9}})], 3, "context is 9, not 12000, as in"),
        ([("1/1", {"format": "x"})], 3, "expected the JSON that score-vcf --summary writes"),
        ([("1/1", {"format_version": 2})], 3, "got lrgenome-summary version 2, expected 1"),
        ([("1/1", {"alleles": -1})], 3, "damaged lrgenome-summary (ValueError: got -1 for a count)"),
        ([("1/1", {"statuses": {"FINE": 1}})], 3, "got status 'FINE', expected one of OK, EDGE"),
        (["0/1"], 3, "damaged lrgenome-summary: got shard 0/1"),
        (["one"], 3, "damaged lrgenome-summary (ValueError"),
    ],
)
def test_what_does_not_belong_together(lrgenome, tmp_path, shards, code, message):
    paths = []
    for i, shard in enumerate(shards):
        text, change = shard if isinstance(shard, tuple) else (shard, {})
        paths.append(summary(tmp_path, text, name=f"{i}.json", **change))
    assert message in lrgenome("multiqc", *paths, "-o", tmp_path / "x", code=code).stderr
    assert not list(tmp_path.glob("*_mqc.json"))


def test_other_files_and_names_are_refused(lrgenome, whole, tmp_path):
    (tmp_path / "a.json").write_text("{")
    assert "a.json: not JSON" in lrgenome("multiqc", tmp_path / "a.json", "-o", tmp_path / "x", code=3).stderr
    assert "No such file" in lrgenome("multiqc", tmp_path / "b.json", "-o", tmp_path / "x", code=3).stderr
    one = summary(tmp_path)
    assert "does not exist" in lrgenome("multiqc", one, "-o", tmp_path / "none" / "x", code=3).stderr
    e = whole / "e.h5"
    assert "lrgenome concat joins shards" in lrgenome("multiqc", e, e, "-o", tmp_path / "x", code=2).stderr
    lrgenome("multiqc", one, "-o", tmp_path / "x")
    assert "exists already" in lrgenome("multiqc", one, "-o", tmp_path / "x", "--no-clobber", code=2).stderr


def test_multiqc_shows_it(lrgenome, environment, whole, tmp_path):
    """Two samples of variants, one of embeddings, one of both."""
    multiqc = shutil.which("multiqc", path=environment["PATH"])
    if multiqc is None:
        pytest.skip("needs MultiQC: pip install multiqc")
    (tmp_path / "in").mkdir()
    for name, inputs in {
        "cohort": [whole / "scores.json"], "odd": [summary(tmp_path)], "genome": [whole / "e.h5"],
        "both": [summary(tmp_path), whole / "e.h5"],
    }.items():  # fmt: skip
        lrgenome("multiqc", *inputs, "-o", tmp_path / "in" / name)
    subprocess.run([multiqc, "-o", tmp_path, tmp_path / "in"], check=True, env=environment, capture_output=True)
    data = tmp_path / "multiqc_data"
    header, *rows = [line.split("\t") for line in (data / "multiqc_general_stats.txt").read_text().splitlines()]
    columns = [name.rsplit("-", 1)[-1] for name in header]
    assert {*columns[1:]} == {"alleles", "scored", "mismatch", "rows", "megabases", "unknown"}
    table = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert set(table) == {"cohort", "odd", "genome", "both"}
    assert float(table["odd"]["scored"]) == 75 and float(table["cohort"]["alleles"]) == 65
    assert table["genome"]["alleles"] == "" and float(table["both"]["alleles"]) == 8 and table["both"]["rows"]
    header, *rows = [l.split("\t") for l in (data / "multiqc_lrgenome_status_plot.txt").read_text().splitlines()]
    assert tuple(header[1:]) == STATUSES and len(rows) == 3
    page = (tmp_path / "multiqc_report.html").read_text()
    assert "Variants by status" in page and "State-space models of DNA" in page

