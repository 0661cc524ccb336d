"""Which rows are trained on and tested: windows, contigs, folds, leaks, and options that cannot be."""



import numpy as np
import pytest
from benchmark_files import CONTIGS, SIZE, TEST
from typer.testing import CliRunner

from lrgenome.cli.app import app
from lrgenome.dna import encode, reverse_complement
from lrgenome.io.benchmark import READERS
from lrgenome.io.fasta import Fasta
from lrgenome.training.labelled import LabelledWindows

from .finetune_runs import CONTEXT, FAST, finetune, predictions, report


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
