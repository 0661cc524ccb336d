"""`lrgenome score-vcf --saturate`: the same pipeline without a VCF, and what is made of its scores."""

import gzip
import importlib.util
import json

import numpy as np
import pysam
import pytest

from lrgenome.io import heatmap
from lrgenome.io.scores import read_scores
from lrgenome.tasks import saturation as task

REGION = "chr1:2,001-2,030"


def rows(text):
    return [line for line in text.splitlines() if not line.startswith("#")]


def bedgraph(text):
    first, *lines = text.splitlines()
    assert first.startswith("track type=bedGraph ")
    return [line.split("\t") for line in lines]


def means(path, column):
    """Mean over the SNVs of each base of a table, as a bedGraph has it."""
    found = {}
    for row in read_scores(path):
        if len(row["REF"]) == 1:
            found.setdefault((row["CHROM"], row["POS"]), []).append(row[column])
    return [
        [chrom, str(pos - 1), str(pos), f"{sum(values) / len(values):.6g}"] for (chrom, pos), values in found.items()
    ]


@pytest.fixture
def saturate(lrgenome, toy_fasta):
    """Score the SNVs of some regions of the toy genome."""

    def run(*args, region=(REGION,), code=0, **env):
        regions = [part for one in region for part in ("--saturate", one)]
        return lrgenome("score-vcf", *regions, "-f", toy_fasta, "--context", "200", *args, code=code, **env)

    return run


def test_every_snv_has_its_row(saturate, toy_sequences):
    found = [row.split("\t") for row in rows(saturate().stdout)]
    bases = toy_sequences["chr1"][2000:2030]
    assert [(*row[:5], row[-1]) for row in found] == [
        ("chr1", str(2001 + i), ".", base, alt, "OK") for i, base in enumerate(bases) for alt in "ACGT" if alt != base
    ]
    assert all(np.isfinite(float(row[5])) for row in found)


def test_scores_are_those_of_the_same_vcf(saturate, lrgenome, toy_fasta, tmp_path):
    made, again, table = (tmp_path / name for name in ("a.vcf", "b.vcf", "a.tsv"))
    saturate("--saturate-deletions", "-o", made, region=("chr1:1-12", "chr2:501-510"))
    saturate("--saturate-deletions", "-o", table, region=("chr1:1-12", "chr2:501-510"))
    lrgenome("score-vcf", made, "-f", toy_fasta, "--context", "200", "-o", again)
    assert rows(again.read_text()) == rows(made.read_text())
    with pysam.VariantFile(str(made)) as file:
        assert {name: contig.length for name, contig in file.header.contigs.items()} == {
            "chr1": 5003, "chr2": 1200, "MT": 61
        }  # fmt: skip
        keys = [(record.chrom, record.pos, record.ref, *record.alts) for record in file]
    assert keys == [tuple(row[c] for c in ("CHROM", "POS", "REF", "ALT")) for row in read_scores(table)]
    assert len(keys) == 4 * 22 and f"##reference=file://{toy_fasta}\n" in made.read_text()


@pytest.mark.parametrize("suffix", ["tsv.gz", "vcf.gz", "bcf"])
def test_indexed_outputs(saturate, tmp_path, suffix):
    out = tmp_path / f"a.{suffix}"
    saturate("-o", out, "-W", "--saturate-deletions", region=("chr2:1-9", "chr1:2,001-2,010"))
    if suffix == "tsv.gz":
        with pysam.TabixFile(str(out)) as table:
            assert len(list(table.fetch("chr2"))) == 36
    else:
        with pysam.VariantFile(str(out)) as file:
            assert sum(1 for _ in file.fetch("chr2")) == 36


def test_regions_as_they_may_be_written(saturate, tmp_path):
    whole = rows(saturate(region=("chr1:2,001-2,010", "chr2:601-605")).stdout)
    assert len(whole) == 45
    for region in (("1:2001-2010,2:601-605",), ("chr2:601-605", "chr1:2,001-2,007", "chr1:2,005-2,010")):
        assert rows(saturate(region=region).stdout) == whole
    env = {"LRGENOME_SATURATE": "chr1:2,001-2,010 chr2:601-605"}
    assert rows(saturate(region=(), **env).stdout) == whole
    assert "there is no contig '1'" in saturate("--chrom-alias", "none", region=("1:5-6",), code=2).stderr
    confined = rows(saturate("-r", "chr2", region=("chr1:2,001-2,010", "chr2:601-605")).stdout)
    assert confined == whole[30:]


def test_what_is_left_out_is_said(saturate):
    result = saturate(region=("chr1:95-105",))
    assert "saturation of 11 bp; 5 of them are not A, C, G or T and left out" in result.stderr
    assert len(rows(result.stdout)) == 18
    assert rows(saturate(region=("chr1:150-160",)).stdout) == []


def test_shards_together_are_the_whole(saturate, tmp_path):
    packed = []
    for part in range(5):
        out = tmp_path / f"{part}.tsv.gz"
        saturate("--saturate-deletions", "-o", out, *(["--shard", f"{part}/4"] if part else []))
        packed.append(out.read_bytes())
    assert gzip.decompress(b"".join(packed[1:])) == gzip.decompress(packed[0])


