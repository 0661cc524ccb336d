"""Fine-tuning end to end: nine tasks in miniature files of the benchmark's formats, heads, resuming."""


import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from benchmark_files import BINS, TEST, TISSUES, TRACKS

from lrgenome.config import CaduceusConfig, NucleotideTransformerConfig
from lrgenome.config.head import HeadConfig
from lrgenome.dna import VOCAB_SIZE
from lrgenome.io.benchmark import READERS
from lrgenome.models.checkpoint import load_model, save_model
from lrgenome.models.families import build
from lrgenome.models.heads import Extras, load_head
from lrgenome.tasks.benchmarks import TASKS

from .finetune_runs import CONTEXT, FAST, FILES, finetune, metric, predictions, report


@pytest.mark.parametrize("task", sorted(READERS))
@pytest.mark.parametrize("train", ["head", "full"])
def test_every_task_runs_from_its_files_to_a_report(benchmark, tiny_model, tmp_path, task, train):
    context = 2_048 if task == "cage" else CONTEXT
    finetune(
        benchmark, tmp_path / "out", task, "--benchmark", benchmark.folder, "-m", tiny_model, "--context", context,
        "--train", train, "--epochs", "2", *(["--fold", "1"] if task != "cage" else []),
        *(["--max-rows", "40"] if train == "full" else []), *(["--max-rows", "20"] if task == "cage" else []),
    )  # fmt: skip
    examples = READERS[task](benchmark.folder)
    test = int((examples.split == "test").sum())
    found = report(tmp_path / "out")
    assert found["rows"]["read"] == len(examples) and found["rows"]["test"] == test > 0
    assert found["head"]["low"] == TASKS[task].low and found["head"]["high"] == TASKS[task].high
    rows = predictions(tmp_path / "out")
    assert len(rows) == test * len(examples.outputs) * (BINS if task == "cage" else 1)
    assert {row["contig"] for row in rows} == set(TEST)
    assert all(np.isfinite(float(row["model"])) for row in rows)
    expected = "R2" if examples.kind == "numbers" else "AUROC"
    value = metric(tmp_path / "out", expected, "model")
    assert value["low"] <= value["value"] <= value["high"]
    assert (tmp_path / "out" / "test.png").read_bytes().startswith(b"\x89PNG")
    tuned, head = load_model(tmp_path / "out"), load_head(tmp_path / "out")
    same = all(
        torch.equal(a, b)
        for a, b in zip(tuned.model.parameters(), load_model(tiny_model).model.parameters(), strict=True)
    )
    assert head is not None and head.config.task == task and same == (train == "head")
    if task == "vep-eqtl":
        assert head.config.tissue == "index" and head.config.inputs == 2 * 16 + 1
        assert {m["subset"] for m in found["metrics"]} >= {f"tissue={t}" for t in TISSUES} | {"distance=0-30kbp"}


def test_a_frozen_head_learns_what_there_is(benchmark, tiny_model, tmp_path):
    """The labels are of G and C in 200 bp, which a mean of hidden states of random weights still shows."""
    for train in ("head", "logistic", "svm"):
        out = tmp_path / train
        finetune(benchmark, out, "promoter", "--benchmark", benchmark.folder, "-m", tiny_model, "--context", CONTEXT,
                 "--train", train, "--epochs", "40", "--head-lr", "1e-2", "--cache", tmp_path / "features")  # fmt: skip
        assert metric(out, "AUROC")["value"] > 0.9, train
        assert metric(out, "AUROC", "composition")["value"] > 0.95
    features = list((tmp_path / "features").glob("*.npy"))
    assert len(features) == 1, "features were computed again, though only the head differs"
    finetune(benchmark, tmp_path / "ridge", "bulk-rna", "--benchmark", benchmark.folder, "-m", tiny_model, "--context",
             "1000", "--train", "ridge", "--cache", tmp_path / "features")  # fmt: skip
    assert metric(tmp_path / "ridge", "SPEARMAN")["value"] > 0.5


def test_full_training_learns_too_and_two_runs_are_equal(benchmark, tiny_model, tmp_path):
    texts = []
    for name in ("one", "two"):
        finetune(benchmark, tmp_path / name, "promoter", "--benchmark", benchmark.folder, "-m", tiny_model,
                 "--context", "300", "--train", "full", "--epochs", "4", "--lr", "3e-3", "--head-lr", "1e-2",
                 "--batch-size", "16", "--fold", "1", "--layer-decay", "0.8", "--class-weights",
                 "balanced")  # fmt: skip
        texts.append([(tmp_path / name / file).read_bytes() for file in FILES])
    assert texts[0] == texts[1]
    assert metric(tmp_path / "one", "AUROC", "model")["value"] > 0.85


