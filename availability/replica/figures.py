"""What must be equal between memory and ledger: figures of a sku, and what decides of everything that is set. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from availability.ledger.reader import PolicyState, SkuState
from availability.ledger.record import (
    ChannelState,
    FeedState,
    FenceState,
    KitState,
    NodeState,
    OverrideState,
    StopState,
)


@dataclass(frozen=True, slots=True)
class SkuFigures:
    """What must be equal between memory and ledger for one sku."""

    positions: tuple[tuple[str, int, int, int, int, int], ...]
    overrides: tuple[tuple[str, int, int, int, tuple[str, ...]], ...]
    stops: tuple[str, ...]
    fences: tuple[tuple[str, int, str], ...]


PolicyFigures = Mapping[tuple[str, ...], object]
"""What must be equal of everything that is not kept per sku: (what, its names) → what decides."""


def policy_figures(policies: PolicyState) -> PolicyFigures:
    """Return the ledger's policies, in the form of State.policy_figures."""
    return figures_of_policies(
        policies.nodes, policies.channels, policies.stops, policies.kits, policies.feeds
    )


def figures_of_policies(
    nodes: Sequence[NodeState],
    channels: Sequence[ChannelState],
    stops: Sequence[StopState],
    kits: Sequence[KitState],
    feeds: Sequence[FeedState],
) -> PolicyFigures:
    """Take what decides; who set it and when are in the log."""
    figures: dict[tuple[str, ...], object] = {}
    figures.update({("node", node.node): (node.state, node.safety_stock) for node in nodes})
    for channel in channels:
        figures["channel", channel.channel] = structs.replace(
            channel, version="", author="", reason="", clock_ms=0
        )
    figures.update({("stop", stop.channel): stop.until_ms for stop in stops if stop.blocked})
    figures.update({("kit", kit.kit_sku): kit.flat for kit in kits if kit.flat})
    for feed in feeds:
        if feed.interval_ms:
            figures["feed", feed.source, feed.node] = (feed.interval_ms, feed.grace_ms, feed.stale)
    return figures


def sku_figures(sku: SkuState) -> SkuFigures:
    """Return the ledger's figures of a sku, in the form of State.figures."""
    return SkuFigures(
        tuple(
            sorted(
                (p.node, p.on_hand, p.quarantined, p.reserved, p.committed, p.safety_stock)
                for p in sku.positions
            )
        ),
        tuple(sorted(figures_of_override(override) for override in sku.overrides)),
        tuple(sorted(stop.channel for stop in sku.stops if stop.blocked)),
        figures_of_fences(sku.fences),
    )


def figures_of_fences(fences: Iterable[FenceState]) -> tuple[tuple[str, int, str], ...]:
    """A fence that is used up may be forgotten by either side."""
    return tuple(sorted((fence.channel, fence.left, fence.version) for fence in fences if fence.left > 0))


def figures_of_override(override: OverrideState) -> tuple[str, int, int, int, tuple[str, ...]]:
    return (
        override.channel,
        override.buffer_units,
        override.buffer_percent,
        override.oversell_limit,
        tuple(sorted(override.excluded_nodes)),
    )
