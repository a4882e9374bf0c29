"""A flash sale against a server of its own: shoppers ×1 → ×20 in a minute, restock, ERP, WMS, a snapshot meanwhile.

``python -m benchmarks.flash_sale`` takes about three minutes and writes report.html, figures.json and locust's own
report into ``--out``; exit code 1 where a unit was sold twice, a hold was lost or a balance differs. ``--web`` opens
locust's page instead of starting at once; ``--processes 2`` makes shoppers by two processes. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import grpc
import redis as redis_py

from availability import __version__
from availability.client import Client
from availability.v1 import stock_pb2 as stk
from benchmarks import sale_report as report
from benchmarks.common import Server, free_port, say, service
from benchmarks.sale_audit import Figures, figures, read_journals
from benchmarks.sale_feeds import Feeds
from benchmarks.sale_plan import CHANNEL, PLAN_VARIABLE, Plan

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
SETTLE_S = 60.0
"""Longest wait, after the load, for holds to end and for memory to show it."""
WATCH_S = 0.5
SPARE_S = 90.0
STOP_S = 30
"""Shoppers end what they are at: a purchase that is broken off is one whose answer nobody has seen."""


def main() -> int:
    """Run the sale; return the exit code."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("shoppers-*.jsonl"):
        old.unlink()
    changes = {
        name: value
        for name in (
            "base_users",
            "factor",
            "calm_s",
            "ramp_s",
            "hold_s",
            "cool_s",
            "skus",
            "hot_stock",
            "restock",
            "reservation_s",
        )
        if (value := getattr(options, name)) is not None
    }
    with service(strict=options.strict, workers=options.workers) as server:
        plan = Plan(target=server.grpc, token=server.token, out=str(options.out), **changes)
        feeds = Feeds(plan)
        try:
            say(f"opening stock of {plan.skus + plan.hot_skus:,} skus")
            feeds.open()
            seen = _sell(plan, feeds, options)
            _settle(server)
            found = _audit(server, plan, feeds)
        finally:
            feeds.close()
        technical = _technical(server)
    _write(plan, options, feeds, found, seen, technical)
    kept = found.passed and feeds.snapshot.rows and not feeds.snapshot.differing
    return 0 if kept else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("var/flash-sale"))
    parser.add_argument("--processes", type=int, default=1, help="locust processes")
    parser.add_argument("--workers", type=int, default=1, help="server processes")
    parser.add_argument("--strict", action="store_true", help="Redis writes to the disk before it answers")
    parser.add_argument(
        "--web",
        type=int,
        nargs="?",
        const=8089,
        default=0,
        metavar="PORT",
        help="locust's page, for this machine only",
    )
    for name in ("base-users", "factor", "skus", "hot-stock", "restock", "reservation-s"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("calm-s", "ramp-s", "hold-s", "cool-s"):
        parser.add_argument(f"--{name}", type=float)
    return parser.parse_args()


def _sell(plan: Plan, feeds: Feeds, options: argparse.Namespace) -> list[tuple[float, dict[str, int]]]:
    """Let shoppers, feeds and the snapshot run; return what the sale's skus showed over time."""
    plan_file = options.out / "plan.json"
    plan.write(plan_file)
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", plan.target]
    command += [
        "--csv",
        str(options.out / "locust"),
        "--csv-full-history",
        "--html",
        str(options.out / "locust.html"),
    ]
    command += ["--stop-timeout", str(STOP_S)]
    command += (
        ["--web-host", "127.0.0.1", "--web-port", str(options.web)]
        if options.web
        else ["--headless", "--only-summary", "--loglevel", "WARNING"]
    )
    if options.processes > 1:
        command += ["--processes", str(options.processes), "--master-bind-port", str(port := free_port())]
        command += ["--master-port", str(port)]
    seen: list[tuple[float, dict[str, int]]] = []
    stop = threading.Event()
    began = time.time()
    threads = [
        threading.Thread(target=feeds.run, args=(began, stop), name="feeds"),
        threading.Thread(target=_watch, args=(plan, began, stop, seen), name="watch"),
    ]
    failures: list[BaseException] = []
    threading.excepthook = lambda what: failures.append(what.exc_value or what.exc_type())
    for thread in threads:
        thread.start()
    peak = threading.Timer(plan.calm_s + plan.ramp_s + plan.hold_s / 4, feeds.take_snapshot)
    peak.start()
    say(f"{plan.length_s:.0f} s of shoppers: {plan.base_users} → {plan.base_users * plan.factor}")
    try:
        ended = subprocess.run(
            command,
            env={**os.environ, PLAN_VARIABLE: str(plan_file), "PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=None if options.web else plan.length_s + SPARE_S,
            check=False,
        )
    finally:
        stop.set()
        for thread in (*threads, peak):
            thread.join(timeout=60)
    if failures:
        raise failures[0]
    if not options.web and time.time() - began < plan.length_s:
        raise RuntimeError("the load ended before its time; see locust's own words above")
    if ended.returncode not in (0, 1):  # 1: some calls failed; the audit judges
        raise RuntimeError(f"locust ended with {ended.returncode}")
    return seen


def _watch(plan: Plan, began: float, stop: threading.Event, seen: list[tuple[float, dict[str, int]]]) -> None:
    """Look at the sale's skus twice a second."""
    with Client(plan.target, plan.token or None) as client:
        while not stop.wait(WATCH_S):
            answer = client.batch_get(CHANNEL, plan.hot)
            seen.append((time.time() - began, dict(zip(plan.hot, answer.sellable_quantities, strict=True))))


def _settle(server: Server) -> None:
    """Wait until no hold is active: those that shoppers left behind expire."""
    until = time.monotonic() + SETTLE_S
    with Client(server.grpc, server.token) as client:
        while time.monotonic() < until:
            if not _active(client):
                return
            time.sleep(0.25)
    raise RuntimeError(f"holds are still active {SETTLE_S:.0f} s after the sale")


def _active(client: Client) -> bool:
    from availability.v1 import reservation_pb2 as res

    request = res.ListReservationsRequest(state=res.RESERVATION_STATE_ACTIVE, page_size=1)
    return bool(client.call(client.reservations.ListReservations, request).reservations)


def _audit(server: Server, plan: Plan, feeds: Feeds) -> Figures:
    """Compare answers, the WMS's book and the ledger."""
    book = feeds.book
    journal = read_journals(Path(plan.out))
    received: Counter[str] = Counter()
    for (sku, _), units in book.on_hand.items():
        received[sku] += units
    for (sku, _), units in book.shipped.items():
        received[sku] += units
    found = figures(journal, received, plan.hot)
    found.ledger_oversold_units = int(_metric(server, "availability_oversold_units"))
    sold: Counter[tuple[str, str]] = Counter()
    for line in journal:
        if line["kind"] == "commit":
            for sku, node, units in line["lines"]:
                sold[sku, node] += units
    unexpected = {name: count for name, count in book.results.items() if name != "applied"}
    if unexpected:
        found.differences.append(f"deltas were not applied: {unexpected}")
    with Client(server.grpc, server.token) as client:
        moved = {sku for sku, _ in (*sold, *book.shipped)} | set(plan.hot)
        for sku in sorted(moved):
            for node in client.explain(CHANNEL, sku).terms.nodes:
                place = sku, node.node
                expected = (book.on_hand[place], 0, sold[place] - book.shipped[place])
                actual = (node.on_hand, node.reserved, node.committed)
                if actual != expected:
                    found.differences.append(
                        f"{place}: on_hand, reserved, committed {actual}, not {expected}"
                    )
        for finding in client.audit_ledger(stk.AuditLedgerRequest()):
            found.differences.append(
                f"audit: {stk.AuditKind.Name(finding.kind)} {finding.sku} {finding.node}"
            )
    return found


def _metric(server: Server, name: str) -> float:
    """Return a metric of the first server process."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise RuntimeError(f"no metric {name}")


def _technical(server: Server) -> list[tuple[str, str, bool | None]]:
    with redis_py.Redis.from_url(server.redis) as redis:
        info = redis.info("server")
    redis_name = (
        f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    )
    return [
        ("machine", f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}", None),
        ("software", f"availability {__version__}, Python {platform.python_version()}, grpc {grpc.__version__}, "
         f"{redis_name}", None),
    ]  # fmt: skip


def _write(
    plan: Plan,
    options: argparse.Namespace,
    feeds: Feeds,
    found: Figures,
    seen: list[tuple[float, dict[str, int]]],
    technical: list[tuple[str, str, bool | None]],
) -> None:
    out: Path = options.out
    shot = feeds.snapshot
    business: list[tuple[str, str, bool | None]] = [
        ("oversold units (answers, against what the WMS had)", f"{found.oversold_units:,}", not found.oversold_units),
        ("oversold units (the ledger's own metric)", f"{found.ledger_oversold_units:,}",
         not found.ledger_oversold_units),
        ("holds lost before their time", f"{found.holds_lost:,}", not found.holds_lost),
        ("balances that differ from the journals", f"{len(found.differences):,}", not found.differences),
        ("units of the sale sold, of units that were there", f"{found.hot_units_sold:,} of {found.hot_units_had:,}",
         None),
        ("sold out: last grant → first refusal, worst sku", _ms(max(found.sold_out_s.values(), default=None)), None),
        ("reads that still showed units afterwards", f"{found.stale_reads:,}", None),
        ("… the last of them after", _ms(found.stale_read_s if found.stale_reads else None), None),
        ("fairness between connections (Jain's index, 1 is fair)", f"{found.fairness:.3f}", None),
        ("reserves granted, refused", f"{found.granted:,}, {found.refused:,}", None),
        ("hold to order", f"{found.committed / found.granted:.1%}" if found.granted else "–", None),
        ("given back, left behind, paid too late",
         f"{found.released:,}, {found.abandoned:,}, {found.paid_too_late:,}", None),
        ("orders that the ERP allocated", f"{feeds.orders:,}", None),
        ("deltas of ERP and WMS", ", ".join(f"{n:,} {name}" for name, n in sorted(feeds.book.results.items())), None),
        ("snapshot at the peak: rows, of the ledger differing", f"{shot.rows:,}, {shot.differing:,}",
         not shot.differing and bool(shot.rows)),
        ("… its point, and how long it took", f"{shot.point or 'none'}, {shot.took_s:.1f} s", None),
    ]  # fmt: skip
    marks = {"sale": plan.calm_s, "peak": plan.calm_s + plan.ramp_s, "restock": plan.restock_at_s}
    stock = [(sku, [(second, float(shown[sku])) for second, shown in seen]) for sku in plan.hot]
    lines = report.locust_lines(report.history(out / "locust_stats_history.csv"))
    plots = [report.plot("What the sale's skus showed", "sellable units", stock, marks)]
    names = {
        "shoppers": ("Shoppers", "at once"),
        "calls": ("Calls", "per second"),
        "times": ("Time of a call", "ms"),
    }
    plots += [report.plot(*names[key], lines[key], marks) for key in names if key in lines]
    command = " ".join(["python -m benchmarks.flash_sale", *sys.argv[1:]])
    sections = [
        ("Promises", report.facts(business)),
        ("What happened", "".join(plots)),
        ("Calls", report.calls_table(out / "locust_stats.csv") + '<p class="note">Times in ms, as shoppers saw them, '
         "with repeats of refused calls. More in locust.html beside this page.</p>"),
        ("How it was made", report.facts([*technical, ("command", command, None),
         ("shoppers", f"{plan.base_users} → {plan.base_users * plan.factor} in {plan.ramp_s:.0f} s, "
          f"{options.processes} locust processes, {options.workers} server processes", None)])),
    ]  # fmt: skip
    if found.differences:
        sections.insert(1, ("Differences", "<br>".join(found.differences[:100])))
    (out / "report.html").write_text(report.page("Flash sale", sections))
    raw = {
        **dataclasses.asdict(found),
        "snapshot": dataclasses.asdict(shot),
        "orders": feeds.orders,
        "deltas": dict(feeds.book.results),
        "plan": {**dataclasses.asdict(plan), "token": ""},
    }
    (out / "figures.json").write_text(json.dumps(raw, indent=1))
    for what, figure, good in business:
        say(f"{'' if good is None else 'ok  ' if good else 'BAD '}{what}: {figure}")
    say(f"report: {out / 'report.html'}")


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:,.0f} ms"


if __name__ == "__main__":
    sys.exit(main())
