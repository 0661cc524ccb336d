import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lrgenome.errors import InputError, OutputError
from lrgenome.io import plot
from lrgenome.io.plot import training_curve

COLUMNS = ("step", "tokens", "train_loss", "lr", "val_loss", "grad_norm", "bp_per_s")


def write_log(path: Path, records: int = 200, columns: tuple[str, ...] = COLUMNS) -> Path:
    rng = np.random.default_rng(0)
    lines = ["\t".join(columns)]
    for i in range(1, records + 1):
        step = i * 10
        loss = 1.22 + 0.17 * np.exp(-i / 40)
        values = {
            "step": step,
            "tokens": step * 98_304,
            "train_loss": f"{loss + 0.012 * rng.normal():.5f}",
            "lr": f"{8e-4 * min(1, i / 20) * 0.5 * (1 + np.cos(np.pi * i / records)):.3e}",
            "val_loss": f"{loss + 0.01:.5f}" if i % 20 == 0 else "",
            "grad_norm": 0.5,
            "bp_per_s": 20_000,
        }
        lines.append("\t".join(str(values[column]) for column in columns))
    path.write_text("\n".join(lines) + "\n")
    return path


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.read_bytes().endswith(b"IEND\xaeB`\x82")


def test_draws_a_png(tmp_path):
    log = write_log(tmp_path / "log.tsv")
    training_curve(log, tmp_path / "curve.png")
    assert is_png(tmp_path / "curve.png")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["curve.png", "log.tsv"]


def test_equal_logs_give_equal_bytes(tmp_path):
    log = write_log(tmp_path / "log.tsv")
    for name in ("a.png", "b.png"):
        training_curve(log, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_is_drawn(tmp_path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    log = plot._read_log(write_log(tmp_path / "log.tsv"))
    figure = Figure()
    FigureCanvasAgg(figure)
    plot._draw(figure, log)
    loss, rate = figure.axes
    raw, smooth, validation = loss.lines
    np.testing.assert_array_equal(raw.get_ydata(), log["train_loss"])
    assert np.std(np.diff(smooth.get_ydata())) < np.std(np.diff(raw.get_ydata())) / 2
    assert validation.get_xdata().tolist() == list(range(200, 2001, 200))
    assert loss.get_ylabel() == "loss (nats per masked base)"
    assert (rate.get_xlabel(), rate.get_ylabel()) == ("step", "learning rate")
    (top,) = loss.child_axes
    assert top.get_xlabel() == "training sequence (Mbp)"
    figure.canvas.draw()
    assert top.get_xlim()[1] == pytest.approx(1.01 * 2000 * 98_304 / 1e6)


@pytest.mark.parametrize(
    ("records", "columns"),
    [(1, COLUMNS), (2, COLUMNS), (60, ("step", "train_loss")), (5, ("val_loss", "train_loss", "step"))],
)
def test_short_logs_and_few_columns(tmp_path, records, columns):
    training_curve(write_log(tmp_path / "log.tsv", records, columns), tmp_path / "curve.png")
    assert is_png(tmp_path / "curve.png")


def test_gaps_and_a_line_cut_short(tmp_path):
    log = write_log(tmp_path / "log.tsv", 5)
    with open(log, "a") as text:
        text.write("60\t\t\t\t1.3\t\t\n70\t12")
    read = plot._read_log(log)
    assert read["step"].tolist() == [10, 20, 30, 40, 50, 60]
    assert np.isnan(read["train_loss"][-1])
    training_curve(log, tmp_path / "curve.png")


def test_a_spike_does_not_flatten_the_curve():
    from matplotlib.figure import Figure

    train = np.linspace(1.4, 1.2, 1000)
    train[500] = 80.0
    empty = np.full(1000, np.nan)
    figure = Figure()
    plot._draw(
        figure,
        {"step": np.arange(1000.0), "train_loss": train, "tokens": empty, "lr": empty, "val_loss": empty},
    )
    assert figure.axes[0].get_ylim()[1] < 2


def test_running_mean_is_centred_and_shorter_at_the_ends():
    np.testing.assert_allclose(plot._running_mean(np.array([1.0, 2.0, 6.0, 4.0]), 3), [1.5, 3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("step\tloss\n1\t2\n", "expected train_loss among them"),
        ("step\ttrain_loss\n", "no records"),
        ("step\ttrain_loss\n1\tx\n", "line 2: got 'x' for train_loss"),
        ("step\ttrain_loss\n\t2\n", "no step"),
        ("step\ttrain_loss\n1\n2\t3\n", "line 2: got 'nothing' for train_loss"),
    ],
)
def test_damaged_logs(tmp_path, text, message):
    (tmp_path / "log.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        training_curve(tmp_path / "log.tsv", tmp_path / "curve.png")
    with pytest.raises(InputError, match="cannot be read"):
        training_curve(tmp_path / "absent.tsv", tmp_path / "curve.png")


def test_folder_that_is_not_there(tmp_path):
    log = write_log(tmp_path / "log.tsv", 3)
    with pytest.raises(OutputError, match="cannot write"):
        training_curve(log, tmp_path / "absent" / "curve.png")


def test_cache_leaves_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    plot.use_writable_cache()
    assert "MPLCONFIGDIR" not in os.environ
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("MPLCONFIGDIR", "")  # so that it is restored afterwards
    monkeypatch.delenv("MPLCONFIGDIR")
    plot.use_writable_cache()
    made = Path(os.environ["MPLCONFIGDIR"])
    assert made.is_dir()
    made.rmdir()


def test_matplotlib_is_imported_only_to_draw():
    program = "import sys, lrgenome.io.plot; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
