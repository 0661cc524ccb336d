import gzip

import pytest

from lrgenome.errors import InputError
from lrgenome.io.score_table import ScoreRow, format_rows, header_text, read_scores
from lrgenome.io.vcf import VcfRecord
from lrgenome.version import __version__


def record(**fields):
    whole = {"chrom": "1", "pos": 9, "id": ".", "ref": "A", "alts": ("C",)}
    return VcfRecord(**(whole | fields), line="", number=0, line_number=1)


def test_header_and_rows():
    text = header_text({"model": "a\tb\n c"}, ("P_BAD",))
    assert text.split("\n") == [
        "##lrgenome-scores-version=1",
        f"##tool=lrgenome {__version__}",
        "##model=a b c",
        "#CHROM\tPOS\tID\tREF\tALT\tLLR\tDIST_COS\tDIST_L2\tPLL_DIFF\tERR_EST\tP_BAD\tSTATUS",
        "",
    ]
    assert "##tool" not in header_text({}, no_version=True)
    row = ScoreRow(-1.23456789, 1e-9, None, float("nan"), -0.0, ("OK", "EDGE"), (0.5, "x", None))
    assert format_rows(record(), [row]) == "1\t10\t.\tA\tC\t-1.23457\t1e-09\t.\t.\t0\t0.5\tx\t.\tOK&EDGE\n"
    assert format_rows(record(alts=()), [row]).startswith("1\t10\t.\tA\t.\t")
    assert format_rows(record(alts=("C", "")), [row, row]).split("\n")[1].startswith("1\t10\t.\tA\t.\t")
    with pytest.raises(ValueError, match="got 1 rows for record 0, expected 2"):
        format_rows(record(alts=("C", "G")), [row])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column line"),
        ("#CHROM\tPOS\n", "first line"),
        ("##lrgenome-scores-version=2\n", "first line"),
        (header_text({}) + "1\t5\n", "line 4: got 2 columns, expected 11"),
        (header_text({}) + "\t".join("1" * 11), "line 4: got no line end"),
        (header_text({}) + "\t".join(["x"] * 11) + "\n", "cannot be read"),
    ],
)
def test_what_is_no_score_table_is_said(tmp_path, text, message):
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        list(read_scores(tmp_path / "a.tsv"))


def test_a_truncated_table_is_said(tmp_path):
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(header_text({}).encode())[:-9])
    with pytest.raises(InputError):
        list(read_scores(tmp_path / "a.tsv.gz"))
