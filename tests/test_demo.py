"""What the demo promises: books that add up by themselves, a verdict that notices when the service errs."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from availability.client import Client
from availability.demo.books import Books, Buffer, Channel, Line, OrderLine
from availability.demo.journal import CHANGED, ENDED, REFUSED, Journal
from availability.demo.run import play
from availability.demo.shop import DemoShop, Shown
from publisher.testing.clock import MovableClock
from publisher.testing.server import Storefront
from publisher.testing.shop import Shop
from tests.fake_service import FakeService, serving

PROJECT_ROOT = Path(__file__).resolve().parent.parent


def books(*, percent: int = 0, units: int = 0) -> Books:
    made = Books()
    made.channels["web"] = Channel(nodes=("east", "west"), buffer=Buffer(units=units, percent=percent))
    made.receive("A", "east", 10)
    made.receive("A", "west", 6)
    return made


# --- The books --------------------------------------------------------------------------------------------


def test_sellable_is_the_contract_s_formula() -> None:
    """give is clamped per node, net is not, a percent buffer is rounded up and does not shrink by selling."""
    made = books(percent=10)
    assert made.sellable("A", "web") == 16 - 2
    made.grant("r", "web", {"A": 9}, [Line(sku="A", node="east", quantity=9)])
    assert (made.pool("A", "web"), made.buffer("A", "web"), made.sellable("A", "web")) == (7, 2, 5)
    made.receive("A", "east", 0, quarantined=4)  # 6 can be given, 9 are promised
    assert made.net("A", "east") == -3
    assert (made.pool("A", "web"), made.buffer("A", "web")) == (3, 2)
    made.offline.add("east")  # what is promised there still counts
    assert (made.pool("A", "web"), made.buffer("A", "web"), made.sellable("A", "web")) == (3, 1, 2)
    assert made.sellable_at("A", "web", "west") == 2
    made.receive("A", "west", -100)
    assert (made.give("A", "west"), made.sellable("A", "web")) == (0, 0)
    assert made.sellable("B", "web") == 0


def test_a_node_s_own_sellable_never_exceeds_the_channel_s() -> None:
    """As if the channel had only that node, and at most what the channel has in all."""
    made = books(units=5)
    assert made.sellable("A", "web") == 11
    assert (made.sellable_at("A", "web", "east"), made.sellable_at("A", "web", "west")) == (5, 1)


def test_a_grant_beyond_the_formula_is_oversold() -> None:
    """The books count what was granted and not covered, and name the version."""
    made = books(units=5)
    lines = [Line(sku="A", node="east", quantity=10), Line(sku="A", node="west", quantity=2)]
    made.grant("r", "web", {"A": 12}, lines, where="version 1-9")
    assert made.oversold == 1
    assert made.problems == ["version 1-9: r got 12 of A in web, 11 were there"]


def test_a_grant_from_the_wrong_node_is_noticed() -> None:
    """Nodes serve in the channel's order, each up to its free units."""
    made = books()
    made.grant("r", "web", {"A": 2}, [Line(sku="A", node="west", quantity=2)])
    assert made.oversold == 0
    assert len(made.problems) == 1


def test_a_wrong_refusal_is_noticed() -> None:
    """Refusing what is there is undersell; telling another number than the formula's is a difference."""
    made = books()
    made.refuse("web", {"A": 17}, {"A": 16})
    assert made.problems == []
    made.refuse("web", {"A": 16}, {})
    made.refuse("web", {"A": 17}, {"A": 15})
    assert len(made.problems) == 2


@pytest.mark.parametrize(
    ("line", "committed"),
    [
        (OrderLine(sourced={"e": 3}), {"e": 3}),
        (OrderLine(sourced={"e": 3}, ordered=2), {"e": 2}),
        (OrderLine(sourced={"e": 3}, ordered=0), {}),
        (OrderLine(sourced={"e": 3}, allocated={"e": 3}), {"e": 3}),
        (OrderLine(sourced={"e": 3, "w": 2}, allocated={"e": 3}), {"e": 3, "w": 2}),
        (OrderLine(sourced={"e": 3}, allocated={"e": 0, "w": 3}), {"w": 3}),
        (OrderLine(sourced={"e": 3}, allocated={"e": 3}, shipped={"e": 1}), {"e": 2}),
        (OrderLine(sourced={"e": 3}, allocated={"e": 3}, shipped={"e": 3}), {}),
        (OrderLine(sourced={"e": 3}, allocated={"e": 3}, shipped={"w": 2}), {"e": 1}),
        (OrderLine(allocated={"e": 2, "w": 1}), {"e": 2, "w": 1}),
    ],
)
def test_what_an_order_line_commits(line: OrderLine, committed: dict[str, int]) -> None:
    """Ordered less shipped, where the ERP put it, and the rest where our commits did."""
    assert line.committed() == committed


