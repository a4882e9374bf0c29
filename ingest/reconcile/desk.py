"""One run of one snapshot, from its file to the corrections: read, judge, compare, explain, keep, correct.

Killed anywhere, the next start goes on: what was found is written down in one transaction before the first correction
is sent, and each correction is the same bytes under the same name however often it is sent. A file that was run
already is known by its checksum and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from availability.client import ClientError
from availability.v1 import stock_pb2 as pb
from ingest.reconcile import guard
from ingest.reconcile.book import LedgerSide, NotReached
from ingest.reconcile.comparing import Comparer, Watch
from ingest.reconcile.explaining import Place
from ingest.reconcile.journal import Journal, packed_version, sequence_marks
from ingest.reconcile.points import Point, check_streams, checksum_of
from ingest.reconcile.settings import SnapshotSettings
from ingest.reconcile.staging import Staged, stage
from ingest.reconcile.store import (
    CORRECTED,
    CORRECTING,
    DONE,
    HELD,
    OPEN,
    PENDING,
    REFUSED,
    REPORTED,
    UNFINISHED,
    KeptVariance,
    Run,
    Store,
)
from ingest.rows import ArtifactRefused

CORRECTIONS_AT_ONCE = 250
RUNS_LOOKED_AT = 14


class RunRefused(Exception):
    """What was asked of a run is not possible; the message says why."""

    reason = "RUN_REFUSED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended. ``known``: this file had been run before, and nothing was done now."""

    run: Run
    known: bool = False


