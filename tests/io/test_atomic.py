import errno
import os

import pytest

from lrgenome.errors import FastaError, OutputError, OutputExistsError
from lrgenome.io.atomic import (
    atomic_output,
    check_writable,
    is_stream,
    os_error_as_output_error,
    partial_path,
    publish,
    whole_file,
)


def test_appears_only_when_whole(tmp_path):
    path = tmp_path / "scores.tsv.gz"
    with atomic_output(path, "wb") as handle:
        handle.write(b"one")
        assert not path.exists()
        assert partial_path(path) == tmp_path / "scores.tsv.gz.partial"
        assert partial_path(path).exists()
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["scores.tsv.gz"]


def test_failure_keeps_the_earlier_output(tmp_path):
    path = tmp_path / "out.tsv"
    path.write_text("earlier")
    with pytest.raises(KeyboardInterrupt), atomic_output(path) as handle:
        handle.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["out.tsv"]


def test_partial_is_kept_and_continued(tmp_path):
    path = tmp_path / "out.tsv"
    with pytest.raises(RuntimeError), atomic_output(path, keep_partial=True) as handle:
        handle.write("half")
        raise RuntimeError
    assert partial_path(path).read_text() == "half"
    with atomic_output(path, "a") as handle:
        handle.write(" and half")
    assert path.read_text() == "half and half"
    assert not partial_path(path).exists()


def test_a_file_that_a_library_writes_by_name(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "out")
    with whole_file(tmp_path / "link") as name:
        name.write_text("one")
        assert name == tmp_path / "real" / "out.partial" and not (tmp_path / "real" / "out").exists()
    with pytest.raises(OutputError, match=r"cannot write .*No space left"), whole_file(tmp_path / "link") as name:
        name.write_text("two")
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "link") as name:
        raise KeyboardInterrupt
    assert (tmp_path / "link").read_text() == "one" and (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "real") == ["out"]


def test_text_has_unix_line_ends(tmp_path):
    with atomic_output(tmp_path / "t", "w") as handle:
        handle.write("\u03b1\n")
    assert (tmp_path / "t").read_bytes() == b"\xce\xb1\n"


def test_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "out")
    with atomic_output(tmp_path / "link") as handle:
        handle.write("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "out").read_text() == "x"


def test_devices_and_pipes_are_written_directly(tmp_path):
    assert is_stream("/dev/null")
    assert is_stream("/dev/stdout")
    assert not is_stream("/dev/shm/out.tsv")
    with atomic_output("/dev/null") as handle:
        handle.write("x")
    assert is_stream("/dev/null")
    assert not os.path.isfile("/dev/null")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with atomic_output(fifo, "wb") as handle:
        handle.write(b"x")
    assert os.read(reader, 10) == b"x"
    os.close(reader)
    check_writable(fifo)
    assert is_stream(fifo)


def test_full_disk_names_file_cause_and_free_space(tmp_path):
    path = tmp_path / "out.h5"
    with pytest.raises(OutputError, match=r"out\.h5: .*No space left.*ENOSPC.*GB free in") as caught:
        with os_error_as_output_error(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OutputError, match=r"EDQUOT.*quota of this user"):
        with os_error_as_output_error(path):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_really_full_device():
    with pytest.raises(OutputError, match="ENOSPC"), atomic_output("/dev/full") as handle:
        handle.write("x" * 100)
    with pytest.raises(OutputError, match="ENOSPC"), atomic_output("/dev/full", "wb") as handle:
        handle.write(b"x" * 1_000_000)


def test_errors_of_inputs_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_output(tmp_path / "out"):
        open(tmp_path / "no-such-input")
    with pytest.raises(FastaError), os_error_as_output_error(tmp_path / "out"):
        raise FastaError("bad")
    with pytest.raises(BrokenPipeError), os_error_as_output_error(tmp_path / "out"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_errors_without_a_number_keep_their_text(tmp_path):
    with pytest.raises(OutputError, match="unable to flush"), os_error_as_output_error(tmp_path / "out"):
        raise OSError("unable to flush file's cached information")


def test_rename_that_fails_leaves_the_partial(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    path = tmp_path / "out"
    partial_path(path).write_text("whole")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match="EACCES"):
        publish(partial_path(path), path)
    assert partial_path(path).read_text() == "whole"


def test_check_writable(tmp_path, monkeypatch):
    check_writable("-", no_clobber=True)
    check_writable(tmp_path / "new", no_clobber=True)
    assert os.listdir(tmp_path) == []
    (tmp_path / "old").write_text("")
    check_writable(tmp_path / "old")
    with pytest.raises(OutputExistsError, match="old exists already"):
        check_writable(tmp_path / "old", no_clobber=True)
    with pytest.raises(OutputError, match=r"folder .*missing does not exist"):
        check_writable(tmp_path / "missing" / "out")
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(OutputError, match="does not exist"):
        check_writable(tmp_path / "old" / "out")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="no permission to create files"):
        check_writable(tmp_path / "new")


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="No such file"), atomic_output(tmp_path / "a" / "b" / "c"):
        pass


def test_mode_is_checked(tmp_path):
    with pytest.raises(ValueError, match="'r'"), atomic_output(tmp_path / "a", "r"):
        pass
