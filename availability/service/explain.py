"""Why an answer is what it is: the replica's terms, and the holds and orders behind them from the ledger.

The two are read one after the other; they are taken together when the holds add up to reserved and the orders to
committed at every node, else read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from availability.domain.errors import Reason, ServiceError
from availability.ledger.ledger import Behind, Ledger, split_order_name
from availability.replica.explain import Terms
from availability.replica.replica import Replica
from availability.service.context import CallContext
from availability.service.freshness import ANSWER_MARGIN_S
from availability.service.ledger_calls import ledger_failures
from availability.service.requests import timestamp
from availability.service.terms_view import terms_message
from availability.v1 import availability_pb2 as pb
from availability.v1.common_pb2 import AsOf

ATTEMPTS_MAX = 10

Part = tuple[str, str, int]  # who, node, units


class Explainer:
    """Puts one explanation together."""

    def __init__(self, ledger: Ledger, replica: Replica) -> None:
        self._ledger = ledger
        self._replica = replica

    def explain(self, channel: str, sku: str, ctx: CallContext) -> pb.ExplainAvailabilityResponse:
        """Explain one answer. Raises ServiceError."""
        with ctx.blocking():
            for _ in range(ATTEMPTS_MAX):
                with ledger_failures():
                    behind = self._ledger.behind(sku)
                if not self._replica.wait_for(behind.head.version, ctx.deadline - ANSWER_MARGIN_S):
                    raise ServiceError(Reason.DEADLINE_EXCEEDED, "memory did not reach the ledger in time")
                terms = self._replica.terms(channel, sku)
                holds, orders = _holds(behind), _orders(behind)
                if _adds_up(terms, holds, orders):
                    return self._response(channel, sku, terms, behind, holds, orders)
        raise ServiceError(
            Reason.OVERLOADED, f"{sku} changed {ATTEMPTS_MAX} times while it was read; ask again"
        )

    def _response(
        self,
        channel: str,
        sku: str,
        terms: Terms,
        behind: Behind,
        holds: Sequence[Part],
        orders: Sequence[Part],
    ) -> pb.ExplainAvailabilityResponse:
        members = {node.node for node in terms.nodes}
        message = terms_message(terms, dict(behind.reasons))
        message.holds.extend(
            pb.HoldTerm(reservation_id=who, node=node, quantity=units)
            for who, node, units in holds
            if node in members
        )
        message.orders.extend(
            pb.OrderTerm(
                order_source=split_order_name(who)[0],
                order_ref=split_order_name(who)[1],
                node=node,
                quantity=units,
            )
            for who, node, units in orders
            if node in members
        )
        message.streams.extend(
            pb.StreamTerm(
                source=source,
                stream=stream,
                last_sequence=mark,
                age_ms=max(0, behind.clock_ms - seen_ms),
            )
            for source, stream, mark, seen_ms, *_ in sorted(behind.streams)
        )
        message.expected.extend(
            pb.ExpectedTerm(
                node=row.node,
                kind=row.kind,
                reference=row.reference,
                line=row.line,
                quantity=row.quantity,
                due_time=timestamp(row.due_us // 1000) if row.due_us else None,
            )
            for row in behind.expected
            if row.node in members
        )
        message.feeds.extend(
            pb.FeedTerm(
                source=feed.source,
                node=feed.node,
                age_ms=max(0, behind.clock_ms - feed.heard_ms),
                limit_ms=feed.interval_ms + feed.grace_ms,
                stale=feed.stale,
            )
            for feed in behind.feeds
            if feed.node in members
        )
        as_of = AsOf(version=str(terms.version), age_ms=self._replica.freshness_ms())
        return pb.ExplainAvailabilityResponse(sku=sku, channel=channel, terms=message, as_of=as_of)


def _holds(behind: Behind) -> list[Part]:
    """Units that each reservation counts at each node: what it holds, less what its order's facts count already."""
    held: Counter[tuple[str, str]] = Counter()
    for who, sources in behind.holds:
        for node, units in sources:  # a node twice: of a kit, and of the sku by itself
            held[who, node] += units
    for _, (waived, reservations) in behind.waived:
        for node, units in waived.items():
            left = units
            for who in reservations:
                take = min(left, held[who, node])
                if take:
                    held[who, node] -= take
                    left -= take
    return [(who, node, units) for (who, node), units in sorted(held.items()) if units]


def _orders(behind: Behind) -> list[Part]:
    return [
        (who, node, units)
        for who, nodes in sorted(behind.orders)
        for node, units in sorted(nodes.items())
        if units
    ]


def _adds_up(terms: Terms, holds: Sequence[Part], orders: Sequence[Part]) -> bool:
    reserved: Counter[str] = Counter()
    committed: Counter[str] = Counter()
    for _, node, units in holds:
        reserved[node] += units
    for _, node, units in orders:
        committed[node] += units
    return all(
        node.reserved == reserved[node.node] and node.committed == committed[node.node]
        for node in terms.nodes
    )
