"""A few hundred mutants in the suite; many thousands with `python -m tests.fuzz.run`."""

import sys

import pytest

from .run import fuzz, table
from .suite import MAKERS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is watched through /proc")


def test_a_sample_of_mutants():
    counts, findings = fuzz([family for family in MAKERS if family != "command"], 24, 3, None, None)
    assert not findings, "\n".join(findings)
    total = sum(counts.values(), start=type(counts["vcf"])())
    # Damage is noticed, and files that it does not touch are read as they are.
    assert total["clean"] > 100 and total["right"] > 30, table(counts)


def test_a_sample_of_commands():
    counts, findings = fuzz(["command"], 12, 3, None, None)
    assert not findings, "\n".join(findings)
    assert counts["command"]["clean"] and counts["command"]["right"]


@pytest.mark.long
def test_many_mutants(shared_data, tmp_path):
    counts, findings = fuzz(list(MAKERS), 300, 11, shared_data, tmp_path)
    assert not findings, "\n".join(findings)
    assert all(count.total() == 300 for count in counts.values())
