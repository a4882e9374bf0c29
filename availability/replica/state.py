"""The replica's memory at one version: positions, policies and every channel's answers, changed batch by
batch.

``prepare`` works out what a batch of records changes without moving anything that a reader can see;
``commit`` writes it and is short: the caller holds the readers' lock. One writer. Nothing here talks to the
ledger (``follow`` does, and checks order and chain before) or waits for anybody (``replica`` does).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from availability.domain.formula import Ints
from availability.domain.thresholds import back_above
from availability.domain.version import ZERO, Version
from availability.ledger.reader import PolicyState, SkuState
from availability.ledger.record import (
    BODIES,
    DeltasBody,
    Entry,
    FeedBody,
    Kind,
    KitState,
    OverrideState,
    PolicyBody,
    PositionChange,
    Record,
    StopState,
    decode_body,
)
from availability.replica.columns import FIELDS, Column, Plan, Positions, Rows, contains
from availability.replica.compute import overlaid, packed_answers, packed_kits, shared_terms
from availability.replica.errors import UnreadableRecord
from availability.replica.fences import Changed, Fences, FencesOfSku
from availability.replica.figures import (
    PolicyFigures,
    SkuFigures,
    figures_of_fences,
    figures_of_override,
    figures_of_policies,
)
from availability.replica.name_table import NameTable
from availability.replica.policies import Changes, Channel, Moved, Policies
from availability.replica.settings import ReplicaSettings

_EPOCHS_MAX = 64
"""Epochs that a resume version may belong to."""
CORRELATIONS_MAX = 65_536
"""Skus of which the correlation id of their last event is remembered, for watchers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """New answers of one channel, of skus that moved only."""

    column: Column
    skus: Ints
    packed: Ints
    threshold: int
    """The channel's low stock threshold."""

    def commit(self, counter: int, settings: ReplicaSettings) -> None:
        back = back_above(self.threshold, settings.hysteresis_units, settings.hysteresis_percent)
        self.column.line = self.threshold, back
        self.column.commit(counter, self.skus, self.packed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A batch of records, worked out and not visible yet."""

    version: Version
    chain: str
    records: int
    plan: Plan | None
    fences: Mapping[int, FencesOfSku]
    policies: Policies
    updates: Sequence[Update]
    opened: dict[str, Column]
    uncovered: set[str]
    correlations: Mapping[str, str]
    """By sku: correlation id of the last record that moved it, "" where that had none."""
    epochs: Sequence[tuple[int, int, int]]
    """(epoch, seq, how many-th record of the batch) of each epoch's first record."""


class Numbers(dict[str, int]):
    """Sku → number; -1 for one without. Many at once: ``name_table``."""

    def __missing__(self, sku: str) -> int:
        return -1


class State:
    """Everything that is answered from. Sku numbers are never reused, and survive a resync (``names_of``)."""

    def __init__(self, settings: ReplicaSettings, names_of: State | None = None) -> None:
        self._settings = settings
        self.numbers: Numbers = Numbers(names_of.numbers if names_of else {})
        self.names: list[str] = list(names_of.names) if names_of else []
        self.table = NameTable()
        self.ledger_id = ""
        self.version = ZERO
        self.chain = ""
        self.counter: int = names_of.counter + 1 if names_of else 1
        """Records applied so far, across resyncs; what watchers compare with."""
        self.known_since: tuple[int, int, int] | None = None
        """(epoch, seq, counter) from which on every record was counted one by one."""
        self.positions = Positions()
        self.positions.reserve_skus(len(self.names))
        self.fences = Fences()
        self.policies = Policies.empty()
        self.own: dict[str, Column] = {}
        """Channels with a column of their own. The writer's; readers use ``columns``."""
        self.shared: Column | None = None
        """What every channel without a policy shows, under auto_create."""
        self.columns: dict[str, Column] = {}
        """Channel → column, those that share one included. Changed under the readers' lock only."""
        self.touched: list[Ints] | None = None
        """Skus whose positions changed, a piece a batch, where ``anomalies`` wants them; it takes them away."""
        self.uncovered: set[str] = set()
        """As in ``Changes``, with ``touched``."""
        self.correlations: dict[str, str] = {}
        """Correlation ids of the events that last moved a sku, the latest CORRELATIONS_MAX of those that had one."""
        self._epochs: list[tuple[int, int, int]] = []

    # --- Filling, before anybody reads -------------------------------------------------------------------

    def load_policies(self, policies: PolicyState) -> None:
        """Take the policies that are not kept per sku. Raises ValueError for what cannot be applied."""
        changes = Changes()
        changes.add_nodes(policies.nodes)
        changes.add_channels(policies.channels)
        changes.add_stops(policies.stops)
        changes.add_kits(policies.kits)
        changes.add_feeds(policies.feeds)
        self.policies, _ = self.policies.changed(changes, self._number)

    def load_skus(self, skus: Sequence[SkuState]) -> None:
        """Take a page of skus, without overrides and stops. Raises ValueError or OverflowError for what is not
        applicable.
        """
        for sku in skus:
            if sku.fences:
                self.fences.load(self._number(sku.sku), sku.fences)
        positions = [position for sku in skus for position in sku.positions]
        if not positions:
            return
        self._see_nodes({position.node for position in positions})
        lengths = [len(sku.positions) for sku in skus]
        numbers = np.repeat(np.array([self._number(sku.sku) for sku in skus], np.int64), lengths)
        index = self.policies.nodes.index
        values = np.empty((len(positions), FIELDS), np.int64)
        values[:, 0] = [position.on_hand for position in positions]
        values[:, 1] = [position.quarantined for position in positions]
        values[:, 2] = [position.reserved for position in positions]
        values[:, 3] = [position.committed for position in positions]
        values[:, 4] = [position.safety_stock for position in positions]
        nodes = np.array([index[position.node] for position in positions], np.int64)
        self.positions.commit(self.positions.plan(numbers, nodes, values))

    def load_sku_policies(self, overrides: Iterable[OverrideState], stops: Iterable[StopState]) -> None:
        """Take overrides and stops of single skus, all pages at once; the pages were loaded before."""
        changes = Changes(seen_channels=self.fences.channels())
        changes.add_overrides(overrides)
        changes.add_stops(stops)
        if changes:
            self.policies, _ = self.policies.changed(changes, self._number)

    def materialise(self) -> None:
        """Compute every channel's answers; from here on ``prepare`` keeps them."""
        columns = {name: Column(len(self.names)) for name in self.policies.channels if self._has_own(name)}
        if self._settings.auto_create:
            self.shared = Column(len(self.names))
        self.own, self.columns = columns, dict(columns)
        for update in self._recomputed(Moved(everything=True), self.policies, None, {}):
            update.commit(self.counter, self._settings)
        self.known_since = (self.version.epoch, self.version.seq, self.counter)
        self._epochs = [self.known_since]

    def continue_from(self, old: State) -> set[str]:
        """Take over what watchers of the old memory know; return the channels that must start over.

        The old memory is not written any more, and this one not read yet.
        """
        self.open_shared(list(old.columns))
        pairs: dict[int, tuple[Column, Column]] = {}
        broken = set()
        for name, column in list(old.columns.items()):
            new = self.columns.get(name)
            if new is None or pairs.setdefault(id(new), (new, column))[1] is not column:
                broken.add(name)
        for new, column in pairs.values():
            new.continued(column, self.counter)
        return broken

    def open_shared(self, channels: Iterable[str]) -> None:
        """Let channels without a policy answer from the shared column; under auto_create only."""
        if self.shared is not None:
            for name in channels:
                self.columns.setdefault(name, self.shared)

    # --- Changing, record by record ----------------------------------------------------------------------

    def prepare(self, entries: Sequence[Entry]) -> Prepared:
        """Work out what consecutive, checked records change, folded into one recompute.

        Raises UnreadableRecord for one that cannot be decoded or applied; then nothing has changed.
        """
        positions: dict[tuple[str, str], PositionChange] = {}
        changes = Changes()
        fences = Changed(self.fences)
        correlations: dict[str, str] = {}
        at, epoch = entries[0], self.version.epoch
        epochs: list[tuple[int, int, int]] = []
        try:
            for number, at in enumerate(entries, start=1):
                if at.version.epoch != epoch:
                    epoch = at.version.epoch
                    epochs.append((epoch, at.version.seq, number))
                record = at.record()
                for position in record.positions:
                    positions[position.sku, position.node] = position
                if record.correlation_id or correlations or self.correlations:
                    correlations.update(
                        (position.sku, record.correlation_id) for position in record.positions
                    )
                body = _fold_body(record, changes, correlations)
                if record.fences or (body is not None and body.fences):
                    self._fold_fences(record, body, fences, changes)
            index = self.policies.nodes.index
            changes.seen_nodes.update(node for _, node in positions if node not in index)
            policies, moved = self.policies, Moved()
            if changes:
                policies, moved = policies.changed(changes, self._number)
            moved.skus.update(fences.by_sku)
            for (
                name
            ) in moved.channels:  # another N of a channel leaves others more or less to keep for its fences
                moved.skus.update(self.fences.of_channel(name))
            plan = self._planned(positions, policies, moved) if positions or moved.skus else None
        except (msgspec.DecodeError, ValueError, OverflowError, KeyError) as error:
            raise UnreadableRecord(at.version, f"{type(error).__name__}: {error}") from error
        opened = self._opened(policies, moved)
        return Prepared(
            version=entries[-1].version,
            chain=entries[-1].chain,
            records=len(entries),
            plan=plan,
            fences=fences.by_sku,
            policies=policies,
            updates=self._recomputed(moved, policies, plan, fences.by_sku, opened),
            opened=opened,
            uncovered=changes.uncovered,
            correlations=correlations,
            epochs=epochs,
        )

    def commit(self, prepared: Prepared) -> None:
        """Make a prepared batch visible. The caller holds the readers' lock."""
        self._epochs += [(epoch, seq, self.counter + number) for epoch, seq, number in prepared.epochs]
        del self._epochs[:-_EPOCHS_MAX]
        self.counter += prepared.records
        if prepared.plan is not None:
            self.positions.commit(prepared.plan)
            if self.touched is not None:
                self.touched.append(prepared.plan.rows.skus)
                self.uncovered |= prepared.uncovered
        self.fences.commit(prepared.fences)
        self.policies = prepared.policies
        self.own.update(prepared.opened)
        self.columns.update(prepared.opened)
        for update in prepared.updates:
            update.commit(self.counter, self._settings)
        for sku, correlation_id in prepared.correlations.items():
            self.correlations.pop(sku, None)
            if correlation_id:
                self.correlations[sku] = correlation_id
        while len(self.correlations) > CORRELATIONS_MAX:
            del self.correlations[next(iter(self.correlations))]
        self.version, self.chain = prepared.version, prepared.chain

    def counter_at(self, version: Version) -> int | None:
        """Return the counter of a version, or None for one that this memory cannot place."""
        if version > self.version:
            return None
        for epoch, seq, counter in reversed(self._epochs):
            if epoch == version.epoch and seq <= version.seq:
                found = counter + version.seq - seq
                return found if found <= self.counter else None
        return None

    def moved_since(self, counter: int) -> Ints:
        """Return the sku numbers whose answer changed in any channel after a counter, ascending."""
        columns = [*self.own.values(), *([self.shared] if self.shared else [])]
        return np.unique(
            np.concatenate([np.empty(0, np.int64), *(column.since(counter) for column in columns)])
        )

    def figures(self, sku: str) -> SkuFigures:
        """Return a sku's figures in memory, to be compared with the ledger's."""
        number = self.numbers.get(sku)
        if number is None:
            return SkuFigures((), (), (), ())
        rows = self.positions.rows(np.array([number]))
        names = self.policies.nodes.names
        channels = self.policies.channels.items()
        own = [
            channel.overrides.by_sku[number] for _, channel in channels if number in channel.overrides.by_sku
        ]
        stops = [name for name, channel in channels if number in channel.stops.by_sku]
        stops += [""] if number in self.policies.stops.by_sku else []
        pairs = zip(rows.nodes.tolist(), rows.values.tolist(), strict=True)
        return SkuFigures(
            tuple(sorted((names[node], *values) for node, values in pairs)),
            tuple(sorted(figures_of_override(override) for override in own)),
            tuple(sorted(stops)),
            figures_of_fences(self.fences.by_sku.get(number, ())),
        )

    def policy_figures(self) -> PolicyFigures:
        """Return the policies in memory, to be compared with the ledger's."""
        policies = self.policies
        channels = policies.channels.values()
        stops = [channel.stop for channel in channels if channel.stop is not None]
        return figures_of_policies(
            [node for node in policies.nodes.states if node is not None],
            [channel.state for channel in channels if channel.declared],
            stops,
            list(policies.kits.by_sku.values()),
            list(policies.nodes.feeds.values()),
        )

    def wrong_answer(self, numbers: Sequence[int]) -> str | None:
        """Compute the answers of some skus anew; return one that is not what is shown, or None."""
        moved = Moved(skus=set(numbers))
        for update in self._recomputed(moved, self.policies, None, {}) if numbers else ():
            return self.names[int(update.skus[0])]
        return None

    def spread(self, sku: str) -> tuple[Rows, FencesOfSku]:
        """Copy out what an answer about one sku is made of."""
        number = self.numbers.get(sku)
        numbers = np.array([] if number is None else [number], np.int64)
        return self.positions.rows(numbers), () if number is None else self.fences.by_sku.get(number, ())

    def kit(self, sku: str) -> KitState | None:
        """Return a kit's recipe, or None for a plain sku."""
        return self.policies.kits.by_sku.get(self.numbers[sku])

    @property
    def nbytes(self) -> int:
        columns = [*self.own.values(), *([self.shared] if self.shared else [])]
        return self.positions.nbytes + sum(column.nbytes for column in columns)

    # --- Inside ------------------------------------------------------------------------------------------

    def _number(self, sku: str) -> int:
        """Number a sku. Room first, name last: a reader may look it up at once and finds an unknown sku."""
        number = self.numbers.get(sku)
        if number is None:
            number = len(self.names)
            self.positions.reserve_skus(number + 1)
            for column in self.own.values():
                column.reserve(number + 1)
            if self.shared is not None:
                self.shared.reserve(number + 1)
            self.names.append(sku)
            self.numbers[sku] = number
        return number

    def _see_nodes(self, nodes: set[str]) -> None:
        new = nodes.difference(self.policies.nodes.index)
        if new:
            self.policies, _ = self.policies.changed(Changes(seen_nodes=new), self._number)

    def _fold_fences(
        self, record: Record, body: PolicyBody | None, fences: Changed, changes: Changes
    ) -> None:
        """Fold what a record says of ring-fences; a policy sets them, a grant or its end moves what is left."""
        for fence in body.fences if body is not None else ():
            fences.set(self._number(fence.sku), fence)
        for left in record.fences:
            fences.left(self._number(left.sku), left)
        named = (*(body.fences if body is not None else ()), *record.fences)
        known = self.policies.channels
        changes.seen_channels.update(fence.channel for fence in named if fence.channel not in known)

    def _has_own(self, name: str) -> bool:
        return self._settings.auto_create or self.policies.channels[name].declared

    def _opened(self, policies: Policies, moved: Moved) -> dict[str, Column]:
        """Make columns for channels that got a policy of their own; all their skus may move."""
        opened: dict[str, Column] = {}
        if self.known_since is None or policies is self.policies:  # nobody reads yet: materialise comes later
            return opened
        for name, channel in policies.channels.items():
            if name not in self.own and (channel.declared or self._settings.auto_create):
                before = self.columns.get(name)
                opened[name] = before.copied() if before else Column(len(self.names))
                moved.channels.add(name)
        return opened

    def _planned(
        self, positions: dict[tuple[str, str], PositionChange], policies: Policies, moved: Moved
    ) -> Plan | None:
        moved.skus.update(self._number(sku) for sku, _ in positions)
        if not positions:
            return None
        index = policies.nodes.index
        latest = positions.values()
        return self.positions.plan(
            np.array([self.numbers[sku] for sku, _ in positions], np.int64),
            np.array([index[node] for _, node in positions], np.int64),
            np.array(
                [(p.on_hand, p.quarantined, p.reserved, p.committed, p.safety_stock) for p in latest],
                np.int64,
            ),
        )

    def _recomputed(
        self,
        moved: Moved,
        policies: Policies,
        plan: Plan | None,
        fences: Mapping[int, FencesOfSku],
        opened: dict[str, Column] | None = None,
    ) -> list[Update]:
        """Compute the answers of all that may have moved: the touched skus everywhere, and whole channels."""
        columns = [
            (policies.channel(name), column) for name, column in {**self.own, **(opened or {})}.items()
        ]
        if self.shared is not None:
            columns.append((policies.default, self.shared))
        if not columns:
            return []
        updates: list[Update] = []
        touched = np.sort(np.fromiter(moved.skus, np.int64, len(moved.skus)))
        whole = [pair for pair in columns if moved.everything or pair[0].state.channel in moved.channels]
        if whole:
            for skus in self.positions.chunks(len(self.names), self._settings.chunk_rows):
                # Of touched skus the rows here are those of before: they come below.
                rest = skus[~contains(touched, skus)] if touched.size else skus
                updates += self._answers(rest, policies, whole, None, fences)
        if touched.size:
            updates += self._answers(touched, policies, columns, plan, fences)
        if policies.kits.skus.size:
            near = policies.kits.near(touched)
            if near.size:
                every = {id(column) for _, column in whole}
                rest_of = [pair for pair in columns if id(pair[1]) not in every]
                updates += _kit_answers(near, policies, rest_of, updates)
            updates += _kit_answers(policies.kits.skus, policies, whole, updates)
        return updates

    def _answers(
        self,
        skus: Ints,
        policies: Policies,
        columns: list[tuple[Channel, Column]],
        plan: Plan | None,
        fences: Mapping[int, FencesOfSku],
    ) -> list[Update]:
        """Compute the answers of plain skus, given sorted; ``fences`` are those that change."""
        if plan is None:
            parts = [self.positions.rows(skus)]
        else:
            parts = [plan.rows]
            if plan.rows.skus.size < skus.size:
                parts.append(self.positions.rows(skus[~contains(plan.rows.skus, skus)]))
        updates = []
        for rows in parts:
            terms = shared_terms(rows, policies, self._fences_of(rows.skus, fences))
            kits = contains(policies.kits.skus, rows.skus) if policies.kits.skus.size else None
            for channel, column in columns:
                packed = packed_answers(terms, channel)
                differs = packed != column.packed[rows.skus]
                if kits is not None:
                    differs &= ~kits
                if differs.any():
                    threshold = channel.state.low_stock_threshold
                    updates.append(
                        Update(
                            column=column,
                            skus=rows.skus[differs],
                            packed=packed[differs],
                            threshold=threshold,
                        )
                    )
        return updates

    def _fences_of(self, skus: Ints, changed: Mapping[int, FencesOfSku]) -> Mapping[int, FencesOfSku]:
        """Return the fences of some skus as they will be; of a ledger without fences none, at no cost."""
        kept = self.fences.by_sku
        if not kept and not changed:
            return kept
        if skus.size <= len(kept):
            numbers = skus.tolist()
        else:
            fenced = np.fromiter(kept.keys() | changed.keys(), np.int64)
            numbers = fenced[contains(skus, fenced)].tolist()
        found = {number: changed.get(number, kept.get(number, ())) for number in numbers}
        return {number: fences for number, fences in found.items() if fences}


def _kit_answers(
    kits: Ints, policies: Policies, columns: list[tuple[Channel, Column]], updates: Sequence[Update]
) -> list[Update]:
    """Compute the answers of some kits from those of their parts, of which ``updates`` are not written yet."""
    found = []
    for channel, column in columns:
        newer = [(update.skus, update.packed) for update in updates if update.column is column]
        packed = packed_kits(kits, policies, channel, overlaid(column.packed, newer))
        differs = packed != column.packed[kits]
        if differs.any():
            threshold = channel.state.low_stock_threshold
            found.append(
                Update(column=column, skus=kits[differs], packed=packed[differs], threshold=threshold)
            )
    return found


def _fold_body(record: Record, changes: Changes, correlations: dict[str, str]) -> PolicyBody | None:
    """Fold what a record says besides positions and fences; return the body of a policy change.

    Holds and orders are not the replica's business.
    """
    if record.kind not in BODIES:
        raise ValueError(f"a record of kind {record.kind}, which this version does not know")
    if record.kind == Kind.POLICY:
        body: PolicyBody = decode_body(record)
        changes.add(body)
        return body
    if record.kind == Kind.DELTAS:
        deltas: DeltasBody = decode_body(record)
        changes.add_nodes(deltas.declared)
        changes.uncovered.update(sku for sku, _ in deltas.oversold)
        for cause in deltas.causes:
            if cause.correlation_id:
                correlations[cause.sku] = cause.correlation_id
    elif record.kind == Kind.FEED:
        feed: FeedBody = decode_body(record)
        changes.add_silence(feed.source, feed.node, feed.stale)
    return None
