"""Homes, installs, temporary folders, shared memory and rights that are missing."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import Place, options_from_environment

import lrgenome as package
from lrgenome.io import plot

from .conftest import mounted

STRANGER = 54_321
"""A user whom the system does not know, as containers have."""


def open_place(folder: Path) -> Place:
    """Make a place that others can read, with an output folder that they can write."""
    place = Place(folder, records=10)
    (folder / "out").mkdir()
    (folder / "out").chmod(0o777)
    return place


@pytest.fixture
def others(open_folder, tiny_model):
    """A place, and a model, that every user can read."""
    place = open_place(open_folder)
    shutil.copytree(tiny_model, open_folder / "v.model")
    return place


def score(place, out):
    return ["score-vcf", place.vcf, "-f", place.fasta, "--context", "200", "--strand", "forward", "-o", out]


@pytest.mark.parametrize("home", [None, "/nonexistent", "/"])
def test_no_home_and_no_name(run, others, as_nobody, home):
    """Also of a user whom the system does not know, as in containers; figures have a cache of their own."""
    with pytest.raises(KeyError):
        pwd.getpwuid(STRANGER)
    temporary = others.folder / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    env = {"HOME": home, "TMPDIR": str(temporary), "LRGENOME_MODEL": str(others.folder / "v.model"),
           "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None, "MPLCONFIGDIR": None}  # fmt: skip
    out = others.folder / "out"
    # The FASTA's folder is not theirs: its index is a temporary one.
    said = run(
        "score-vcf", "--saturate", "one:301-310", "-f", others.fasta, "--context", "200", "-o", out / "o.tsv",
        "--plot", out / "o.svg", user=STRANGER, env=env,
    ).stderr  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == ["o.svg", "o.tsv"] and "WARNING" not in said
    assert [path.name for path in temporary.iterdir()] in ([], [f"lrgenome-{STRANGER}"])


def test_homes_are_not_written(monkeypatch, tmp_path):
    """The cache of figures of a home that cannot be written is found again by the next run."""
    monkeypatch.setenv("MPLCONFIGDIR", "")
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for _ in range(2):
        monkeypatch.delenv("MPLCONFIGDIR")
        plot.use_writable_cache()
        assert Path(os.environ["MPLCONFIGDIR"]) == tmp_path / f"lrgenome-{os.getuid()}" / "matplotlib"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", ["missing", "a file", "forbidden"])
@pytest.mark.parametrize("how", ["--tmpdir", "TMPDIR"])
def test_a_temporary_folder_that_cannot_be_used(run, others, as_nobody, how, kind):
    temporary = others.folder / "tmp"
    if kind == "a file":
        temporary.touch()
    elif kind == "forbidden":
        temporary.mkdir(mode=0o755)
    args = [*score(others, others.folder / "out" / "o.tsv"), *(["--tmpdir", temporary] if how == "--tmpdir" else [])]
    env = {"LRGENOME_MODEL": str(others.folder / "v.model"), **({"TMPDIR": str(temporary)} if how == "TMPDIR" else {})}
    said = run(*args, user=as_nobody, env=env, code=2).stderr
    assert f"lrgenome: error: {how}: " in said and str(temporary) in said
    assert not list((others.folder / "out").iterdir())


READ_ONLY = """
set -e
mount --bind {package} {package} && mount -o remount,bind,ro {package}
[ -z "{tmp}" ] || {{ mount -t tmpfs -o ro tmpfs /tmp; mount -t tmpfs -o ro tmpfs /var/tmp; }}
[ -z "{shm}" ] || {{ umount -l /dev/shm || true; }}
cd {folder}/out
exec {python} -m lrgenome {args}
"""


def in_a_namespace(folder, args, *, tmp="", shm="", env):
    """Run a command where the package is on a read-only file system."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root may make a read-only install")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    root = Path(package.__file__).parent
    script = READ_ONLY.format(
        package=root, tmp=tmp, shm=shm, folder=folder, python=sys.executable, args=" ".join(map(str, args))
    )
    env = {name: value for name, value in env.items() if not name.startswith("NUMBA")} | {
        "PYTHONPATH": str(root.parent), "PYTHONDONTWRITEBYTECODE": "1", "LRGENOME_DEVICE": "cpu",
        "LRGENOME_THREADS": "1",
    }  # fmt: skip
    return subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, env=env)


