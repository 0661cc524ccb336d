"""Downloads that are cut off, refused, changed in between, or not what they must be."""

import hashlib
from pathlib import Path

import pytest
from file_server import Server

from lrgenome.errors import DownloadError, OutputError
from lrgenome.io import download as module
from lrgenome.io.download import download, sha256_of

BODY = bytes(range(256)) * 4000
SUM = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "_WAIT", 0.001)
    made = Server()
    made.files["/a.bin"] = BODY
    yield made
    made.close()


def only(target: Path) -> None:
    assert target.read_bytes() == BODY
    assert list(target.parent.iterdir()) == [target]


def test_a_file_is_downloaded_and_counted(server, tmp_path):
    seen = []
    target = tmp_path / "new" / "a.bin"
    url = f"{server.address}/a.bin"
    found = download(url, target, sha256=SUM, size=len(BODY), progress=lambda *at: seen.append(at))
    assert found == SUM == sha256_of(target)
    only(target)
    assert seen[-1] == (len(BODY), len(BODY))


def test_what_is_cut_off_is_gone_on_from(server, tmp_path):
    server.cuts = [300_000, 200_000]
    download(f"{server.address}/a.bin", tmp_path / "a.bin", sha256=SUM)
    only(tmp_path / "a.bin")
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_call_goes_on_too(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TRIES", 1)
    server.cuts = [300_000]
    with pytest.raises(DownloadError, match=r"in 1 tries: cut off after 300,000 of 1,024,000 bytes"):
        download(f"{server.address}/a.bin", tmp_path / "a.bin", sha256=SUM)
    assert (tmp_path / "a.bin.partial").stat().st_size == 300_000 and not (tmp_path / "a.bin").exists()
    download(f"{server.address}/a.bin", tmp_path / "a.bin", sha256=SUM)
    only(tmp_path / "a.bin")
    assert server.requests[-1][1] == "bytes=300000-"


def test_nothing_is_missing_after_the_last_byte(server, tmp_path):
    (tmp_path / "a.bin.partial").write_bytes(BODY)
    about = f'{{"url": "{server.address}/a.bin", "validator": "\\"one\\"", "total": {len(BODY)}}}'
    (tmp_path / "a.bin.download").write_text(about)
    download(f"{server.address}/a.bin", tmp_path / "a.bin", sha256=SUM)
    only(tmp_path / "a.bin")


@pytest.mark.parametrize("change", ["other file", "no ranges", "no tag", "weak tag", "other address"])
def test_what_cannot_be_gone_on_from_begins_anew(server, tmp_path, change):
    server.files["/b.bin"] = BODY
    server.cuts = [300_000]
    if change == "no tag":
        server.tag = None
    if change == "weak tag":
        server.tag = 'W/"one"'
    target = tmp_path / "a.bin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TRIES", 1)
        with pytest.raises(DownloadError):
            download(f"{server.address}/a.bin", target)
    if change == "other file":
        server.files["/a.bin"], server.tag = BODY[::-1], '"two"'
    if change == "no ranges":
        server.ranges = False
    path = "b.bin" if change == "other address" else "a.bin"
    download(f"{server.address}/{path}", target)
    assert target.read_bytes() == server.files["/" + path]


@pytest.mark.parametrize("code", [500, 503, 429])
def test_an_error_that_passes_is_tried_again(server, tmp_path, code):
    server.answers = [code, code]
    download(f"{server.address}/a.bin", tmp_path / "a.bin", sha256=SUM)
    only(tmp_path / "a.bin")


def test_errors_that_stay_are_said(server, tmp_path):
    with pytest.raises(DownloadError, match=r"none.bin: cannot be downloaded: the server said 404 Not Found"):
        download(f"{server.address}/none.bin", tmp_path / "a.bin")
    assert len(server.requests) == 1
    server.answers = [503] * 9
    with pytest.raises(DownloadError, match=r"cannot be downloaded in 5 tries: 503"):
        download(f"{server.address}/a.bin", tmp_path / "a.bin")
    server.close()
    with pytest.raises(DownloadError, match=r"cannot be downloaded in 5 tries: .*refused"):
        download(f"{server.address}/a.bin", tmp_path / "a.bin")


@pytest.mark.parametrize(("sha256", "size"), [("0" * 64, None), (None, 5), (SUM, 5), ("0" * 64, len(BODY))])
def test_another_file_than_it_must_be_is_thrown_away(server, tmp_path, sha256, size):
    with pytest.raises(DownloadError, match=rf"got 1,024,000 bytes with sha256 {SUM}, expected .* thrown away"):
        download(f"{server.address}/a.bin", tmp_path / "a.bin", sha256=sha256, size=size)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_no_network_error(server, tmp_path):
    (tmp_path / "a.bin.partial").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"No space left"):
        download(f"{server.address}/a.bin", tmp_path / "a.bin")
    assert len(server.requests) == 1


def test_a_proxy_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    download("http://genomes.invalid/a.bin", tmp_path / "a.bin", sha256=SUM)
    only(tmp_path / "a.bin")
    assert server.requests == [("http://genomes.invalid/a.bin", None)]
