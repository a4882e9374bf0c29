"""One comparison: the ledger's side is read, both sides are held together, judged, explained, and all of it is kept.

Nothing is corrected here; what is kept says what may be (`desk`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from availability.client import ClientError
from availability.v1 import stock_pb2 as pb
from ingest.reconcile import guard
from ingest.reconcile import orders as order_lines
from ingest.reconcile.book import Cut, LedgerSide, read_order_lines, read_positions
from ingest.reconcile.causes import Context
from ingest.reconcile.columns import ORDER_COLUMNS
from ingest.reconcile.compare import Compared, Doubled, Rules, compare_positions, lookalike
from ingest.reconcile.explaining import Place, Situation, explain_orders, explain_positions, whole_factors
from ingest.reconcile.journal import Journal, packed_version
from ingest.reconcile.points import Point, marks_of
from ingest.reconcile.settings import SnapshotSettings
from ingest.reconcile.staging import Staged
from ingest.reconcile.store import (
    CORRECTING,
    DONE,
    HELD,
    REFUSED,
    REPORTED,
    KeptVariance,
    Run,
    Store,
)

if TYPE_CHECKING:
    import polars as pl

DAY_S = 86_400
LOOK_BACK_DAYS = 35
"""Days of the journal that are read for evidence: an order's or a transfer's documents may be that far apart."""
KEPT_OF_REFUSED = 1_000
"""Variances that are kept of a run that may not correct anything: the largest; and of skus that nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who is told how far it is: a stage, how much is done, of how much (0: not known)."""

    tell: Callable[[str, int, int], None] = lambda *_: None
    beat: Callable[[], None] = lambda: None
    """Called between steps: renews what must not run out."""


class Comparer:
    """Compares staged snapshots with one ledger."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        ledger: LedgerSide,
        *,
        snapshots: Sequence[SnapshotSettings],
        now: Callable[[], float],
        sleep: Callable[[float], None],
        watch: Watch,
        letters: Callable[[str], dict[Place, list[tuple[int, str]]]],
    ) -> None:
        self._store = store
        self._journal = journal
        self._ledger = ledger
        self._snapshots = snapshots
        self._now = now
        self._sleep = sleep
        self._watch = watch
        self._letters = letters

    # --- Positions ----------------------------------------------------------------------------------------

    def positions(
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
            return self.refuse(run, [*findings, guard.doubled(compared.doubled)], staged)
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
            point_given=point.given, state=state, rows_refused=staged.refused > 0,
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
        state: str,
        rows_refused: bool,
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
            refused=state == REFUSED,
            held=state == HELD,
            context=context,
            agreed=agreed,
            spoken_for=self._spoken_for(settings, places),
            known_skus=known,
            rows_refused=rows_refused,
            oldest=self._journal.before_day(int(self._now() // DAY_S) - LOOK_BACK_DAYS),
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

    def orders(
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
            order_lines.OrderRow(**row)
            for row in pl.read_parquet(staged.path, columns=list(ORDER_COLUMNS)).iter_rows(named=True)
        )
        compared = order_lines.compare_orders(
            rows, lines, nodes=settings.nodes, order_sources=settings.order_sources, absent=settings.absent
        )
        if compared.doubled:
            doubled = Doubled(keys=len(compared.doubled), examples=compared.doubled[:5])
            return self.refuse(run, [*findings, guard.doubled(doubled)], staged)
        findings = [*findings, *guard.judge_orders(compared, settings.guard)]
        verdict = guard.verdict(findings)
        state = CORRECTING if point.given and verdict is None else HELD if point.given else REPORTED
        if verdict is guard.Severity.REFUSED:
            state = REFUSED
        factors, by_sku = whole_factors(settings)
        situation = Situation(
            run_id=run.run_id,
            settings=settings,
            point_given=point.given,
            refused=state == REFUSED,
            held=state == HELD,
            rows_refused=staged.refused > 0,
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

    def refuse(self, run: Run, findings: Sequence[guard.Finding], staged: Staged | None = None) -> Run:
        counts = _counts(staged) if staged is not None else {}
        self._keep(run, [], REFUSED, findings, counts, "", 0, run.nodes)
        return self._store.run(run.run_id)


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
