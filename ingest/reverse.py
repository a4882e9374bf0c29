"""Books what a run applied back: the file is read again by the run's own mapping, less the rows that had no effect.

Kept of a run are its mapping and the places of rows without effect, not its deltas: what was applied is then known to
the row for the price of almost nothing, while a copy of every delta would cost as much as the file. The file itself is
in the archive; its checksum says that it is the same.

Stock is booked back by deltas that are named by run and row, so that doing it again changes nothing. Absolute words
(SET_ON_HAND, EXPECTED, order facts) had something before them that nobody kept: they are listed, not reversed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.v1 import stock_pb2 as pb
from ingest.authority import Authority, Word
from ingest.database import artifacts, dead_letters, run_settings, unapplied_rows
from ingest.letters import REPLAYED
from ingest.pipeline import Pipeline
from ingest.runs import DONE, checksum_of
from ingest.settings import SourceSettings

REVERSED = "REVERSED"
BATCH_DELTAS = 1_000
REASON_BYTES_MAX = 64
_Q = pb.STOCK_STATE_QUARANTINED


class ReverseRefused(Exception):
    """This run cannot be reversed; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRun:
    """A run as it is kept."""

    run_id: str
    source: str
    name: str
    checksum: str
    state: str
    settings: SourceSettings


@dataclass(slots=True)
class Reversal:
    """What reversing does, or did: units of on_hand by (sku, node), rows that stay by why, with the first places."""

    rows: int = 0
    on_hand: Counter[tuple[str, str]] = field(default_factory=Counter)
    quarantined: Counter[tuple[str, str]] = field(default_factory=Counter)
    stays: dict[str, list[int]] = field(default_factory=dict)
    stays_count: Counter[str] = field(default_factory=Counter)
    letters_replayed: int = 0
    applied: int = 0
    repeated: int = 0
    refused: list[str] = field(default_factory=list)

    def keep(self, why: str, position: int) -> None:
        """Note a row that is not reversed."""
        self.stays_count[why] += 1
        places = self.stays.setdefault(why, [])
        if len(places) < 10:
            places.append(position)


def find_run(engine: Engine, run: str) -> KeptRun:
    """Return a run by its id or the beginning of it. Raises ReverseRefused."""
    query = (
        sa.select(artifacts, run_settings.c.settings)
        .outerjoin(run_settings, run_settings.c.run_id == artifacts.c.run_id)
        .where(artifacts.c.run_id.startswith(run, autoescape=True))
        .limit(2)
    )
    with engine.connect() as connection:
        found = connection.execute(query).mappings().all()
    if len(found) != 1:
        raise ReverseRefused("no run begins so" if not found else "several runs begin so")
    row = found[0]
    if row["state"] not in (DONE, REVERSED):
        raise ReverseRefused(f"the run is {row['state']}: only what is DONE can be reversed")
    if row["settings"] is None:
        raise ReverseRefused("what the run did is not kept any more")
    return KeptRun(
        run_id=row["run_id"],
        source=row["source"],
        name=row["name"],
        checksum=row["checksum"],
        state=row["state"],
        settings=SourceSettings.model_validate_json(row["settings"]),
    )


def archived(run: KeptRun, folder: Path) -> Path:
    """Return the run's file in an archive folder. Raises ReverseRefused where it is not there."""
    for path in sorted(folder.glob(f"*_{run.run_id[:8]}_*")):
        if checksum_of(path)[0] == run.checksum:
            return path
    raise ReverseRefused(f"{run.name} of this run is not in {folder}; name it with --file")


class Reverser:
    """Reverses one run; ``pipeline`` is made of the run's own settings."""

    def __init__(self, engine: Engine, run: KeptRun, pipeline: Pipeline, reason: str) -> None:
        self._engine = engine
        self._run = run
        self._pipeline = pipeline
        self._reason = reason
        self._authority = Authority(engine, run.source)

    def preview(self, path: Path) -> Reversal:
        """Return what would be booked. Raises ReverseRefused, ArtifactRefused."""
        found = Reversal()
        for _ in self._deltas(path, found):
            pass
        return found

    def book(
        self,
        path: Path,
        apply: Callable[[list[pb.Delta]], pb.ApplyDeltasResponse],
        now: Callable[[], float],
    ) -> Reversal:
        """Book it; called again it goes on, and changes nothing twice. Raises ClientError besides."""
        found = Reversal()
        batch: list[pb.Delta] = []
        for delta in self._deltas(path, found):
            batch.append(delta)
            if len(batch) == BATCH_DELTAS:
                _booked(found, apply(batch))
                batch = []
        if batch:
            _booked(found, apply(batch))
        if not found.refused:
            with self._engine.begin() as connection:
                connection.execute(
                    sa.update(artifacts)
                    .where(artifacts.c.run_id == self._run.run_id)
                    .values(state=REVERSED, reason=self._reason, ended_at=now())
                )
        return found

    def _deltas(self, path: Path, found: Reversal) -> Iterator[pb.Delta]:
        run = self._run
        checksum = checksum_of(path)[0]
        if checksum != run.checksum:
            raise ReverseRefused(f"{path} is not the file of this run")
        with self._engine.connect() as connection:
            found.letters_replayed = connection.execute(
                sa.select(sa.func.count())
                .select_from(dead_letters)
                .where(dead_letters.c.run_id == run.run_id, dead_letters.c.state == REPLAYED)
            ).scalar_one()
            ranges = connection.execute(
                sa.select(unapplied_rows)
                .where(unapplied_rows.c.run_id == run.run_id)
                .order_by(unapplied_rows.c.first_position)
            ).all()
        upcoming = iter(ranges)
        current = next(upcoming, None)
        with path.open("rb") as artifact:
            for row, delta, refused in self._pipeline.translated(artifact, checksum):
                found.rows += 1
                if refused is not None or delta is None:
                    continue
                while current is not None and current.last_position < row.position:
                    current = next(upcoming, None)
                if current is not None and current.first_position <= row.position:
                    # A name that only this file can give was applied by this run, before a restart.
                    own = delta.event_id != f"{checksum[:24]}:{row.position}"
                    if current.result != "REPEATED" or own:
                        found.keep(f"had no effect: {current.result}", row.position)
                        continue
                for number, part in enumerate(self._pipeline.parts(delta)):
                    yield from self._back(part, row.position, number, found)

    def _back(self, delta: pb.Delta, position: int, number: int, found: Reversal) -> Iterator[pb.Delta]:
        back, why = opposite(delta, self._reason_of(delta))
        if back is None:
            found.keep(why, position)
            return
        if self._authority.word(back, "", 0) is not Word.COUNTS:
            found.keep("another source speaks for the position now", position)
            return
        if why:
            found.keep(why, position)
        back.source = delta.source
        back.event_id = f"reverse:{self._run.run_id}:{position}" + (f":{number}" if number else "")
        back.correlation_id = f"reverse of run {self._run.run_id}"
        key = (back.sku, back.node)
        on_hand, quarantined = _moves(back)
        if on_hand:
            found.on_hand[key] += on_hand
        if quarantined:
            found.quarantined[key] += quarantined
        yield back

    def _reason_of(self, delta: pb.Delta) -> str:
        text = f"reversed: {self._reason}"
        return text.encode()[:REASON_BYTES_MAX].decode("utf-8", "ignore")