def test_a_unit_of_a_hold_ends_exactly_once() -> None:
    """Hold, partial release, commit, allocation and shipment move the same units; nothing is left over."""
    made = books()
    made.grant("r", "web", {"A": 4}, [Line(sku="A", node="east", quantity=4)])
    made.shrink_hold("r", [Line(sku="A", node="east", quantity=3)], {"A": 1})
    assert (made.reserved("A", "east"), made.committed("A", "east")) == (3, 0)
    made.commit_hold("r", ("web", "1"))
    assert (made.reserved("A", "east"), made.committed("A", "east")) == (0, 3)
    made.allocate(("web", "1"), "A", "east", 3)
    made.ship(("web", "1"), "A", "east", 3)
    assert (made.on_hand["A", "east"], made.committed("A", "east"), made.net("A", "east")) == (7, 0, 7)
    assert made.problems == []


def test_the_journal_posts_in_the_ledger_s_order() -> None:
    """By version, as numbers; within one version holds end first and refusals come last."""
    journal, posted = Journal(), list[str]()

    def note(name: str, _: Books) -> None:
        posted.append(name)

    for version, rank, name in (
        ("1-10", CHANGED, "e"),
        ("1-9", REFUSED, "d"),
        ("2-1", CHANGED, "f"),
        ("1-9", ENDED, "b"),
        ("1-9", CHANGED, "c"),
        ("1-2", CHANGED, "a"),
    ):
        journal.enter(version, partial(note, name), rank=rank)
    journal.post_all(Books())
    assert "".join(posted) == "abcdef"
    assert journal.last_version == "2-1"


# --- The verdict ------------------------------------------------------------------------------------------


def played(fake: FakeService, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Play two seconds against a fake; return the exit code and what was printed."""
    with serving(fake) as target, Client(target) as client:
        code = play(client, Console(file=io.StringIO()), seconds=2.0, seed=1)
    return code, capsys.readouterr().out


def test_a_right_service_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0 and the promised last line."""
    code, out = played(FakeService(), capsys)
    assert (code, out.splitlines()[-1]) == (0, "oversold 0, differences 0")


class WrongShop(DemoShop):
    """A shop that shows one unit more than there is, and nothing makes it change its mind."""

    def settled(self, client: Client, skus: Sequence[str]) -> list[Shown]:
        """See DemoShop."""
        units = client.batch_get("web", skus).sellable_quantities
        return [
            Shown(sku=sku, ledger=count, shop=count + (sku == "LAMP"))
            for sku, count in zip(skus, units, strict=True)
        ]


def test_a_shop_that_shows_another_number_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A number of the shop that is not the ledger's is a difference, named, and counts into the exit code."""
    log = tmp_path / "publisher.log"
    log.write_text("the publisher's last words\n")
    shop = WrongShop(front=Storefront(shop=Shop(clock=MovableClock())), log=log)
    shown = io.StringIO()
    with serving(FakeService()) as target, Client(target) as client:
        code = play(client, Console(file=shown), seconds=2.0, seed=1, shop=shop)
    out = capsys.readouterr().out
    assert (code, out.splitlines()[-1]) == (1, "oversold 0, differences 1")
    assert "of LAMP, the ledger sells" in out
    assert "last words" in out
    assert "LAMP" in shown.getvalue()


def test_a_service_that_oversells_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """One that grants whatever is asked is found out by the books, grant by grant."""
    fake = FakeService()
    fake.plan.grant_anything = True
    code, out = played(fake, capsys)
    assert code == 1
    assert int(out.splitlines()[-1].split()[1].rstrip(",")) > 0


def test_a_service_that_loses_a_delta_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """Acknowledged and not counted: the balances differ."""
    fake = FakeService()
    fake.plan.lose_a_delta = True
    code, out = played(fake, capsys)
    assert code == 1
    assert not out.endswith("differences 0\n")


ONLY_EMBEDDED = """
import sys
for extra in ("polars", "zstandard", "defusedxml", "starlette", "uvicorn", "httpx2", "asyncssh", "psycopg"):
    sys.modules[extra] = None
from availability.cli import main
main()
"""
"""The command with what README's first block installs: an import of anything else fails."""


@pytest.mark.skipif(importlib.util.find_spec("availability.app") is None, reason="there is no server yet")
def test_the_demo_ends_clean() -> None:
    """One command, no extra but the ledger, files with their bad row, and a verdict of nothing different."""
    done = subprocess.run(
        [sys.executable, "-c", ONLY_EMBEDDED, "demo", "--seconds", "3"],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "dead letter: receipts-2.csv line 3: quantity '1O' is no number" in done.stdout
    assert "holds what came before" in done.stdout
    assert done.stdout.splitlines()[-1] == "oversold 0, differences 0"