class Desk:
    """Runs snapshots against one ledger. Time, ids and pauses come from outside."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        ledger: LedgerSide,
        folder: Path,
        *,
        snapshots: Iterable[SnapshotSettings] = (),
        now: Callable[[], float],
        new_run_id: Callable[[], str],
        sleep: Callable[[float], None],
        watch: Watch | None = None,
        letters: Callable[[str], dict[Place, list[tuple[int, str]]]] = lambda _: {},
    ) -> None:
        self._store = store
        self._journal = journal
        self._ledger = ledger
        self._folder = folder
        self._now = now
        self._new_run_id = new_run_id
        self._watch = watch or Watch()
        self._comparer = Comparer(
            store,
            journal,
            ledger,
            snapshots=tuple(snapshots),
            now=now,
            sleep=sleep,
            watch=self._watch,
            letters=letters,
        )

    # --- A run --------------------------------------------------------------------------------------------

    def run(self, settings: SnapshotSettings, file: Path, point: Point) -> Outcome:
        """Run a file to its end. Raises ClientError and HistoryError: the run stays open and goes on next time."""
        checksum = checksum_of(file, point)
        known = self._store.of_file(settings.name, checksum)
        if known is not None and known.state not in UNFINISHED:
            return Outcome(run=known, known=True)
        run = known or self._begin(settings, file, point, checksum)
        if run.state == OPEN:
            try:
                run = self._compare(run, settings, file, point)
            except ArtifactRefused as refused:
                run = self._comparer.refuse(run, [_finding("FILE", str(refused))])
            except NotReached as late:
                text = f"the ledger has not had all that the snapshot contains: {late}"
                run = self._comparer.refuse(run, [_finding("NOT_REACHED", text)])
            except ClientError as error:
                if error.reason != "SNAPSHOT_POINT_LOST":
                    raise
                text = f"what the ledger had at its point is not known any more: {error.message}"
                run = self._comparer.refuse(run, [_finding("POINT_LOST", text)])
        return Outcome(run=self.correct(run))

    def _begin(self, settings: SnapshotSettings, file: Path, point: Point, checksum: str) -> Run:
        run_id, now = self._new_run_id(), self._now()
        run = Run(
            run_id=run_id,
            snapshot=settings.name,
            source=settings.source,
            kind=settings.kind,
            state=OPEN,
            file=file.name,
            checksum=checksum,
            snapshot_id=point.snapshot_id,
            as_of=dict(point.as_of),
            point_kind="",
            point_version=0,
            point_at=point.taken_at,
            nodes=settings.nodes,
            rank=settings.rank,
            absent=settings.absent,
            rows=0,
            positions=0,
            counts={},
            findings=(),
            reason="",
            folder=str(self._folder / run_id),
            begun_at=now,
            compared_at=None,
            ended_at=None,
        )
        self._store.begin(run)
        return run

    def refuse_file(self, settings: SnapshotSettings, file: Path, why: str) -> Run:
        """Note a file whose point cannot be read."""
        run = self._begin(settings, file, Point(), checksum_of(file, Point()))
        return self._comparer.refuse(run, [_finding("POINT", why)])

    def _compare(self, run: Run, settings: SnapshotSettings, file: Path, point: Point) -> Run:
        check_streams(point, settings)
        folder = Path(run.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._watch.tell("reading the file", 0, 0)
        staged = stage(
            file,
            settings,
            folder / "rows.parquet",
            progress=lambda rows: self._watch.tell("reading the file", rows, 0),
        )
        self._watch.beat()
        point_version, point_us = self._journal.point(sequence_marks(point.as_of, settings.source))
        point_at = point.taken_at if point.taken_at is not None else (point_us / 1e6 if point_us else None)
        if point.snapshot_id:
            point_version, point_at = self._marks(point, settings)
        run = self._store.change(run.run_id, rows=staged.rows, point_version=point_version, point_at=point_at)
        findings = guard.judge_file(self._file(run, settings, staged, point), settings.guard, self._now())
        if guard.verdict(findings) is guard.Severity.REFUSED:
            return self._comparer.refuse(run, findings, staged)
        if settings.kind == "ORDERS":
            return self._comparer.orders(run, settings, staged, point, findings)
        return self._comparer.positions(run, settings, staged, point, findings)

    def _marks(self, point: Point, settings: SnapshotSettings) -> tuple[int, float | None]:
        """Return what the server knows of a snapshot that was begun and ended there. Raises ArtifactRefused."""
        found = self._ledger.snapshot(point.snapshot_id)
        if found is None:
            raise ArtifactRefused(f"the server knows no snapshot {point.snapshot_id}")
        if found.state == pb.SNAPSHOT_STATE_OPEN:
            raise ArtifactRefused(f"snapshot {point.snapshot_id} was begun and not ended")
        if found.source != settings.source:
            raise ArtifactRefused(f"snapshot {point.snapshot_id} is of source {found.source}")
        if sorted(found.nodes) != sorted(settings.nodes):
            said = ", ".join(found.nodes) or "all nodes"
            raise ArtifactRefused(
                f"snapshot {point.snapshot_id} was begun for {said}, not for those of the settings"
            )
        version = packed_version(found.end_version or found.begin_version)
        return version, found.begin_time.ToMicroseconds() / 1e6

    def _file(self, run: Run, settings: SnapshotSettings, staged: Staged, point: Point) -> guard.File:
        earlier = [
            one
            for one in self._store.runs(settings.name, limit=RUNS_LOOKED_AT)
            if one.run_id != run.run_id and one.state in (DONE, HELD, REPORTED)
        ]
        newer = ""
        for one in earlier:
            common = one.as_of.keys() & point.as_of.keys()
            if (
                common
                and all(point.as_of[name] <= one.as_of[name] for name in common)
                and any(point.as_of[name] < one.as_of[name] for name in common)
            ) or (run.point_at and one.point_at and run.point_at < one.point_at and point.given):
                newer = one.run_id
        return guard.File(
            rows=staged.rows,
            refused=staged.refused,
            rows_said=point.rows,
            point_at=run.point_at,
            previous_rows=earlier[0].rows if earlier else None,
            newer_run=newer,
            may_be_empty=settings.kind == "ORDERS",
            first_reason=f"row {staged.examples[0].position}: {staged.examples[0].message}"
            if staged.examples
            else "",
        )

    # --- The end ------------------------------------------------------------------------------------------

    def correct(self, run: Run) -> Run:
        """Send what is to be corrected and not yet noted as such; return the run. Raises ClientError."""
        if run.state != CORRECTING:
            return run
        total = self._store.states(run.run_id).get(PENDING, 0)
        done = 0
        while pending := self._store.variances(run.run_id, state=PENDING, limit=CORRECTIONS_AT_ONCE):
            self._store.settle(run.run_id, self._sent(pending))
            done += len(pending)
            self._watch.tell("correcting", done, total)
            self._watch.beat()
        left = self._store.states(run.run_id).get(HELD, 0)
        return self._store.change(run.run_id, state=HELD if left else DONE, ended_at=self._now())

    def _sent(self, pending: Sequence[KeptVariance]) -> list[tuple[int, str, str]]:
        """Send corrections; return (number, state, message) of each."""
        deltas: list[pb.Delta] = []
        owners: list[int] = []
        source = ""
        for one in pending:
            request = pb.ApplyDeltasRequest.FromString(one.delta)
            source = request.source
            deltas.extend(request.deltas)
            owners.extend([one.number] * len(request.deltas))
        answer = self._ledger.apply(source, deltas)
        refused: dict[int, str] = {}
        for detail in answer.details:
            if detail.result in (pb.DELTA_RESULT_REJECTED, pb.DELTA_RESULT_STALE, pb.DELTA_RESULT_PARKED):
                why = detail.reason or pb.DeltaResult.Name(detail.result).removeprefix("DELTA_RESULT_")
                refused.setdefault(
                    owners[detail.index], f"{why}: {detail.message}" if detail.message else why
                )
        return [
            (one.number, REFUSED if one.number in refused else CORRECTED, refused.get(one.number, ""))
            for one in pending
        ]

    def approve(self, run: Run, author: str, reason: str, within_hours: float = 48.0) -> tuple[Run, int]:
        """Let a held run go on, and correct; return it and how many were approved. Raises RunRefused, ClientError.

        What was missing and has arrived since is kept back: correcting it as well would count it twice.
        """
        if run.state not in (HELD, CORRECTING):
            raise RunRefused(f"run {run.run_id[:8]} is {run.state}: only one that is HELD can be approved")
        hours = (self._now() - run.begun_at) / 3_600
        if hours > within_hours:
            raise RunRefused(
                f"run {run.run_id[:8]} is {hours:,.0f} hours old, {within_hours:g} are allowed: deliver a new snapshot"
            )
        held = self._store.variances(run.run_id, state=HELD)
        arrived = self._arrived(run, held)
        approved = self._store.approve(run.run_id, author, reason, self._now(), arrived)
        return self.correct(self._store.run(run.run_id)), approved

    def _arrived(self, run: Run, held: Sequence[KeptVariance]) -> list[int]:
        point_us = int((run.point_at or 0) * 1e6)
        if not point_us or not run.point_version:
            return []
        places = [(one.sku, one.node) for one in held if one.kind == "ON_HAND"]
        moves = self._journal.moves(places, run.point_version)
        return [
            one.number
            for one in held
            if one.kind == "ON_HAND"
            and any(
                move.effect == -one.variance and 0 < move.occurred_us <= point_us
                for move in moves.get((one.sku, one.node), ())
            )
        ]


def _finding(code: str, sentence: str) -> guard.Finding:
    return guard.Finding(severity=guard.Severity.REFUSED, code=code, sentence=sentence)
