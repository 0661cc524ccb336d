"""Fine-tuning end to end: nine tasks in miniature files of the benchmark's formats, folds, heads, leaks, resuming."""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_files import BINS, CONTIGS, SIZE, TEST, TISSUES, TRACKS, Benchmark
from typer.testing import CliRunner

from lrgenome.cli.app import app
from lrgenome.config import CaduceusConfig, NucleotideTransformerConfig
from lrgenome.config.head import HeadConfig
from lrgenome.dna import VOCAB_SIZE, encode, reverse_complement
from lrgenome.io.benchmark import READERS
from lrgenome.io.fasta import Fasta
from lrgenome.models.checkpoint import load_model, save_model
from lrgenome.models.families import build
from lrgenome.models.heads import Extras, load_head
from lrgenome.tasks.benchmarks import TASKS
from lrgenome.training.labelled import LabelledWindows

FAST = ["--epochs", "3", "--folds", "2", "-t", "1", "--device", "cpu", "--precision", "float32", "-q"]
CONTEXT = "600"
FILES = ("metrics.json", "predictions.tsv", "model.safetensors", "head.safetensors")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Benchmark:
    return Benchmark(tmp_path_factory.mktemp("benchmark"))


def finetune(benchmark: Benchmark, out: Path, *arguments: object, status: int = 0) -> str:
    command = ["finetune", *map(str, arguments), "-f", str(benchmark.fasta), "-o", str(out), *FAST]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == status, result.output + (repr(result.exception) if status != result.exit_code else "")
    return result.output


