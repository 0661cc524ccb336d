import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrgenome.io.alleles import classify
from lrgenome.io.symbolic import SymbolicEvent, resolve_symbolic
from lrgenome.io.vcf import VcfRecord

POS = 99
"""0-based: POS is 100, and an event begins at 100."""


@pytest.mark.parametrize(
    ("alt", "kind"),
    [
        ("<DEL>", "DEL"), ("<del>", "DEL"), ("<DEL:ME:ALU>", "DEL"), ("<DEL:ME>", "DEL"), ("<CN0>", "DEL"),
        ("<DUP>", "DUP"), ("<Dup:Tandem>", "DUP"), ("<CN2>", "DUP"), ("<cn2>", "DUP"),
        ("<INV>", "INV"), ("<inv>", "INV"),
    ],
)  # fmt: skip
def test_kinds(alt, kind):
    assert classify("A", alt) == "ALT_SYMBOLIC"
    assert resolve_symbolic(alt, POS, "END=150") == SymbolicEvent(kind, 100, 150)


@pytest.mark.parametrize(
    "alt",
    [
        "<INS>", "<INS:ME:ALU>", "<CN1>", "<CN3>", "<CN20>", "<CN02>", "<CN>", "<CNV>", "<CNV:TR>", "<CN=0>", "<DEL:>",
        "<DELETION>", "<DUP:INV>", "<DUP:DISPERSED>", "<DUP:x y>", "<DUPLEX>", "<INV:x>", "<BND>", "<>", "<", "DEL",
        "<DEL", "DEL>", "C<DEL>", "<DEL>C",
        "<DEL><DUP>", "<*>", "*", ".", "", "A", "A[2:100[",
    ],
)  # fmt: skip
def test_everything_else_is_no_event(alt):
    assert resolve_symbolic(alt, POS, "END=150;SVLEN=50") is None


@pytest.mark.parametrize(
    ("info", "end"),
    [
        ("END=150", 150),
        ("END=101", 101),
        ("SVTYPE=DEL;END=150;AC=3", 150),
        ("SVLEN=50", 150),
        ("SVLEN=-50", 150),
        ("END=150;SVLEN=-20", 150),
        ("SVLEN=20;END=150", 150),
        ("END=150;SVLEN=.", 150),
        ("END=150;SVLEN=0", 150),
        ("END=150;SVLEN=many", 150),
        ("END=150;SVLEN=20,30", 150),
        ("END=.;SVLEN=-50", 150),
        ("END=;SVLEN=-50", 150),
        ("END=1e3;SVLEN=-50", 150),
        ("END=150,160;SVLEN=-50", 150),
        # An END that is not beyond POS tells nothing.
        ("END=100;SVLEN=-50", 150),
        ("END=-150;SVLEN=50", 150),
        ("END=150;END=150", 150),
        ("END=150;;SVLEN", 150),
        # Without END or SVLEN that is one.
        ("", None),
        (".", None),
        ("END", None),
        ("END=", None),
        ("END=.", None),
        ("END=100", None),
        ("END=99", None),
        ("END=0", None),
        ("END=-150", None),
        ("END=+150", None),
        ("END= 150", None),
        ("END=150.0", None),
        ("END=0x96", None),
        ("END=١٥٠", None),
        ("END=" + "9" * 19, None),
        ("END=150;END=160", None),
        ("SVLEN=0", None),
        ("SVLEN=.", None),
        ("SVLEN=--50", None),
        ("SVLEN=50,60", None),
        # Names are told apart by case and to their ends.
        ("end=150", None),
        ("CIEND=150", None),
        ("END2=150", None),
        ("XEND=150;MSVLEN=50", None),
    ],
)
def test_where_an_event_ends(info, end):
    assert resolve_symbolic("<DEL>", POS, info) == (end and SymbolicEvent("DEL", 100, end))


@pytest.mark.parametrize(
    ("info", "ends"),
    [
        ("END=150", [150, 150, 150]),
        ("SVLEN=50", [150, 150, 150]),
        ("SVLEN=-50,.,20", [150, None, 120]),
        ("SVLEN=-50,50", [None, None, None]),
        ("SVLEN=-50,50;END=130", [130, 130, 130]),
        # Alleles of one length: END comes first.
        ("SVLEN=-50,50,50;END=130", [130, 130, 130]),
        ("SVLEN=-50,.,.;END=130", [130, 130, 130]),
        # Of several lengths: no END could be that of all.
        ("SVLEN=-50,30,20;END=150", [150, 130, 120]),
        ("SVLEN=-50,.,20;END=150", [150, 150, 120]),
    ],
)
def test_alleles_of_one_record(info, ends):
    found = [resolve_symbolic("<DUP>", POS, info, which, 3) for which in range(3)]
    assert [event and event.end for event in found] == ends


def test_the_telomere():
    assert resolve_symbolic("<DEL>", -1, "END=5") == SymbolicEvent("DEL", 0, 5)
    assert resolve_symbolic("<DEL>", -1, "END=0") is None


@given(
    st.sampled_from(["<DEL>", "<DUP:TANDEM>", "<INV>", "<CN0>"]),
    st.integers(-1, 300),
    st.lists(st.sampled_from(["END", "SVLEN", "=", ";", ",", ".", "-", "17", "250", "A"]), max_size=12).map("".join),
    st.integers(1, 3),
)
def test_whatever_the_record_says_an_event_has_bases(alt, pos, info, of):
    for which in range(of):
        event = resolve_symbolic(alt, pos, info, which, of)
        assert event is None or pos + 1 == event.start < event.end


def test_info_of_a_record():
    line = "20\t5\t.\tA\t<DEL>\t.\t.\tEND=9;X=\t=\tGT\t0/1"
    assert VcfRecord("20", 4, ".", "A", ("<DEL>",), line, 0, 1).info == "END=9;X="
    assert VcfRecord("20", 4, ".", "A", ("<DEL>",), "20\t5\t.\tA\t<DEL>\t.\t.\t.", 0, 1).info == "."
