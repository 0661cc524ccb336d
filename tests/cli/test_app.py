import logging
import os
import re
import resource
import signal
import subprocess
import sys

import click
import pytest
import typer
from typer.testing import CliRunner

from lrgenome import errors
from lrgenome.cli.app import EXIT_CODES, app, guard
from lrgenome.cli.signals import Terminated
from lrgenome.version import __version__

COMMANDS = ("pretrain", "embed", "score-vcf")
PANELS = {"Output", "Model", "Compute", "Advanced"}


def plain(text):
    """Drop colours, which some continuous-integration services ask for, and frames."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|│", " ", text).split())


def python(*code, **options):
    return subprocess.run([sys.executable, *code], capture_output=True, text=True, check=True, **options)


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(lrgenome, option):
    assert lrgenome(option).stdout == f"lrgenome {__version__}\n"


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["score-vcf", "--help"]])
def test_asking_is_quick(args):
    """Half a second of processor time at most, at the best of three tries."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "lrgenome" in python("-m", "lrgenome", *args).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5


def test_nothing_heavy_is_imported_to_answer():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom lrgenome.cli.app import app\n"
        "for args in (['-V'], ['-h'], ['embed', '--help'], ['score-vcf', '-h'], ['pretrain', '-h']):\n"
        "    assert CliRunner().invoke(app, args).exit_code == 0\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    loaded = set(python("-c", code).stdout.split())
    heavy = {"torch", "numpy", "numba", "h5py", "pysam", "scipy", "sklearn", "matplotlib", "tqdm", "pyfaidx"}
    assert not loaded & heavy


def test_without_arguments_there_is_help():
    result = CliRunner().invoke(app, [])
    assert "Usage" in result.output and all(name in result.output for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_its_panels(lrgenome, command):
    text = plain(lrgenome(command, "-h").stdout)
    panels = PANELS | ({"Training"} if command == "pretrain" else {"Input"})
    assert all(f"─ {panel} ─" in text for panel in panels)
    options = [p for p in click_command(command).params if isinstance(p, click.Option) and p.name != "help"]
    assert all(p.rich_help_panel in panels for p in options), [p.name for p in options]
    assert all(p.help for p in options)


def click_command(name):
    return typer.main.get_command(app).commands[name]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_its_environment_variable(command):
    for parameter in click_command(command).params:
        long = [o[2:] for o in parameter.opts if o.startswith("--")]
        if not long or getattr(parameter, "rich_help_panel", None) == "Training":
            continue
        names = {"LRGENOME_" + name.upper().replace("-", "_") for name in long}
        assert parameter.envvar in names, parameter.opts


def test_the_same_option_means_the_same_everywhere():
    seen = {}
    for command in COMMANDS:
        for parameter in click_command(command).params:
            if parameter.envvar:
                other = seen.setdefault(parameter.envvar, parameter)
                assert other.name == parameter.name


def errors_of_the_family():
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", errors_of_the_family(), ids=lambda kind: kind.__name__)
def test_every_error_has_its_exit_code(kind, capsys):
    documented = {
        "UsageError": 2, "OutputExistsError": 2, "DeviceError": 4, "ModelError": 5, "MemoryLimitError": 137,
        "NumericalError": 1, "PeerLostError": 1, "LrgenomeError": 1,
    }  # fmt: skip

    def fail():
        raise kind("what, where")

    with pytest.raises(typer.Exit) as caught:
        guard(fail)()
    assert caught.value.exit_code == documented.get(kind.__name__, 3)
    assert capsys.readouterr().err == "lrgenome: error: what, where\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            KeyboardInterrupt(),
            130,
            "lrgenome: interrupted; partial output is kept, and --resume continues it\n",
        ),
        (
            Terminated(),
            143,
            "lrgenome: terminated; partial output is kept, and --resume continues it\n",
        ),
        (MemoryError(), 137, "lrgenome: error: out of memory\n"),
        (
            RuntimeError("CUDA out of memory. Tried"),
            137,
            "lrgenome: error: out of memory: CUDA out of memory. Tried\n",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 137, None),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_what_else_may_end_a_command(error, code, said, capsys):
    def fail(resume=False):
        raise error

    with pytest.raises(typer.Exit) as caught:
        guard(fail)()
    assert caught.value.exit_code == code
    assert said in (None, capsys.readouterr().err)


