"""Lengths beyond training, and whether far context is used: against models that are known to, and known not to."""

import csv
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_files import Benchmark
from torch.nn.functional import softplus
from typer.testing import CliRunner

from lrgenome.cli.app import app
from lrgenome.config import CaduceusConfig, HawkConfig, NucleotideTransformerConfig
from lrgenome.dna import VOCAB_SIZE
from lrgenome.engine.runner import Runner
from lrgenome.engine.timescales import half_lives, scale_timescales
from lrgenome.errors import InputError, UsageError
from lrgenome.io.fasta import Fasta
from lrgenome.models.checkpoint import save_model
from lrgenome.models.families import build
from lrgenome.ops.rglru.naive import elementwise
from lrgenome.ops.workspace import Workspace
from lrgenome.tasks.extrapolate import parse_lengths, reference_length
from lrgenome.tasks.meter import Meter
from lrgenome.tasks.probes import PROBES, Setting, swapped
from lrgenome.tasks.sites import choose_sites

TRANSFORMER = NucleotideTransformerConfig(
    layers=1, width=16, heads=2, mlp_width=16, kmers=False, vocab=VOCAB_SIZE, tied=True, max_tokens=512
)
FAST = ["-t", "1", "--device", "cpu", "--precision", "float32", "-q"]


@pytest.fixture
def models(tiny_model, tmp_path) -> dict[str, Path]:
    """The tiny Hawk, trained on 512 bp as its checkpoint says; a transformer; an equivariant Caduceus."""
    folders = {name: tmp_path / name for name in ("hawk", "transformer", "caduceus")}
    shutil.copytree(tiny_model, folders["hawk"])
    settings = json.loads((folders["hawk"] / "config.json").read_text())
    settings["training"] = {"settings": {"window": 512}}
    (folders["hawk"] / "config.json").write_text(json.dumps(settings))
    save_model(build(TRANSFORMER, seed=0), folders["transformer"])
    save_model(build(CaduceusConfig(layers=2, width=8, equivariant=True), seed=0), folders["caduceus"])
    return folders


