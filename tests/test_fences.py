"""Ring-fences: units of a sku that only one channel may sell.

The life of several fences in any order, drawn by Hypothesis, runs in a ledger of its own whose clock the test
moves, and in the plain model: after each step what every channel could be granted, what is left of each fence,
and every position are equal, and the log tells the same to who reads only the log. Beside it: the sentences of
the contract as small examples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar  # Any: arguments of calls, passed on

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from availability.client import Client
from availability.domain.version import ZERO
from availability.ledger.embedded import EmbeddedRedis
from availability.ledger.record import Kind, decode_body
from availability.v1 import policy_pb2 as pol
from availability.v1 import stock_pb2 as stk
from tests.conftest import Names, Server
from tests.faults.lab import Lab, delta, own_redis, request_key
from tests.model import Buffer, Delta, Granted, Model, Override, Policy, Refusal
from tests.wire import Service

NODES = ("n1", "n2", "n3")
SKUS = ("tea", "mug")
CHANNELS = ("web", "shop", "pos", "spare")
"""The last has no policy of its own: every node, no buffer."""
PLENTY = 1_000_000_000
BASE_US = (int(time.time()) - 3600) * 1_000_000
SHORT_MS = 600_000
LONG_MS = 86_000_000

skus = st.sampled_from(SKUS)
nodes = st.sampled_from(NODES)
channels = st.sampled_from(CHANNELS)
picks = st.integers(0, 10**6)
policies = st.builds(
    lambda **fields: Policy(**fields),
    nodes=st.sampled_from(
        [None, ("n1",), ("n2",), ("n3",), ("n1", "n2"), ("n2", "n1"), ("n2", "n3"), ("n3", "n1")]
    ),
    buffer=st.sampled_from([Buffer(), Buffer(), Buffer(units=1), Buffer(percent=33)]),
    oversell_limit=st.sampled_from([0, 0, 0, 2]),
)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[EmbeddedRedis]:
    """One Redis that every example empties."""
    with own_redis() as server:
        yield server


@pytest.fixture
def lab(redis_server: EmbeddedRedis) -> Iterator[Lab]:
    """A new ledger."""
    made = Lab(redis_server.url)
    yield made
    made.close()


def left_of(lab: Lab, sku: str) -> dict[str, int]:
    """What is left of a sku's fences by channel."""
    return {fence.channel: fence.left for fence in lab.ledger.skus([sku]).skus[0].fences}


def fence(lab: Lab, request_id: str, channel: str, sku: str, units: int) -> str:
    """Set a fence; the answer is OK or the refusal."""
    return lab.policy(request_id, "fence", [channel, sku, units]).status


def grantable(lab: Lab, request_id: str, channel: str, sku: str, node: str = "") -> int:
    """What the ledger would grant at most: asked for more than there can be, it says so and holds nothing."""
    answer = lab.reserve(request_id, [(sku, PLENTY)], channel=channel, node=node)
    return answer.shortages[0][1]


def channel_value(channel: str, policy: Policy) -> list[object]:
    percent = policy.buffer.percent
    units = [-1, percent] if percent else [policy.buffer.units, -1]
    return [
        channel,
        policy.nodes is None,
        list(policy.nodes or ()),
        *units,
        policy.oversell_limit,
        0,
        -1,
        1,
        1,
    ]


