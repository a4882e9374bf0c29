"""The list of planted bugs keeps up with the code: each still stands where it is to be planted."""

from __future__ import annotations

import pytest

from tests.planted_bugs import BUGS, ROOT, Bug


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_can_be_planted(bug: Bug) -> None:
    """Its line is there once, and so are the tests that should notice it."""
    assert (ROOT / bug.file).read_text(encoding="utf-8").count(bug.old) == 1
    assert bug.old != bug.new
    assert all((ROOT / test).exists() for test in bug.tests)


def test_names_name_one_bug() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS)