def opposite(delta: pb.Delta, reason: str) -> tuple[pb.Delta | None, str]:
    """Return what undoes a delta, and what of it stays nevertheless; None where nothing can."""
    kind, quantity = delta.type, delta.quantity
    back = pb.Delta(sku=delta.sku, node=delta.node, type=pb.DELTA_TYPE_ADJUSTMENT, reason=reason)
    stays = ""
    if kind == pb.DELTA_TYPE_RECEIPT:
        back.quantity = -quantity
        if delta.reason:
            back.state, back.reason = _Q, delta.reason
        if delta.reference:
            stays = "expected supply stays received"
    elif kind == pb.DELTA_TYPE_ADJUSTMENT:
        back.quantity = -quantity
        if delta.state == _Q:
            back.state, back.reason = _Q, delta.reason
    elif kind == pb.DELTA_TYPE_SHIPMENT:
        back.quantity = quantity
        if delta.order_ref:  # a voided shipment: the order wants its units again
            back.type, back.quantity = pb.DELTA_TYPE_SHIPMENT, -quantity
            back.order_source, back.order_ref, back.line = delta.order_source, delta.order_ref, delta.line
    elif kind == pb.DELTA_TYPE_QUARANTINE:
        back.type, back.quantity, back.reason = pb.DELTA_TYPE_QUARANTINE_RELEASE, quantity, delta.reason
    elif kind == pb.DELTA_TYPE_QUARANTINE_RELEASE:
        back.type, back.quantity, back.reason = pb.DELTA_TYPE_QUARANTINE, quantity, delta.reason
    elif kind == pb.DELTA_TYPE_WRITE_OFF:
        back.quantity, back.state, back.reason = quantity, _Q, delta.reason
    elif kind == pb.DELTA_TYPE_RETURN_RECEIVED:
        back.quantity, back.state, back.reason = -quantity, _Q, "return"
        if delta.reference or delta.order_ref:
            stays = "an expected return stays received"
    elif kind == pb.DELTA_TYPE_TRANSFER_OUT:
        back.quantity = quantity
        stays = "supply stays expected at the other node"
        if delta.order_ref:
            stays += ", and shipped of its order"
    elif kind == pb.DELTA_TYPE_TRANSFER_IN:
        back.quantity = -quantity
        stays = "expected supply stays received"
    elif kind == pb.DELTA_TYPE_SET_ON_HAND or kind == pb.DELTA_TYPE_EXPECTED:
        return (
            None,
            f"{pb.DeltaType.Name(kind).removeprefix('DELTA_TYPE_')} is absolute: what was before is not known",
        )
    else:
        return None, "order facts are not reversed"
    return back, stays


def _moves(delta: pb.Delta) -> tuple[int, int]:
    """Units of on_hand and of quarantined that a delta of `opposite` moves."""
    quantity = delta.quantity
    if delta.type == pb.DELTA_TYPE_SHIPMENT:
        return -quantity, 0
    if delta.type == pb.DELTA_TYPE_QUARANTINE:
        return 0, quantity
    if delta.type == pb.DELTA_TYPE_QUARANTINE_RELEASE:
        return 0, -quantity
    return quantity, quantity if delta.state == _Q else 0


def _booked(found: Reversal, answer: pb.ApplyDeltasResponse) -> None:
    results = list(answer.results)
    found.applied += results.count(pb.DELTA_RESULT_APPLIED)
    found.repeated += results.count(pb.DELTA_RESULT_DUPLICATE)
    found.refused += [
        f"{detail.reason}: {detail.message}"
        for detail in answer.details
        if detail.result == pb.DELTA_RESULT_REJECTED
    ]
