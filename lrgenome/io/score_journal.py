"""The journal of a scoring run: a plain score table that can be continued from any byte it was killed at."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from lrgenome.errors import OutputError
from lrgenome.io.alleles import STATUSES
from lrgenome.io.atomic import os_error_as_output_error
from lrgenome.io.lock import open_alone
from lrgenome.io.score_table import KEY_COLUMNS, SCORE_COLUMNS, TOOL_PREFIX, pair_rows, row_keys
from lrgenome.io.vcf import VcfRecord, to_bytes

_TOOL = TOOL_PREFIX.encode()
_SCORE = re.compile(rb"\.|-?(?:[0-9]+(?:\.[0-9]+)?(?:e[-+][0-9]+)?|inf)")
_STATUSES = frozenset(status.encode() for status in STATUSES)


class ScoreJournal:
    """The scores so far, in a plain TSV that always has its header; a context manager, and its only writer.

    Parameters
    ----------
    partial_path
        Where the journal is kept.
    header_text
        What `header_text` gives for this run.
    resume
        Continue a journal that is there; else it is replaced.

    Attributes
    ----------
    path
        Where the journal is kept.

    Raises
    ------
    OutputError
        If the file cannot be written, another process writes it, or it was made with other settings.
    """

    def __init__(self, partial_path: str | Path, header_text: str, resume: bool = False) -> None:
        self.path = Path(partial_path)
        header = to_bytes(header_text)
        self._width = header.splitlines()[-1].count(b"\t") + 1
        with os_error_as_output_error(self.path):
            self._file = open_alone(self.path, "r+b", buffering=0)
        try:
            with os_error_as_output_error(self.path):
                self._rows_start = self._check_header(header) if resume else 0
            if self._rows_start:
                self._cut(self._end_of_last_line())
            else:
                self._cut(0)
                self._write(header)
                self._rows_start = len(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "ScoreJournal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, text: str) -> None:
        """Add the rows of whole records and hand them to the operating system.

        Raises
        ------
        OutputError
            If they cannot be written; what could be written is kept.
        """
        self._write(to_bytes(text))

    def resume_from(self, records: Iterable[VcfRecord]) -> int:
        """Match the rows that are there against the input and cut those of an incomplete last record.

        Parameters
        ----------
        records
            The records that this run scores, from the first one.

        Returns
        -------
        int
            How many of them are done.

        Raises
        ------
        OutputError
            If the rows are not those of the records.
        """
        end, done = self._rows_start, 0
        with os_error_as_output_error(self.path), open(self.path, "rb") as rows:
            rows.seek(self._rows_start)
            for record, lines in pair_rows(rows, iter(records), self._width, self.path):
                if len(lines) < len(row_keys(record)):
                    break
                self._check_scores(lines)
                end += sum(map(len, lines))
                done += 1
        self._cut(end)
        return done

    def close(self) -> None:
        """Close the file and keep it."""
        self._file.close()

    def _check_header(self, header: bytes) -> int:
        """Compare with the header that is there; give its length, 0 where a kill left less than a header."""
        wanted = [line for line in header.splitlines(keepends=True) if not line.startswith(_TOOL)]
        with open(self.path, "rb") as handle:
            for line in iter(handle.readline, b""):
                if line.startswith(_TOOL):
                    continue
                if not line.endswith(b"\n"):
                    return 0
                if line != wanted[0]:
                    got, expected = (x.decode("utf-8", "replace").rstrip("\n") for x in (line, wanted[0]))
                    raise OutputError(
                        f"{self.path} was made with other settings: got {got!r}, expected {expected!r}; "
                        "repeat those settings, or run without --resume to start anew"
                    )
                if not wanted[1:]:
                    return handle.tell()
                wanted.pop(0)
        return 0

    def _check_scores(self, rows: list[bytes]) -> None:
        """Refuse rows whose scores are none: a machine that lost power may leave zeros in their place."""
        for row in rows:
            cells = row.rstrip(b"\n").split(b"\t")
            scores = cells[len(KEY_COLUMNS) : len(KEY_COLUMNS) + len(SCORE_COLUMNS)]
            if not (all(map(_SCORE.fullmatch, scores)) and set(cells[-1].split(b"&")) <= _STATUSES):
                got = row[:200].decode("utf-8", "replace").rstrip("\n")
                raise OutputError(
                    f"{self.path} is damaged: got row {got!r}, expected numbers and a status; "
                    "remove it, or run without --resume to start anew"
                )

    def _end_of_last_line(self) -> int:
        end = self._file.seek(0, os.SEEK_END)
        while end > self._rows_start:
            start = max(self._rows_start, end - 65536)
            self._file.seek(start)
            newline = self._file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return self._rows_start

    def _cut(self, end: int) -> None:
        with os_error_as_output_error(self.path):
            self._file.truncate(end)
            self._file.seek(end)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        with os_error_as_output_error(self.path):
            # One call as a rule; a file system may take less, for one when it is nearly full.
            while view:
                view = view[self._file.write(view) :]