@pytest.mark.parametrize("done", [0, 1, 40, 90])
def test_an_interrupted_run_makes_everything(saturate, tmp_path, done):
    """Table, track and figure of a resumed run are those of a whole one, whatever was there of the table."""
    outputs = ("a.tsv", "a.bg", "a.png")
    made = []
    for folder in ("whole", "resumed"):
        (tmp_path / folder).mkdir()
        table, track, plot = (tmp_path / folder / name for name in outputs)
        if folder == "resumed":
            lines = made[0][0].decode().splitlines(keepends=True)
            header = sum(line.startswith("#") for line in lines)
            table.with_name("a.tsv.partial").write_text("".join(lines[: header + done]))
        result = saturate("-o", table, "--resume", "--track", track, "--plot", plot, "--track-score", "pll_diff")
        assert ("resumed after" in result.stderr) == (folder == "resumed" and done > 0)
        made.append([path.read_bytes() for path in (table, track, plot)])
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == sorted(outputs)
    assert made[0] == made[1]


def test_the_table_has_no_name_before_track_and_plot_are_there(saturate, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    table, plot = tmp_path / "a.tsv", tmp_path / "a.png"
    with monkeypatch.context() as patch:
        patch.setattr(task, "draw_saturation", interrupt)
        saturate("-o", table, "--plot", plot, code=130)
    assert not table.exists() and not plot.exists()
    saturate("-o", table, "--plot", plot, "--resume")
    assert len(rows(table.read_text())) == 90 and plot.exists()


@pytest.mark.parametrize("score", ["llr", "dist_l2", "dist_cos", "pll_diff"])
@pytest.mark.parametrize("out", ["a.tsv", "a.vcf.gz", "-"])
def test_the_track_is_the_mean_over_the_snvs(saturate, tmp_path, score, out):
    region = ("chr1:296-310", "chr2:601-605")
    saturate("--saturate-deletions", "-o", tmp_path / "table.tsv", region=region)
    track = tmp_path / "a.bedgraph"
    args = ["--track", track, *(["--track-score", score] if score != "llr" else [])]
    saturate("--saturate-deletions", "-o", out if out == "-" else tmp_path / out, *args, region=region)
    expected = means(tmp_path / "table.tsv", score.upper())
    assert bedgraph(track.read_text()) == expected and len(expected) == 15
    assert f'name="lrgenome {score.upper()}" description="{score.upper()}, mean over' in track.read_text()


def test_bigwig(saturate, tmp_path):
    bigwig = pytest.importorskip("pyBigWig", reason="needs pyBigWig: pip install 'lrgenome[bigwig]'")
    region = ("chr2:601-605", "chr1:296-310")
    saturate("-o", tmp_path / "a.tsv", "--track", tmp_path / "a.bw", region=region)
    with bigwig.open(str(tmp_path / "a.bw")) as file:
        assert file.chroms() == {"chr1": 5003, "chr2": 1200, "MT": 61}
        found = [(name, *one) for name in ("chr1", "chr2") for one in file.intervals(name)]
    expected = means(tmp_path / "a.tsv", "LLR")
    assert [(name, str(start), str(end)) for name, start, end, _ in found] == [tuple(one[:3]) for one in expected]
    assert [one[3] for one in found] == pytest.approx([float(one[3]) for one in expected], rel=1e-5)


def test_the_plot_has_the_scores_of_the_table(saturate, tmp_path, monkeypatch, toy_sequences):
    seen = []
    draw = heatmap.saturation_figure
    monkeypatch.setattr(heatmap, "saturation_figure", lambda *args: seen.append(args) or draw(*args))
    region = ("chr1:1-12", "chr2:398-424")
    table, plot = tmp_path / "a.tsv", tmp_path / "a.svg"
    saturate("--saturate-deletions", "-o", table, "--plot", plot, region=region)
    ((one, two), score, caption) = seen[0]
    assert (score, caption) == ("LLR", "tiny, context 200bp") and plot.read_bytes().startswith(b"<?xml")
    assert (one.contig, one.start, two.contig, two.start) == ("chr1", 0, "chr2", 397)
    assert one.bases == toy_sequences["chr1"][:12] and two.bases == toy_sequences["chr2"][397:400] + "N" * 22 + (
        toy_sequences["chr2"][422:424]
    )
    cells = {"chr1": np.full((5, 12), np.nan), "chr2": np.full((5, 27), np.nan)}
    first_deletion = {"chr1": iter([0, *range(1, 12)]), "chr2": iter([0, 1, 2, 26])}
    for row in read_scores(table):
        if len(row["REF"]) == 1:
            offset = row["POS"] - 1 - (0 if row["CHROM"] == "chr1" else 397)
            cells[row["CHROM"]]["ACGT".index(row["ALT"]), offset] = row["LLR"]
        else:
            cells[row["CHROM"]][4, next(first_deletion[row["CHROM"]])] = row["PLL_DIFF"]
    np.testing.assert_array_equal(one.cells, cells["chr1"])
    np.testing.assert_array_equal(two.cells, cells["chr2"])
    np.testing.assert_allclose(one.mean, np.nansum(cells["chr1"][:4], 0) / 3)


def test_a_long_region_is_drawn_as_a_line(saturate, tmp_path, monkeypatch):
    monkeypatch.setattr(heatmap, "_MAP_LIMIT", 20)
    seen = []
    draw = heatmap.saturation_figure
    monkeypatch.setattr(heatmap, "saturation_figure", lambda *args: seen.append(args[0]) or draw(*args))
    saturate("-o", tmp_path / "a.tsv", "--plot", tmp_path / "a.png")
    ((region,),) = seen
    assert region.cells is None
    np.testing.assert_allclose(region.mean, [float(one[3]) for one in means(tmp_path / "a.tsv", "LLR")], rtol=1e-5)


def test_a_dry_run_and_a_summary(saturate, tmp_path):
    result = saturate("--dry-run", "--track", tmp_path / "a.bg", "--plot", tmp_path / "a.png", "-o", tmp_path / "a.tsv")
    assert dict(line.split("\t") for line in result.stdout.splitlines())["records"] == "90"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("a.")] == []
    saturate("--summary", tmp_path / "s.json", "--strict")
    assert json.loads((tmp_path / "s.json").read_text())["statuses"] == {"OK": 90}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--saturate", REGION, "a.vcf"), "got both a VCF (a.vcf) and --saturate, expected one of them"),
        ((), "got neither a VCF nor --saturate, expected one of them"),
        (("a.vcf", "--track", "a.bg"), "--track is of --saturate, which was not given"),
        (("a.vcf", "--plot", "a.png"), "--plot is of --saturate, which was not given"),
        (("a.vcf", "--track-score", "llr"), "--track-score is of --saturate, which was not given"),
        (("a.vcf", "--saturate-deletions"), "--saturate-deletions is of --saturate, which was not given"),
        (("--saturate", REGION, "--track-score", "llr"), "--track-score is of --track and --plot; got neither"),
        (("--saturate", REGION, "--plot", "a.png", "--track-score", "x"), "--track-score: got 'x', expected one of"),
        (("--saturate", REGION, "--track", "a.wig"), "--track: got 'a.wig', expected a name ending in"),
        (("--saturate", REGION, "--plot", "a.pdf"), "--plot: got 'a.pdf', expected a name ending in"),
        (("--saturate", REGION, "--plot", "a.png", "--shard", "2/3"), "--plot: got --shard 2/3, expected the whole"),
        (("--saturate", "chr9:1-5"), "there is no contig 'chr9'"),
        (("--saturate", "chr1:5-9000"), "expected 1 <= START <= END <= 5,003"),
    ],
)
def test_usage_errors(lrgenome, toy_fasta, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    found = set(tmp_path.iterdir())
    result = lrgenome("score-vcf", *args, "-f", toy_fasta, "--context", "200", "-o", "out.tsv", code=2)
    assert message in result.stderr
    assert {path.name for path in set(tmp_path.iterdir()) - found} <= {"toy.fa.fai"}


def test_too_many_regions_to_draw(saturate, tmp_path):
    regions = [f"MT:{base}-{base}" for base in range(1, 51, 2)]
    result = saturate("--plot", tmp_path / "a.png", region=regions, code=2)
    assert "--plot: got 25 regions, expected at most 24" in result.stderr
    assert len(rows(saturate("--track", tmp_path / "a.bg", region=regions).stdout)) == 75


def test_saturation_needs_a_fasta(lrgenome):
    assert "--saturate: got no --fasta" in lrgenome("score-vcf", "--saturate", REGION, code=2).stderr


def test_outputs_are_checked_before_any_work(saturate, tmp_path, monkeypatch):
    (tmp_path / "a.bg").write_text("earlier")
    result = saturate("--track", tmp_path / "a.bg", "--no-clobber", code=2)
    assert "exists already and --no-clobber is set" in result.stderr
    assert "does not exist" in saturate("--plot", tmp_path / "none" / "a.png", code=3).stderr
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = saturate("--track", tmp_path / "a.bw", "-o", tmp_path / "a.tsv", code=2)
    assert "pip install 'lrgenome[bigwig]'" in result.stderr and "statuses" not in result.stderr
    assert not (tmp_path / "a.tsv").exists() and (tmp_path / "a.bg").read_text() == "earlier"


def test_a_score_that_is_not_there(saturate, tmp_path):
    """One pass over the tile gives the LLR and nothing else."""
    track = tmp_path / "a.bg"
    result = saturate("--llr", "wildtype", "--track", track, "--track-score", "dist_l2")
    assert "no base has a DIST_L2: track and plot are empty" in result.stderr
    assert bedgraph(track.read_text()) == [] and "tiny, context 200bp, wildtype" in track.read_text()
    result = saturate("--llr", "wildtype", "--track", track)
    assert "no base has" not in result.stderr and len(bedgraph(track.read_text())) == 30
