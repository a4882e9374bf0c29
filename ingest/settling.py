"""Settling a batch: what the ledger has taken, its dead letters and the place reached, in one transaction.

Called only after the ledger's durable ack; nothing else may note how far an artifact is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

from sqlalchemy.engine import Engine

from availability.v1 import stock_pb2 as pb
from ingest.batches import Batch
from ingest.batching import NOT_COUNTED
from ingest.letters import Letter, Letters
from ingest.marks import Marks, latest_of
from ingest.reader import Reader
from ingest.rows import Category, RowRefused
from ingest.runs import Progress, Run, keep_unapplied, move_on
from ingest.shadow import Shadow

_REJECTED, _DUPLICATE = pb.DELTA_RESULT_REJECTED, pb.DELTA_RESULT_DUPLICATE
_CATEGORIES: Mapping[str, Category] = {
    "UNKNOWN_NODE": Category.UNKNOWN_NODE,
    "CONFLICT": Category.CONFLICT,
    "PERMISSION_DENIED": Category.AUTHENTICATION,
}
"""What the ledger's reasons are; every other one is VALIDATION."""
_NO_EFFECT = {
    pb.DELTA_RESULT_DUPLICATE: "REPEATED",
    pb.DELTA_RESULT_STALE: "STALE",
    pb.DELTA_RESULT_REJECTED: "REFUSED",
}


class Settling:
    """Notes what became of the batches of one source."""

    def __init__(
        self,
        engine: Engine,
        reader: Reader,
        letters: Letters,
        marks: Marks,
        shadow: Shadow,
        *,
        now: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._letters = letters
        self._marks = marks
        self._shadow = shadow
        self._now = now

    def settle(self, run: Run, batch: Batch, answer: pb.StreamDeltasResponse, progress: Progress) -> None:
        """Note what the ledger has taken: dead letters and the place reached, in one transaction."""
        accepted = answer.accepted_count
        parked = accepted < len(batch.deltas)
        last = batch.rows.position(accepted) - 1 if parked else batch.last
        letters = [letter for letter in batch.letters if letter.position <= last]
        again: list[Letter] = []
        for detail in answer.details:
            if not detail.reason or detail.index >= accepted or detail.index in batch.numbers_only:
                continue
            # A DUPLICATE with a reason was rejected when it came first: perhaps nobody lived to note it.
            if detail.result == _REJECTED or detail.result == _DUPLICATE:
                row = batch.rows[detail.index]
                category = _CATEGORIES.get(detail.reason, Category.VALIDATION)
                refused = RowRefused(category, detail.reason, detail.message)
                letter = self._reader.letter(
                    run, row, refused, pb.Delta.FromString(batch.deltas[detail.index])
                )
                (letters if detail.result == _REJECTED else again).append(letter)
        results = list(answer.results[:accepted])
        for index in batch.numbers_only:
            if index < accepted:
                results[index] = pb.DELTA_RESULT_UNSPECIFIED
        applied = results.count(pb.DELTA_RESULT_APPLIED)
        repeated = results.count(pb.DELTA_RESULT_DUPLICATE) + results.count(pb.DELTA_RESULT_STALE)
        ignored = sum(position <= last for position in batch.ignored)
        kept_out = [(position, why) for position, why in batch.kept_out if position <= last]
        compared = [part for position, part in batch.compared if position <= last]
        now = self._now()
        with self._engine.begin() as connection:
            if again:
                lost = self._letters.unknown(connection, again)
                letters += lost
                repeated -= len(lost)
            self._letters.put(connection, letters, now)
            latest = batch.latest
            if latest is None or parked:
                latest = latest_of(chain(map(pb.Delta.FromString, batch.deltas[:accepted]), compared))
            self._marks.settled(connection, latest, now)
            counted = self._shadow.add(connection, compared, batch.bases, now) if compared else 0
            if applied < accepted or kept_out:
                without_effect = [
                    (batch.rows.position(index), _NO_EFFECT[result])
                    for index, result in enumerate(results)
                    if result in _NO_EFFECT
                ]
                keep_unapplied(connection, run, [*without_effect, *kept_out])
            move_on(
                connection,
                run,
                last,
                applied=applied,
                repeated=repeated,
                refused=len(letters),
                ignored=ignored + len(kept_out),
            )
        progress.applied += applied
        progress.repeated += repeated
        progress.refused += len(letters)
        progress.ignored += ignored
        progress.compared += counted
        progress.before_point += sum(why == NOT_COUNTED for _, why in kept_out)
        for letter in letters:
            progress.reasons[letter.reason] = progress.reasons.get(letter.reason, 0) + 1
