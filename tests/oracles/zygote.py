"""A process with everything imported, of which every command that it starts is a fork.

Each command is a process of its own, with its own limits, user and files, and takes none of the seconds that imports
take. Run as a program it is that process; `Zygote` is what talks to it.
"""

import contextlib
import importlib
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Command:
    """A running command, as `subprocess.Popen` is one; its output goes to files."""

    def __init__(self, zygote: "Zygote", pid: int, streams: list[Any]) -> None:
        self._zygote, self.pid, self._streams = zygote, pid, streams
        self.returncode: int | None = None
        self._said: list[str] = []

    def poll(self) -> int | None:
        """Return the exit code once it is there, or minus the signal that ended it."""
        if self.returncode is None:
            self.returncode = self._zygote.ask({"poll": self.pid})
            if self.returncode is not None:
                self._said = [self._read(number) for number in range(2)]
                for stream in self._streams:
                    stream.close()
        return self.returncode

    def wait(self, timeout: float = 400.0) -> int:
        end, pause = time.monotonic() + timeout, 0.002
        while self.poll() is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGABRT)
                raise TimeoutError(f"a command is still running: {self.stderr}")
            time.sleep(pause)
            pause = min(0.1, 1.3 * pause)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @property
    def stdout(self) -> str:
        return self._read(0)

    @property
    def stderr(self) -> str:
        return self._read(1)

    def _read(self, number: int) -> str:
        if self.returncode is not None and self._said:
            return self._said[number]
        stream = self._streams[number]
        return os.pread(stream.fileno(), 1 << 24, 0).decode("utf-8", "replace")


class Zygote:
    """Starts commands; a context manager.

    Parameters
    ----------
    environment
        Of the process that is forked.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
            env={**environment, **one_thread},
        )  # fmt: skip
        theirs.close()
        assert self._receive() == "ready"

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait()

    def start(
        self, *args: object, env: Mapping[str, str], cwd: Path | None = None, stdin: int | None = None,
        stdout: int | None = None, limits: Mapping[int, int] | None = None, user: int | None = None,
        closed: Sequence[int] = (), ignored: Sequence[int] = (), cpus: Sequence[int] = (), before: str = "",
    ) -> Command:  # fmt: skip
        """Start ``lrgenome ARGS``.

        Parameters
        ----------
        stdin, stdout
            Descriptors; default /dev/null and a file.
        limits
            Of `resource.setrlimit`.
        user
            Number of the user (and group) that runs it.
        closed
            Standard streams that are closed, by number.
        ignored
            Signals that are ignored, as a shell does for background jobs.
        cpus
            That it may run on.
        before
            Python to run first, in the process of the command.
        """
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        with open(os.devnull, "rb") as null:
            streams = [null.fileno() if stdin is None else stdin, out.fileno() if stdout is None else stdout]
            pid = self.ask(
                {"args": [os.fsencode(str(arg)).decode("latin-1") for arg in args], "env": dict(env),
                 "cwd": str(cwd or os.getcwd()), "limits": list((limits or {}).items()), "user": user,
                 "closed": list(closed), "ignored": list(ignored), "cpus": list(cpus), "before": before},
                [*streams, err.fileno()],
            )  # fmt: skip
        return Command(self, pid, [out, err])

    def ask(self, what: dict[str, Any], files: Sequence[int] = ()) -> Any:
        socket.send_fds(self._socket, [json.dumps(what).encode() + b"\n"], list(files))
        return self._receive()

    def _receive(self) -> Any:
        data = b""
        while not data.endswith(b"\n"):
            block = self._socket.recv(1 << 16)
            if not block:
                raise EOFError("the process that commands are forked from has ended")
            data += block
        return json.loads(data)


# --- the process itself
def serve(channel: socket.socket) -> None:
    channel.sendall(b'"ready"\n')
    codes: dict[int, int] = {}
    while True:
        data, files, _, _ = socket.recv_fds(channel, 1 << 20, 3)
        if not data:
            return
        what = json.loads(data)
        answer: int | None
        if "poll" in what:
            pid, status = os.waitpid(what["poll"], os.WNOHANG) if what["poll"] not in codes else (what["poll"], 0)
            if pid and pid not in codes:
                codes[pid] = os.waitstatus_to_exitcode(status)
            answer = codes.get(what["poll"])
        else:
            sys.stdout.flush()
            answer = os.fork()
            if answer == 0:
                channel.close()
                child(what, files)
            for file in files:
                os.close(file)
        channel.sendall(json.dumps(answer).encode() + b"\n")


def child(what: dict[str, Any], files: list[int]) -> None:
    """Become the command; never returns."""
    code = 1
    try:
        os.environ.clear()
        os.environ.update(what["env"])
        os.chdir(what["cwd"])
        if what["cpus"]:
            os.sched_setaffinity(0, what["cpus"])
        # Beyond what `closed` asks for, so that a copy is never closed.
        high = [os.dup2(file, 100 + number) for number, file in enumerate(files)]
        for file in files:
            os.close(file)
        for number, file in enumerate(high):
            os.dup2(file, number)
            os.close(file)
        for number in what["closed"]:
            os.close(number)
        for number in what["ignored"]:
            signal.signal(number, signal.SIG_IGN)
        # As the interpreter makes them.
        sys.stdin, sys.stdout, sys.stderr = (
            None if number in what["closed"] else stream(number, mode, errors)
            for number, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
        )
        sys.argv = ["lrgenome", *(os.fsdecode(arg.encode("latin-1")) for arg in what["args"])]
        tempfile.tempdir = None
        if what["user"] is not None:
            os.setgroups([])
            os.setgid(what["user"])
            os.setuid(what["user"])
        for number, most in what["limits"]:
            resource.setrlimit(number, (most, resource.getrlimit(number)[1]))
        code = run(what["before"])
    finally:
        os._exit(code)


def stream(number: int, mode: str, errors: str) -> io.TextIOWrapper:
    raw = io.FileIO(number, mode, closefd=False)
    buffer = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding="utf-8", errors=errors, line_buffering=number == 2)


def run(before: str) -> int:
    import atexit
    import traceback

    from lrgenome.cli.app import main

    try:
        exec(before, {})
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # As at the end of an interpreter.
    atexit._run_exitfuncs()
    for one in (sys.stdout, sys.stderr):
        if one is not None:
            try:
                one.flush()
            except OSError:
                code = 120
    return code


def load() -> None:
    """Import what commands import, even late, as torch's optimizer and numba do; nothing here starts a thread."""
    import warnings

    warnings.simplefilter("ignore")
    import torch

    for name in (
        "matplotlib.backends.backend_agg", "matplotlib.figure", "sklearn.linear_model", "sklearn.metrics",
        "sklearn.svm", "lrgenome.cli.app", "lrgenome.tasks.data", "lrgenome.tasks.embed",
        "lrgenome.tasks.extrapolate_run", "lrgenome.tasks.finetune", "lrgenome.tasks.pretrain",
        "lrgenome.tasks.score_vcf", "lrgenome.tasks.setup", "lrgenome.ops.conv.cpu", "lrgenome.ops.rglru.cpu",
    ):  # fmt: skip
        importlib.import_module(name)
    # What numba imports when it loads its first kernel.
    registry = importlib.import_module("numba.core.registry")
    registry.cpu_target.typing_context.refresh()
    registry.cpu_target.target_context.refresh()
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight]).step()
    warnings.resetwarnings()


if __name__ == "__main__":
    load()
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection)
