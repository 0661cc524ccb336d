"""Names on the hub: what is asked of huggingface_hub, and what becomes of its errors."""

import os
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest

from lrgenome.errors import ModelError, UsageError
from lrgenome.models.hub import PATTERNS, is_hub_name, resolve


class LocalEntryNotFoundError(FileNotFoundError):
    """Stands for the package's error of that name."""


@pytest.fixture
def hub(monkeypatch):
    """Put a stand-in in the package's place; it notes how it is called and does what `answer` says."""

    def snapshot_download(repository, **how):
        stand_in.calls.append((repository, how))
        if isinstance(stand_in.answer, Exception):
            raise stand_in.answer
        return stand_in.answer

    stand_in = SimpleNamespace(snapshot_download=snapshot_download, calls=[], answer="/cache/snapshots/abc")
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    return stand_in


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("hf:kuleshov-group/caduceus-ps_seqlen-1k_d_model-118_n_layer-4_lr-8e-3", None),
        ("hf:InstaDeepAI/nucleotide-transformer-v2-50m-multi-species@main", "main"),
        ("hf:org/name.v2@refs/pr/1", "refs/pr/1"),
        ("hf:org/name@2de36509b76b4395a97bfa39acafeb6f17b537c5", "2de36509b76b4395a97bfa39acafeb6f17b537c5"),
    ],
)
@pytest.mark.parametrize("offline", [False, True])
def test_settings_and_weights_are_asked_for_and_nothing_else(hub, name, revision, offline):
    assert is_hub_name(name)
    assert resolve(name, offline=offline) == Path("/cache/snapshots/abc")
    expected = {
        "revision": revision, "allow_patterns": list(PATTERNS), "local_files_only": offline, "cache_dir": None,
    }  # fmt: skip
    assert hub.calls == [(name[3:].partition("@")[0], expected)]


def test_a_home_that_cannot_be_written_to(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    resolve("hf:org/name", offline=False)
    monkeypatch.setenv("HF_HOME", "/cache")
    resolve("hf:org/name", offline=False)
    folders = [options["cache_dir"] for _, options in hub.calls]
    assert folders == [str(tmp_path / "lrgenome-huggingface"), None]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("config.json", True),
        ("model.safetensors", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("pytorch_model.bin", True),
        ("modeling_caduceus.py", False),
        ("tokenizer_config.json", False),
        ("flax_model.msgpack", False),
        ("training_args.bin", False),
    ],
)
def test_no_code_is_asked_for(name, asked):
    assert any(fnmatch(name, pattern) for pattern in PATTERNS) == asked


@pytest.mark.parametrize(
    "name", ["hf:", "hf:name", "hf:org/", "hf:/name", "hf:a/b/c", "hf:org/name@", "hf:org/na me", "hf:org/name@a b"]
)
def test_names_of_another_form(hub, name):
    with pytest.raises(UsageError, match="expected hf:ORG/NAME or hf:ORG/NAME@REVISION"):
        resolve(name, offline=False)
    assert hub.calls == []


def test_paths_are_no_names():
    assert not is_hub_name("models/hf:odd") and not is_hub_name("/hf") and not is_hub_name("")


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"pip install 'lrgenome\[hub\]'"):
        resolve("hf:org/name", offline=True)


def test_a_model_that_is_not_in_the_cache(hub):
    hub.answer = LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")
    with pytest.raises(ModelError, match=r"model hf:org/name: not in the cache .* run once without --offline"):
        resolve("hf:org/name", offline=True)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LocalEntryNotFoundError("Got: ConnectError: name\nAn error happened"), "Got: ConnectError: name An error"),
        (ConnectionError("proxy refused"), "proxy refused"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("Repo id must use alphanumeric chars"), "alphanumeric"),
        (TimeoutError(), r"\(TimeoutError\)"),
    ],
)
def test_a_download_that_fails(hub, error, reason):
    hub.answer = error
    with pytest.raises(ModelError, match=reason) as caught:
        resolve("hf:org/name", offline=False)
    assert "model hf:org/name: cannot be downloaded" in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is error


def test_an_interruption_is_passed_on(hub, monkeypatch):
    def interrupted(*args, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "snapshot_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resolve("hf:org/name", offline=False)


def test_the_package_is_imported_only_when_a_name_asks_for_it():
    code = "import sys, lrgenome.models.hub; sys.exit('huggingface_hub' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_itself_finds_what_is_in_its_cache(tmp_path):
    pytest.importorskip("huggingface_hub", reason="needs lrgenome[hub]")
    commit = "2de36509b76b4395a97bfa39acafeb6f17b537c5"
    model = tmp_path / "hub" / "models--org--name"
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (model / "blobs" / name[:3]).write_text("{}")
        (snapshot / name).symlink_to(f"../../blobs/{name[:3]}")
    code = (
        "import sys\n"
        "from lrgenome.errors import ModelError\n"
        "from lrgenome.models.hub import resolve\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        print(resolve(name, offline=True))\n"
        "    except ModelError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "hf:org/name", f"hf:org/name@{commit}", "hf:org/name@dev", "hf:org/other"],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second, *others = done.stdout.splitlines()
    assert first == second == str(snapshot)
    assert len(others) == 2 and all("not in the cache" in line for line in others)
