"""Deltas, one at a time."""

from __future__ import annotations

from tests.model.facts import Order, Word
from tests.model.state import Node
from tests.model.supply import Supply
from tests.model.told import ORDER_TYPES, STOCK_TYPES, SUPPLY_TYPES, Delta, names_linked
from tests.model.totals import add, by_name

QUANTITY_MAX = 1_000_000_000
ORDER_NAMES_MAX = 16


class Deltas(Supply):
    """Judges a delta, then lets it change stock or an order."""

    def apply_delta(self, delta: Delta, *, source: str = "") -> tuple[str, str]:
        """Apply one delta of a request of `source`: (result, reason where REJECTED)."""
        result, reason = self._apply_delta(delta, source)
        if result not in ("REJECTED", "PARKED") and (delta.source, delta.node) in self.feeds:
            self.feeds[delta.source, delta.node] = False
        return result, reason

    def _apply_delta(self, delta: Delta, source: str) -> tuple[str, str]:
        if source and source != delta.source:
            return "REJECTED", "SOURCE_MISMATCH"
        if delta.source_sequence:
            stream = (delta.source, delta.stream)
            mark = self.marks.get(stream)
            if mark is not None and delta.source_sequence <= mark:
                return "DUPLICATE", ""
            if mark is not None and delta.source_sequence > mark + 1:
                return "PARKED", ""
            self.marks[stream] = delta.source_sequence
        elif (delta.source, delta.event_id) in self.events:
            known = self.events[delta.source, delta.event_id]
            return ("DUPLICATE", "") if known == delta else ("REJECTED", "CONFLICT")
        self._arrived += 1
        reason = self._problem(delta)
        if reason:
            return "REJECTED", reason
        if not delta.source_sequence:
            self.events[delta.source, delta.event_id] = delta
        if delta.node:
            self.nodes.setdefault(delta.node, Node())
        if delta.type == "TRANSFER_OUT":
            self.nodes.setdefault(delta.to_node, Node())
        if delta.type in STOCK_TYPES:
            self._apply_stock(delta)
            return "APPLIED", ""
        if delta.type == "SET_ON_HAND":
            return ("APPLIED", "") if self._count(delta) else ("STALE", "")
        if delta.type == "EXPECTED":
            return ("APPLIED", "") if self._expect(delta) else ("STALE", "")
        return self._apply_order(delta), ""

    def _problem(self, delta: Delta) -> str:
        """Say why a delta cannot be applied, or nothing."""
        if delta.type not in STOCK_TYPES | ORDER_TYPES | SUPPLY_TYPES | {"LINK_ORDER"}:
            return "INVALID_REQUEST"
        if delta.type == "LINK_ORDER":
            return self._link_problem(delta)
        if delta.open_basis and delta.shipped_quantity is None:
            return "SHIPPED_QUANTITY_REQUIRED"
        signed = delta.type in ("ADJUSTMENT", "SHIPMENT")
        absolute = delta.type in ORDER_TYPES | SUPPLY_TYPES
        if abs(delta.quantity) > QUANTITY_MAX or (delta.quantity == 0 and not absolute):
            return "INVALID_QUANTITY"
        if delta.quantity < 0 and not signed:
            return "INVALID_QUANTITY"
        whole_cancel = delta.type == "ORDER_CANCELLED" and not delta.sku and not delta.line
        quarantines = delta.type in ("QUARANTINE", "QUARANTINE_RELEASE", "WRITE_OFF") or delta.quarantined
        incomplete = (
            (not delta.sku and not whole_cancel)
            or (not delta.node and delta.type in STOCK_TYPES | SUPPLY_TYPES | {"ORDER_ALLOCATED"})
            or (not delta.order_ref and delta.type in ORDER_TYPES)
            or (delta.type == "TRANSFER_OUT" and delta.to_node in ("", delta.node))
            or (not delta.reason and quarantines)
        )
        if incomplete:
            return "INVALID_REQUEST"
        if delta.sku in self.kits:
            return "KIT_SKU"
        if delta.node and delta.node not in self.nodes and not self.auto_create:
            return "UNKNOWN_NODE"
        position = self.positions.get(delta.sku, {}).get(delta.node)
        if delta.type == "SET_ON_HAND" and position and position.count is None and not self.recalls:
            count = self._moment(delta, delta.quantity)
            own_stream = all(change.stream == count.stream for change in position.changes)
            own_stream = own_stream and count.stream is not None
            if not own_stream and any(change.key[0] > count.key[0] for change in position.changes):
                return "POINT_TOO_OLD"
        return ""

    def _link_problem(self, delta: Delta) -> str:
        """Say why two names cannot be one order: a link joins two orders, and a source names an order once."""
        if delta.quantity not in (0, 1):
            return "INVALID_QUANTITY"
        pair = names_linked(delta)
        if pair[0] == pair[1]:
            return "INVALID_REQUEST"
        latest = self.links.get(frozenset(pair))
        if not delta.quantity or (latest and (latest.quantity or delta.key() < latest.key)):
            return ""
        ours, theirs = self.names_of(pair[0]), self.names_of(pair[1])
        if len(ours) + len(theirs) > ORDER_NAMES_MAX:
            return "TOO_MANY_NAMES"
        if {*ours} & {*theirs}:
            return "LINK_CYCLE"
        if {source for source, _ in ours} & {source for source, _ in theirs}:
            return "LINK_CONFLICT"
        return ""

    def _apply_stock(self, delta: Delta) -> None:
        position = self._position(delta.sku, delta.node)
        quantity = delta.quantity
        if delta.type in ("RECEIPT", "ADJUSTMENT", "RETURN_RECEIVED", "TRANSFER_IN"):
            self._change_on_hand(position, delta, quantity)
        if delta.type in ("SHIPMENT", "WRITE_OFF", "TRANSFER_OUT"):
            self._change_on_hand(position, delta, -quantity)
        self._move_expected(delta)
        if delta.type == "QUARANTINE" or (delta.type == "RECEIPT" and delta.reason) or delta.quarantined:
            add(position.quarantined, delta.reason, quantity)
        if delta.type in ("QUARANTINE_RELEASE", "WRITE_OFF"):
            add(position.quarantined, delta.reason, -quantity)
        if delta.type == "RETURN_RECEIVED":
            add(position.quarantined, "return", quantity)
        if delta.type in ("SHIPMENT", "TRANSFER_OUT") and delta.order_ref:
            name = (delta.order_source or delta.source, delta.order_ref)
            order = self.orders.setdefault(name, Order())
            add(order.shipped.setdefault((delta.line, delta.sku), {}), delta.node, quantity)
            self._settle(name, delta.sku)

    def _apply_order(self, delta: Delta) -> str:
        if delta.type == "LINK_ORDER":
            return self._link(*names_linked(delta), Word(delta.key(), delta.quantity))
        name = (delta.order_source or delta.source, delta.order_ref)
        order = self.orders.setdefault(name, Order())
        cell = (delta.line, delta.sku)
        quantity = 0 if delta.type == "ORDER_CANCELLED" else delta.quantity
        if delta.type == "ORDER_ALLOCATED" and delta.open_basis:
            quantity += delta.shipped_quantity or 0
        word = Word(delta.key(), quantity, delta.node)
        if delta.type == "ORDER_CANCELLED" and not delta.sku:
            if order.cancelled is not None and word.key < order.cancelled:
                return "STALE"
            order.cancelled = word.key
            self._release_carried(name, "")
            for sku in by_name(self.whole(name).skus()):
                self._settle(name, sku)
            return "APPLIED"
        if delta.type == "ORDER_CANCELLED" and not delta.line:
            told = order.cancelled_skus.get(delta.sku)
            if told is not None and word.key < told:
                return "STALE"
            # Kept even where every line known so far was ordered again later: another may come with an older word.
            order.cancelled_skus[delta.sku] = word.key
            whole = self.whole(name)
            lines = {
                line
                for facts in (whole.words, whole.allocated, whole.shipped)
                for line, sku in facts
                if sku == delta.sku
            }
            lines |= {""} if whole.sourced.get(delta.sku) else set()
            words = [whole.words.get((line, delta.sku)) for line in lines]
            if words and all(latest is not None and word.key < latest.key for latest in words):
                return "STALE"
            self._release_carried(name, delta.sku)
            self._settle(name, delta.sku)
            return "APPLIED"
        if delta.type == "ORDER_ALLOCATED":
            latest = order.allocated.get(cell, {}).get(delta.node)
        else:
            latest = order.words.get(cell)
        if latest is not None and word.key < latest.key:
            return "STALE"
        if delta.type == "ORDER_ALLOCATED":
            order.allocated.setdefault(cell, {})[delta.node] = word
        else:
            order.words[cell] = word
        if delta.type == "ORDER_CANCELLED":
            self._release_carried(name, delta.sku)
        self._settle(name, delta.sku)
        return "APPLIED"
