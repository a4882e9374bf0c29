"""The storefront double answers as the real shops did: the recorded exchanges, replayed against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.condense_exchanges import main as condense
from tests.replay_exchanges import EXCHANGES, Replay, differences, recordings

SOURCE = Path(__file__).resolve().parent.parent.parent / "shared" / "woocommerce"

# What the double does not answer as recorded, and why. The list is exact: a new difference fails, and so does one
# that has gone.
LEFT_OUT = {
    "07b-races.json#46 expected 76 if atomic": "24 relative writes in 4 threads lost 5: chance",
    "07b-races.json#56 after": "two batches at the same time: chance decided each item",
    "11-versions-8.9.3.json#22 sku of variation": "rows of one second come in the database's order",
}
EXCHANGES_COUNT = 1000
# Recorded, and not calls of one client: what the notes tell of measurements in parallel, and database rows.
FILES_WITHOUT_CALLS = {"06-rates.json"}


def test_the_double_answers_as_the_recorded_shops_did() -> None:
    """Every recorded exchange but the listed ones gets the recorded status, codes, headers and stock fields."""
    replay = Replay()
    different: dict[str, list[str]] = {}
    for name in recordings():
        for difference in replay.run(name):
            different.setdefault(difference.where, []).append(difference.what)
    unexpected = {where: what[:3] for where, what in different.items() if where not in LEFT_OUT}
    assert not unexpected
    assert set(different) == set(LEFT_OUT)
    assert replay.replayed == EXCHANGES_COUNT


def test_every_recording_is_replayed() -> None:
    """No file is empty of calls but the one of measurements, so that none is skipped unseen."""
    without = {
        path.name
        for path in EXCHANGES.glob("*.json")
        if not any("label" in line for line in json.loads(path.read_bytes()))
    }
    assert without == FILES_WITHOUT_CALLS


def test_the_comparison_sees_what_differs() -> None:
    """A value, a type, a missing field, a shorter list and an error code each count as a difference."""
    recorded = {"update": [{"id": 1, "stock_quantity": 5, "error": {"code": "x", "status": 400}}]}
    others: tuple[object, ...] = (
        {"update": [{"id": 1, "stock_quantity": 6, "error": {"code": "x", "data": {"status": 400}}}]},
        {"update": [{"id": 1, "stock_quantity": "5", "error": {"code": "x", "data": {"status": 400}}}]},
        {"update": [{"id": 1, "error": {"code": "x", "data": {"status": 400}}}]},
        {"update": []},
        {"update": [{"id": 1, "stock_quantity": 5, "error": {"code": "x", "data": {"status": 404}}}]},
        {"update": [{"id": 1, "stock_quantity": 5, "error": {"code": "y", "data": {"status": 400}}}]},
        [],
    )
    for shown in others:
        assert list(differences(recorded, shown, "")), shown
    same = {
        "update": [{"id": 1, "stock_quantity": 5, "error": {"code": "x", "data": {"status": 400}}}],
        "more": 1,
    }
    assert not list(differences(recorded, same, ""))


@pytest.mark.skipif(not SOURCE.is_dir(), reason="the recordings themselves are not here")
def test_the_fixtures_are_those_of_the_recordings(tmp_path: Path) -> None:
    """The fixtures are what the script makes of the recordings."""
    condense(SOURCE, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in EXCHANGES.glob("*.json")}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (EXCHANGES / path.name).read_bytes(), path.name
