import io
import os

import pytest

from lrgenome.errors import OutputError
from lrgenome.io.score_journal import ScoreJournal
from lrgenome.io.score_table import header_text

SETTINGS = {"model": "toy", "context": 12000}


def test_resume_with_other_settings_is_refused(tmp_path):
    path = tmp_path / "out.tsv.partial"
    with ScoreJournal(path, header_text(SETTINGS)) as journal:
        journal.append("x\n")
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"other settings: got '##context=12000', expected '##context=5'"):
        ScoreJournal(path, header_text(SETTINGS | {"context": 5}), resume=True)
    with pytest.raises(OutputError, match=r"got '#CHROM.*expected '##more=1'"):
        ScoreJournal(path, header_text(SETTINGS | {"more": 1}), resume=True)
    assert path.read_bytes() == before


def test_resume_with_another_version_is_allowed(tmp_path):
    path = tmp_path / "out.tsv.partial"
    ScoreJournal(path, header_text(SETTINGS).replace("##tool=lrgenome ", "##tool=lrgenome 9.")).close()
    with ScoreJournal(path, header_text(SETTINGS), resume=True) as journal:
        assert journal.resume_from(iter(())) == 0
    assert "lrgenome 9." in path.read_text()
    with ScoreJournal(path, header_text(SETTINGS, no_version=True), resume=True) as journal:
        assert journal.resume_from(iter(())) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_output_error(tmp_path):
    journal = ScoreJournal(tmp_path / "a.partial", header_text(SETTINGS))
    journal._file.close()
    with open("/dev/full", "wb", buffering=0) as journal._file, pytest.raises(OutputError, match="No space"):
        journal.append("x\n")
    assert journal.path.read_text() == header_text(SETTINGS)


def test_a_short_write_is_continued(tmp_path):
    class Slow(io.FileIO):
        def write(self, data):
            return super().write(bytes(data)[:3])

    journal = ScoreJournal(tmp_path / "a.partial", header_text(SETTINGS))
    journal.close()
    with Slow(journal.path, "a") as journal._file:
        journal.append("some rows\n")
    assert journal.path.read_text() == header_text(SETTINGS) + "some rows\n"


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path):
    with pytest.raises(OutputError):
        ScoreJournal(tmp_path / "absent" / "a.partial", header_text(SETTINGS))
