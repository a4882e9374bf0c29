"""Reading the ledger: head, pages of positions, the log. What replicas stand on; it never writes."""

from __future__ import annotations

from typing import Protocol

import msgspec

from availability.domain.version import Version
from availability.ledger.record import (
    ChannelState,
    Entry,
    FeedState,
    FenceState,
    KitState,
    NodeState,
    OverrideState,
    StopState,
)


class Head(msgspec.Struct, array_like=True, frozen=True):
    """Where the ledger stands. ``ledger_id`` is drawn once when a ledger is made."""

    ledger_id: str
    epoch: int
    seq: int
    chain: str
    clock_ms: int

    @property
    def version(self) -> Version:
        return Version(self.epoch, self.seq)


class PositionState(msgspec.Struct, array_like=True, frozen=True):
    node: str
    on_hand: int
    quarantined: int
    reserved: int
    committed: int
    safety_stock: int  # -1: the node's default


class SkuState(msgspec.Struct, array_like=True, frozen=True):
    """Everything the replica keeps of one sku."""

    sku: str
    positions: list[PositionState]
    overrides: list[OverrideState]
    stops: list[StopState]
    fences: list[FenceState] = []  # ``left`` as it is now


class PolicyState(msgspec.Struct, array_like=True, frozen=True):
    """Everything that is not kept per sku. ``stops`` are those without a sku."""

    head: Head
    nodes: list[NodeState]
    channels: list[ChannelState]
    stops: list[StopState]
    kits: list[KitState] = []
    feeds: list[FeedState] = []


class Page(msgspec.Struct, array_like=True, frozen=True):
    """A page of skus, all read at one version. ``next_index`` is -1 after the last."""

    head: Head
    next_index: int
    skus: list[SkuState]


class LedgerReader(Protocol):
    """What a replica needs of a ledger. Errors: LedgerUnreachable (availability.ledger.errors) for every call."""

    def head(self) -> Head: ...

    def policies(self) -> PolicyState: ...

    def page(self, index: int, count: int) -> Page:
        """Skus number index .. index+count-1 in the order in which the ledger first saw them."""
        ...

    def skus(self, names: list[str]) -> Page:
        """The named skus (at most 1,000), all at one version; unknown ones have no positions, overrides or stops."""
        ...

    def read(self, after: Version, count: int, block_ms: int) -> list[Entry]:
        """Entries after a version, oldest first; waits up to block_ms when there are none. Gaps are not checked."""
        ...
