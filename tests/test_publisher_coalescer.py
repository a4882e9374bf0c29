"""The coalescer: one entry a sku, never twice under way, the latest number wins, the urgent first."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from publisher.coalescer import Coalescer, Lane, Taken

SKUS = ("a", "b", "c", "d", "e")
QUANTITIES = st.sampled_from([0, 1, 2, 3])


class Deliveries(RuleBasedStateMachine):
    """A shop and a ledger around a coalescer; the shop may do, not do, or half do what it is told."""

    @initialize(skip_equal=st.booleans())
    def start(self, skip_equal: bool) -> None:
        self.skip_equal = skip_equal
        self.coalescer = Coalescer(skip_equal=skip_equal)
        self.ledger: dict[str, int] = {}
        self.shop: dict[str, int] = {}
        self.under_way: dict[str, Taken] = {}
        self.now = 1_000.0
        self.version = 0
        self.dead: set[str] = set()
        self.asked: dict[str, float] = {}

    @rule(sku=st.sampled_from(SKUS), quantity=QUANTITIES, blocked=st.booleans())
    def ledger_says(self, sku: str, quantity: int, blocked: bool) -> None:
        self.version += 1
        self.now += 0.1
        self.ledger[sku] = quantity
        self.dead.discard(sku)
        self.coalescer.offer(sku, quantity, f"1-{self.version}", self.now, blocked=blocked)

    @rule(items=st.integers(1, 4))
    def take(self, items: int) -> None:
        waiting = self.coalescer.ready()
        taken = self.coalescer.take(items, self.now)
        assert len(taken) >= min(items, waiting)
        for one in taken:
            assert one.sku not in self.under_way, "twice under way"
            assert one.quantity == self.ledger[one.sku], "the latest number is the one that goes"
            self.under_way[one.sku] = one
        assert [one.lane for one in taken] == sorted(one.lane for one in taken)

    @precondition(lambda self: self.under_way)
    @rule(
        data=st.data(), what=st.sampled_from(["written", "refused", "lost", "lost but done", "unreachable"])
    )
    def answer(self, data: st.DataObject, what: str) -> None:
        sku = data.draw(st.sampled_from(sorted(self.under_way)))
        taken = self.under_way.pop(sku)
        later = self.now + 1.0
        if what == "written" or (taken.read_first and self.shop.get(sku) == taken.quantity):
            self.shop[sku] = taken.quantity
            self.coalescer.written(taken, taken.quantity)
        elif what == "refused":
            if self.coalescer.drop(taken):
                self.dead.add(sku)
        elif what == "unreachable":
            self.coalescer.again(taken, later, count=False, forced=False)
        else:
            if what == "lost but done":
                self.shop[sku] = taken.quantity
            self.coalescer.again(taken, later, unknown=True)

    @rule(seconds=st.sampled_from([0.1, 0.5, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(sku=st.sampled_from(SKUS))
    def somebody_asks(self, sku: str) -> None:
        if sku in self.ledger:
            self.coalescer.force(sku, self.ledger[sku], f"1-{self.version}", self.now, read_first=True)
            self.dead.discard(sku)

    @rule()
    def everything_arrives(self) -> None:
        """At quiet the shop shows the ledger's latest of every sku that is no dead letter."""
        for taken in list(self.under_way.values()):
            self.shop[taken.sku] = taken.quantity
            self.coalescer.written(taken, taken.quantity)
        self.under_way.clear()
        while len(self.coalescer):
            self.now = max(self.now, self.coalescer.next_at() or 0.0)
            taken_now = self.coalescer.take(3, self.now)
            assert taken_now, "an entry that nobody can take"
            for taken in taken_now:
                self.shop[taken.sku] = taken.quantity
                self.coalescer.written(taken, taken.quantity)
        for sku, quantity in self.ledger.items():
            if sku not in self.dead:
                assert self.shop.get(sku) == quantity
        assert self.coalescer.next_at() is None
        assert self.coalescer.oldest_since() is None

    @invariant()
    def one_entry_a_sku(self) -> None:
        if hasattr(self, "coalescer"):
            assert len(self.coalescer) <= len(self.ledger)
            assert self.coalescer.ready() <= len(self.coalescer)


Deliveries.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestDeliveries = Deliveries.TestCase


def test_the_urgent_go_first() -> None:
    """Stop-sales, then what sells out, then what comes back, then the rest; the longest waiting first within each."""
    coalescer = Coalescer(skip_equal=True)
    for sku, acked in (("more", 5), ("less", 5), ("back", 0), ("out", 5), ("stopped", 5)):
        coalescer.learn(sku, acked)
    coalescer.offer("more", 9, "1-1", 1.0)
    coalescer.offer("less", 3, "1-2", 2.0)
    coalescer.offer("back", 1, "1-3", 3.0)
    coalescer.offer("out", 0, "1-4", 4.0)
    coalescer.offer("stopped", 0, "1-5", 5.0, blocked=True)
    assert [one.sku for one in coalescer.take(10, 6.0)] == ["stopped", "out", "back", "more", "less"]


