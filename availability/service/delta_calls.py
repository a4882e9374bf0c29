"""A batch of deltas: cut into ledger calls, sent in order, answered as one.

Calls of one batch travel in one pipeline, so a batch of 5,000 costs few round trips, and Redis serves others in
between. Used by ApplyDeltas and, a batch at a time, by StreamDeltas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from availability.domain.errors import Reason, ServiceError
from availability.ledger.commit_queue import Pending
from availability.ledger.ledger import Ledger
from availability.service.bounds import Bounds, may_tell
from availability.service.delta_codec import MESSAGES, pack
from availability.service.ledger_calls import ledger_failures, refuse
from availability.service.requests import check_id
from availability.telemetry import OutcomeMetrics
from availability.v1 import stock_pb2 as pb

_NAMES: dict[int, str] = {
    value: name.removeprefix("DELTA_RESULT_").lower() for name, value in pb.DeltaResult.items()
}
_APPLIED, _PARKED = pb.DELTA_RESULT_APPLIED, pb.DELTA_RESULT_PARKED


@dataclass(slots=True)
class Answer:
    """What became of a batch; the fields are those of ApplyDeltasResponse."""

    results: list[int]
    details: list[pb.DeltaDetail]
    calls: list[pb.LedgerCall]
    accepted_count: int
    version: str


class SentBatch:
    """A batch on its way to the ledger."""

    def __init__(self, pending: list[tuple[int, Pending]], outcomes: OutcomeMetrics) -> None:
        self._pending = pending
        self._outcomes = outcomes

    def answer(self) -> Answer:
        """Wait for all its calls. Raises ServiceError; what was applied by then is a DUPLICATE when sent again."""
        results: list[int] = []
        details: list[pb.DeltaDetail] = []
        ledger_calls: list[pb.LedgerCall] = []
        accepted: int | None = None
        version = ""
        for first_index, pending in self._pending:
            with ledger_failures():
                reply = Ledger.decode_deltas(pending.wait())
            if reply.status != "OK":
                raise refuse(reply.status)
            version = reply.version
            ledger_calls.append(pb.LedgerCall(first_index=first_index, version=version))
            results += reply.results
            for index, result, reason, expected in reply.details:
                if result == _PARKED and accepted is None:
                    accepted = first_index + index
                details.append(
                    pb.DeltaDetail(
                        index=first_index + index,
                        result=pb.DeltaResult.ValueType(result),
                        reason=reason,
                        message=MESSAGES.get(reason, ""),
                        expected_sequence=expected,
                    )
                )
        self._count(results)
        return Answer(results, details, ledger_calls, len(results) if accepted is None else accepted, version)

    def _count(self, results: Sequence[int]) -> None:
        applied = results.count(_APPLIED)
        if applied:
            self._outcomes.deltas("applied", applied)
        if applied != len(results):
            for result in set(results) - {_APPLIED}:
                self._outcomes.deltas(_NAMES[result], results.count(result))


class DeltaSender:
    """Packs and submits batches."""

    def __init__(self, ledger: Ledger, *, batch_max: int, call_max: int, outcomes: OutcomeMetrics) -> None:
        self._ledger = ledger
        self._batch_max = batch_max
        self._call_max = call_max
        self._outcomes = outcomes

    def send(
        self,
        source: str,
        deltas: Sequence[pb.Delta],
        deadline: Callable[[], float],
        bounds: Bounds | None,
    ) -> SentBatch:
        """Submit a batch in order; an empty one is a heartbeat. Raises ServiceError for the batch as a whole.

        ``bounds`` are the sender's: a delta outside them is rejected by itself.
        """
        check_id(source, "source")
        if len(deltas) > self._batch_max:
            raise ServiceError(
                Reason.BATCH_TOO_LARGE,
                f"{len(deltas)} deltas, at most {self._batch_max}",
                limit=str(self._batch_max),
            )
        pending: list[tuple[int, Pending]] = []
        until = deadline()
        for first in range(0, max(1, len(deltas)), self._call_max):
            packed = [
                pack(delta, source, "" if bounds is None or may_tell(bounds, delta) else "PERMISSION_DENIED")
                for delta in deltas[first : first + self._call_max]
            ]
            relief = bool(packed) and all(is_relief for _, is_relief in packed)
            sent = self._ledger.submit_deltas(
                source, [raw for raw, _ in packed], facts_only=relief, deadline=until
            )
            pending.append((first, sent))
        return SentBatch(pending, self._outcomes)