def test_a_read_only_install_without_shared_memory(others):
    """Kernels are kept under TMPDIR, and nothing needs /dev/shm."""
    model, temporary = others.folder / "v.model", others.folder / "tmp"
    temporary.mkdir()
    env = options_from_environment(model) | {"TMPDIR": str(temporary)}
    done = in_a_namespace(others.folder, score(others, "o.tsv"), shm="gone", env=env)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and (others.folder / "out" / "o.tsv").exists()
    (made,) = temporary.iterdir()
    assert made.name == f"lrgenome-{os.getuid()}" and list(made.glob("numba/**/*.nbc"))
    assert f"kept for the next run in {made}" in done.stderr


@pytest.mark.long
def test_nothing_at_all_can_be_written_but_the_output(open_folder, tiny_model):
    """Neither the install nor a temporary folder: kernels go where the command was started, which Python tries last."""
    home = Path("/opt" if os.access("/opt", os.W_OK) else "/srv") / open_folder.name
    home.mkdir(parents=True)
    try:
        place = open_place(home)
        shutil.copytree(tiny_model, home / "v.model")
        env = options_from_environment(home / "v.model")
        env.pop("TMPDIR", None)
        done = in_a_namespace(home, score(place, "o.tsv"), tmp="read-only", env=env)
        assert done.returncode == 0, done.stderr
        assert (home / "out" / "o.tsv").exists() and "Traceback" not in done.stderr
    finally:
        shutil.rmtree(home)


NAMESPACE = """
import ctypes, subprocess
assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
"""


@pytest.mark.parametrize(
    ("name", "mount"),
    [("pretrain", ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "/dev/shm"]),
     ("finetune", ["umount", "-l", "/dev/shm"])],
)  # fmt: skip
def test_shared_memory_that_is_tiny_or_gone(run, jobs, tiny_model, whole, name, mount):
    """Training reads its data in its own process."""
    if os.geteuid() != 0 or not os.path.ismount("/dev/shm"):
        pytest.skip("only root may change /dev/shm, where it is a mount")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    run(*jobs.job(name, tiny_model), before=f"{NAMESPACE}subprocess.run({mount}, check=True)\n")
    assert jobs.outcome(name) == whole(name)[0]


@pytest.mark.parametrize("name", ["score-vcf.tsv", "embed.h5", "pretrain", "finetune", "extrapolate"])
def test_no_right_to_write(run, jobs, open_folder, tiny_model, as_nobody, name):
    place = type(jobs)(open_folder)
    shutil.copytree(tiny_model, open_folder / "v.model")
    said = run(*place.job(name, open_folder / "v.model"), user=as_nobody, code=3,
               env={"LRGENOME_MODEL": str(open_folder / "v.model")}).stderr  # fmt: skip
    assert "no permission to create files" in said or "Permission denied" in said, said
    assert place.left(name) == [] and not place.out(name).exists()


@pytest.mark.parametrize(
    ("what", "code"), [("v.vcf", 3), ("g.fa", 2), ("v.bed", 2), ("v.model/model.safetensors", 5), ("v.labels.tsv", 2),
                       ("v.manifest.tsv", 2)]
)  # fmt: skip
def test_no_right_to_read(run, jobs, open_folder, tiny_model, as_nobody, what, code):
    place = type(jobs)(open_folder)
    model, out = open_folder / "v.model", open_folder / "out"
    shutil.copytree(tiny_model, model)
    out.mkdir()
    out.chmod(0o777)
    (open_folder / "v.bed").write_text("one\t0\t100\n")
    (open_folder / what).chmod(0o000)
    name = {"v.bed": "embed.h5", "v.labels.tsv": "finetune", "v.manifest.tsv": "pretrain"}.get(what, "score-vcf.tsv")
    more = ["--bed", open_folder / "v.bed"] if what == "v.bed" else []
    said = run(*place.job(name, model, out / "o.h5" if name == "embed.h5" else out / "o.tsv"), *more, user=as_nobody,
               code=code, env={"LRGENOME_MODEL": str(model)}).stderr  # fmt: skip
    assert ("ermission denied" in said or "not readable" in said) and what.rpartition("/")[2] in said, said


def test_mounting_is_what_the_tests_think(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    for disk in mounted(folder, "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs"):
        with pytest.raises(OSError, match="Read-only"):
            (disk / "a").touch()
