"""The speed benchmarks at toy size: that they measure what they say, not that anything is fast."""

import json
import math

import common
import forward
import op_times
import pytest
import scaling
import torch
import training_step

from lrgenome.models import hawk
from lrgenome.ops.jit import set_threads

QUICK = ["--preset", "toy", "--chunk", "256", "--repeats", "2", "--square", "128", "--threads", "1"]
FASTEST = common.fastest


@pytest.fixture(autouse=True)
def quick_and_same_settings(monkeypatch):
    """Time every call only once; put the number of threads and the clock back."""
    monkeypatch.setattr(common, "fastest", lambda call, **settings: FASTEST(call, seconds=0.0, runs=1))
    before = torch.get_num_threads()
    yield
    set_threads(before)
    common.choose_clock("wall")


def run(main, capsys, *options):
    """Run a benchmark's command and return (table, JSON)."""
    main([*QUICK, *options])
    lines = capsys.readouterr().out.splitlines()
    return "\n".join(lines[:-1]), json.loads(lines[-1])


def check_forward(result):
    length, flops = result["length"], common.flops_per_bp(common.MODELS["toy"])
    assert result["bp_per_s"] == pytest.approx(length / min(result["forward_seconds"]), rel=1e-3)
    assert result["floor_bp_per_s"] == pytest.approx(length / min(result["floor_seconds"]), rel=1e-3)
    assert result["us_per_bp"] == pytest.approx(1e6 / result["bp_per_s"], rel=1e-3)
    assert result["floor_us_per_bp"] == pytest.approx(1e6 / result["floor_bp_per_s"], rel=1e-3)
    expected = result["bp_per_s"] / result["floor_bp_per_s"]
    assert result["fraction_of_floor"] == pytest.approx(expected, rel=1e-3)
    assert 0 < result["fraction_of_floor"] <= result["fraction_of_torch_floor"] * 1.001 < 1.2
    assert result["floor_gflops"] == pytest.approx(1e-9 * flops * result["floor_bp_per_s"], rel=1e-3)
    rate = result["floor_gflops"] / result["square_gflops"]
    assert result["floor_over_square"] == pytest.approx(rate, rel=1e-3)
    assert 0.05 < result["peak_rss_gb"] < 20
    assert result["rounds"] == len(result["forward_seconds"]) == len(result["floor_seconds"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("store", [["ram"], ["disk"], ["ram", "--no-keep-prepared"]])
def test_forward_reports_consistent_numbers(capsys, tmp_path, precision, store):
    options = ["--length", "1kbp", "--precision", precision, "--tmpdir", str(tmp_path), "--store", *store]
    text, result = run(forward.main, capsys, *options)
    check_forward(result)
    settings = {"preset": "toy", "length": 1000, "precision": precision, "chunk": 256, "threads": 1}
    settings |= {"store": store[0], "keep_prepared": len(store) == 1, "rounds": 2}
    assert {name: result[name] for name in settings} == settings
    assert "forward / floor" in text and "1,000 bp" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preset", ["toy-caduceus", "toy-caduceus-ps"])
def test_a_caduceus_has_a_floor_of_its_own(capsys, preset):
    _, result = run(forward.main, capsys, "--preset", preset, "--length", "600", "--precision", "float32")
    d, e, r, n = 32, 64, 2, 16
    layer = 3 * d * e + 2 * (e * (r + 2 * n) + r * e)
    flops = (2 if preset.endswith("ps") else 1) * 2 * 2 * layer
    assert common.flops_per_bp(common.MODELS[preset]) == flops
    assert result["floor_gflops"] == pytest.approx(1e-9 * flops * result["floor_bp_per_s"], rel=1e-3)


def test_a_long_floor_is_scaled_by_rows_and_says_so(capsys, monkeypatch):
    monkeypatch.setattr(common, "SAMPLE", 512)
    text, result = run(forward.main, capsys, "--length", "1kbp")
    check_forward(result)
    assert result["floor_sampled_rows"] == 512
    assert "timed on 512 rows a layer and scaled" in text


def test_a_floor_that_is_too_slow_is_called_so(capsys, monkeypatch):
    monkeypatch.setattr(common, "square_rate", lambda size, dtype: {"torch": 1e6})
    text, result = run(forward.main, capsys, "--length", "300")
    assert result["floor_over_square"] < 0.9
    assert any("of a large square product's rate" in warning for warning in result["warnings"])
    assert "warning: the floor reaches" in text


def test_no_round_starts_after_the_seconds_asked_for(capsys):
    _, result = run(forward.main, capsys, "--length", "300", "--repeats", "50", "--seconds", "0")
    assert result["rounds"] == 1


def test_the_profile_has_every_operation_and_part(capsys, monkeypatch):
    monkeypatch.setattr(op_times, "COLD_BYTES", 500_000)
    text, result = run(forward.main, capsys, "--length", "1kbp", "--profile")
    profile = result["profile"]
    assert len(profile["ops"]) == 16
    assert all(row["us_per_bp"] > 0 for row in profile["ops"])
    assert {"matrix products", "gates + recurrence", "store traffic"} < set(profile["parts"])
    assert all(math.isfinite(value) for value in profile["parts"].values())
    assert all(value > 0 for name, value in profile["in_place"].items() if name != "residual add")
    assert [row["name"] for row in profile["ops"] if row["us_per_bp_in_place"] is None] == ["residual add"]
    assert "not accounted for" in text and "store traffic" in text


def test_the_clocks_leave_the_model_as_it_was():
    model, plain = common.build_model("toy", torch.float32), dict(vars(hawk))
    with pytest.raises(ZeroDivisionError), op_times._clocks(model):
        assert hawk.linear is not plain["linear"]
        raise ZeroDivisionError
    assert dict(vars(hawk)) == plain


def test_cpu_time_is_for_one_thread(capsys):
    _, result = run(forward.main, capsys, "--length", "300", "--clock", "cpu")
    assert result["clock"] == "cpu"
    check_forward(result)
    with pytest.raises(SystemExit):
        forward.parse(["--clock", "cpu", "--threads", "2"])


def test_scaling_runs_each_length_in_a_process_of_its_own(capsys):
    text, result = run(scaling.main, capsys, "--lengths", "600,300")
    assert [row["length"] for row in result["rows"]] == [300, 600]
    first, second = result["rows"]
    assert first["rss_growth_bytes_per_bp"] is None
    growth = 1e9 * (second["peak_rss_gb"] - first["peak_rss_gb"]) / 300
    assert second["rss_growth_bytes_per_bp"] == pytest.approx(growth, rel=1e-3)
    assert all(0 < row["fraction_of_floor"] < 1.2 and row["us_per_bp"] > 0 for row in result["rows"])
    assert result["us_per_bp_ratio_longest_to_128kbp"] is None
    assert "growth, bytes/bp" in text


def test_the_ratio_is_of_the_longest_to_about_128_kbp():
    rows = [{"length": n, "us_per_bp": us} for n, us in ((12_000, 9.0), (131_072, 4.0), (1_000_000, 5.0))]
    assert scaling.ratio_to_reference(rows) == pytest.approx(1.25)


def test_a_length_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"300 bp(.|\n)*invalid choice"):
        scaling.measure(300, ["--preset", "no-such-model"])


def test_products_and_their_flops_agree():
    """Count the flops of the floor's own products by shape."""
    model = common.build_model("toy", torch.float32)
    products = common.Products(model, 64, "torch", layers=2)
    counted = 0
    for dense, gates in products._layers:
        counted += sum(2 * weight.numel() for weight in [*dense, *gates])
    assert counted == common.flops_per_bp(model.config)
    assert products.run(100) > 0


def test_a_table_lines_up():
    text = common.table(("name", "value"), [("a", 1.5), ("long name", None), ("b", 12_345)])
    assert text.splitlines() == ["name        value", "a            1.50", "long name       .", "b          12,345"]


@pytest.mark.parametrize("recompute", ["never", "always"])
def test_a_training_step_is_measured_against_three_floors(capsys, recompute):
    training_step.main(
        ["--preset", "toy", "--length", "200", "--windows", "3", "--threads", "1", "--repeats", "2",
         "--recompute", recompute]
    )  # fmt: skip
    *text, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["recompute"] == (recompute == "always") and "step / limit" in "\n".join(text)
    assert result["windows_at_once"] == 3 and len(result["all_step_seconds"]) == 2
    assert result["step_seconds"] == min(result["all_step_seconds"])
    limit = 3 * min(result["all_floor_seconds"])
    assert result["fraction_of_limit"] == pytest.approx(limit / result["step_seconds"], rel=1e-3)
    assert result["bp_per_s"] == pytest.approx(600 / result["step_seconds"], rel=1e-3)
