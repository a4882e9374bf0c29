"""The same facts about an order, in any order and more than once, end alike, in model and ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any  # a fact's fields

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from tests.conftest import Server, fresh_names, serving
from tests.model import Delta, Model, Policy, Units
from tests.wire import Service

BASE_US = (int(time.time()) - 3600) * 1_000_000
NODES = ("a", "b", "c")
SHUFFLES = 6

nodes = st.sampled_from(NODES)
lines = st.sampled_from(["", "", "", "1", "2"])
moments = st.integers(1, 3)


@dataclass(frozen=True)
class Fact:
    """One thing that somebody says of the order. COMMIT is our own checkout's."""

    type: str
    quantity: int = 0
    node: str = ""
    line: str = ""
    moment: int = 1
    whole: bool = False


words = st.builds(
    Fact,
    type=st.sampled_from(["ORDER_PLACED", "ORDER_CHANGED"]),
    quantity=st.integers(0, 6),
    line=lines,
    moment=moments,
)
cancels = st.builds(
    Fact,
    type=st.just("ORDER_CANCELLED"),
    line=lines,
    moment=moments,
    whole=st.sampled_from([True, True, False]),
)
allocations = st.builds(
    Fact, type=st.just("ORDER_ALLOCATED"), quantity=st.integers(0, 5), node=nodes, line=lines, moment=moments
)
shipments = st.builds(
    Fact, type=st.just("SHIPMENT"), quantity=st.sampled_from([-2, -1, 1, 2, 3, 4]), node=nodes, line=lines
)
commits = st.builds(Fact, type=st.just("COMMIT"), quantity=st.integers(1, 4), node=nodes)
facts_of_an_order = st.lists(
    st.one_of(commits, words, allocations, shipments, cancels), min_size=1, max_size=7
)


@dataclass
class Telling:
    """One order's facts told in one sequence, to the model and (where there is one) the service."""

    model: Model
    service: Service | None
    names: Any  # tests.conftest.Names
    number: str

    def tell(self, facts: list[Fact], sequence: list[int], left: int) -> tuple[Units, Units, bool]:
        """Tell them; answer what model and service commit, and whether any node was a free choice."""
        sku, source = self.names.sku(self.number), self.names.id(f"erp{self.number}")
        both: list[Any] = [self.model, self.service] if self.service else [self.model]
        holds: dict[int, str] = {}
        for node in NODES:
            self.apply(
                Delta(source=source, type="RECEIPT", event_id=f"in {node}", sku=sku, node=node, quantity=30)
            )
        for place, fact in enumerate(facts):
            if fact.type == "COMMIT":
                holds[place] = self.reserve(f"{self.number} {place}", sku, fact)
        for node in NODES:
            self.apply(
                Delta(
                    source=source,
                    type="ADJUSTMENT",
                    event_id=f"out {node}",
                    sku=sku,
                    node=node,
                    quantity=left - 30,
                )
            )
        order = {"order_source": source, "order_ref": "1"}
        for step, place in enumerate(sequence):
            fact = facts[place]
            if fact.type == "COMMIT":
                for one in both:
                    one.commit(self.names.id(f"c{self.number} {step}"), holds[place], **order)
                continue
            self.apply(
                Delta(
                    source=source,
                    type=fact.type,
                    event_id=f"fact {place}",
                    sku="" if fact.whole else sku,
                    line="" if fact.whole else fact.line,
                    node=fact.node,
                    quantity=fact.quantity,
                    occurred_us=BASE_US + fact.moment * 1_000_000,
                    **order,
                )
            )
        facts_kept = self.model.orders[source, "1"]
        free_choice = any(placed for (of, _), placed in facts_kept.auto.items() if of == sku)
        return self.model.order_committed((source, "1"), sku), self.committed(source), free_choice

    def reserve(self, name: str, sku: str, fact: Fact) -> str:
        request = (self.names.id(f"r{name}"), self.names.channel(), [(sku, fact.quantity)])
        made = self.service.reserve(*request, node=fact.node).reservation_id if self.service else name
        mine = self.model.reserve(*request, node=fact.node, reservation_id=made)
        assert mine.outcome == "RESERVED"
        assert made
        return made

    def apply(self, delta: Delta) -> None:
        mine = self.model.apply_delta(delta)
        if self.service:
            assert self.service.apply_delta(delta)[0] == mine[0], str(delta)

    def committed(self, source: str) -> Units:
        units: Units = {}
        if self.service:
            for line in self.service.get_order(source, "1").lines:
                for node in line.nodes:
                    units[node.node] = units.get(node.node, 0) + node.committed
        return {node: n for node, n in units.items() if n}