def extrapolate(benchmark: Benchmark, out: Path, *arguments: object, status: int = 0) -> str:
    command = ["extrapolate", "-f", str(benchmark.fasta), "-o", str(out), *FAST, *map(str, arguments)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


class Tags(HTMLParser):
    """Checks that elements are closed in order, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.asked: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.asked += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.asked += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_everything_from_one_command(benchmark, models, tmp_path):
    out = tmp_path / "out"
    printed = extrapolate(
        benchmark, out, "-m", models["hawk"], "-m", models["transformer"], "-m", models["caduceus"], "--lengths",
        "256bp,512bp,2kbp,8kbp", "--positions", "none", "--positions", "plain", "--transfer", "exact", "--transfer",
        "none", "--chunk", "1kbp", "--sites", "4", "--probe", "all",
    )  # fmt: skip
    rows = table(out / "lengths.tsv")
    by = {(row["model"], row["strategy"], int(row["length"])): row for row in rows}
    said = [line for line in printed.splitlines() if "\tLOSS\t" in line]
    assert len(by) == 3 * 2 * 4 and len(said) == len(rows)
    assert len({row["n"] for row in rows if row["status"] == "OK"}) == 1, "not the same masked bases at every length"
    for row in rows:
        if row["model"] == "transformer" and row["strategy"] == "none" and int(row["length"]) > 512:
            assert row["value"] == "." and "expected at most 512" in row["status"]
        else:
            assert row["status"] == "OK" and float(row["low"]) <= float(row["value"]) <= float(row["high"])
            assert float(row["seconds"]) > 0 and float(row["bp_per_s"]) > 0 and int(row["host_bytes"]) > 1e7
    # Without anything cut off, nothing crosses an edge; the reference is the training length.
    assert by["hawk", "none", 512]["value"] == by["hawk", "exact", 512]["value"]
    assert by["hawk", "none", 8000]["value"] != by["hawk", "exact", 8000]["value"]
    assert by["hawk", "exact", 512]["over_reference"] == "0" and by["hawk", "exact", 512]["trained"] == "512"
    gap = float(by["hawk", "exact", 2000]["value"]) - float(by["hawk", "exact", 512]["value"])
    assert float(by["hawk", "exact", 2000]["over_reference"]) == pytest.approx(gap, abs=2e-6)
    steps = table(out / "gain.tsv")
    own = [row for row in steps if (row["model"], row["strategy"]) == ("hawk", "exact")]
    assert [(row["from"], row["to"]) for row in own] == [("256", "512"), ("512", "2000"), ("2000", "8000")]
    assert float(own[1]["gain"]) == pytest.approx(-gap, abs=2e-6)
    assert float(own[1]["per_doubling"]) == pytest.approx(-gap / math.log2(2000 / 512), abs=2e-6)
    names = ("lengths", "cost", "gain", "context", "reach", "timescales", "recall", "drift")
    for name in names:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / f"{name}.svg").read_text()
    assert {row["model"] for row in table(out / "context.tsv")} == {"hawk", "transformer", "caduceus"}
    assert {row["model"] for row in table(out / "timescales.tsv")} == {"hawk", "caduceus"}
    text = (out / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.open and tags.seen["svg"] == len(names) and tags.seen["table"] == len(names) - 1
    assert all(asked.startswith(("#", "data:")) for asked in tags.asked), "the report asks for something elsewhere"
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "two figures share an id"


def test_two_runs_give_the_same_tables(benchmark, models, tmp_path):
    for name in ("one", "two"):
        extrapolate(benchmark, tmp_path / name, "-m", models["hawk"], "--lengths", "256..1kbp", "--sites", "3",
                    "--probe", "reach", "--probe", "recall")  # fmt: skip
    for name in ("gain.tsv", "reach.tsv", "recall.tsv", "gain.svg", "gain.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_an_interrupted_study_goes_on(benchmark, models, tmp_path, monkeypatch):
    from lrgenome.tasks import extrapolate as task

    arguments = ["-m", models["hawk"], "--lengths", "256bp,512bp,1kbp", "--sites", "3"]
    extrapolate(benchmark, tmp_path / "whole", *arguments)
    computed, losses = [], task.target_losses

    def stop(*given):
        computed.append(given)
        if len(computed) == 8:
            raise KeyboardInterrupt
        return losses(*given)

    monkeypatch.setattr(task, "target_losses", stop)
    extrapolate(benchmark, tmp_path / "cut", *arguments, status=130)
    assert len(list((tmp_path / "cut" / "partial").glob("*.json"))) == 2
    extrapolate(benchmark, tmp_path / "cut", *arguments, "--resume")
    assert len(computed) == 8 + 3 and not (tmp_path / "cut" / "partial").exists()
    assert (tmp_path / "cut" / "gain.tsv").read_bytes() == (tmp_path / "whole" / "gain.tsv").read_bytes()


def test_probes_that_are_done_are_not_run_again(benchmark, models, tmp_path, monkeypatch):
    from lrgenome.tasks import extrapolate_run as task

    arguments = ["-m", models["hawk"], "--lengths", "256bp,1kbp", "--sites", "3", "--probe", "all"]
    extrapolate(benchmark, tmp_path / "whole", *arguments)
    ran, probes = [], dict(task.PROBES)

    def watched(name):
        def probe(at):
            ran.append(name)
            if len(ran) == 4:
                raise KeyboardInterrupt
            return probes[name](at)

        return probe

    monkeypatch.setattr(task, "PROBES", {name: watched(name) for name in probes})
    extrapolate(benchmark, tmp_path / "cut", *arguments, status=130)
    extrapolate(benchmark, tmp_path / "cut", *arguments, "--resume")
    names = list(probes)
    assert ran == [*names[:4], *names[3:]]
    for name in names:
        one, other = (tmp_path / run / f"{name}.tsv" for run in ("cut", "whole"))
        assert one.read_bytes() == other.read_bytes(), name


def test_a_fine_tuned_model_is_tested_again_at_other_lengths(benchmark, models, tmp_path):
    command = ["finetune", "promoter", "--benchmark", str(benchmark.folder), "-f", str(benchmark.fasta), "-m",
               str(models["hawk"]), "-o", str(tmp_path / "tuned"), *FAST, "--context", "600", "--train", "logistic",
               "--fold", "1"]  # fmt: skip
    assert CliRunner().invoke(app, command).exit_code == 0
    extrapolate(benchmark, tmp_path / "out", "-m", tmp_path / "tuned", "--task", "tuned", "--benchmark",
                benchmark.folder, "--lengths", "600bp,4kbp")  # fmt: skip
    rows = [row for row in table(tmp_path / "out" / "lengths.tsv") if row["metric"] == "AUROC"]
    assert [row["length"] for row in rows] == ["600", "4000"] and rows[0]["trained"] == "600"
    # Fewer than are tested at 600 bp, since all have to have a window of 4 kbp; the same at both.
    assert 0 < int(rows[0]["n"]) == int(rows[1]["n"]) < 60
    assert float(rows[0]["value"]) > 0.6 and float(rows[1]["over_low"]) <= float(rows[1]["over_high"])
    variants = tmp_path / "v.tsv"
    variants.write_text("CHROM\tPOS\tREF\tALT\tlabel\nchr1\t5000\tA\tC\t1\n")
    said = extrapolate(benchmark, tmp_path / "no", "-m", tmp_path / "tuned", "--task", "tuned", "--table", variants,
                       "--label", "label", status=2)  # fmt: skip
    assert "got rows variants, expected intervals" in " ".join(said.split())
    said = extrapolate(benchmark, tmp_path / "no", "-m", models["hawk"], "--task", "tuned", "--benchmark",
                       benchmark.folder, status=2)  # fmt: skip
    assert "has no head" in " ".join(said.split())


def setting(
    benchmark: Benchmark, model, fasta: Fasta, tmp_path: Path, longest: int = 4_096, near: int | None = None
) -> Setting:
    model.for_inference(torch.float32)
    plenty = lambda: 1 << 40  # noqa: E731
    runner = Runner(model, torch.device("cpu"), tmpdir=tmp_path, free_ram=plenty, free_disk=plenty)
    sites = choose_sites(fasta, None, longest=longest, target=256, count=6, seed=0)
    return Setting("m", runner, fasta, sites, longest, 512, 0, near)


def forgetful(half_life: float) -> torch.nn.Module:
    """A Hawk whose every state halves in about so many bp, whatever it reads."""
    model = build(HawkConfig(layers=1, width=16, recurrent_width=16, heads=2, mlp_width=16), seed=0)
    with torch.no_grad():
        for direction in model.blocks[0].directions:
            direction.gate_weight[..., direction.gate_weight.shape[-1] // 2 :] = 0.0
            direction.a_param.fill_(math.log(math.expm1(math.log(2) / (4 * half_life))))
    return model


def test_timescales_are_those_that_were_set(benchmark, tmp_path):
    with Fasta(benchmark.fasta) as fasta:
        at = setting(benchmark, forgetful(40.0), fasta, tmp_path)
        lives = [row["half_life_bp"] for row in PROBES["timescales"](at)]
    assert len(lives) == 2 * 16 and np.allclose(lives, 40.0, rtol=1e-3)


@pytest.mark.parametrize("kind", ["hawk", "caduceus", "caduceus-ps"])
def test_half_lives_are_of_what_the_recurrence_multiplies_by(kind):
    if kind == "hawk":
        model = build(HawkConfig(layers=2, width=8, recurrent_width=12, heads=2, mlp_width=8), seed=1)
    else:
        model = build(CaduceusConfig(layers=2, width=8, equivariant=kind == "caduceus-ps"), seed=1)
    ids = torch.randint(7, 11, (2, 50), generator=torch.Generator().manual_seed(0))
    found = half_lives(model, ids)
    assert [(one.layer, one.direction) for one in found] == [(1, "forward"), (1, "reverse"), (2, "forward"),
                                                             (2, "reverse")]  # fmt: skip
    block, x = model.stack[0], model.embed(ids)
    u = block.prepare(x, Workspace(enabled=False))
    with torch.no_grad():
        rates = block.decay_rates(u, weights=0, reverse=False)
        if kind == "hawk":
            from lrgenome.ops.conv import conv
            from lrgenome.ops.linear import per_head

            own = block.directions[0]
            v = conv(u.branch, own.conv_weight, own.conv_bias, block.initial_state(2, ids.device).halo, reverse=False)
            gates = per_head(v.reshape(100, 12), own.gate_weight)
            log_a, _ = elementwise(v, gates, own.gate_bias, 8 * softplus(own.a_param), reverse=False, reset=False)
            assert torch.allclose(rates, -log_a, atol=1e-6)
    want = (math.log(2) / rates.double()).flatten(0, 1).median(0).values
    assert np.allclose(found[0].values, want.numpy())
    before = found[0].values
    scale_timescales(model, 3.0)
    # The first block's convolution and gates are as they were, so its half-lives are three times what they were.
    assert np.allclose(half_lives(model, ids)[0].values, 3 * before, rtol=1e-4)


def test_context_and_reach_tell_a_forgetful_model_from_one_that_remembers(benchmark, tmp_path):
    found = {}
    with Fasta(benchmark.fasta) as fasta:
        for name, half_life in (("short", 5.0), ("long", 5_000.0)):
            at = setting(benchmark, forgetful(half_life), fasta, tmp_path)
            found[name] = {probe: list(PROBES[probe](at)) for probe in ("context", "reach", "drift", "recall")}
    change = {
        name: {row["state"]: abs(row["over_carry"]) for row in of["context"]} for name, of in found.items()
    }
    assert change["short"]["carry"] == 0 and change["short"]["swap"] < 1e-4 < change["long"]["swap"]
    assert change["short"]["reset"] < 1e-4 < change["long"]["reset"]
    both = {name: [row for row in of["reach"] if row["side"] == "both"] for name, of in found.items()}
    assert [row["k"] for row in both["short"]] == [1 << k for k in range(4, 11)]
    assert 0 < both["short"][0]["reach95_bp"] <= 64 and both["long"][0]["reach95_bp"] == -1
    assert both["short"][-1]["tv"] < 1e-6 and all(0 <= row["tv"] <= 1 for row in both["long"])
    one = [row for row in found["long"]["reach"] if row["k"] == 256]
    assert {row["side"] for row in one} == {"both", "left", "right"} and len({row["tv"] for row in one}) == 3
    # A forgetful model's states are as large at any length.
    assert all(row["over_training"] < 2 and row["drift"] == 0 for row in found["short"]["drift"])
    far = [row for row in found["short"]["recall"] if row["distance"] >= 512]
    assert far and all(abs(row["advantage"]) < 1e-5 for row in far)
    assert {row["repeat"] for row in far} == {"exact", "diverged", "reverse-complement"}


def test_what_counts_as_near_can_be_said(benchmark, tmp_path):
    model, found = forgetful(100.0), {}
    with Fasta(benchmark.fasta) as fasta:
        for near in (None, 512, 2048):
            rows = list(PROBES["context"](setting(benchmark, model, fasta, tmp_path, near=near)))
            found[near] = {row["state"]: abs(row["over_carry"]) for row in rows}
            assert {row["near"] for row in rows} == {near or 512}
        for near in (500, 2049):
            with pytest.raises(UsageError, match=f"--near: got {near} bp, expected 5.. to 2048 with windows of 4096"):
                list(PROBES["context"](setting(benchmark, model, fasta, tmp_path, near=near)))
    assert found[None] == found[512]
    # 768 bp further off, seven half-lives have gone by.
    for state in ("reset", "swap"):
        assert 0 < found[2048][state] < 0.05 * found[512][state]


def test_near_as_given_on_the_command_line(benchmark, models, tmp_path):
    arguments = ("-m", models["hawk"], "--lengths", "256bp,2kbp", "--sites", "2", "--probe", "context")
    for near in ((), ("--near", "600bp")):
        extrapolate(benchmark, tmp_path / "out", *arguments, *near)
        expected = "600" if near else "512"
        assert {row["near"] for row in table(tmp_path / "out" / "context.tsv")} == {expected}


def test_swapping_keeps_what_is_near():
    ids, donor = np.arange(10, dtype=np.uint8), np.full(10, 99, dtype=np.uint8)
    assert swapped(ids, donor, 3, 6).tolist() == [99, 99, 99, 3, 4, 5, 99, 99, 99, 99]
    assert ids[0] == 0 and donor[3] == 99


def test_sites_have_their_surroundings_and_their_targets(benchmark, tmp_path):
    gap = tmp_path / "gap.fa"
    text = benchmark.sequences["chr1"]
    gap.write_text(">a\n" + text[:4_000] + "N" * 3_000 + text[4_000:] + "\n>b\nACGT\n")
    with Fasta(gap) as fasta:
        sites = choose_sites(fasta, None, longest=1_000, target=200, count=8, seed=0)
        assert 4 <= len(sites) <= 8 and sites == sites
        for site in sites:
            low, high = site.window(1_000)
            assert 0 <= low < high <= fasta.contigs["a"] and (fasta.fetch("a", low, high) == 11).mean() <= 0.05
            assert (np.abs(site.targets) <= 100).all() and 10 < len(site.targets) < 60
        again = choose_sites(fasta, None, longest=1_000, target=200, count=8, seed=0)
        assert all(np.array_equal(a.targets, b.targets) for a, b in zip(sites, again, strict=True))
        with pytest.raises(InputError, match="no place has 20,000 bp around it"):
            choose_sites(fasta, None, longest=20_000, target=200, count=8, seed=0)


def test_lengths_as_written():
    assert parse_lengths("2kbp,12kbp,1Mbp") == (2_000, 12_000, 1_000_000)
    assert parse_lengths("2kbp..20kbp") == (2_000, 4_000, 8_000, 16_000, 20_000)
    with pytest.raises(UsageError, match="--lengths: got 'x'"):
        parse_lengths("2kbp,x")
    assert reference_length(12_000, (2_000, 8_000, 20_000)) == 8_000 and reference_length(None, (2, 8)) == 2


def test_memory_is_of_the_block_alone():
    with Meter(torch.device("cpu")) as large:
        np.ones(300_000_000 // 8).sum()
    with Meter(torch.device("cpu")) as small:
        pass
    if large.host is None or small.host is None:
        pytest.skip("the kernel does not forget peaks")
    assert large.host - small.host > 250_000_000 and small.seconds < large.seconds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "many"], "--lengths: got 'many'"),
        (["--task", "all"], "--task: got 'all', expected mlm or tuned"),
        (["--probe", "mind"], "--probe: got 'mind', expected some of context, reach"),
        (["--transfer", "some"], "--transfer: got 'some', expected some of exact"),
        (["--positions", "some"], "--positions: got 'some', expected some of none"),
        (["--sites", "1"], "--sites: got 1, expected at least 2"),
        (["--timescale-scale", "0"], "--timescale-scale: got 0.0, expected a positive number"),
        (["--lengths", "256bp,2kbp", "--near", "511bp"], "--near: got 511 bp, expected at least 512 (twice --target)"),
        (["--lengths", "256bp,2kbp", "--near", "1001bp"], "and at most 1000 (half of the longest window"),
        (["--lengths", "256bp,2kbp", "--near", "600bp"], "--near: got 600 bp without --probe context"),
        (["--lengths", "1Mbp"], "no place has 1,000,000 bp around it"),
    ],
)
def test_bad_options(benchmark, models, tmp_path, arguments, message):
    command = ["extrapolate", "-f", str(benchmark.fasta), "-o", str(tmp_path / "o"), "-m", str(models["hawk"]), *FAST]
    result = CliRunner().invoke(app, [*command, *arguments])
    assert result.exit_code in (2, 3) and message in " ".join(result.output.split()), result.output
    twice = CliRunner().invoke(app, [*command, "-m", str(models["hawk"]), "--lengths", "256bp"])
    assert twice.exit_code == 2 and "got 'hawk' more than once" in " ".join(twice.output.split())


def test_the_report_opens_in_a_browser(benchmark, models, tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    out = tmp_path / "out"
    extrapolate(benchmark, out, "-m", models["hawk"], "--lengths", "256bp,512bp", "--sites", "3", "--probe", "all")
    found = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}", (out / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in found.stderr and found.stdout.count("<svg") == 8