class FenceMachine(RuleBasedStateMachine):
    """One example: a ledger's life."""

    url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.lab = Lab(self.url)
        self.model = Model()
        self.numbers = self.words = 0
        self.short: set[str] = set()

    def teardown(self) -> None:
        self.lab.close()

    def next_id(self) -> str:
        self.numbers += 1
        return f"q{self.numbers}"

    def configure(self, what: str, value: list[object]) -> str:
        return self.lab.policy(self.next_id(), what, value).status

    def tell(self, type_: str, **fields: Any) -> None:
        """Tell both an event."""
        event = self.next_id()
        mine = self.model.apply_delta(Delta(source="erp", type=type_, event_id=event, **fields))
        real = self.lab.results(delta(type_, event_id=event, **fields))
        assert real[0].split()[0] == mine[0]

    @initialize(
        drawn=st.tuples(policies, policies, policies),
        stock=st.lists(st.integers(0, 7), min_size=6, max_size=6),
    )
    def start(self, drawn: tuple[Policy, ...], stock: list[int]) -> None:
        for node in NODES:
            self.configure("node", [node, 1])
            self.model.set_node(node, online=True)
        for channel, policy in zip(CHANNELS, drawn, strict=False):
            self.set_channel(channel, policy)
        for place, quantity in enumerate(stock):
            if quantity:
                self.tell("RECEIPT", sku=SKUS[place % 2], node=NODES[place // 2], quantity=quantity)
        self.compare()

    # --- comparing

    def compare(self) -> None:
        self.model.audit()
        for channel in CHANNELS:
            for sku in SKUS:
                real = grantable(self.lab, self.next_id(), channel, sku)
                assert real == self.model.grantable(channel, sku), f"{sku} on {channel}"
        page = {state.sku: state for state in self.lab.ledger.skus(list(SKUS)).skus}
        for sku in SKUS:
            real_left = {fence.channel: fence.left for fence in page[sku].fences}
            mine = {channel: fence.left for (channel, of), fence in self.model.fences.items() if of == sku}
            assert real_left == mine, f"fences of {sku}"
            positions = {p.node: (p.reserved, p.committed) for p in page[sku].positions}
            for node in NODES:
                ours = (self.model.reserved(sku, node), self.model.committed(sku, node))
                assert positions.get(node, (0, 0)) == ours, f"{sku} at {node}"

    def told_by_the_log(self) -> dict[tuple[str, str], tuple[int, str]]:
        """Fences as somebody knows them who has read nothing but the log."""
        known: dict[tuple[str, str], tuple[int, str]] = {}
        after = ZERO
        while entries := self.lab.ledger.read(after, 1_000, 0):
            for entry in entries:
                after, record = entry.version, entry.record()
                for change in record.fences:
                    assert known[change.channel, change.sku][1] == change.generation
                    known[change.channel, change.sku] = (change.left, change.generation)
                if record.kind == Kind.POLICY:
                    for state in decode_body(record).fences:
                        known[state.channel, state.sku] = (state.left, state.version)
                        if not state.left:
                            del known[state.channel, state.sku]
        return known

    @rule()
    def read_the_log(self) -> None:
        kept = {
            (fence.channel, fence.sku): (fence.left, fence.version)
            for state in self.lab.ledger.skus(list(SKUS)).skus
            for fence in state.fences
        }
        assert self.told_by_the_log() == kept

    # --- rules

    @rule(channel=channels, sku=skus, units=st.integers(0, 9), less=st.booleans())
    def set_fence(self, channel: str, sku: str, units: int, less: bool) -> None:
        if less:
            units = min(units, max(0, self.model.terms(channel, sku).pool))
        real = self.configure("fence", [channel, sku, units])
        try:
            self.model.set_fence(channel, sku, units)
            mine = "OK"
        except Refusal as refusal:
            mine = refusal.reason
        assert real == mine
        self.compare()

    @rule(channel=st.sampled_from(CHANNELS[:3]), policy=policies)
    def change_channel(self, channel: str, policy: Policy) -> None:
        self.set_channel(channel, policy)
        self.compare()

    def set_channel(self, channel: str, policy: Policy) -> None:
        assert self.configure("channel", channel_value(channel, policy)) == "OK"
        self.model.set_channel(channel, policy)

    @rule(channel=channels, sku=skus, excluded=st.one_of(st.just(()), st.tuples(nodes)))
    def exclude(self, channel: str, sku: str, excluded: tuple[str, ...]) -> None:
        self.configure("override", [channel, sku, -1, -1, -1, -1, list(excluded)])
        self.model.set_override(channel, sku, Override(excluded_nodes=excluded))
        self.compare()

    @rule(node=nodes, online=st.booleans())
    def set_node(self, node: str, online: bool) -> None:
        self.configure("node", [node, 1 if online else 2])
        self.model.set_node(node, online=online)
        self.compare()

    @rule(sku=skus, node=nodes, quantity=st.integers(-6, 6).filter(bool))
    def adjust(self, sku: str, node: str, quantity: int) -> None:
        self.tell("ADJUSTMENT", sku=sku, node=node, quantity=quantity)
        self.compare()

    @rule(
        channel=channels,
        basket=st.lists(st.tuples(skus, st.integers(1, 6)), min_size=1, max_size=2, unique_by=lambda x: x[0]),
        node=st.one_of(st.just(""), st.just(""), nodes),
        partial=st.booleans(),
        short=st.booleans(),
        carries=st.sampled_from(["", "", "1", "2"]),
    )
    def reserve(
        self,
        channel: str,
        basket: list[tuple[str, int]],
        node: str,
        partial: bool,
        short: bool,
        carries: str,
    ) -> None:
        node = node if node in self.model.channel_nodes(channel) else ""
        self.ask(channel, basket, node=node, allow_partial=partial, short=short, order_ref=carries)

    @rule(channel=channels, sku=skus, short=st.booleans())
    def reserve_the_last(self, channel: str, sku: str, short: bool) -> None:
        self.ask(channel, [(sku, max(1, self.model.grantable(channel, sku)))], short=short)

    def ask(self, channel: str, basket: list[tuple[str, int]], *, short: bool, **fields: Any) -> None:
        request = self.next_id()
        hold_ms = SHORT_MS if short else LONG_MS
        source = channel if fields.get("order_ref") else ""
        real = self.lab.reserve(
            request, basket, channel=channel, hold_ms=hold_ms, order_source=source, **fields
        )
        mine = self.model.reserve(request, channel, basket, reservation_id=f"r-{request}", **fields)
        assert isinstance(mine, Granted)
        assert real.status == mine.outcome
        if mine.reservation_id and short:
            self.short.add(mine.reservation_id)
        self.compare()

    def pick(self, pick: int) -> str:
        return list(self.model.holds)[-1 - pick % len(self.model.holds)]

    @precondition(lambda self: self.model.holds)
    @rule(pick=picks, part=st.one_of(st.none(), st.integers(1, 3)))
    def release(self, pick: int, part: int | None) -> None:
        name = self.pick(pick)
        hold, request = self.model.holds[name], self.next_id()
        held = hold.skus()
        lines = [(held[pick % len(held)], part)] if part and held else []
        real = self.lab.release(request, name, lines)
        try:
            self.model.release(request, name, lines)
            assert real.status == "RELEASED"
        except Refusal:
            assert real.status != "RELEASED"
        self.compare()

    @precondition(lambda self: self.model.holds)
    @rule(pick=picks)
    def commit(self, pick: int) -> None:
        """Commit to an order of its own, an expired hold too."""
        name, request = self.pick(pick), self.next_id()
        real = self.lab.commit(request, name, f"order of {name}")
        try:
            self.model.commit(request, name, order_ref=f"order of {name}")
            mine = "COMMITTED"
        except Refusal as refusal:
            mine = refusal.reason
        assert real.status == mine
        self.compare()

    @precondition(lambda self: self.short)
    @rule()
    def expire(self) -> None:
        """Let the short holds' time pass."""
        self.lab.age(SHORT_MS + 1_000)
        for name in self.short:
            self.model.expire(name)
        self.short = set()
        self.lab.sweep()
        self.compare()

    @rule(ref=st.sampled_from(["1", "2"]), channel=channels, sku=st.one_of(st.just(""), skus))
    def cancel(self, ref: str, channel: str, sku: str) -> None:
        """An order's cancel ends the holds that carry it, or their lines of one sku."""
        self.words += 1
        self.tell(
            "ORDER_CANCELLED", order_source=channel, order_ref=ref, sku=sku, occurred_us=BASE_US + self.words
        )
        self.compare()


def test_fences_equal_the_model(redis_server: EmbeddedRedis, seed: int, full: bool) -> None:
    """After every step grants, fences and positions are the model's, and the log tells the same."""

    class Machine(FenceMachine):
        url = redis_server.url

    chosen = settings(
        max_examples=600 if full else 40,
        stateful_step_count=30,
        deadline=None,
        print_blob=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(hypothesis_seed(seed)(Machine), settings=chosen)


# --- the contract's sentences


def stocked(lab: Lab, **on_hand: int) -> None:
    """Tea at nodes, and the channels web and shop that both sell from all of them."""
    for node, quantity in on_hand.items():
        lab.receive("tea", node, quantity)


def test_others_leave_what_the_fence_needs_of_shared_nodes(lab: Lab) -> None:
    """A fence is covered first by what its channel has for itself; who shares no node with it is never bitten."""
    stocked(lab, own=3, both=4, far=5)
    for channel, names in (("shop", ("own", "both")), ("web", ("both", "far")), ("pos", ("far",))):
        assert lab.policy(channel, "channel", channel_value(channel, Policy(nodes=names))).status == "OK"
    assert fence(lab, "f", "shop", "tea", 5) == "OK"
    assert grantable(lab, "a", "web", "tea") == 4 + 5 - (5 - 3)
    assert grantable(lab, "b", "web", "tea", "both") == 4 - (5 - 3)
    assert grantable(lab, "c", "web", "tea", "far") == 5
    assert grantable(lab, "d", "shop", "tea") == 7
    assert (
        lab.results(delta("ADJUSTMENT", "tea", "own", -3), delta("ADJUSTMENT", "tea", "both", -4))
        == ["APPLIED"] * 2
    )
    assert grantable(lab, "e", "pos", "tea") == 5  # the fence is more than its nodes have: not pos's debt


def test_the_fence_is_taken_first_and_returned_last(lab: Lab) -> None:
    """5 of 8 units come from the fence; giving 4 back returns 1 of them, committing the rest returns none."""
    stocked(lab, n1=20)
    fence(lab, "f", "shop", "tea", 5)
    hold = lab.reserve("r", [("tea", 8)], channel="shop")
    assert hold.lines[0].fenced == 5
    assert left_of(lab, "tea") == {"shop": 0}
    assert lab.release("a", hold.reservation_id, [("tea", 3)]).lines[0].fenced == 5
    assert left_of(lab, "tea") == {"shop": 0}
    assert lab.release("b", hold.reservation_id, [("tea", 1)]).lines[0].fenced == 4
    assert left_of(lab, "tea") == {"shop": 1}
    assert lab.commit("c", hold.reservation_id, "1001").status == "COMMITTED"
    assert left_of(lab, "tea") == {"shop": 1}


@pytest.mark.parametrize("units", [0, 3])
def test_a_new_generation_gets_nothing_of_the_old_one(lab: Lab, units: int) -> None:
    """Units that came from a fence set anew, or taken away, go back to the pool alone."""
    stocked(lab, n1=20)
    fence(lab, "f", "shop", "tea", 5)
    hold = lab.reserve("r", [("tea", 5)], channel="shop")
    assert fence(lab, "g", "shop", "tea", units) == "OK"
    lab.release("a", hold.reservation_id)
    assert left_of(lab, "tea") == ({"shop": units} if units else {})
    assert grantable(lab, "b", "web", "tea") == 20 - units


def test_an_expired_hold_gives_its_fence_back_and_takes_again(lab: Lab) -> None:
    """Expiry returns; committing the expired hold grants anew, from the fence first."""
    stocked(lab, n1=6)
    fence(lab, "f", "shop", "tea", 4)
    hold = lab.reserve("r", [("tea", 5)], channel="shop", hold_ms=1_000)
    lab.age(1_500)
    assert lab.sweep().expired == 1
    assert left_of(lab, "tea") == {"shop": 4}
    assert grantable(lab, "a", "web", "tea") == 2
    assert lab.commit("c", hold.reservation_id, "1001").lines[0].fenced == 4
    assert left_of(lab, "tea") == {"shop": 0}


def test_a_failed_write_leaves_the_fence_as_it_was(lab: Lab) -> None:
    """Whichever Redis call of a reserve fails: fence, position and log are those before it."""
    stocked(lab, n1=6)
    fence(lab, "f", "shop", "tea", 4)
    lab.control(offset_ms=0)
    failed = 0
    for fail_at in range(1, 40):
        before = (left_of(lab, "tea"), lab.position("tea", "n1"), lab.head()[1])
        lab.control(fail_at=fail_at)
        try:
            status = lab.reserve(f"r{fail_at}", [("tea", 1)], channel="shop").status
        except Exception:  # the lab's injected fault, as whatever the ledger makes of it
            status = "failed"
        lab.control()
        if status == "RESERVED":
            break
        failed += 1
        assert (left_of(lab, "tea"), lab.position("tea", "n1"), lab.head()[1]) == before
    assert failed > 5
    assert left_of(lab, "tea") == {"shop": 3}


# --- bad input


def test_a_fence_over_the_pool_is_refused(server: Server, names: Names) -> None:
    """More units than the channel's nodes can give, a number out of range, a sku that nobody knows: each refused."""
    sku, node, channel = names.sku("a"), names.node("n"), names.channel("web")
    service = Service(server.grpc)
    service.apply_delta(
        Delta(source=names.id(), type="RECEIPT", event_id="1", sku=sku, node=node, quantity=4)
    )
    service.set_channel(channel, Policy(nodes=(node,)))
    service.set_fence(channel, sku, 4)
    for units, reason in ((5, "FENCE_OVER_POOL"), (-1, "INVALID_REQUEST"), (PLENTY + 1, "INVALID_REQUEST")):
        with pytest.raises(Refusal) as refused:
            service.set_fence(channel, sku, units)
        assert refused.value.reason == reason
    with pytest.raises(Refusal) as refused:
        service.set_fence(channel, names.sku("never heard of"), 1)
    assert refused.value.reason == "FENCE_OVER_POOL"


def test_a_kit_has_no_fence(lab: Lab) -> None:
    """Units are fenced where they are: a kit has none of its own."""
    stocked(lab, n1=4)
    assert lab.policy("k", "kit", ["box", [["tea", 2]]]).status == "OK"
    assert fence(lab, "a", "shop", "box", 1) == "KIT_SKU"
    assert fence(lab, "b", "shop", "tea", 4) == "OK"
    assert grantable(lab, "c", "shop", "box") == 2
    assert grantable(lab, "d", "web", "box") == 0
    assert lab.reserve("e", [("box", 1)], channel="shop").lines[0].fenced == 2
    assert left_of(lab, "tea") == {"shop": 2}


def test_a_channel_without_a_policy_has_no_fence(lab: Lab) -> None:
    """Where channels must be declared, a fence of an unknown one is refused."""
    stocked(lab, n1=4)
    assert fence(lab, "a", "nobody", "tea", 1) == "OK"  # auto_create: it sells from every node
    key, value = request_key("b", "fence"), ["nobody else", "tea", 1]
    assert lab.fcall("policy", [key, "fence", value, "test", False])[0] == "UNKNOWN_CHANNEL"


def test_two_operators_at_once_leave_one_fence(server: Server, names: Names) -> None:
    """Whoever comes last has set it; with an etag the slower one of two is refused."""
    sku, node, channel, source = names.sku("a"), names.node("n"), names.channel("web"), names.id()
    with Client(server.grpc) as client:
        receipt = stk.Delta(
            source=source, event_id="1", type=stk.DELTA_TYPE_RECEIPT, sku=sku, node=node, quantity=9
        )
        client.apply_deltas(source, [receipt])

        def set_fence(units: int, etag: str = "") -> pol.SetRingFenceResponse | None:
            request = pol.SetRingFenceRequest(
                request_id=client.new_request_id(),
                channel=channel,
                sku=sku,
                units=units,
                reason="test",
                etag=etag,
            )
            try:
                return client.call(client.policies.SetRingFence, request)
            except Exception as error:
                assert "ETAG_MISMATCH" in repr(error) + str(getattr(error, "reason", ""))  # noqa: PT017 -- the loser's
                return None

        first = set_fence(2)
        assert first is not None
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda units: set_fence(units, first.version), (3, 4)))
        assert sum(answer is not None for answer in answers) == 1
