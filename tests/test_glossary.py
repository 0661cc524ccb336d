"""Lengths as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrgenome.glossary import FORWARD, REVERSE, format_length, parse_length, parse_size


@pytest.mark.parametrize(
    ("text", "bp"),
    [
        ("131072", 131072),
        ("1,000", 1000),
        ("1,234,567bp", 1234567),
        ("1_000_000", 1000000),
        ("12kbp", 12000),
        ("12 kbp", 12000),
        (" 12KB ", 12000),
        ("100k", 100000),
        ("1Mbp", 1000000),
        ("1.5Mb", 1500000),
        ("1.5m", 1500000),
        ("8.36879G", 8368790000),
        ("4.35Mbp", 4350000),
        ("3Gbp", 3000000000),
        ("50nt", 50),
        ("7b", 7),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_lengths(text, bp):
    assert parse_length(text) == bp


@pytest.mark.parametrize(
    "text",
    ["", "k", "0", "0kbp", "-3", "1.5", "1.0001k", "1e6", "12kkb", "12 k b p", "1.5.5k", "twelve", "nan",
     "1kib", "inf", "١٢", "0x10", "_1", ",1", "1,5Mbp", "12,5kbp", "1,,000", "1,0000"],
)  # fmt: skip
def test_what_is_no_length_is_refused_by_name(text):
    with pytest.raises(ValueError, match="expected a length such as") as caught:
        parse_length(text)
    assert repr(text) in str(caught.value)


def test_absurd_lengths_do_not_overflow():
    assert parse_length("9" * 400) == int("9" * 400)


@given(st.integers(min_value=1, max_value=10**13))
def test_what_is_written_is_read_back(bp):
    assert parse_length(format_length(bp)) == bp
    assert parse_length(f"{bp:,}") == bp


@given(st.integers(min_value=1, max_value=10**10), st.sampled_from([("k", 3), ("Mbp", 6), ("gb", 9)]))
def test_exact_decimal_fractions_of_a_unit(bp, unit):
    name, digits = unit
    whole, rest = divmod(bp, 10**digits)
    assert parse_length(f"{whole}.{rest:0{digits}d}{name}") == bp


def test_written_lengths():
    written = [format_length(bp) for bp in (1, 999, 1000, 12000, 12345, 100000, 1000000, 1234000, 1234567)]
    assert written == [
        "1bp",
        "999bp",
        "1kbp",
        "12kbp",
        "12.345kbp",
        "100kbp",
        "1Mbp",
        "1.234Mbp",
        "1234.567kbp",
    ]


def test_directions_index_and_flip():
    assert (FORWARD, REVERSE) == (0, 1) and FORWARD ^ REVERSE == REVERSE


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GB", 8_000_000_000), ("8g", 8_000_000_000), ("7.5GiB", 8_053_063_680), (" 800 MB ", 800_000_000),
        ("512k", 512_000), ("1_000", 1_000), ("1B", 1), ("2TiB", 2 << 40), ("0.5KiB", 512),
    ],
)  # fmt: skip
def test_sizes(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "0", "0GB", "GB", "-1GB", "8 bytes", "8GBi", "1e9", "8,000MB", "0.1", "inf"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="expected an amount of memory such as 8GB"):
        parse_size(text)
