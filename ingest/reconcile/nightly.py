"""The nightly run: one at a time, what was left first, then every snapshot that has arrived, shops, and the report.

Meant for a timer: it ends with a code that an alert can use (`Ended`). After a missed night the files of both nights
are there, and are taken in their order.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from availability.audit import audit
from availability.client import ClientError
from availability.v1 import exception_pb2 as exc
from availability.v1 import stock_pb2 as pb
from ingest.reconcile.arrivals import Arrived, arrived, put_away, streamed, write_streamed
from ingest.reconcile.book import ClientLedger
from ingest.reconcile.desk import Desk
from ingest.reconcile.points import Point
from ingest.reconcile.settings import SnapshotSettings
from ingest.reconcile.shops import Side, differences, keep_sides, read_shops
from ingest.reconcile.store import CORRECTING, DONE, HELD, OPEN, REFUSED, Run, Store

if TYPE_CHECKING:
    from availability.client import Client

LOCK = "reconcile"
LEASE_S = 300.0
RENEW_S = 15.0
FOLDERS_KEPT = 14
"""Runs of a snapshot whose frames stay on the disk."""
FINDINGS_MAX = 10_000


class Ended(IntEnum):
    """How it ended, as an exit code: the gravest of what happened. 1, 2 and 4 are the commands' own."""

    FINE = 0
    REFUSED = 3
    WAITS_FOR_APPROVAL = 5
    ANOTHER_RUNS = 6
    SNAPSHOT_MISSING = 7


class LockHeld(Exception):
    """Somebody else reconciles."""

    reason = "ANOTHER_RUNS"


@dataclass(slots=True)
class Night:
    """What a nightly run did."""

    runs: list[Run] = field(default_factory=list)
    known: list[Run] = field(default_factory=list)
    sides: list[Side] = field(default_factory=list)
    findings: list[pb.AuditFinding] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    waiting: list[Run] = field(default_factory=list)
    """All that wait for approval, those of earlier nights too."""

    @property
    def ended(self) -> Ended:
        """Return the exit code."""
        states = {run.state for run in (*self.runs, *self.known)}
        if REFUSED in states:
            return Ended.REFUSED
        if self.waiting:
            return Ended.WAITS_FOR_APPROVAL
        return Ended.SNAPSHOT_MISSING if self.missing else Ended.FINE


class OneAtATime:
    """The lock in the database. Whoever was killed on this machine no longer holds it."""

    def __init__(self, store: Store, now: Callable[[], float], pid: int | None = None) -> None:
        self._store = store
        self._now = now
        self._host = socket.gethostname()
        self._holder = f"{self._host} {pid if pid is not None else os.getpid()}"
        self._renewed = 0.0

    def __enter__(self) -> OneAtATime:
        holder = self._store.take_lock(LOCK, self._holder, self._now(), LEASE_S)
        if holder and self._dead(holder):
            self._store.drop_lock(LOCK, holder)
            holder = self._store.take_lock(LOCK, self._holder, self._now(), LEASE_S)
        if holder:
            raise LockHeld(f"another reconciliation is going on ({holder})")
        self._renewed = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self._store.drop_lock(LOCK, self._holder)

    def beat(self) -> None:
        """Renew the lock now and then. Raises LockHeld where it was lost."""
        now = self._now()
        if now - self._renewed < RENEW_S:
            return
        holder = self._store.take_lock(LOCK, self._holder, now, LEASE_S)
        if holder:
            raise LockHeld(f"the lock was lost to {holder}: this run was away for too long")
        self._renewed = now

    def _dead(self, holder: str) -> bool:
        host, _, pid = holder.rpartition(" ")
        if host != self._host or not pid.isdigit() or holder == self._holder:
            return False
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


