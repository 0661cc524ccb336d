"""The benchmark of variants from boundary states, at toy size."""

import json
from pathlib import Path

import agreement
import pytest
import torch
import variants

from lrgenome.errors import InputError
from lrgenome.ops.jit import set_threads

DEMO = Path(variants.__file__).resolve().parents[2] / "lrgenome" / "assets" / "demo"
OPTIONS = [
    str(DEMO / "demo.vcf"), "--fasta", str(DEMO / "GRCh37.chr20.first-2Mbp.fa.gz"), "--threads", "1",
    "--context", "6kbp", "--strand", "forward",
]  # fmt: skip


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    set_threads(before)


def test_speed_and_differences_are_measured(capsys):
    variants.main([*OPTIONS, "--records", "4", "--windows", "1", "--exact", "3", "--exact-context", "5kbp",
                   "--exact-long", "1"])  # fmt: skip
    *text, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    # No sign is asked of the times: on a busy machine the first allele may take less than one of the others.
    assert result["scored"] == 4 and result["seconds"] > 0
    assert result["passes_seconds"] + 4 * result["seconds_each"] == pytest.approx(result["seconds"], rel=1e-3)
    thousand = result["passes_seconds"] + 1000 * result["seconds_each"]
    assert result["seconds_per_1000"] == pytest.approx(thousand, rel=1e-3)
    assert result["speedup"] == pytest.approx(result["windows_seconds_per_1000"] / result["seconds_per_1000"])
    assert set(result["exact"]) == {"5000", "6000"}
    near = result["exact"]["5000"]
    assert near["alleles"] == 3 and set(near["kinds"]) == {"SNV", "deletion", "insertion"}
    assert 0 <= result["max_abs_llr_difference"] < 0.01 and 0 <= result["max_rel_distance_difference"] < 0.02
    assert result["covered"] == 1.0 and result["peak_rss_gb"] > 0.1
    assert "speed-up" in "\n".join(text) and "against the whole tile at 5,000 bp" in "\n".join(text)


def test_what_is_once_a_tile_is_told_from_what_is_once_an_allele(capsys, monkeypatch):
    timed = variants.timed
    monkeypatch.setattr(variants, "timed", lambda scorer, work: (5.0, 8.0, timed(scorer, work)[2]))
    variants.main([*OPTIONS, "--records", "4", "--windows", "0", "--exact", "0", "--exact-long", "0"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["seconds_each"] == pytest.approx(1.0) and result["passes_seconds"] == pytest.approx(4.0)
    assert result["seconds_per_1000"] == pytest.approx(1004.0)


def test_a_scorer_that_is_wrong_is_seen(capsys, monkeypatch):
    def off(scorer, work):
        first, seconds, found = timed(scorer, work)
        return first, seconds, [one._replace(llr=None if one.llr is None else one.llr + 0.5) for one in found]

    timed = variants.timed
    monkeypatch.setattr(variants, "timed", off)
    variants.main([*OPTIONS, "--records", "0", "--windows", "0", "--exact", "3", "--exact-context", "5kbp",
                   "--exact-long", "0"])  # fmt: skip
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["max_abs_llr_difference"] > 0.4 and result["covered"] < 1.0


def table(path, *rows):
    head = "##lrgenome-scores-version=1\n#CHROM\tPOS\tID\tREF\tALT\tLLR\tDIST_COS\tDIST_L2\tPLL_DIFF\tERR_EST\tSTATUS\n"
    path.write_text(head + "".join("\t".join(row) + "\n" for row in rows))
    return str(path)


def test_tables_are_compared_where_both_have_a_score(capsys, tmp_path):
    keys = [("1", str(n), ".", "A", "C") for n in range(1, 6)]
    llrs = ("-2", "-1", "0.5", "1", ".")
    one = table(tmp_path / "a", *((*key, llr, "1", "1", "1", ".", "OK") for key, llr in zip(keys, llrs, strict=True)))
    llrs = ("-4", "-2", "-1", "2", "7")
    rows = [(*key, llr, ".", ".", ".", "0", "OK") for key, llr in zip(keys, llrs, strict=True)]
    agreement.main([one, table(tmp_path / "b", *rows)])
    *text, last = capsys.readouterr().out.splitlines()
    assert set(result := json.loads(last)) == {"LLR"} and "largest difference" in text[0]
    assert result["LLR"]["alleles"] == 4 and result["LLR"]["spearman"] == 1.0
    assert result["LLR"]["same_sign"] == 0.75 and result["LLR"]["max_difference"] == 2.0
    for wrong in (rows[:4], rows[::-1]):
        with pytest.raises(InputError, match="expected the same alleles in the same order"):
            agreement.main([one, table(tmp_path / "c", *wrong)])
