"""The publisher's commands as an operator types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from availability.cli.root import run
from availability.history.database import open_database
from publisher.letters import Letter, Letters
from publisher.listing_rows import ListingRows
from publisher.state import Change, State
from publisher.storefront import Category, Kind, Listing, Managed

SHOPS = """
[shops.web]
url = "https://shop.example"
key = { env = "NOBODY_SET_THIS" }
secret = { env = "NOR_THIS" }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shop that was published to: one sku that is there, one that is not, one letter."""
    monkeypatch.setenv("AVAIL_PUBLISH_SHOPS", str(tmp_path / "shops.toml"))
    (tmp_path / "shops.toml").write_text(SHOPS)
    engine = open_database("", tmp_path / "data")
    state = State(engine, "web", "one")
    state.acquire(1_000.0, 5.0)
    state.heard(
        [
            Change(sku=sku, sellable=5, wanted=5, version="1-1", heard_at=1_000.0)
            for sku in ("there", "missing")
        ],
        "1-1",
        1_000.0,
    )
    rows = [("1", "there"), ("2", "unsold")]
    ListingRows(engine, "web").keep(
        [
            Listing(listing_id=number, sku=sku, kind=Kind.SIMPLE, managed=Managed.OWN, quantity=1)
            for number, sku in rows
        ],
        1_000.0,
    )
    Letters(engine).put(
        "web",
        [
            Letter(
                sku="missing",
                category=Category.MAPPING,
                reason="MISSING",
                message="not there",
                quantity=5,
                version="1-1",
            )
        ],
        1_000.0,
    )
    engine.dispose()
    return tmp_path


def cli(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(["publish", *arguments, "--data-dir", str(folder / "data")])
    out, err = capsys.readouterr()
    return code, out, err


def test_status_says_that_nobody_publishes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The database alone tells how a shop fares."""
    code, out, _ = cli(folder, capsys, "status", "--json")
    told = json.loads(out)[0]
    assert (code, told["publishing"], told["backlog"], told["letters"]) == (3, False, 2, 1)
    code, out, _ = cli(folder, capsys, "status")
    assert code == 3
    assert "NOBODY PUBLISHES" in out


def test_the_catalogue_says_what_has_no_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both ways: the ledger's skus without a place, the shop's that the ledger does not sell."""
    code, out, _ = cli(folder, capsys, "catalogue", "web", "--json")
    assert (code, [one["sku"] for one in json.loads(out)]) == (3, ["missing"])
    code, out, _ = cli(folder, capsys, "catalogue", "web", "--extra")
    assert (code, out.strip()) == (0, "unsold")
    code, _, err = cli(folder, capsys, "catalogue", "other")
    assert code == 1
    assert "no shop is of the channel 'other'" in err


def test_letters_are_listed_replayed_and_discarded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By their beginnings, or all of a kind; what was discarded keeps the reason."""
    code, out, _ = cli(folder, capsys, "letters", "list")
    assert code == 0
    assert "MISSING" in out
    letter = json.loads(cli(folder, capsys, "letters", "list", "--json")[1])[0]["letter_id"]
    shown = json.loads(cli(folder, capsys, "letters", "show", letter[:8])[1])
    assert (shown["sku"], shown["first_seen_at"]) == ("missing", "1970-01-01T00:16:40+00:00")
    assert cli(folder, capsys, "letters", "show", "zzz")[0] == 3
    assert (
        cli(folder, capsys, "letters", "discard", letter[:8], "--reason", "sold out for good")[1]
        == "1 discarded\n"
    )
    assert cli(folder, capsys, "letters", "list")[1] == "no dead letters\n"
    code, _, err = cli(folder, capsys, "letters", "replay")
    assert code == 2
    assert "name one letter" in err


def test_missing_keys_and_a_wrong_file_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told before anything is published, without a traceback and without a secret."""
    code, _, err = cli(folder, capsys, "run")
    assert code == 1
    assert err.strip().splitlines()[-1] == "error: the variable NOBODY_SET_THIS is not set"
    (folder / "shops.toml").write_text(SHOPS.replace("https://", "ftp://"))
    code, _, err = cli(folder, capsys, "status")
    assert code == 1
    assert "shops.web.url" in err
    (folder / "shops.toml").unlink()
    code, _, err = cli(folder, capsys, "status")
    assert (code, err.strip()) == (1, f"error: {folder / 'shops.toml'}: No such file or directory")
