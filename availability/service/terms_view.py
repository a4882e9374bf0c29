"""The terms of one answer as a message: those of now (`explain`) and those of the past (the CLI) look alike."""

from __future__ import annotations

from collections.abc import Mapping

from availability.replica.explain import Terms
from availability.service.requests import timestamp
from availability.v1 import availability_pb2 as pb


def terms_message(terms: Terms, reasons: Mapping[str, Mapping[str, int]]) -> pb.AvailabilityTerms:
    """Return what the replica says of an answer. ``reasons``: quarantined units by reason, per node."""
    return pb.AvailabilityTerms(
        sellable_quantity=terms.sellable,
        state=pb.AvailabilityState.ValueType(terms.state),
        pool=terms.pool,
        buffer=terms.buffer,
        fenced=terms.fenced,
        oversell_limit=terms.oversell_limit,
        blocked=terms.blocked,
        nodes=[
            pb.NodeTerms(
                node=node.node,
                sourcing_rank=node.sourcing_rank,
                on_hand=node.on_hand,
                quarantined=node.quarantined,
                quarantined_by_reason=reasons.get(node.node, {}),
                safety_stock=node.safety_stock,
                give=node.give,
                reserved=node.reserved,
                committed=node.committed,
                net=node.net,
                free=node.free,
                counted=node.counted,
                not_counted_reason=node.not_counted_reason,
            )
            for node in terms.nodes
        ],
        policies=[
            pb.PolicyTerm(
                term=policy.term,
                level=policy.level,
                value=policy.value,
                version=policy.version,
                author=policy.author,
                reason=policy.reason,
                update_time=timestamp(policy.clock_ms) if policy.clock_ms else None,
            )
            for policy in terms.policies
        ],
        fences=[
            pb.FenceTerm(
                channel=fence.channel,
                left=fence.left,
                counted=fence.counted,
                generation=fence.generation,
            )
            for fence in terms.fences
        ],
        components=[
            pb.ComponentTerm(
                sku=part.sku,
                units=part.units,
                sellable_quantity=part.sellable,
                state=pb.AvailabilityState.ValueType(part.state),
            )
            for part in terms.components
        ],
    )