def test_an_interrupted_run_goes_on_where_it_was(benchmark, tiny_model, tmp_path):
    arguments = ["promoter", "--benchmark", benchmark.folder, "-m", tiny_model, "--context", "300", "--train", "full",
                 "--epochs", "3", "--batch-size", "16"]  # fmt: skip
    finetune(benchmark, tmp_path / "whole", *arguments)
    out = tmp_path / "cut"
    command = [sys.executable, "-m", "lrgenome", "finetune", *map(str, arguments), "-f", str(benchmark.fasta), "-o",
               str(out), *FAST]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(out.glob("fold-1/snapshot-0*")):
            pass
        process.kill()
        assert process.returncode is None or process.returncode == 0
        process.wait()
    assert not (out / "metrics.json").exists(), "finished before it could be killed"
    assert "holds a run already" in finetune(benchmark, out, *arguments, status=2)
    finetune(benchmark, out, *arguments, "--resume")
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    # A finished run is not trained again.
    before = {path: path.stat().st_mtime_ns for path in out.glob("fold-*/log.tsv")}
    finetune(benchmark, out, *arguments, "--resume")
    assert (out / "metrics.json").read_bytes() == (tmp_path / "whole" / "metrics.json").read_bytes()
    assert before


def test_features_are_gone_on_with(benchmark, tiny_model, tmp_path, monkeypatch):
    from lrgenome.training import frozen

    arguments = ["promoter", "--benchmark", benchmark.folder, "-m", tiny_model, "--context", "300"]
    finetune(benchmark, tmp_path / "whole", *arguments)
    monkeypatch.setattr(frozen, "_BLOCK", 64)
    streamed, calls = frozen.streamed_means, Counter()

    def count(*args):
        calls["all"] += 1
        if calls["all"] == 5:
            raise KeyboardInterrupt
        return streamed(*args)

    monkeypatch.setattr(frozen, "streamed_means", count)
    with pytest.raises((KeyboardInterrupt, AssertionError)):
        finetune(benchmark, tmp_path / "cut", *arguments)
    (note,) = (tmp_path / "cut" / "features").glob("*.json")
    done = json.loads(note.read_text())["done"]
    assert 0 < done < 300 and done % 64 == 0
    finetune(benchmark, tmp_path / "cut", *arguments)
    for name in ("metrics.json", "head.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("kind", ["caduceus-ps", "transformer", "kmers"])
def test_other_architectures(benchmark, tmp_path, kind):
    config = {
        "caduceus-ps": CaduceusConfig(layers=2, width=8, equivariant=True),
        "transformer": NucleotideTransformerConfig(
            layers=2, width=16, heads=2, mlp_width=16, kmers=False, vocab=VOCAB_SIZE, tied=True, max_tokens=600
        ),
        "kmers": NucleotideTransformerConfig(layers=1, width=16, heads=2, mlp_width=16, max_tokens=200),
    }[kind]
    save_model(build(config, seed=0), tmp_path / "model")
    for train in ("full", "head"):
        finetune(benchmark, tmp_path / train, "vep-clinvar", "--benchmark", benchmark.folder, "-m", tmp_path / "model",
                 "--context", "300", "--train", train, "--epochs", "1", "--max-rows", "24", "--fold", "1",
                 "--strand", "both")  # fmt: skip
        assert load_head(tmp_path / train).config.pooled == 2 * (8 if kind == "caduceus-ps" else 16)


def test_attention_and_what_else_comes_in(benchmark, tiny_model, tmp_path):
    finetune(benchmark, tmp_path / "out", "vep-eqtl", "--benchmark", benchmark.folder, "-m", tiny_model, "--context",
             CONTEXT, "--pool", "attention", "--stretch", "50bp", "--tissue-as", "embedding", "--distance-feature",
             "--hidden", "8,4", "--fold", "1")  # fmt: skip
    head = load_head(tmp_path / "out")
    assert head.config.inputs == 2 * 16 + 16 + 1 and head.config.hidden == (8, 4) and head.query.any()


def test_cage_has_as_many_bins_as_a_window_holds(benchmark, tiny_model, tmp_path):
    finetune(benchmark, tmp_path / "out", "cage", "--benchmark", benchmark.folder, "-m", tiny_model, "--context",
             "1024", "--max-rows", "10")  # fmt: skip
    rows = predictions(tmp_path / "out")
    assert {int(row["bin"]) for row in rows} == set(range(8)) and len({row["output"] for row in rows}) == TRACKS
    first = benchmark.targets["test"][0]
    own = [row for row in rows if row["#line"] == rows[0]["#line"]]
    got = np.array([float(row["label"]) for row in own]).reshape(8, TRACKS)
    assert np.allclose(got, np.log1p(first[4:12]), atol=1e-4)


def test_a_table_of_ones_own(benchmark, tiny_model, tmp_path):
    table = tmp_path / "mine.tsv"
    rng = np.random.default_rng(1)
    with open(table, "w") as handle:
        handle.write("#chrom\tpos\tref\talt\ty\tgene\n")
        for i, (name, at) in enumerate(benchmark.variants):
            ref = benchmark.sequences[name][at : at + 1 + i % 3]
            alt = ref[0] + "ACGT" * (i % 2) if len(ref) > 1 else "ACGT".replace(ref, "")[:1]
            handle.write(f"{name[3:]}\t{at + 1}\t{ref}\t{alt}\t{benchmark.label(name, at)}\tgene{rng.integers(6)}\n")
    finetune(benchmark, tmp_path / "out", "--table", table, "--label", "y", "-m", tiny_model, "--context", CONTEXT,
             "--test", "chr8,chr9", "--within", "gene", "--train", "logistic", "--strand", "both")  # fmt: skip
    within = metric(tmp_path / "out", "AUROC", subset="within groups")
    assert within["low"] <= within["value"] <= within["high"] and within["over_baseline"]["low"] is not None
    assert metric(tmp_path / "out", "AUROC")["value"] > 0.8
    finetune(benchmark, tmp_path / "numbers", "--table", table, "--label", "y", "--kind", "numbers", "-m", tiny_model,
             "--context", CONTEXT, "--test", "chr8", "--validation", "chr7", "--train", "svm")  # fmt: skip
    assert report(tmp_path / "numbers")["rows"]["folds"] == [{"train": 24 * 8, "validation": 24}]


def test_labels_that_changed_are_not_gone_on_with(benchmark, tiny_model, tmp_path):
    rows = (benchmark.folder / "regulatory_elements" / "promoter_dataset_subset.csv").read_text().splitlines()
    tables = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path, flip in zip(tables, (False, True), strict=True):
        with open(path, "w") as handle:
            handle.write("CHROM,START,END,y,split\n")
            for line in rows[1:]:
                chrom, start, stop, label, split = line.strip().split(",")
                handle.write(f"{chrom},{int(start) - 1},{int(stop) - 1},{int(label) ^ flip},{split}\n")
    arguments = ["--label", "y", "-m", tiny_model, "--context", "300", "--train", "full", "--fold", "1", "--max-rows",
                 "40"]  # fmt: skip
    finetune(benchmark, tmp_path / "out", "--table", tables[0], *arguments)
    said = finetune(benchmark, tmp_path / "out", "--table", tables[1], *arguments, "--resume", status=2)
    assert "made with other settings: labels" in " ".join(said.split())


def test_what_is_not_of_a_run_stays(benchmark, tiny_model, tmp_path):
    out = tmp_path / "out"
    arguments = ["promoter", "--benchmark", benchmark.folder, "-m", tiny_model, "--context", "300", "--train", "full",
                 "--fold", "1", "--max-rows", "32"]  # fmt: skip
    finetune(benchmark, out, *arguments)
    (out / "fold-data").mkdir()
    finetune(benchmark, out, *arguments, "--test", "chr77", status=2)
    assert (out / "fold-data").is_dir() and (out / "fold-1").is_dir() and (out / "metrics.json").is_file()
    finetune(benchmark, out, *arguments, "--epochs", "1")
    assert (out / "fold-data").is_dir()


def test_a_loss_that_is_no_number_names_the_batch(benchmark, tiny_model, tmp_path):
    said = finetune(
        benchmark, tmp_path / "out", "promoter", "--benchmark", benchmark.folder, "-m", tiny_model, "--context", "300",
        "--train", "full", "--lr", "1e30", "--head-lr", "1e30", "--epochs", "3", status=1,
    )  # fmt: skip
    assert "in a batch of 32 rows (line " in " ".join(said.split()) or "the validation loss is" in said


def test_a_head_reads_stretches_as_written_out():
    config = HeadConfig(kind="labels", outputs=("a", "b"), width=3, variants=True, context=10, hidden=(4,),
                        tissue="onehot", tissues=("x", "y"), distance=True)  # fmt: skip
    from lrgenome.models.heads import Head

    torch.manual_seed(0)
    head = Head(config)
    pooled = torch.randn(5, 2, 1, 3)
    extras = Extras(torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0.0, 10.0, 1e5, float("nan"), 3.0]))
    got = head(pooled, extras)
    distance = torch.log1p(torch.tensor([0.0, 10.0, 1e5, 1e5, 3.0])) / np.log1p(1e5)
    x = torch.cat([pooled[:, 0, 0], pooled[:, 1, 0], torch.nn.functional.one_hot(extras.tissue).float(),
                   distance[:, None].float()], 1)  # fmt: skip
    hidden = torch.nn.functional.softplus(x @ head.weights[0].T + head.biases[0])
    assert torch.allclose(got, hidden @ head.weights[1].T + head.biases[1], atol=1e-6)


def test_a_dry_run_counts_and_writes_nothing(benchmark, tiny_model, tmp_path):
    said = finetune(benchmark, tmp_path / "out", "vep-clinvar", "--benchmark", benchmark.folder, "-m", tiny_model,
                    "--context", "600", "--strand", "both", "--dry-run")  # fmt: skip
    lines = dict(line.split("\t") for line in said.splitlines() if "\t" in line)
    assert lines["rows"] == "240" and lines["test"] == "48" and "to train" in lines["fold 2"]
    assert int(lines["bases_to_run"]) == int(lines["windows"]) * 600 * 2 * 2 and float(lines["expected_seconds"]) >= 0
    assert not (tmp_path / "out").exists()
