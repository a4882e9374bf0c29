"""Send one source's deltas over StreamDeltas, and go on across lost connections.

``DeltaSender`` keeps what the server has not acknowledged and sends it again; sequence numbers and event ids
make that harmless. It knows of the caller's connection only what ``Opener`` names; `client` is one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import grpc

from availability.client_errors import ClientError, Retry, SequenceGapError
from availability.domain.limits import BATCH_DELTAS_MAX
from availability.encoded_deltas import EncodedDeltas
from availability.v1 import stock_pb2 as stk

UNACKED_BATCHES = 8
ACK_TIMEOUT_S = 15.0
STOP_POLL_S = 0.2
SENDER_RETRY = Retry(attempts_max=40)
"""A source outlives a restart of the server: about a minute of attempts without one ack between them."""


class DeltaCall(Protocol):
    """One StreamDeltas call: its acks, and a way to end it."""

    def __iter__(self) -> Iterator[stk.StreamDeltasResponse]: ...
    def cancel(self) -> bool: ...


class Opener(Protocol):
    """What opens the streams and judges their ends."""

    def open_delta_stream(self, requests: Iterator[bytes]) -> DeltaCall:
        """Start one StreamDeltas call. ``requests`` are encoded."""
        ...

    def read_error(self, error: grpc.RpcError) -> tuple[ClientError, float | None]:
        """Return the failure and, where sending again may help, the least wait (s)."""
        ...

    def backoff_s(self, attempt: int) -> float:
        """Return a jittered wait (s) before an attempt, counted from 1."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """One settled batch: what was sent and what became of each delta (results in the order of deltas)."""

    batch_number: int
    deltas: Sequence[stk.Delta]
    answer: stk.StreamDeltasResponse


@dataclass(frozen=True, slots=True)
class _Batch:
    number: int
    deltas: Sequence[stk.Delta]

    def request(self, source: str) -> bytes:
        if isinstance(self.deltas, EncodedDeltas):
            return self.deltas.request(source, self.number)
        request = stk.StreamDeltasRequest(source=source, deltas=self.deltas, batch_number=self.number)
        return request.SerializeToString()


class DeltaSender:
    """Sends batches of one source's deltas in order over StreamDeltas, and again after a lost connection.

    At most ``unacked_batches_max`` batches are kept; ``send`` waits while they are. After a reconnect it
    sends again from the first batch without an ack: repeated deltas are DUPLICATE there, so nothing counts
    twice. To go on after a restart of the source, ask ``Client.last_sequences`` first.

    ``acked`` is called for each settled batch, in order, from the sender's own thread. A PARKED delta or an
    error that retrying cannot mend stops the sender: ``send`` and ``flush`` then raise it (SequenceGapError,
    ClientError). Once ``stopped`` says so, both end their wait within a moment, with a ClientError: CANCELLED.
    """

    def __init__(
        self,
        client: Opener,
        source: str,
        *,
        acked: Callable[[Acked], None] | None = None,
        unacked_batches_max: int = UNACKED_BATCHES,
        ack_timeout_s: float = ACK_TIMEOUT_S,
        retry: Retry = SENDER_RETRY,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._client = client
        self._source = source
        self._acked = acked
        self._unacked_max = unacked_batches_max
        self._ack_timeout_s = ack_timeout_s
        self._retry = retry
        self._stopped = stopped
        self._changed = threading.Condition()
        self._unsettled: deque[_Batch] = deque()
        self._last_number = 0
        self._connection = 0  # counts connections; a request iterator of an older one ends
        self._call: DeltaCall | None = None
        self._progress_at = time.monotonic()
        self._failure: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"deltas-{source}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)

    def send(self, deltas: Sequence[stk.Delta], *, timeout_s: float = 60.0) -> int:
        """Queue deltas as one batch (an empty one is a heartbeat), return its number; may wait.

        `EncodedDeltas` travel as they are.
        """
        if len(deltas) > BATCH_DELTAS_MAX:
            raise ValueError(f"a batch has at most {BATCH_DELTAS_MAX} deltas, not {len(deltas)}")
        with self._changed:
            self._wait(lambda: len(self._unsettled) < self._unacked_max, timeout_s)
            if self._closed:
                raise ClientError("CANCELLED", "CANCELLED", "the sender is closed")
            if not self._unsettled:
                self._progress_at = time.monotonic()
            self._last_number += 1
            kept = deltas if isinstance(deltas, EncodedDeltas) else tuple(deltas)
            self._unsettled.append(_Batch(self._last_number, kept))
            self._changed.notify_all()
            return self._last_number

    def flush(self, *, timeout_s: float = 60.0) -> None:
        """Wait until every batch is settled."""
        with self._changed:
            self._wait(lambda: not self._unsettled, timeout_s)

    def close(self, *, drain: bool = True, timeout_s: float = 60.0) -> None:
        """End the stream, by default after everything is settled."""
        try:
            if drain:
                self.flush(timeout_s=timeout_s)
        finally:
            with self._changed:
                self._closed = True
                if not drain and self._call is not None:
                    self._call.cancel()
                self._changed.notify_all()
            self._thread.join(timeout=5.0)

    def _wait(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait under the lock; cut a connection that has gone silent, so that the runner opens another."""
        deadline = time.monotonic() + timeout_s
        while self._failure is None and not ready():
            now = time.monotonic()
            if self._stopped():
                raise ClientError(
                    "CANCELLED", "CANCELLED", "stopped while the ledger had not taken everything"
                )
            if now >= deadline:
                raise ClientError("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", f"no ack within {timeout_s:g} s")
            if self._call is not None and now - self._progress_at > self._ack_timeout_s:
                self._progress_at = now
                self._call.cancel()
            self._changed.wait(min(STOP_POLL_S, deadline - now))
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        """Keep a connection while there is something to send. The sender's own thread."""
        attempt = 0
        while self._something_to_send():
            with self._changed:
                self._connection += 1
                self._progress_at = time.monotonic()
                settled_before = self._unsettled[0].number
                self._call = call = self._client.open_delta_stream(self._requests(self._connection))
            failure, wait_s = self._read(call)
            with self._changed:
                self._call = None
                self._connection += 1
                moved = not self._unsettled or self._unsettled[0].number > settled_before
                attempt = 0 if moved else attempt + 1
                if failure is not None and (wait_s is None or attempt >= self._retry.attempts_max):
                    self._failure = failure
                    self._changed.notify_all()
                    return
                if self._closed:
                    return
                self._changed.wait(max(wait_s or 0.0, self._client.backoff_s(max(attempt, 1))))

    def _something_to_send(self) -> bool:
        """Wait for a batch; False once the sender is closed."""
        with self._changed:
            while not self._unsettled and not self._closed:
                self._changed.wait(1.0)
            return not self._closed

    def _read(self, call: DeltaCall) -> tuple[Exception | None, float | None]:
        """Settle batches until the connection ends; say why, and how long to wait where another may help."""
        try:
            for answer in call:
                self._settle(answer)
        except grpc.RpcError as error:
            failure, wait_s = self._client.read_error(error)
            if failure.code in ("CANCELLED", "DEADLINE_EXCEEDED"):
                wait_s = 0.0  # cut by us for silence, or at the end of its hour
            return failure, wait_s
        except Exception as error:  # a gap, or a bug in the callback: the sender stops and tells its caller
            call.cancel()
            return error, None
        return None, 0.0

    def _settle(self, answer: stk.StreamDeltasResponse) -> None:
        with self._changed:
            batch = self._unsettled[0] if self._unsettled else None
        if batch is None or batch.number != answer.batch_number:
            raise ClientError(
                "INTERNAL", "ACK_OUT_OF_ORDER", f"ack of batch {answer.batch_number} was not expected"
            )
        if self._acked is not None:
            self._acked(Acked(batch_number=batch.number, deltas=batch.deltas, answer=answer))
        for detail in answer.details:
            if detail.result == stk.DELTA_RESULT_PARKED:
                parked = batch.deltas[detail.index]
                raise SequenceGapError(self._source, parked.stream, detail.expected_sequence)
        with self._changed:
            self._unsettled.popleft()
            self._progress_at = time.monotonic()
            self._changed.notify_all()

    def _requests(self, connection: int) -> Iterator[bytes]:
        """Yield every unsettled batch, then new ones, until this connection ends. Runs in gRPC's thread."""
        sent = 0
        while True:
            with self._changed:
                batch = None
                while batch is None:
                    if self._connection != connection or self._closed:
                        return
                    batch = next((one for one in self._unsettled if one.number > sent), None)
                    if batch is None:
                        self._changed.wait(1.0)
            sent = batch.number
            yield batch.request(self._source)
