"""Variants scored from boundary states: how fast against whole windows, and how far from the exact answer.

``python tests/benchmarks/variants.py variants.vcf.gz --fasta GRCh37.fa.gz --context 1Mbp`` scores the first 1,000
records that can be scored, times a few whole windows of the same context (the rest is extrapolated, which the table
says), and scores some alleles of all kinds again on their whole tiles, edited and not, which is the exact answer.
A table, then one line of JSON.
"""

import argparse
import math
import os
import random
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import common
import torch

from lrgenome.config import PRESETS, HawkConfig
from lrgenome.engine.runner import Runner
from lrgenome.engine.warm import compile_kernels
from lrgenome.io.fasta import Fasta
from lrgenome.io.resources import free_disk
from lrgenome.io.vcf import open_variants
from lrgenome.models.checkpoint import load_model
from lrgenome.models.families import build
from lrgenome.tasks.compute import choose_compute, free_memory
from lrgenome.tasks.score_rows import ScoreSettings
from lrgenome.tasks.scoring import WindowScorer
from lrgenome.tasks.tiles import TileScorer, TileScores
from lrgenome.tasks.variants import AlleleEdit, VariantPlanner
from lrgenome.tasks.verification import Verification

Work = list[tuple[AlleleEdit, str]]


def model_of(options: Any, dtype: torch.dtype) -> Any:
    """Load the checkpoint, or make a preset with random weights, whose timescales may be slow."""
    if options.preset is None:
        return load_model(options.model).model.for_inference(dtype)
    config = PRESETS[options.preset]
    assert isinstance(config, HawkConfig)
    if options.half_life_max:
        config = replace(config, half_life_max=float(options.half_life_max))
    return build(config, seed=0).for_inference(dtype)


def edits(options: Any, fasta: Fasta, context: int) -> Iterator[tuple[AlleleEdit, str]]:
    """Yield every allele of the VCF that can be scored, with a label."""
    planner = VariantPlanner(fasta, context, check_ref="warn", alias="auto", tiles=True)
    with open_variants(options.vcf) as source:
        for record in source.records():
            for plan, alt in zip(planner.plan(record), record.alts or (".",), strict=True):
                if plan.edit is not None:
                    yield plan.edit, f"{record.chrom}:{record.pos + 1} {record.ref[:12]}>{alt[:12]}"


def kind(edit: AlleleEdit) -> str:
    """Name what kind of allele it is."""
    if edit.kind != "SEQ":
        return edit.kind
    if edit.substitution:
        return "SNV" if len(edit.ref) == 1 else "MNV"
    return "insertion" if len(edit.alt) > len(edit.ref) else "deletion"


def some_of_each(work: Sequence[tuple[AlleleEdit, str]], count: int) -> Work:
    """Choose alleles, as many of each kind as there are and as fits."""
    kinds: dict[str, Work] = defaultdict(list)
    for one in work:
        kinds[kind(one[0])].append(one)
    chosen: Work = []
    chance = random.Random(0)
    for place, (_, members) in enumerate(sorted(kinds.items(), key=lambda item: len(item[1]))):
        share = math.ceil((count - len(chosen)) / (len(kinds) - place))
        chosen += chance.sample(members, min(share, len(members)))
    return sorted(chosen, key=lambda one: one[0].start)


def timed(scorer: TileScorer, work: Work) -> tuple[float, float, list[TileScores]]:
    """Score alleles; returns the seconds until the first one was there, all seconds, and the scores."""
    began, first = time.perf_counter(), 0.0
    found = {}
    for one in scorer.score(work):
        first = first or time.perf_counter() - began
        if one is not None:
            found[one[0]] = one[1]
    return first, time.perf_counter() - began, [found[i] for i in range(len(work))]