def test_a_number_that_becomes_urgent_moves_up() -> None:
    """A change that waits goes first once it says that nothing is left."""
    coalescer = Coalescer(skip_equal=True)
    for sku in ("a", "b"):
        coalescer.learn(sku, 5)
        coalescer.offer(sku, 4, "1-1", 1.0)
    coalescer.offer("b", 0, "1-2", 2.0)
    first = coalescer.take(1, 3.0)[0]
    assert (first.sku, first.lane, first.since) == ("b", Lane.OUT_OF_STOCK, 1.0)


def test_a_number_that_went_back_is_not_written() -> None:
    """What the shop shows already costs no write, in Owner mode."""
    coalescer = Coalescer(skip_equal=True)
    coalescer.learn("a", 5)
    assert coalescer.offer("a", 4, "1-1", 1.0)
    assert not coalescer.offer("a", 5, "1-2", 2.0)
    assert len(coalescer) == 0
    mirror = Coalescer(skip_equal=False)
    mirror.learn("a", 5)
    assert mirror.offer("a", 5, "1-1", 1.0), "the shop may have sold meanwhile: only its own number tells"


def test_after_an_unknown_outcome_nothing_is_skipped() -> None:
    """The number that was acknowledged before may be gone: it is written again even if the ledger returns to it."""
    coalescer = Coalescer(skip_equal=True)
    coalescer.learn("a", 5)
    coalescer.offer("a", 4, "1-1", 1.0)
    taken = coalescer.take(1, 1.0)[0]
    coalescer.again(taken, 2.0, unknown=True)
    assert coalescer.offer("a", 5, "1-2", 1.5)
    again = coalescer.take(1, 3.0)[0]
    assert (again.quantity, again.read_first, again.acked) == (5, True, None)


def test_what_is_heard_while_under_way_waits_its_turn() -> None:
    """A sku under way is not taken again; its lag then counts from what was heard meanwhile."""
    coalescer = Coalescer(skip_equal=True)
    coalescer.offer("a", 4, "1-1", 1.0)
    taken = coalescer.take(1, 1.0)[0]
    coalescer.offer("a", 3, "1-2", 2.0)
    coalescer.offer("a", 2, "1-3", 3.0)
    assert coalescer.take(1, 4.0) == []
    assert not coalescer.written(taken, 4)
    then = coalescer.take(1, 5.0)[0]
    assert (then.quantity, then.version, then.since) == (2, "1-3", 2.0)


def test_held_numbers_wait_for_an_operator() -> None:
    """A held number is not taken until it is released, or until the ledger says another one."""
    coalescer = Coalescer(skip_equal=True)
    coalescer.learn("a", 5)
    coalescer.offer("a", 0, "1-1", 1.0)
    coalescer.hold(coalescer.take(1, 1.0)[0])
    coalescer.offer("a", 0, "1-2", 2.0)
    assert coalescer.take(1, 9.0) == []
    assert coalescer.release() == 1
    coalescer.hold(coalescer.take(1, 9.0)[0])
    coalescer.offer("a", 7, "1-3", 10.0)
    assert [one.quantity for one in coalescer.take(1, 10.0)] == [7]


@given(st.lists(st.tuples(st.sampled_from(SKUS), QUANTITIES), max_size=400))
def test_waiting_work_never_grows_past_the_skus(changes: list[tuple[str, int]]) -> None:
    """Nobody takes anything, and some wait for a time: memory stays one entry a sku, in the heap as well."""
    coalescer = Coalescer(skip_equal=True)
    coalescer.offer("a", 9, "1-0", 0.0)
    coalescer.again(coalescer.take(1, 0.0)[0], 1e9)
    for number, (sku, quantity) in enumerate(changes):
        coalescer.offer(sku, quantity, f"1-{number}", float(number))
    assert len(coalescer) <= len(SKUS)
    assert len(coalescer._later) == 1


def test_a_number_that_was_replaced_and_comes_back_while_under_way_is_written() -> None:
    """Mirror takes 58, orders make it 57, 57 is written; the ledger went on to 58 meanwhile: that is news."""
    coalescer = Coalescer(skip_equal=False)
    coalescer.offer("a", 58, "1-1", 0.0)
    (taken,) = coalescer.take(1, 0.0)
    coalescer.offer("a", 57, "1-2", 1.0)
    coalescer.offer("a", 58, "1-3", 2.0)
    assert not coalescer.written(taken, 57)
    (again,) = coalescer.take(1, 3.0)
    assert (again.quantity, again.acked) == (58, 57)
    assert coalescer.written(again, 57), (
        "nothing was heard since: the number that replaced it is the newer one"
    )
    assert "a" not in coalescer


def test_zeros_that_wait_are_known_without_the_stop_sales() -> None:
    """What the guard counts: numbers of 0 that nobody asked for by name."""
    coalescer = Coalescer(skip_equal=False)
    coalescer.offer("a", 0, "1-1", 0.0)
    coalescer.offer("b", 0, "1-1", 0.0, blocked=True)
    coalescer.offer("c", 4, "1-1", 0.0)
    assert coalescer.zeros() == ["a"]
