"""What a fine-tuned model is good for: columns of `score-vcf`, predictions of `embed`."""


import csv
from pathlib import Path

import numpy as np
import pytest
from benchmark_files import TEST, Benchmark
from typer.testing import CliRunner

import lrgenome
from lrgenome.cli.app import app

from .finetune_runs import CONTEXT, finetune, predictions


@pytest.fixture(scope="module")
def tuned(benchmark, tiny_model, tmp_path_factory) -> Path:
    """A model tuned on variants, with tissues."""
    out = tmp_path_factory.mktemp("tuned")
    finetune(benchmark, out / "eqtl", "vep-eqtl", "--benchmark", benchmark.folder, "-m", tiny_model, "--context",
             "2000", "--fold", "1", "--tissue-as", "embedding")  # fmt: skip
    return out / "eqtl"


def vcf_of(benchmark: Benchmark, path: Path) -> Path:
    """Write the variants of the test contigs, and an indel."""
    with open(path, "w") as handle:
        handle.write("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
        for i, (name, at) in enumerate(benchmark.variants):
            if name in TEST:
                ref = benchmark.sequences[name][at]
                alt = "ACGT"[("ACGT".index(ref) + 1 + i % 3) % 4]
                handle.write(f"{name}\t{at + 1}\t.\t{ref}\t{alt},{ref}GG,<INS>\t.\t.\t.\n")
    return path


def scored(benchmark: Benchmark, tuned: Path, vcf: Path, out: Path, *more: str) -> list[dict[str, str]]:
    arguments = ["score-vcf", str(vcf), "-f", str(benchmark.fasta), "-m", str(tuned), "--tissue", "Liver", "--tissue",
                 "Whole_Blood", "-t", "1", "--device", "cpu", "-q", "-o", str(out), *more]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    with open(out) as handle:
        return list(csv.DictReader((line for line in handle if not line.startswith("##")), delimiter="\t"))


def test_score_vcf_says_what_the_tuned_model_predicts(benchmark, tuned, tmp_path):
    vcf = vcf_of(benchmark, tmp_path / "in.vcf")
    rows = scored(benchmark, tuned, vcf, tmp_path / "out.tsv", "--exact-windows", "--context", "2000")
    wanted = {
        (row["contig"], int(row["start"]) + 1, row["alt"], row["tissue"]): float(row["model"])
        for row in predictions(tuned)
    }
    compared = 0
    for row in rows:
        if row["ALT"] == "<INS>":
            assert row["P_Liver"] == "." and row["STATUS"] == "ALT_SYMBOLIC"
            continue
        assert 0 < float(row["P_Liver"]) < 1
        for tissue in ("Liver", "Whole_Blood"):
            key = row["#CHROM"], int(row["POS"]), row["ALT"], tissue
            if key in wanted and "EDGE" not in row["STATUS"]:
                assert float(row[f"P_{tissue}"]) == pytest.approx(wanted[key], abs=2e-5)
                compared += 1
    assert compared > 40
    scored(benchmark, tuned, vcf, tmp_path / "tsv.tsv", "--exact-windows", "--context", "2000", "--resume")
    command = ["score-vcf", str(vcf), "-f", str(benchmark.fasta), "-m", str(tuned), "--tissue", "Liver", "-t", "1",
               "--device", "cpu", "-q", "-o", str(tmp_path / "out.vcf"), "--exact-windows", "--context",
               "2000"]  # fmt: skip
    assert CliRunner().invoke(app, command).exit_code == 0
    text = (tmp_path / "out.vcf").read_text()
    assert "##INFO=<ID=LRG_P_Liver,Number=A,Type=Float" in text
    line = next(line for line in text.splitlines() if not line.startswith("#"))
    info = dict(entry.split("=") for entry in line.split("\t")[7].split(";") if "=" in entry)
    assert info["LRG_P_Liver"] == ",".join(row["P_Liver"] for row in rows[:3])


def test_tiles_predict_what_whole_windows_do(benchmark, tuned, tmp_path):
    """Windows and tiles that hold the whole contig."""
    vcf = vcf_of(benchmark, tmp_path / "in.vcf")
    found = [
        scored(benchmark, tuned, vcf, tmp_path / f"{mode}.tsv", f"--{mode}", "--context", "24kbp")[:60]
        for mode in ("boundary-states", "exact-windows")
    ]
    for tile, window in zip(*found, strict=True):
        if tile["P_Liver"] != ".":
            assert float(tile["P_Liver"]) == pytest.approx(float(window["P_Liver"]), abs=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--tissue: got none, expected some of the head's 3"),
        (["--tissue", "Brain"], "--tissue: got 'Brain', expected one of Adipose"),
    ],
)
def test_score_vcf_needs_a_tissue_that_the_model_knows(benchmark, tuned, tmp_path, arguments, message):
    vcf = vcf_of(benchmark, tmp_path / "in.vcf")
    command = ["score-vcf", str(vcf), "-f", str(benchmark.fasta), "-m", str(tuned), "--device", "cpu", "-t", "1"]
    result = CliRunner().invoke(app, [*command, *arguments])
    assert result.exit_code == 2 and message in " ".join(result.output.split())