def same_end(service: Service | None, facts: list[Fact], sequences: list[list[int]], left: int) -> None:
    """Tell the facts in each sequence and compare the ends."""
    names = fresh_names()
    model = Model()
    for one in (model, service):
        if one:
            for node in NODES:
                one.set_node(node, online=True)
            one.set_channel(names.channel(), Policy(nodes=NODES))
    ends = []
    for number, sequence in enumerate(sequences):
        mine, real, free_choice = Telling(model, service, names, str(number)).tell(facts, sequence, left)
        model.audit()
        if service:
            assert real == mine, f"{facts} told as {sequence}: {real} but {mine} in the model"
        ends.append((sum(mine.values()), None if free_choice else mine))
    assert all(end == ends[0] for end in ends), f"{facts} told as {sequences}: {ends}"


def with_repeats(draw: st.DrawFn, count: int) -> list[int]:
    """Draw a permutation of the facts with some of them told again, somewhere after."""
    sequence = draw(st.permutations(range(count)))
    again = draw(st.lists(st.sampled_from(range(count)), max_size=2))
    return [*sequence, *again]


@st.composite
def tellings(draw: st.DrawFn) -> tuple[list[Fact], list[list[int]], int]:
    facts = draw(facts_of_an_order)
    sequences = [list(range(len(facts)))]
    sequences += [with_repeats(draw, len(facts)) for _ in range(draw(st.integers(1, SHUFFLES)))]
    return facts, sequences, draw(st.sampled_from([30, 3, 1, 0, -2]))


def examples(number: int) -> settings:
    return settings(
        max_examples=number,
        deadline=None,
        database=None,
        print_blob=True,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


def test_every_permutation_ends_alike_in_the_model(seed: int) -> None:
    """All permutations of up to five facts: one total, and the same nodes where the facts name them."""

    @hypothesis_seed(seed)
    @examples(60)
    @given(facts=st.lists(st.one_of(commits, words, allocations, shipments, cancels), min_size=2, max_size=5))
    def check(facts: list[Fact]) -> None:
        same_end(None, facts, [list(p) for p in permutations(range(len(facts)))], 2)

    check()


def test_shuffles_and_repeats_end_alike_in_the_model(seed: int) -> None:
    """Longer tales, shuffled and partly told twice, end alike, whatever stock is left."""

    @hypothesis_seed(seed)
    @examples(400)
    @given(telling=tellings())
    def check(telling: tuple[list[Fact], list[list[int]], int]) -> None:
        same_end(None, *telling)

    check()


FORGOTTEN = [
    Fact("ORDER_PLACED", quantity=1, moment=1),
    Fact("ORDER_CANCELLED", moment=1),
    Fact("ORDER_PLACED", quantity=0, line="1", moment=1),
]
"""A cancel older than every line known so far was once forgotten: a line that came later with an older word counted."""


def test_a_cancel_of_a_sku_reaches_lines_that_come_after_it() -> None:
    """In every order of arrival."""
    same_end(None, FORGOTTEN, [list(p) for p in permutations(range(3))], 30)


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server whose only nodes are this module's."""
    with serving() as started:
        yield started


@pytest.mark.timeout(1_800)
def test_shuffles_and_repeats_end_alike_in_the_ledger(own_server: Server, seed: int, full: bool) -> None:
    """The real ledger commits what the model commits, node by node, in whatever order the facts arrive."""
    service = Service(own_server.grpc)
    same_end(service, FORGOTTEN, [list(p) for p in permutations(range(3))], 30)

    @hypothesis_seed(seed)
    @examples(1_000 if full else 60)
    @given(telling=tellings())
    def check(telling: tuple[list[Fact], list[list[int]], int]) -> None:
        same_end(service, *telling)

    check()
    service.close()
