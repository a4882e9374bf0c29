"""The reference client of StreamDeltas: a gapless, numbered feed of JSON lines that goes on where it was.

It keeps nothing of its own: after any end it asks the ledger for its streams' last numbers, passes over what is
settled, and sends from there. What had arrived without an ack is a DUPLICATE there. Refusals are told as they are
acknowledged; who must keep each of them over a crash feeds files through the pipeline, which notes them with its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import msgspec
from google.protobuf.json_format import ParseDict, ParseError

from availability.client import Acked, Client
from availability.v1 import stock_pb2 as pb

LINE_BYTES_MAX = 1_000_000
ACK_TIMEOUT_S = 3_600.0


class LineRefused(Exception):
    """A line that cannot be sent; a numbered feed cannot pass over it."""

    reason = "MALFORMED_LINE"


@dataclass(slots=True)
class Sent:
    """What became of a feed's lines. ``settled``: those that the ledger had before."""

    lines: int = 0
    settled: int = 0
    applied: int = 0
    repeated: int = 0
    refused: int = 0


def send_feed(
    client: Client,
    source: str,
    feed: BinaryIO,
    *,
    batch_deltas: int = 1_000,
    unacked_batches: int = 8,
    refused: Callable[[pb.Delta, str, str], None] = lambda *_: None,
    watch: Callable[[Sent], None] = lambda _: None,
) -> Sent:
    """Send what the ledger does not have, and return once everything is acknowledged.

    A line is a delta as the API writes it, with ``stream`` and ``source_sequence``; types without their prefix.
    ``refused`` is told (delta, reason, sentence), from another thread.

    Raises LineRefused, SequenceGapError, ClientError.
    """
    last = client.last_sequences(source)
    sent = Sent()

    def acked(ack: Acked) -> None:
        results = list(ack.answer.results)[: ack.answer.accepted_count]
        sent.applied += results.count(pb.DELTA_RESULT_APPLIED)
        sent.refused += results.count(pb.DELTA_RESULT_REJECTED)
        sent.repeated += results.count(pb.DELTA_RESULT_DUPLICATE) + results.count(pb.DELTA_RESULT_STALE)
        for detail in ack.answer.details:
            # A DUPLICATE with a reason was rejected when it came first, in a connection that was lost before its ack.
            rejected = detail.result == pb.DELTA_RESULT_REJECTED or (
                detail.result == pb.DELTA_RESULT_DUPLICATE and detail.reason != ""
            )
            if rejected and detail.index < len(results):
                if detail.result == pb.DELTA_RESULT_DUPLICATE:
                    sent.refused, sent.repeated = sent.refused + 1, sent.repeated - 1
                refused(ack.deltas[detail.index], detail.reason, detail.message)
        watch(sent)

    batch: list[pb.Delta] = []
    with client.delta_sender(source, acked=acked, unacked_batches_max=unacked_batches) as sender:
        while line := feed.readline(LINE_BYTES_MAX + 1):
            sent.lines += 1
            if not line.strip():
                continue
            delta = delta_of(source, line, sent.lines)
            if delta.source_sequence <= last.get(delta.stream, 0):
                sent.settled += 1
                continue
            batch.append(delta)
            if len(batch) >= batch_deltas:
                sender.send(batch, timeout_s=ACK_TIMEOUT_S)
                batch = []
        if batch:
            sender.send(batch, timeout_s=ACK_TIMEOUT_S)
        sender.flush(timeout_s=ACK_TIMEOUT_S)
    return sent


def delta_of(source: str, line: bytes, number: int) -> pb.Delta:
    """Read one line. Raises LineRefused."""
    if len(line) > LINE_BYTES_MAX:
        raise LineRefused(f"line {number} has more than {LINE_BYTES_MAX} bytes")
    try:
        found = msgspec.json.decode(line, type=dict[str, object])
        kind = found.get("type")
        if isinstance(kind, str) and not kind.startswith("DELTA_TYPE_"):
            found["type"] = f"DELTA_TYPE_{kind}"
        delta = ParseDict(found, pb.Delta())
    except (msgspec.DecodeError, UnicodeDecodeError, ParseError) as error:
        raise LineRefused(f"line {number}: {error}") from error
    if not delta.stream or delta.source_sequence < 1:
        raise LineRefused(f"line {number} has no stream or no source_sequence")
    if delta.source not in ("", source):
        raise LineRefused(f"line {number} is of {delta.source!r}, not of {source!r}")
    delta.source = source
    return delta
