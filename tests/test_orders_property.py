"""The same facts about orders, in any order and more than once, end alike, in model and ledger.

An order has up to three names, told as one or not by links that come and go like any other fact; a fourth name is a
replacement's, which is an order of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
NAMES = 4
LINKED = 3
"""The first three names may be linked."""
TREES = (((0, 1), (1, 2)), ((0, 1), (0, 2)), ((0, 2), (1, 2)))
"""Links that join them without a cycle."""

nodes = st.sampled_from(NODES)
lines = st.sampled_from(["", "", "", "1", "2"])
moments = st.integers(1, 3)
names_told = st.sampled_from([0, 0, 0, 1, 1, 2, 3])


@dataclass(frozen=True)
class Fact:
    """One thing that somebody says of the order. COMMIT is our own checkout's."""

    type: str
    quantity: int = 0
    node: str = ""
    line: str = ""
    moment: int = 1
    whole: bool = False
    name: int = 0
    """Which name of the order it is told under."""
    other: int = 0
    """The name that a LINK_ORDER links with it."""
    shipped: int | None = None
    """Units shipped that an OPEN allocation leaves out; None: CUMULATIVE."""


words = st.builds(
    Fact,
    type=st.sampled_from(["ORDER_PLACED", "ORDER_CHANGED"]),
    quantity=st.integers(0, 6),
    node=st.sampled_from(["", "", "", "b"]),
    line=lines,
    moment=moments,
    name=names_told,
)
cancels = st.builds(
    Fact,
    type=st.just("ORDER_CANCELLED"),
    line=lines,
    moment=moments,
    whole=st.sampled_from([True, True, False]),
    name=names_told,
)
allocations = st.builds(
    Fact,
    type=st.just("ORDER_ALLOCATED"),
    quantity=st.integers(0, 5),
    node=nodes,
    line=lines,
    moment=moments,
    name=names_told,
    shipped=st.sampled_from([None, None, 0, 1, 3]),
)
shipments = st.builds(
    Fact,
    type=st.just("SHIPMENT"),
    quantity=st.sampled_from([-2, -1, 1, 2, 3, 4]),
    node=nodes,
    line=lines,
    name=names_told,
)
commits = st.builds(Fact, type=st.just("COMMIT"), quantity=st.integers(1, 4), node=nodes, name=names_told)
facts_of_a_line = st.one_of(commits, words, allocations, shipments, cancels)


def links(tree: tuple[tuple[int, int], ...]) -> st.SearchStrategy[Fact]:
    """Links of one tree: joined (1) or parted (0), said by either name."""
    pairs = st.sampled_from([*tree, *((b, a) for a, b in tree)])
    return st.builds(
        lambda pair, one, moment: Fact("LINK_ORDER", one, name=pair[0], other=pair[1], moment=moment),
        pairs,
        st.sampled_from([1, 1, 1, 0]),
        moments,
    )


def facts_of_orders(most: int) -> st.SearchStrategy[list[Fact]]:
    """Facts of the orders, some of them links of one tree."""
    return st.sampled_from(TREES).flatmap(
        lambda tree: st.lists(
            st.one_of(facts_of_a_line, facts_of_a_line, links(tree)), min_size=2, max_size=most
        )
    )