def test_a_head_of_intervals_adds_no_columns(benchmark, tiny_model, tmp_path):
    finetune(benchmark, tmp_path / "tuned", "promoter", "--benchmark", benchmark.folder, "-m", tiny_model, "--context",
             CONTEXT, "--train", "logistic", "--fold", "1")  # fmt: skip
    vcf = vcf_of(benchmark, tmp_path / "in.vcf")
    result = CliRunner().invoke(app, ["score-vcf", str(vcf), "-f", str(benchmark.fasta), "-m", str(tmp_path / "tuned"),
                                      "--device", "cpu", "-t", "1", "-q", "-o", str(tmp_path / "o.tsv")])  # fmt: skip
    assert result.exit_code == 0 and "\tERR_EST\tSTATUS\n" in (tmp_path / "o.tsv").read_text()


def test_embed_gives_predictions_of_a_head_of_intervals(benchmark, tiny_model, tmp_path):
    from lrgenome.io.hdf5 import read_embeddings

    # Pooled from the first base to the last, as bins are.
    finetune(benchmark, tmp_path / "tuned", "promoter", "--benchmark", benchmark.folder, "-m", tiny_model, "--context",
             "6000", "--train", "logistic", "--fold", "1", "--pool-from", "-100", "--pool-to", "100")  # fmt: skip
    rows = predictions(tmp_path / "tuned")
    bed = tmp_path / "rows.bed"
    bed.write_text("".join(f"{row['contig']}\t{row['start']}\t{row['end']}\n" for row in rows))
    command = ["embed", str(benchmark.fasta), "--bed", str(bed), "-m", str(tmp_path / "tuned"), "--layer", "head", "-o",
               str(tmp_path / "e.h5"), "--device", "cpu", "-t", "1", "-q", "--context", "12kbp", "--precision",
               "float32"]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    with read_embeddings(tmp_path / "e.h5") as found:
        assert found.attrs["layer"] == "head" and found.attrs["outputs"] == "label"
        got = np.asarray(found.embeddings[:])[:, 0]
    assert got.shape == (len(rows),) and ((got >= 0) & (got <= 1)).all()
    # Windows end elsewhere, so they differ a little.
    assert np.abs(got - [float(row["model"]) for row in rows]).max() < 0.02
    # Else it is the head's own.
    own = [str(tmp_path / "own.h5") if part == str(tmp_path / "e.h5") else part for part in command]
    del own[own.index("--context") : own.index("--context") + 2]
    assert CliRunner().invoke(app, own).exit_code == 0
    with read_embeddings(tmp_path / "own.h5") as found:
        assert found.attrs["context"] == 6_000
        table = np.asarray(found.embeddings[:])
    with lrgenome.load(tmp_path / "tuned", device="cpu", threads=1) as model:
        intervals = [(row["contig"], int(row["start"]), int(row["end"])) for row in rows]
        assert np.array_equal(model.embed(benchmark.fasta, intervals, head=True), table)
    result = CliRunner().invoke(app, [*command[:4], "--layer", "head", "-o", str(tmp_path / "f.h5")])
    assert result.exit_code == 2 and "the model has no head" in " ".join(result.output.split())
