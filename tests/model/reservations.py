"""The calls about reservations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from tests.model.facts import Order
from tests.model.orders import Orders
from tests.model.state import Hold
from tests.model.told import Changed, Granted, Lines, OrderName, Part, Refusal
from tests.model.totals import add, add_up

T = TypeVar("T", Granted, Changed)


class Reservations(Orders):
    """Reserve, extend, commit, release; each request is decided once."""

    def reserve(
        self,
        request_id: str,
        channel: str,
        lines: Lines,
        *,
        hold_ms: int = 60_000,
        order_source: str = "",
        order_ref: str = "",
        allow_partial: bool = False,
        node: str = "",
        reservation_id: str = "",
    ) -> Granted:
        """Hold all lines or nothing, or with allow_partial what there is. The test names it."""

        def decide() -> Granted:
            self.policy(channel)
            if node and node not in self.nodes:
                raise Refusal("UNKNOWN_NODE")
            if node and node not in self.channel_nodes(channel):
                raise Refusal("INVALID_REQUEST")
            wanted = add_up(lines)
            granted, shortages = self._serve(channel, wanted, node)
            if not any(granted.values()) or (shortages and not allow_partial):
                return Granted("INSUFFICIENT_STOCK", shortages=shortages)
            order = (order_source or channel, order_ref) if order_ref else None
            hold = Hold(channel, order_source, order, node, {})
            units: dict[Part, int] = {}
            for name, count in granted.items():
                if name in self.kits and count:
                    hold.kits[name] = (count, self.recipe(name))
                for sku, each in self.recipe(name).items():
                    units[sku, name if name in self.kits else ""] = each * count
            hold.lines = self._source_all(channel, {part: n for part, n in units.items() if n}, node)
            self.holds[reservation_id] = hold
            self._take_fenced(reservation_id)
            self._carrying.setdefault(self._owner(reservation_id), []).append(reservation_id)
            self._count_held(self._owner(reservation_id), hold.skus())
            return Granted("PARTIAL" if shortages else "RESERVED", reservation_id, shortages)

        content = ("reserve", channel, tuple(lines), hold_ms, order_source, order_ref, allow_partial, node)
        return self._once(request_id, content, decide)

    def extend(self, request_id: str, reservation_id: str, *, hold_ms: int = 60_000) -> Changed:
        def decide() -> Changed:
            return Changed(self._active(reservation_id).state)

        return self._once(request_id, ("extend", reservation_id, hold_ms), decide)

    def commit(
        self, request_id: str, reservation_id: str, *, order_source: str = "", order_ref: str = ""
    ) -> Changed:
        """Turn a hold into what our commits put where; an expired one is reserved anew, or refused."""

        def decide() -> Changed:
            hold = self._find(reservation_id)
            name = self._order_of_commit(hold, order_source, order_ref)
            if hold.state == "COMMITTED" and hold.order == name:
                return Changed("COMMITTED", replayed=True)
            if hold.state == "RELEASED" and hold.order == name and self.whole(name).is_cancelled():
                return Changed("RELEASED", order_cancelled=True)  # the cancel let go of it before
            if hold.state in ("COMMITTED", "RELEASED"):
                raise Refusal("RESERVATION_NOT_ACTIVE")
            if hold.state == "EXPIRED":
                for sku in hold.skus():
                    if hold.units(sku) > self.grantable(hold.channel, sku, hold.node):
                        raise Refusal("RESERVATION_EXPIRED")
                wanted = {part: hold.quantity(*part) for part in hold.lines}
                hold.lines = self._source_all(hold.channel, wanted, hold.node)
                self._take_fenced(reservation_id)
            self._end(reservation_id, "COMMITTED")
            hold.order_source, hold.order = name[0], name
            order = self.orders.setdefault(name, Order())
            order.channel = order.channel or hold.channel
            order.remember_kits(hold.kits)
            for (sku, _), sources in hold.lines.items():
                for source in sources:
                    add(order.sourced.setdefault(sku, {}), source.node, source.quantity)
            for sku in hold.skus():
                self._settle(name, sku)
            return Changed("COMMITTED", order_cancelled=self.whole(name).is_cancelled())

        return self._once(request_id, ("commit", reservation_id, order_source, order_ref), decide)

    def release(self, request_id: str, reservation_id: str, lines: Lines = ()) -> Changed:
        """Give back everything, or the named units: oversold first, then in reverse order of sourcing."""

        def decide() -> Changed:
            hold = self._active(reservation_id)
            back = add_up(lines)
            units: dict[Part, int] = {}
            for name, quantity in back.items():
                if name in hold.kits:  # whole kits; a part that the order cancelled is not there any more
                    count, recipe = hold.kits[name]
                    if quantity > count:
                        raise Refusal("INVALID_REQUEST")
                    units |= {
                        (sku, name): n * quantity for sku, n in recipe.items() if (sku, name) in hold.lines
                    }
                elif quantity > hold.quantity(name):
                    raise Refusal("INVALID_REQUEST")
                else:
                    units[name, ""] = quantity
            if not back or all(units.get(part) == hold.quantity(*part) for part in hold.lines):
                self._end(reservation_id, "RELEASED")
                return Changed("RELEASED")
            for name in set(back) & set(hold.kits):
                hold.kits[name] = (hold.kits[name][0] - back[name], hold.kits[name][1])
            hold.kits = {kit: left for kit, left in hold.kits.items() if left[0]}
            for part, quantity in units.items():
                self._give_back(hold.lines, part, quantity)
                self._return_fenced(hold, part, hold.quantity(*part))
            self._count_held(self._owner(reservation_id), {sku for sku, _ in units})
            return Changed("ACTIVE")

        return self._once(request_id, ("release", reservation_id, tuple(lines)), decide)

    def expire(self, reservation_id: str) -> None:
        """End an ACTIVE hold, because its deadline passed and a ledger event said so."""
        if self.holds[reservation_id].state == "ACTIVE":
            self._end(reservation_id, "EXPIRED")

    def _once(self, request_id: str, content: object, decide: Callable[[], T]) -> T:
        """Decide a request once: the same content gets the first outcome, refusals too."""
        if request_id in self.requests:
            known, outcome = self.requests[request_id]
            if known != content:
                raise Refusal("REQUEST_ID_REUSED")
            if isinstance(outcome, Refusal):
                raise outcome
            return replace(outcome, replayed=True)  # type: ignore[return-value]  # equal content, equal type
        try:
            answer = decide()
        except Refusal as refusal:
            self.requests[request_id] = (content, refusal)
            raise
        self.requests[request_id] = (content, answer)
        return answer

    def _find(self, reservation_id: str) -> Hold:
        if reservation_id not in self.holds:
            raise Refusal("RESERVATION_NOT_FOUND")
        return self.holds[reservation_id]

    def _active(self, reservation_id: str) -> Hold:
        hold = self._find(reservation_id)
        if hold.state == "EXPIRED":
            raise Refusal("RESERVATION_EXPIRED")
        if hold.state != "ACTIVE":
            raise Refusal("RESERVATION_NOT_ACTIVE")
        return hold

    def _order_of_commit(self, hold: Hold, order_source: str, order_ref: str) -> OrderName:
        source = order_source or hold.order_source or hold.channel
        ref = order_ref or (hold.order[1] if hold.order else "")
        if not ref:
            raise Refusal("INVALID_REQUEST")
        return source, ref