def report(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def metric(out: Path, name: str, model: str = "mean of folds", subset: str = "all") -> dict:
    (found,) = [m for m in report(out)["metrics"] if (m["model"], m["subset"], m["metric"]) == (model, subset, name)]
    return found


def predictions(out: Path) -> list[dict[str, str]]:
    with open(out / "predictions.tsv", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


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


def test_rows_that_leave_the_contig_are_counted_and_lengths_can_share_rows(benchmark, tiny_model, tmp_path):
    examples = READERS["promoter"](benchmark.folder)
    with Fasta(benchmark.fasta) as fasta:
        kept = {
            length: LabelledWindows(examples, fasta, length).keep().rows for length in (300, 4_000)
        }
        expected = [
            i for i in range(len(examples))
            if examples.start[i] - (4_000 - 200) // 2 >= 0 and examples.start[i] - 1_900 + 4_000 < SIZE
        ]  # fmt: skip
        assert kept[4_000].tolist() == expected and len(kept[300]) == len(examples) > len(expected)
        common = LabelledWindows(examples, fasta, 300).keep(common=4_000)
        assert common.rows.tolist() == expected
        assert common.dropped == {"window leaves the contig": len(examples) - len(expected)}


def test_windows_are_those_of_the_benchmark(benchmark):
    with Fasta(benchmark.fasta) as fasta:
        coding = LabelledWindows(READERS["vep-clinvar"](benchmark.folder), fasta, 301)
        (name, at), ids = benchmark.variants[5], coding.windows(5)
        text = benchmark.sequences[name]
        # The variant is base L // 2; REF comes second.
        assert np.array_equal(ids[1], encode(text[at - 150 : at + 151]))
        assert (ids[0] != ids[1]).nonzero()[0].tolist() == [150]
        genes = READERS["bulk-rna"](benchmark.folder)
        windows = LabelledWindows(genes, fasta, 300)
        for row, gene in enumerate(benchmark.genes[:4]):
            tss = int(gene["CAGE_representative_TSS"]) - 1
            plus = encode(benchmark.sequences[str(gene["chrom"])][tss - 150 : tss + 150])
            want = plus if gene["strand"] == "+" else reverse_complement(plus)
            assert np.array_equal(windows.windows(row)[0], want)
        bins = READERS["promoter"](benchmark.folder)
        assert (bins.end - bins.start == 200).all()
        assert LabelledWindows(bins, fasta, 1_000).span(0) == (bins.start[0] - 400, bins.start[0] + 600)


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


def test_leaks_stop_a_run_or_are_left_out(benchmark, tiny_model, tmp_path):
    table = tmp_path / "mine.tsv"
    lines = ["CHROM\tSTART\tEND\ty\tsplit"]
    for i, name in enumerate(CONTIGS):
        for k in range(8):
            start = 1_000 + 1_200 * k
            split = "test" if name in TEST else "train"
            # Two training rows beside a test row, and one on its very place.
            lines.append(f"{name}\t{start}\t{start + 200}\t{(i + k) % 2}\t{split}")
    lines += ["chr8\t1100\t1300\t1\ttrain", "chr9\t1000\t1200\t0\ttrain"]
    table.write_text("\n".join(lines) + "\n")
    arguments = ["--table", table, "--label", "y", "-m", tiny_model, "--context", "400", "--train", "logistic"]
    said = finetune(benchmark, tmp_path / "stop", *arguments, status=2)
    assert "2 training rows whose windows overlap those of test rows" in " ".join(said.split())
    finetune(benchmark, tmp_path / "drop", *arguments, "--drop-leaks")
    finetune(benchmark, tmp_path / "allow", *arguments, "--allow-leaks")
    sizes = {
        name: [sum(fold.values()) for fold in report(tmp_path / name)["rows"]["folds"]] for name in ("drop", "allow")
    }
    assert sizes == {"drop": [64, 64], "allow": [66, 66]}


def test_copies_are_leaks_on_either_strand(benchmark, tiny_model, tmp_path):
    text = benchmark.sequences["chr1"][2_000:4_000]
    other = text.translate(str.maketrans("ACGT", "TGCA"))[::-1]
    fasta = tmp_path / "copies.fa"
    fasta.write_text(f">a\n{text}\n>b\n{other}\n>c\n{benchmark.sequences['chr2'][:2_000]}\n")
    table = tmp_path / "t.tsv"
    table.write_text("CHROM\tSTART\tEND\ty\nb\t900\t1100\t1\nc\t300\t500\t0\nc\t1300\t1500\t1\na\t900\t1100\t0\n")
    variants = tmp_path / "v.tsv"
    bases = {"a": text[999], "b": other[1000], "c": benchmark.sequences["chr2"][399]}
    lines = [f"b\t1001\t{bases['b']}\t{'A' if bases['b'] != 'A' else 'C'}\t1", "c\t400\t.\tA\t0", "c\t1400\t.\tA\t1",
             f"a\t1000\t{bases['a']}\t{'T' if bases['a'] != 'T' else 'G'}\t0"]  # fmt: skip
    lines[1:3] = [f"c\t{at}\t{benchmark.sequences['chr2'][at - 1]}\tN\t{at % 7 % 2}" for at in (400, 1400)]
    variants.write_text("\n".join(["CHROM\tPOS\tREF\tALT\ty", *lines]) + "\n")
    for rows in (table, variants):
        command = ["finetune", "--table", str(rows), "--label", "y", "-f", str(fasta), "-o", str(tmp_path / "out"),
                   "-m", str(tiny_model), "--context", "400", "--test", "a", "--validation", "c:1-1000",
                   *FAST]  # fmt: skip
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2, result.output
        assert "copies of them, on either strand" in " ".join(result.output.split()), rows


def test_one_fold_alone_is_the_fold_among_all(benchmark, tiny_model, tmp_path):
    arguments = ["promoter", "--benchmark", benchmark.folder, "-m", tiny_model, "--context", "300", "--folds", "3"]
    finetune(benchmark, tmp_path / "all", *arguments)
    finetune(benchmark, tmp_path / "second", *arguments, "--fold", "2")
    one = [row["model"] for row in predictions(tmp_path / "second")]
    assert one == [row["fold_2"] for row in predictions(tmp_path / "all")]


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


def test_contigs_by_a_table_of_names(benchmark, tiny_model, tmp_path):
    names = tmp_path / "names.tsv"
    names.write_text("".join(f"scaffold{i}\t{name}\n" for i, name in enumerate(CONTIGS)))
    table = tmp_path / "t.csv"
    table.write_text("CHROM,START,END,y\n" + "".join(
        f"scaffold{CONTIGS.index(name)},{at - 100},{at + 100},{benchmark.label(name, at)}\n"
        for name, at in benchmark.places(8)
    ))  # fmt: skip
    finetune(benchmark, tmp_path / "out", "--table", table, "--label", "y", "-m", tiny_model, "--context", "400",
             "--test", "scaffold7,scaffold8", "--chrom-alias", names, "--train", "logistic",
             "--allow-leaks")  # fmt: skip
    assert report(tmp_path / "out")["rows"]["test"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either a TASK of the benchmark or --table; got neither"),
        (["promoter"], "promoter: expected --benchmark"),
        (["promotor", "--benchmark", "."], "TASK: got 'promotor', expected one of"),
        (["promoter", "--benchmark", "."], "no regulatory_elements/promoter_dataset_subset.csv"),
        (["promoter", "--benchmark", "{}", "--train", "ridge"], "--train ridge: got labels of kind classes"),
        (["promoter", "--benchmark", "{}", "--train", "some"], "--train: got 'some', expected one of full, head"),
        (["promoter", "--benchmark", "{}", "--folds", "40"], "--folds: got 40, but only 8 contigs"),
        (["promoter", "--benchmark", "{}", "--distance-feature"], "the rows have no distance"),
        (["promoter", "--benchmark", "{}", "--tissue-as", "index"], "the rows have no tissue"),
        (["cage", "--benchmark", "{}", "--context", "100"], "--context: got 100 bp, too short"),
        (["cage", "--benchmark", "{}", "--context", "2048", "--train", "ridge"], "cage predicts bins"),
        (["promoter", "--benchmark", "{}", "--train", "full", "--chunk", "100"], "are of frozen models"),
        (["promoter", "--benchmark", "{}", "--hidden", "a"], "--hidden: got 'a', expected widths"),
        (["promoter", "--benchmark", "{}", "--test", "chr77"], "chr77"),
    ],
)
def test_bad_options(benchmark, tiny_model, tmp_path, arguments, message):
    arguments = [argument.format(benchmark.folder) for argument in arguments]
    if "--folds" in arguments:
        # The benchmark's tasks hold out one contig each.
        arguments[0:1] = ["promoter"]
    result = CliRunner().invoke(
        app, ["finetune", *FAST, "-m", str(tiny_model), "--context", CONTEXT, "-f", str(benchmark.fasta), "-o",
              str(tmp_path / "out"), *arguments]
    )  # fmt: skip
    assert result.exit_code in (2, 3) and message in " ".join(result.output.split()), result.output


def test_another_assembly_is_an_error(benchmark, tiny_model, tmp_path):
    shifted = tmp_path / "shifted.fa"
    shifted.write_text("".join(f">{n}\nACG{s[:-3]}\n" for n, s in benchmark.sequences.items()))
    result = CliRunner().invoke(
        app, ["finetune", "vep-clinvar", "--benchmark", str(benchmark.folder), "-f", str(shifted), "-o",
              str(tmp_path / "out"), "-m", str(tiny_model), *FAST, "--context", "300"]
    )  # fmt: skip
    assert result.exit_code == 3 and "is it the table's assembly?" in " ".join(result.output.split())


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
    result = CliRunner().invoke(app, [*command[:4], "--layer", "head", "-o", str(tmp_path / "f.h5")])
    assert result.exit_code == 2 and "the model has no head" in " ".join(result.output.split())


def test_a_dry_run_counts_and_writes_nothing(benchmark, tiny_model, tmp_path):
    said = finetune(benchmark, tmp_path / "out", "vep-clinvar", "--benchmark", benchmark.folder, "-m", tiny_model,
                    "--context", "600", "--strand", "both", "--dry-run")  # fmt: skip
    lines = dict(line.split("\t") for line in said.splitlines() if "\t" in line)
    assert lines["rows"] == "240" and lines["test"] == "48" and "to train" in lines["fold 2"]
    assert int(lines["bases_to_run"]) == int(lines["windows"]) * 600 * 2 * 2 and float(lines["expected_seconds"]) >= 0
    assert not (tmp_path / "out").exists()