def windows_seconds(runner: Runner, fasta: Fasta, options: Any) -> float:
    """Return the seconds that a substitution takes by whole windows, the mean of a few."""
    planner = VariantPlanner(fasta, options.context, check_ref="warn", alias="auto")
    scorer = WindowScorer(runner, strand=options.strand, batch_size=1)
    seconds = []
    with open_variants(options.vcf) as source:
        snvs = (record for record in source.records() if len(record.ref) == 1 and record.alts[:1] in
                (("A",), ("C",), ("G",), ("T",)))  # fmt: skip
        for record in islice(snvs, options.windows):
            (first, *_) = planner.plan(record)
            assert first.windows is not None
            began = time.perf_counter()
            scorer.score([(first.windows, "window")])
            seconds.append(time.perf_counter() - began)
            print(f"a whole window: {seconds[-1]:.1f} s", file=sys.stderr)
    return sum(seconds) / len(seconds)


def compare(scorer: TileScorer, work: Work, found: list[TileScores]) -> dict[str, Any]:
    """Score alleles exactly and compare."""
    rows = []
    scored = [(edit, label, got) for (edit, label), got in zip(work, found, strict=True)]
    for edit, label, got, off in Verification(scorer, 0, 0).differences(scored):
        of = off.get("LLR", off["PLL_DIFF"])
        rows.append({"allele": label, "kind": kind(edit), "err_est": got.err_est, "covered": of <= got.err_est, **off})
        print(f"{label}: {off}, ERR_EST {got.err_est:.3g}", file=sys.stderr)
    return {
        "alleles": len(rows),
        "kinds": {name: sum(row["kind"] == name for row in rows) for name in sorted({row["kind"] for row in rows})},
        "max_abs_llr_difference": max((row["LLR"] for row in rows if "LLR" in row), default=None),
        "max_rel_distance_difference": max(row["DIST_L2"] for row in rows),
        "max_abs_pll_difference": max(row["PLL_DIFF"] for row in rows),
        "covered": sum(row["covered"] for row in rows) / len(rows),
        "rows": rows,
    }