def test_what_cannot_be_resumed_is_not_said_to_be_kept(capsys):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as caught:
        guard(fail)()
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == "lrgenome: interrupted\n"


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ZeroDivisionError(), KeyError("x")])
def test_bugs_are_not_hidden(error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        guard(fail)()


def test_sigterm_is_caught_while_a_command_runs_and_not_after():
    before = signal.getsignal(signal.SIGTERM)

    def wait():
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal did not arrive")

    with pytest.raises(typer.Exit) as caught:
        guard(wait)()
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_becomes_another_error_is_still_a_signal(number, code, capsys):
    """As when it arrives in the middle of an import."""

    def load(resume=False):
        try:
            os.kill(os.getpid(), number)
        except BaseException as error:
            raise ImportError("could not be initialised") from error

    with pytest.raises(typer.Exit) as caught:
        guard(load)()
    assert caught.value.exit_code == code
    said = capsys.readouterr().err
    assert "partial output is kept" in said and "(ImportError: could not be initialised)" in said


def test_an_ignored_signal_stays_ignored():
    """A background job of a shell ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        guard(lambda: os.kill(os.getpid(), signal.SIGINT))()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["pretrain", "embed", "score-vcf"])
def test_every_option_is_an_environment_variable(name):
    command = typer.main.get_command(app).commands[name]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    assert len(options) > 20
    assert [p.name for p in options if not p.envvar] == []
    assert all(p.envvar.startswith("LRGENOME_") for p in options if isinstance(p.envvar, str))


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_standard_streams(closed):
    done = subprocess.run(["sh", "-c", f"'{sys.executable}' -m lrgenome --version {closed}"], capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr


def test_specific_errors_come_before_general_ones():
    kinds = [kind for kind, _ in EXIT_CODES]
    for i, kind in enumerate(kinds):
        assert not any(issubclass(kind, earlier) for earlier in kinds[:i])


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"], ["score-vcf"], ["embed"], ["score-vcf", "a.vcf", "--contex", "5"],
        ["score-vcf", "a.vcf", "--context", "12 parsecs"], ["score-vcf", "a.vcf", "--context", "0"],
        ["score-vcf", "a.vcf", "--threads", "0"], ["score-vcf", "a.vcf", "--gpu", "-1"],
        ["embed", "a.fa", "-o", "a.h5", "--bin-size", "1.0001kbp0"],
    ],
)  # fmt: skip
def test_usage_errors(lrgenome, args):
    result = lrgenome(*args, code=2)
    assert "Traceback" not in result.output


def test_an_unknown_length_says_what_is_expected(lrgenome):
    result = lrgenome("score-vcf", "a.vcf", "--context", "12 parsecs", code=2)
    assert "got '12 parsecs', expected a length such as 12kbp" in " ".join(
        result.stderr.replace("│", " ").split()
    )


def test_python_dash_m_is_the_command():
    assert python("-m", "lrgenome", "-V").stdout == f"lrgenome {__version__}\n"


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_that_wait_are_told_to_sleep_unless_the_user_says_otherwise(monkeypatch, given, spins):
    from lrgenome.cli.environment import sleep_while_waiting

    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    sleep_while_waiting()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_the_command_says_so_before_a_library_brings_openmp():
    code = ("import os, sys; sys.argv = ['lrgenome', '-V']\nfrom lrgenome.cli import app\n"
            "assert 'torch' not in sys.modules\ntry: app.main()\nexcept SystemExit: pass\n"
            "print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)")  # fmt: skip
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")},
    )  # fmt: skip
    assert said.stdout.splitlines()[-1] == "10000 False"


def test_logs_go_to_stderr_and_a_file(tmp_path, capsys):
    from lrgenome.cli.logs import set_up

    log = logging.getLogger("lrgenome.test")
    for verbose, quiet, shown in ((0, False, "IW"), (1, False, "DIW"), (0, True, "W")):
        path = tmp_path / f"{verbose}{quiet}.log"
        set_up(verbose, quiet, path)
        log.debug("a detail")
        log.info("an event")
        log.warning("a worry")
        err = capsys.readouterr()
        assert err.out == "" and err.err == path.read_text()
        assert "".join(line.split()[1][0] for line in err.err.splitlines()) == shown


def test_a_log_that_cannot_be_written(tmp_path):
    from lrgenome.cli.logs import set_up

    with pytest.raises(errors.OutputError, match=r"--log-file .*none/run.log: No such file"):
        set_up(0, False, tmp_path / "none" / "run.log")
