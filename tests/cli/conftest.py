"""What the tests of commands share beside what all tests do."""

from pathlib import Path

import numpy as np
import pytest
from places import COLUMNS, HEADER, as_found

__all__ = ["COLUMNS", "HEADER", "as_found"]


@pytest.fixture
def toy_lines(toy_sequences: dict[str, str]) -> list[str]:
    """Records on the toy genome: SNVs, MNVs, indels, several ALTs, and each way not to be scored."""
    rng = np.random.default_rng(8)
    lines = []
    places = [("chr1", range(350, 4900, 130)), ("chr2", range(450, 1100, 90)), ("MT", (7, 20))]
    for chrom, pos in ((chrom, pos) for chrom, positions in places for pos in positions):
        here = toy_sequences[chrom][pos - 1 : pos + 3].upper()
        a, b, c = (base for base in "ACGT" if base != here[0])
        second = "A" if here[1] != "A" else "C"
        kinds = [
            (here[0], a), (here[0], f"{a},{b},{c}"), (here[0], here[0] + "GATC"), (here[:3], here[0]),
            (here[:2], a + second), (here[0], "<DEL>"), (here[0], "*"), (here[0], f"{a},<INS:ME:ALU>"),
            (here[0], "."), (here[0], f"{here[0]}[chr2:100["),
        ]  # fmt: skip
        ref, alt = kinds[rng.integers(len(kinds))]
        lines.append(f"{chrom}\t{pos}\trs{pos}\t{ref}\t{alt}\t.\tPASS\tDP={pos}\n")
    return lines


@pytest.fixture
def toy_vcf(tmp_path: Path, toy_lines: list[str]) -> Path:
    path = tmp_path / "toy.vcf"
    path.write_text(HEADER + COLUMNS + "".join(toy_lines))
    return path