def measure(options: Any) -> dict[str, Any]:
    """Measure; `options` is what `parse` returns."""
    if options.records == 1:
        raise ValueError("--records: got 1, expected 0, or 2 and more to tell passes from alleles")
    compute = choose_compute(
        gpu=None, device="cpu", threads=options.threads, precision=options.precision, auto=torch.float32
    )
    model = model_of(options, compute.dtype)
    compile_kernels(model, compute.device)
    defaults = ScoreSettings()
    tiles = {"strand": options.strand, "region_size": options.region_size or defaults.region_size,
             "state_every": defaults.state_every, "tolerance": options.tolerance}  # fmt: skip
    result: dict[str, Any] = {
        "model": options.preset or "embedded", "half_life_max": options.half_life_max, "context": options.context,
        "threads": compute.threads, "precision": str(compute.dtype).removeprefix("torch."), **tiles,
    }  # fmt: skip
    with ExitStack() as stack:
        fasta = stack.enter_context(Fasta(Path(options.fasta)))
        runner = stack.enter_context(Runner(
            model, compute.device, tmpdir=options.tmpdir, store=options.store,
            free_ram=lambda: free_memory(compute.device), free_disk=lambda: free_disk(options.tmpdir or "."),
        ))  # fmt: skip
        scorer = TileScorer(runner, fasta, options.context, **tiles)
        result["tolerance"] = scorer.tolerance
        if options.records:
            work = list(islice(edits(options, fasta, options.context), options.records))
            first, seconds, found = timed(scorer, work)
            print(f"{len(work)} alleles from boundary states: {seconds:.1f} s", file=sys.stderr)
            # Of one tile: the passes over it, and each allele after them.
            each = (seconds - first) / max(1, len(work) - 1)
            result |= {"scored": len(work), "seconds": seconds, "passes_seconds": first - each, "seconds_each": each,
                       "seconds_per_1000": first + 999 * each}  # fmt: skip
            errors = sorted(one.err_est for one in found)
            result["err_est"] = {"median": errors[len(errors) // 2], "99 %": errors[len(errors) * 99 // 100],
                                 "largest": errors[-1]}  # fmt: skip
        if options.windows:
            each = windows_seconds(runner, fasta, options)
            result |= {"windows_timed": options.windows, "windows_seconds_per_1000": each * 1000}
            if options.records:
                result["speedup"] = each * 1000 / result["seconds_per_1000"]
        for context, count in ((options.exact_context, options.exact), (options.context, options.exact_long)):
            if not count:
                continue
            within = TileScorer(runner, fasta, context, **tiles)
            chosen = some_of_each(list(edits(options, fasta, context)), count)
            result.setdefault("exact", {})[str(context)] = compare(within, chosen, timed(within, chosen)[2])
    for name, pick in (("max_abs_llr_difference", max), ("max_rel_distance_difference", max), ("covered", min)):
        values = [one[name] for one in result.get("exact", {}).values() if one[name] is not None]
        result[name] = pick(values) if values else None
    result["peak_rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return result


def report(result: dict[str, Any]) -> str:
    """Format the table."""
    lines = [f"{result['model']}, {result['precision']}, context {result['context']:,} bp, {result['threads']} threads"]
    if "seconds" in result:
        lines.append(f"{result['scored']} alleles from boundary states: {result['seconds']:.1f} s, of these "
                     f"{result['passes_seconds']:.1f} s the passes over the tile; 1,000 of one tile "
                     f"{result['seconds_per_1000']:.1f} s; ERR_EST {result['err_est']}")  # fmt: skip
    if "windows_timed" in result:
        lines.append(f"whole windows: {result['windows_seconds_per_1000']:.0f} s per 1,000, extrapolated from "
                     f"{result['windows_timed']}")  # fmt: skip
    if "speedup" in result:
        lines.append(f"speed-up: {result['speedup']:.0f} times")
    for context, one in result.get("exact", {}).items():
        llr = one["max_abs_llr_difference"]
        lines.append(
            f"against the whole tile at {int(context):,} bp, {one['alleles']} alleles {one['kinds']}: LLR "
            f"{'none' if llr is None else format(llr, '.2g')}, "
            f"DIST_L2 {one['max_rel_distance_difference']:.2g} of it, PLL_DIFF {one['max_abs_pll_difference']:.2g}, "
            f"within ERR_EST {one['covered']:.1%}"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vcf")
    parser.add_argument("--fasta", required=True)
    parser.add_argument("--model", type=Path, help="checkpoint (the embedded model)")
    parser.add_argument("--preset", choices=[n for n, c in PRESETS.items() if isinstance(c, HawkConfig)],
                        help="random weights instead")  # fmt: skip
    parser.add_argument("--half-life-max", type=common.length_option, help="of the preset: log-uniform half-lives")
    parser.add_argument("--context", type=common.length_option, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--records", type=int, default=1000, help="alleles that are timed (%(default)s)")
    parser.add_argument("--windows", type=int, default=1, help="whole windows that are timed (%(default)s)")
    parser.add_argument("--exact", type=int, default=50, help="alleles run exactly (%(default)s) at ...")
    parser.add_argument("--exact-context", type=common.length_option, default=128_000, help="(%(default)s)")
    parser.add_argument("--exact-long", type=int, default=3, help="alleles run exactly at --context (%(default)s)")
    parser.add_argument("--strand", choices=("both", "forward"), default="both", help="(%(default)s)")
    parser.add_argument("--region-size", type=common.length_option, help="as of score-vcf")
    parser.add_argument("--tolerance", type=float, help="as of score-vcf")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="(%(default)s)")
    parser.add_argument("--store", choices=("auto", "ram", "disk"), default="auto", help="(%(default)s)")
    parser.add_argument("--tmpdir", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line, measure and print."""
    return common.run(measure, report, parse(arguments))


if __name__ == "__main__":
    main()