@dataclass
class Telling:
    """One order's facts told in one sequence, to the model and (where there is one) the service."""

    model: Model
    service: Service | None
    names: Any  # tests.conftest.Names
    number: str

    def tell(self, facts: list[Fact], sequence: list[int], left: int) -> list[tuple[Units, bool]]:
        """Tell them; answer what each name's order commits, and whether any node of it was a free choice."""
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
        orders = [(self.names.id(f"s{self.number} {name}"), f"ref {name}") for name in range(NAMES)]
        for step, place in enumerate(sequence):
            fact = facts[place]
            order = dict(zip(("order_source", "order_ref"), orders[fact.name], strict=True))
            if fact.type == "COMMIT":
                for one in both:
                    one.commit(self.names.id(f"c{self.number} {step}"), holds[place], **order)
                continue
            self.apply(
                Delta(
                    source=source,
                    type=fact.type,
                    event_id=f"fact {place}",
                    sku="" if fact.whole or fact.type == "LINK_ORDER" else sku,
                    line="" if fact.whole else fact.line,
                    open_basis=fact.shipped is not None,
                    shipped_quantity=fact.shipped,
                    linked_source=orders[fact.other][0] if fact.type == "LINK_ORDER" else "",
                    linked_ref=orders[fact.other][1] if fact.type == "LINK_ORDER" else "",
                    node=fact.node,
                    quantity=fact.quantity,
                    occurred_us=BASE_US + fact.moment * 1_000_000,
                    **order,
                )
            )
        ends = []
        for name in orders:
            mine = self.model.order_committed(name, sku)
            real = self.committed(name)
            if self.service:
                assert real == mine, f"{facts} told as {sequence}: {name} {real} but {mine} in the model"
            ends.append((mine, any(self.model.whole(name).auto.get(sku, []))))
        return ends

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

    def committed(self, name: tuple[str, str]) -> Units:
        units: Units = {}
        if self.service and name in self.model.orders:
            order = self.service.get_order(*name)
            linked = [(one.order_source, one.order_ref) for one in order.links]
            assert sorted([name, *linked]) == self.model.names_of(name)
            for line in order.lines:
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
        told = Telling(model, service, names, str(number)).tell(facts, sequence, left)
        model.audit()
        ends.append([(sum(units.values()), None if free_choice else units) for units, free_choice in told])
    assert all(end == ends[0] for end in ends), f"{facts} told as {sequences}: {ends}"


def with_repeats(draw: st.DrawFn, count: int) -> list[int]:
    """Draw a permutation of the facts with some of them told again, somewhere after."""
    sequence = draw(st.permutations(range(count)))
    again = draw(st.lists(st.sampled_from(range(count)), max_size=2))
    return [*sequence, *again]


@st.composite
def tellings(draw: st.DrawFn) -> tuple[list[Fact], list[list[int]], int]:
    facts = draw(facts_of_orders(8))
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
    @given(facts=facts_of_orders(5))
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


def test_linked_names_commit_what_one_name_would(seed: int) -> None:
    """All facts told under three linked names, links somewhere between them, end like those of one name."""

    @hypothesis_seed(seed)
    @examples(200)
    @given(
        facts=st.lists(facts_of_a_line, min_size=1, max_size=6), tree=st.sampled_from(TREES), data=st.data()
    )
    def check(facts: list[Fact], tree: tuple[tuple[int, int], ...], data: st.DataObject) -> None:
        spread = [replace(fact, name=fact.name % LINKED) for fact in facts]
        joined = [*spread, *(Fact("LINK_ORDER", 1, name=a, other=b) for a, b in tree)]
        sequence = data.draw(st.permutations(range(len(joined))))
        names, model = fresh_names(), Model()
        for node in NODES:
            model.set_node(node, online=True)
        model.set_channel(names.channel(), Policy(nodes=NODES))
        one = Telling(model, None, names, "1").tell(
            [replace(fact, name=0) for fact in spread],
            [place for place in sequence if place < len(spread)],
            3,
        )[0]
        linked = Telling(model, None, names, "2").tell(joined, sequence, 3)[0]
        assert sum(linked[0].values()) == sum(one[0].values())
        assert linked[1] or one[1] or linked[0] == one[0]

    check()


FORGOTTEN = [
    Fact("ORDER_PLACED", quantity=1, moment=1),
    Fact("ORDER_CANCELLED", moment=1),
    Fact("ORDER_PLACED", quantity=0, line="1", moment=1),
]
"""A cancel older than every line known so far was once forgotten: a line that came later with an older word counted."""


SAID_TWICE = [
    Fact("ORDER_ALLOCATED", quantity=3, node="a", moment=1),
    Fact("ORDER_ALLOCATED", quantity=1, node="a", moment=2, name=1),
    Fact("LINK_ORDER", 1, other=1),
]
"""Of two names' words about one cell the later counts, whichever name comes first."""


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
    for tale in (FORGOTTEN, SAID_TWICE):
        same_end(service, tale, [list(p) for p in permutations(range(3))], 30)

    @hypothesis_seed(seed)
    @examples(1_000 if full else 60)
    @given(telling=tellings())
    def check(telling: tuple[list[Fact], list[list[int]], int]) -> None:
        same_end(service, *telling)

    check()
    service.close()
