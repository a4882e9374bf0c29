"""The flash sale: its plan and its sums are right, and a short one with everything in it keeps every promise."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.sale_audit import figures, jain
from benchmarks.sale_plan import Plan, Zipf
from benchmarks.sale_report import plot
from tests.lint_tools import installed

ROOT = Path(__file__).parent.parent


def test_the_curve_grows_and_ends() -> None:
    """Calm, from ×1 to ×20 within the ramp, peak, calm again, over; the restock is within the peak."""
    plan = Plan(base_users=5, factor=20, calm_s=20, ramp_s=60, hold_s=60, cool_s=20)
    users = [plan.users_at(second) for second in (0, 19.9, 50, 80, 139.9, 141, 160)]
    assert users == [5, 5, 52, 100, 100, 5, None]
    assert 80 < plan.restock_at_s < 140
    assert [plan.on_sale(second) for second in (19, 20, 139, 141)] == [False, True, True, False]


def test_demand_is_as_zipf_says() -> None:
    """The first rank is drawn about twice as often as the second; every rank is possible."""
    zipf = Zipf(50, random.Random(1), exponent=1.0)
    drawn = Counter(zipf.draw() for _ in range(20_000))
    assert 1.8 < drawn[0] / drawn[1] < 2.2
    assert set(drawn) == set(range(50))


def line(kind: str, **more: object) -> dict[str, object]:
    return {"kind": kind, "process": "p", "connection": 0, **more}


def test_the_audit_sees_what_went_wrong() -> None:
    """Units sold beyond what there was, holds lost, and how long a sold-out sku was still shown."""
    hot = {"hot": "hot-0", "granted": {"hot-0": 1}}
    journal = [
        line("reserve", asked=1.0, told=1.1, id="a", **hot),
        line("commit", id="a", order="o", lines=[["hot-0", "main", 1], ["hot-0", "north", 1]]),
        line("reserve", asked=1.2, told=1.5, id="", **hot),
        line("read", sku="hot-0", asked=1.4, sellable=1),
        line("read", sku="hot-0", asked=1.6, sellable=1),
        line("read", sku="hot-0", asked=1.7, sellable=0),
        line("reserve", asked=9.0, told=9.1, id="b", **hot),
        line("read", sku="hot-0", asked=9.2, sellable=3),
        line("lost", id="b", reason="RESERVATION_NOT_FOUND"),
    ]
    found = figures(journal, {"hot-0": 1}, ["hot-0"])
    assert (found.oversold_units, found.holds_lost, found.granted, found.refused) == (1, 1, 2, 1)
    assert found.sold_out_s["hot-0"] == pytest.approx(0.4)
    assert found.stale_reads == 1
    assert found.stale_read_s == pytest.approx(0.1)
    assert not found.passed
    assert figures(journal[:1], {"hot-0": 1}, ["hot-0"]).passed


def test_fairness_is_jains() -> None:
    """All alike: 1; one has all of four: a quarter."""
    assert jain([0.5, 0.5, 0.5]) == pytest.approx(1)
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)


def test_a_plot_stays_in_its_frame() -> None:
    """Every point is inside, names are escaped."""
    drawn = plot("a < b", "ms", [("p50", [(0, 0), (10, 5)])], {"sale": 4})
    assert "a &lt; b" in drawn
    points = drawn.split('polyline points="')[1].split('"')[0].split()
    assert all(0 <= float(x) <= 760 and 0 <= float(y) <= 220 for x, y in (at.split(",") for at in points))


def test_a_short_sale_keeps_every_promise(tmp_path: Path) -> None:
    """Shoppers, ERP, WMS, restock and snapshot at once: nothing oversold, no hold lost, every balance as reckoned."""
    installed("locust")  # importing it would change the sockets of every other test
    options = {
        "base-users": 4, "factor": 6, "calm-s": 1, "ramp-s": 1, "hold-s": 4.5, "cool-s": 1,
        "skus": 200, "hot-stock": 6, "restock": 4, "reservation-s": 2,
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.flash_sale", "--out", str(tmp_path)]
    ended = subprocess.run(
        [*command, *(f"--{name}={value}" for name, value in options.items())],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "figures.json").read_text())
    assert (found["oversold_units"], found["holds_lost"], found["differences"]) == (0, 0, [])
    assert found["refused"] > 0, "the sale's skus were never sold out"
    assert found["committed"] > 10
    assert found["snapshot"]["rows"] >= 400
    assert found["snapshot"]["differing"] == 0
    assert found["snapshot"]["point"] == "SEQUENCES"
    assert set(found["deltas"]) == {"applied"}
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4
    assert (tmp_path / "locust.html").exists()