class Nightly:
    """All snapshots of one ledger, in the order of their ranks."""

    def __init__(
        self,
        desk: Desk,
        store: Store,
        ledger: ClientLedger,
        client: Client,
        snapshots: Mapping[str, SnapshotSettings],
        folder: Path,
        now: Callable[[], float],
        told: Callable[[str], None],
    ) -> None:
        self._desk = desk
        self._store = store
        self._ledger = ledger
        self._client = client
        self._snapshots = sorted(
            snapshots.values(), key=lambda one: (one.rank, one.kind != "POSITIONS", one.name)
        )
        self._folder = folder
        self._now = now
        self._told = told

    def run(self) -> Night:
        """Do all of it. Raises ClientError, HistoryError: what was begun goes on at the next start."""
        night = Night()
        self._go_on(night)
        for settings in self._snapshots:
            for one in arrived(settings, self._now()):
                self._file(settings, one, night)
            self._streamed(settings, night)
            self._see_whether_one_came(settings, night)
        night.waiting = self._store.waiting()
        self._shops(night)
        self._audit(night)
        self._report_exceptions(night)
        self._tidy()
        return night

    def one(self, settings: SnapshotSettings, file: Path, point: Point) -> tuple[Run, bool]:
        """Run a file where it lies, and leave it there; return the run, and whether it was known."""
        outcome = self._desk.run(settings, file, point)
        return outcome.run, outcome.known

    def _go_on(self, night: Night) -> None:
        """Finish what an earlier start began to correct. A run that was still comparing begins again with its file."""
        for run in self._store.unfinished():
            if run.state == CORRECTING:
                night.runs.append(self._tell(self._desk.correct(run), known=False))

    def _file(self, settings: SnapshotSettings, one: Arrived, night: Night) -> None:
        if one.problem:
            target = put_away(one, "no-run", one.problem, self._now())
            run = self._desk.refuse_file(settings, target, one.problem)
            night.runs.append(self._tell(run, known=False))
            return
        outcome = self._desk.run(settings, one.file, one.point)
        run = self._tell(outcome.run, known=outcome.known)
        (night.known if outcome.known else night.runs).append(run)
        put_away(one, run.run_id, run.reason if run.state == REFUSED else "", self._now())

    def _streamed(self, settings: SnapshotSettings, night: Night) -> None:
        for snapshot in streamed(settings, self._ledger.snapshots(settings.source)):
            file = self._folder / "streamed" / f"{snapshot.snapshot_id}.parquet"
            read_by = write_streamed(settings, self._ledger.snapshot_rows(snapshot.snapshot_id), file)
            point = Point(snapshot_id=snapshot.snapshot_id, rows=None)
            outcome = self._desk.run(read_by, file, point)
            night.runs.append(self._tell(outcome.run, known=outcome.known))
            self._ledger.close(snapshot.snapshot_id)
            file.unlink(missing_ok=True)

    def _see_whether_one_came(self, settings: SnapshotSettings, night: Night) -> None:
        if not settings.due_hours:
            return
        latest = [
            run for run in self._store.runs(settings.name, limit=50) if run.state not in (OPEN, REFUSED)
        ]
        if not latest or self._now() - latest[0].begun_at > settings.due_hours * 3_600:
            since = _time(latest[0].begun_at) if latest else "ever"
            night.missing.append(settings.name)
            self._told(f"{settings.name}: no snapshot was compared since {since}")

    def _tell(self, run: Run, *, known: bool) -> Run:
        states = self._store.states(run.run_id)
        counted = ", ".join(f"{count:,} {state.lower()}" for state, count in sorted(states.items()))
        text = f"{run.snapshot}: {run.file}: run {run.run_id[:8]} {run.state}"
        text += " (run before)" if known else ""
        text += f": {counted}" if counted else ": nothing differs" if run.state == DONE else ""
        self._told(f"{text}. {run.reason}" if run.reason else text)
        return run

    # --- Besides ------------------------------------------------------------------------------------------

    def _shops(self, night: Night) -> None:
        skus = read_shops(self._store.engine, self._now())
        if not skus:
            return
        night.sides = differences(skus, self._source_on_hand({one.sku for one in skus}))
        keep_sides(self._store.engine, day_of(self._now()), night.sides)
        self._told(f"shops: {len(skus):,} skus, {len(night.sides):,} are shown otherwise than they should be")

    def _source_on_hand(self, skus: Iterable[str]) -> dict[str, int]:
        """Return what the latest snapshots say of skus, added up over their nodes."""
        import polars as pl

        wanted = pl.LazyFrame({"sku": sorted(set(skus))}, schema={"sku": pl.String})
        found: dict[str, int] = {}
        for settings in self._snapshots:
            if settings.kind != "POSITIONS":
                continue
            for run in self._store.runs(settings.name, limit=5):
                rows = Path(run.folder) / "rows.parquet"
                if run.state in (DONE, HELD) and rows.exists():
                    plain = (
                        pl.scan_parquet(rows).filter(~pl.col("quarantine")).join(wanted, on="sku", how="semi")
                    )
                    for sku, units in (
                        plain.group_by("sku").agg(pl.col("quantity").sum()).collect().iter_rows()
                    ):
                        found[sku] = found.get(sku, 0) + units
                    break
        return found

    def _audit(self, night: Night) -> None:
        """Look through the ledger for what does not add up; a token without that right leaves it out, and says so."""
        try:
            found = audit(self._client)
        except ClientError as error:
            if error.code != "PERMISSION_DENIED":
                raise
            self._told("audit: left out, the token has no scope for it")
            return
        night.findings.extend([*found.broken, *found.forgotten][:FINDINGS_MAX])
        count = len(found.broken) + len(found.forgotten)
        self._told(f"audit: {count:,} findings" if count else "audit: everything adds up")

    def _report_exceptions(self, night: Night) -> None:
        """Tell the service desk of runs that need somebody, and that others are over."""
        wrong: dict[str, list[exc.ReportedException]] = {}
        over: dict[str, list[exc.ReportedException]] = {}
        for run in night.runs:
            told = exc.ReportedException(
                category=exc.EXCEPTION_CATEGORY_VARIANCE, subject=["reconcile", run.snapshot]
            )
            if run.state in (HELD, REFUSED):
                waiting = self._store.states(run.run_id).get(HELD, 0)
                text = f"reconcile {run.snapshot}, run {run.run_id[:8]}: {run.state}"
                told.message = (
                    f"{text}: {run.reason}"[:300] if run.reason else f"{text}: {waiting} positions wait"
                )
                told.quantity = waiting
                wrong.setdefault(run.source, []).append(told)
            else:
                over.setdefault(run.source, []).append(told)
        for source in {*wrong, *over}:
            try:
                self._client.report_exceptions(source, wrong.get(source, []), over.get(source, []))
            except ClientError as error:
                if error.code != "PERMISSION_DENIED":
                    raise
                self._told("exceptions: not reported, the token has no scope for it")
                return

    def _tidy(self) -> None:
        """Remove the frames of old runs; what they found stays in the database."""
        for settings in self._snapshots:
            for run in self._store.runs(settings.name, limit=10 * FOLDERS_KEPT)[FOLDERS_KEPT:]:
                if run.state not in (OPEN, CORRECTING):
                    shutil.rmtree(run.folder, ignore_errors=True)


def day_of(now: float) -> str:
    """Return the day of a moment, YYYY-MM-DD in UTC."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="minutes")
