"""One run of one snapshot, from its file to the corrections: read, judge, compare, explain, keep, correct.

Killed anywhere, the next start goes on: what was found is written down in one transaction before the first correction
is sent, and each correction is the same bytes under the same name however often it is sent. A file that was run
already is known by its checksum and changes nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from availability.client import ClientError
from availability.v1 import stock_pb2 as pb
from ingest.reconcile import guard, orders
from ingest.reconcile.book import Cut, LedgerSide, NotReached, read_order_lines, read_positions
from ingest.reconcile.causes import Context
from ingest.reconcile.columns import ORDER_COLUMNS
from ingest.reconcile.compare import Compared, Doubled, Rules, compare_positions, lookalike
from ingest.reconcile.explaining import Place, Situation, explain_orders, explain_positions, whole_factors
from ingest.reconcile.journal import Journal, packed_version, sequence_marks
from ingest.reconcile.points import Point, check_streams, checksum_of, marks_of
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

if TYPE_CHECKING:
    import polars as pl

CORRECTIONS_AT_ONCE = 250
KEPT_OF_REFUSED = 1_000
"""Variances that are kept of a run that may not correct anything: the largest."""
RUNS_LOOKED_AT = 14


class RunRefused(Exception):
    """What was asked of a run is not possible; the message says why."""

    reason = "RUN_REFUSED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who is told how far it is: a stage, how much is done, of how much (0: not known)."""

    tell: Callable[[str, int, int], None] = lambda *_: None
    beat: Callable[[], None] = lambda: None
    """Called between steps: renews what must not run out."""


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
        self._snapshots = tuple(snapshots)
        self._now = now
        self._new_run_id = new_run_id
        self._sleep = sleep
        self._watch = watch or Watch()
        self._letters = letters

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
                run = self._refuse(run, [_finding("FILE", str(refused))])
            except NotReached as late:
                text = f"the ledger has not had all that the snapshot contains: {late}"
                run = self._refuse(run, [_finding("NOT_REACHED", text)])
            except ClientError as error:
                if error.reason != "SNAPSHOT_POINT_LOST":
                    raise
                text = f"what the ledger had at its point is not known any more: {error.message}"
                run = self._refuse(run, [_finding("POINT_LOST", text)])
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
        return self._refuse(run, [_finding("POINT", why)])

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
            return self._refuse(run, findings, staged)
        if settings.kind == "ORDERS":
            return self._compare_orders(run, settings, staged, point, findings)
        return self._compare_positions(run, settings, staged, point, findings)

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

    # --- Positions ----------------------------------------------------------------------------------------

    def _compare_positions(
        self,
        run: Run,
        settings: SnapshotSettings,
        staged: Staged,
        point: Point,
        findings: list[guard.Finding],
    ) -> Run:
        import polars as pl

        folder = Path(run.folder)
        said = pl.scan_parquet(staged.path)
        nodes = settings.nodes or tuple(sorted(said.select(pl.col("node").unique()).collect()["node"]))
        cut = self._cut(settings, point, nodes, folder / "ledger")
        rules = Rules(
            nodes=nodes,
            basis=settings.basis,
            quarantine=settings.quarantine,
            absent=settings.absent,
            batch_rows=settings.batch_rows,
        )
        self._watch.tell("comparing", 0, 0)
        compared = compare_positions(
            said, pl.scan_parquet(list(cut.positions)), pl.scan_parquet(cut.reasons), rules
        )
        self._watch.beat()
        if compared.doubled is not None:
            return self._refuse(run, [*findings, guard.doubled(compared.doubled)], staged)
        compared.variances.write_parquet(folder / "variances.parquet")
        known = self._known_skus(compared, settings)
        factors, by_sku = whole_factors(settings)
        findings = [*findings, *self._judged(compared, settings, staged, cut, nodes, known, factors, folder)]
        verdict = guard.verdict(findings)
        state = CORRECTING if point.given and verdict is None else HELD if point.given else REPORTED
        if verdict is guard.Severity.REFUSED:
            state = REFUSED
        variances = compared.variances
        if state == REFUSED:
            variances = variances.sort(pl.col("variance").abs(), descending=True).head(KEPT_OF_REFUSED)
        elif unknown := self._unknown(variances, known):
            variances = _few_unknown(variances, known, unknown)
        situation = self._situation(
            run, settings, variances, Context(factors=factors, by_sku=by_sku), known,
            point_given=point.given and state != REFUSED, held=state == HELD,
        )  # fmt: skip
        kept = explain_positions(
            variances,
            self._journal,
            situation,
            lambda done, total: self._watch.tell("explaining", done, total),
        )
        counts = {
            "kind": cut.point_kind,
            "ledger_version": cut.version,
            **_counts(staged),
            **asdict(compared.counts),
        }
        counts["journal_behind"] = self._journal.reached() < packed_version(cut.version)
        self._keep(run, kept, state, findings, counts, cut.point_kind, compared.counts.positions, nodes)
        return self._store.run(run.run_id)

    def _cut(self, settings: SnapshotSettings, point: Point, nodes: Sequence[str], folder: Path) -> Cut:
        request = pb.ReadPositionsRequest(include_confirmed=settings.basis == "NET")
        if point.snapshot_id:
            request.snapshot_id = point.snapshot_id
        else:
            request.point.source = settings.source
            request.point.nodes.extend(nodes)
            request.point.as_of.extend(marks_of(point, settings.source))

        def told(done: int, total: int) -> None:
            self._watch.tell("reading the ledger", done, total)
            self._watch.beat()

        return read_positions(
            self._ledger, request, folder, wait_s=settings.wait_s, progress=told, sleep=self._sleep
        )

    def _known_skus(self, compared: Compared, settings: SnapshotSettings) -> frozenset[str]:
        """Return which skus of new positions the ledger has elsewhere."""
        import polars as pl

        if not compared.counts.new_positions:
            return frozenset()
        new = compared.variances.filter(~pl.col("known"))["sku"].unique()
        return frozenset(self._journal.known_skus(new))

    def _unknown(self, variances: pl.DataFrame, known: frozenset[str]) -> int:
        import polars as pl

        new = variances.filter(~pl.col("known"))
        return new.filter(~pl.col("sku").is_in(list(known))).height if new.height else 0

    def _judged(
        self,
        compared: Compared,
        settings: SnapshotSettings,
        staged: Staged,
        cut: Cut,
        nodes: Sequence[str],
        known: frozenset[str],
        factors: dict[str, int],
        folder: Path,
    ) -> list[guard.Finding]:
        import polars as pl

        unknown = self._unknown(compared.variances, known) if settings.unknown_skus == "REPORT" else 0
        arguments: dict[str, Any] = {  # Any: the guard's own arguments
            "absent_is_zero": settings.absent == "ZERO",
            "unknown_rows": unknown,
            "factors": factors,
            "nodes": nodes,
        }
        found = guard.judge(compared.counts, settings.guard, lookalikes={}, **arguments)
        if not guard.worth_a_look(found):
            return found
        everywhere = read_positions(
            self._ledger,
            pb.ReadPositionsRequest(point=pb.SnapshotPoint(source=settings.source)),
            folder / "everywhere",
            wait_s=0,
            sleep=self._sleep,
        )
        others = pl.scan_parquet(list(everywhere.positions))
        names = others.select(pl.col("node").unique()).collect()["node"].to_list()
        likeness = lookalike(
            pl.scan_parquet(staged.path), others, [name for name in names if name not in nodes]
        )
        shutil.rmtree(folder / "everywhere", ignore_errors=True)
        return guard.judge(compared.counts, settings.guard, lookalikes=likeness, **arguments)

    def _situation(
        self,
        run: Run,
        settings: SnapshotSettings,
        variances: pl.DataFrame,
        context: Context,
        known: frozenset[str],
        *,
        point_given: bool,
        held: bool,
    ) -> Situation:
        places: list[Place] = list(variances.select("sku", "node").unique().iter_rows())
        agreed, oldest = self._agreed(settings, places)
        gaps = self._journal.gaps(settings.source, oldest)
        context = replace(
            context,
            point=run.point_version,
            point_us=int((run.point_at or 0) * 1e6),
            gaps=gaps,
            letters=self._letters(settings.source),
        )
        return Situation(
            run_id=run.run_id,
            settings=settings,
            point_given=point_given,
            held=held,
            context=context,
            agreed=agreed,
            spoken_for=self._spoken_for(settings, places),
            known_skus=known,
        )

    def _agreed(
        self, settings: SnapshotSettings, places: Sequence[Place]
    ) -> tuple[dict[Place, tuple[int, str]], int]:
        """Return up to which version each position is known to have been right, and the oldest of these versions."""
        left, found, oldest = set(places), {}, 0
        for run in self._store.settled(settings.source):
            if not left or not run.point_version:
                continue
            covered = {place for place in left if not run.nodes or place[1] in run.nodes}
            covered -= self._store.not_agreed(run.run_id, covered)
            if run.absent == "IGNORE":
                covered = _named(Path(run.folder) / "rows.parquet", covered)
            for place in covered:
                found[place] = (run.point_version, run.run_id)
            oldest = run.point_version if covered else oldest
            left -= covered
        return found, oldest

    def _spoken_for(self, settings: SnapshotSettings, places: Sequence[Place]) -> dict[Place, str]:
        """Return the positions for which another snapshot speaks, or one of the same rank does as well."""
        found: dict[Place, str] = {}
        for other in self._snapshots:
            if other.name == settings.name or other.kind != "POSITIONS" or other.rank > settings.rank:
                continue
            latest = [
                run for run in self._store.runs(other.name, limit=5) if run.state in (DONE, HELD, REPORTED)
            ]
            if not latest:
                continue
            run = latest[0]
            near = {place for place in places if not run.nodes or place[1] in run.nodes}
            if run.absent == "IGNORE":
                near = _named(Path(run.folder) / "rows.parquet", near)
            why = "OTHER_SPEAKS" if other.rank < settings.rank else "TWO_SPEAK"
            for place in near:
                if found.get(place) != "OTHER_SPEAKS":
                    found[place] = why
        return found

    # --- Open orders --------------------------------------------------------------------------------------

    def _compare_orders(
        self,
        run: Run,
        settings: SnapshotSettings,
        staged: Staged,
        point: Point,
        findings: list[guard.Finding],
    ) -> Run:
        import polars as pl

        request = pb.ReadOrderLinesRequest()
        if point.snapshot_id:
            request.snapshot_id = point.snapshot_id
        else:
            request.point.source = settings.source
            request.point.nodes.extend(settings.nodes)
            request.point.as_of.extend(marks_of(point, settings.source))
        self._watch.tell("reading the ledger", 0, 0)
        lines, kind, version = read_order_lines(
            self._ledger, request, wait_s=settings.wait_s, sleep=self._sleep
        )
        rows = (
            orders.OrderRow(**row)
            for row in pl.read_parquet(staged.path, columns=list(ORDER_COLUMNS)).iter_rows(named=True)
        )
        compared = orders.compare_orders(
            rows, lines, nodes=settings.nodes, order_sources=settings.order_sources, absent=settings.absent
        )
        if compared.doubled:
            doubled = Doubled(keys=len(compared.doubled), examples=compared.doubled[:5])
            return self._refuse(run, [*findings, guard.doubled(doubled)], staged)
        findings = [*findings, *guard.judge_orders(compared, settings.guard)]
        verdict = guard.verdict(findings)
        state = CORRECTING if point.given and verdict is None else HELD if point.given else REPORTED
        if verdict is guard.Severity.REFUSED:
            state = REFUSED
        factors, by_sku = whole_factors(settings)
        situation = Situation(
            run_id=run.run_id,
            settings=settings,
            point_given=point.given and state != REFUSED,
            held=state == HELD,
            context=Context(
                point=run.point_version,
                point_us=int((run.point_at or 0) * 1e6),
                factors=factors,
                by_sku=by_sku,
            ),
        )
        occurred_us = int((run.point_at or run.begun_at) * 1e6)
        kept = explain_orders(compared.variances, self._journal, situation, self._order, occurred_us)
        counts = {
            "kind": kind,
            "ledger_version": version,
            **_counts(staged),
            "units": compared.units,
            "missing_with_stock": compared.missing,
            "moved": len(compared.variances),
        }
        self._keep(run, kept, state, findings, counts, kind, compared.lines, settings.nodes)
        return self._store.run(run.run_id)

    def _order(self, order_source: str, order_ref: str) -> pb.GetOrderResponse | None:
        try:
            return self._ledger.order(order_source, order_ref)
        except ClientError as error:
            if error.reason == "ORDER_NOT_FOUND":
                return None
            raise

    # --- The end ------------------------------------------------------------------------------------------

    def _keep(
        self,
        run: Run,
        kept: Sequence[KeptVariance],
        state: str,
        findings: Sequence[guard.Finding],
        counts: dict[str, Any],  # Any: JSON's own types
        point_kind: str,
        positions: int,
        nodes: Sequence[str],
    ) -> None:
        now = self._now()
        self._store.keep(
            run.run_id,
            kept,
            state=state,
            findings=[asdict(finding) for finding in findings],
            reason="; ".join(finding.sentence for finding in findings),
            counts=counts,
            point_kind=point_kind,
            positions=positions,
            nodes=list(nodes),
            compared_at=now,
            ended_at=None if state == CORRECTING else now,
        )

    def _refuse(self, run: Run, findings: Sequence[guard.Finding], staged: Staged | None = None) -> Run:
        counts = _counts(staged) if staged is not None else {}
        self._keep(run, [], REFUSED, findings, counts, "", 0, run.nodes)
        return self._store.run(run.run_id)

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


