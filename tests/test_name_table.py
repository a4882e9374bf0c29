"""The table of names answers like a dictionary, however it grew."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from availability.replica.name_table import NameTable

PARTS = st.lists(st.integers(0, 300), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None, database=None)
@given(parts=PARTS, asked=st.lists(st.integers(0, 3_000), max_size=300))
def test_it_answers_like_a_dictionary(parts: list[int], asked: list[int]) -> None:
    """After each growth, one by one or by arrays: known names, unknown ones, repeats, and none at all."""
    table, names = NameTable(), list[str]()
    for part in parts:
        names += [f"sku {number}" for number in range(len(names), len(names) + part)]
        assert table.cover(names)
        known = {name: number for number, name in enumerate(names)}
        wanted = [f"sku {number}" for number in asked] + names[-3:]
        found = table.many(wanted)
        assert found.dtype == np.int64
        assert found.tolist() == [known.get(name, -1) for name in wanted]


class Alike(str):
    """A name whose hash is another's."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7


class Full(str):
    """Names that all want the same bucket, with hashes of their own."""

    __slots__ = ()

    def __hash__(self) -> int:
        return int(self) << 40


class Nought(str):
    """A name whose hash is 0."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 0


def test_no_hash_is_taken_for_a_free_place() -> None:
    """Nor a free place for a name: 0 is a hash like any other."""
    table = NameTable()
    assert table.cover(["a"])
    assert table.many([Nought("b"), "a"]).tolist() == [-1, 0]
    assert table.cover(["a", Nought("b")])
    assert table.many([Nought("b"), "a"]).tolist() == [1, 0]


def test_names_that_crowd_one_bucket_are_told_apart() -> None:
    """Those that find it full stand in the dictionary."""
    for step in (1, 200):
        table = NameTable()
        names: list[str] = []
        for first in range(0, 400, step):
            names += [Full(number) for number in range(first + 1, first + step + 1)]
            table.cover(names)
        assert table.many([*names, Full(999)]).tolist() == [*range(400), -1]


def test_two_names_of_one_hash_are_noticed() -> None:
    """Then the table says that it is of no use, for good."""
    for names in ([Alike("a"), Alike("b")], [Alike("a"), *map(str, range(100)), Alike("b")]):
        table = NameTable()
        assert table.cover(names[:1])
        assert not table.cover(names)
        assert not table.cover([*names, "c"])