def _counts(staged: Staged) -> dict[str, Any]:  # Any: JSON's own types
    return {
        "file_rows": staged.rows,
        "good_rows": staged.good,
        "ignored_rows": staged.ignored,
        "refused_rows": staged.refused,
        "refused_reasons": dict(staged.reasons),
        "refused_examples": [
            {
                "position": one.position,
                "category": one.category.value,
                "reason": one.reason,
                "message": one.message,
                "row": one.raw.decode("utf-8", "backslashreplace"),
            }
            for one in staged.examples
        ],
    }


def _few_unknown(variances: pl.DataFrame, known: frozenset[str], unknown: int) -> pl.DataFrame:
    """Leave out most of very many unknown skus: they are counted, and all of them are in the run's frames."""
    import polars as pl

    if unknown <= KEPT_OF_REFUSED:
        return variances
    is_unknown = ~pl.col("known") & ~pl.col("sku").is_in(list(known))
    return pl.concat([variances.filter(~is_unknown), variances.filter(is_unknown).head(KEPT_OF_REFUSED)])


def _named(rows: Path, places: set[Place]) -> set[Place]:
    """Return those of the positions that a kept snapshot has rows of."""
    import polars as pl

    if not places or not rows.exists():
        return set()
    wanted = pl.LazyFrame(list(places), schema={"sku": pl.String, "node": pl.String}, orient="row")
    found = pl.scan_parquet(rows).select("sku", "node").join(wanted, on=["sku", "node"], how="semi")
    return set(found.unique().collect(engine="streaming").iter_rows())
