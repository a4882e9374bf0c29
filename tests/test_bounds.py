"""Tokens that may speak for some channels, sources or nodes only, over gRPC, for every RPC there is; and how often."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from availability.domain.errors import Reason, ServiceError
from availability.service.admission import CallClass
from availability.service.auth import Scope, TokenFileError, TokenRate, TokenStore, add_token, list_tokens
from availability.service.bounds import ALL, CLAIMS, Bounds, Claim, bounds_of, may_tell, refuse_outside
from availability.service.delta_codec import pack
from availability.service.rate import LIMITED, Bucket
from availability.service.rpcs import RPCS, Rpc, check_table
from availability.v1 import policy_pb2 as pol
from availability.v1 import stock_pb2 as stk
from tests.conftest import Names, serving
from tests.test_grpc_adapter import Running, running
from tests.wire import refusal_of

MINE, OTHER = "mine", "other"
BOUND = {
    "channel": Bounds(channels=frozenset([MINE])),
    "source": Bounds(sources=frozenset([MINE])),
    "node": Bounds(nodes=frozenset([MINE])),
}
CHANNEL_OF = {"r-mine": MINE, "r-other": OTHER}
BY_THE_HANDLER = frozenset({"StreamSnapshot", "EndSnapshot", "CloseSnapshot", "ReadSnapshot"})
"""Whose snapshot an id names only the ledger knows: their handlers ask (tests/test_snapshots.py)."""

# What a token that is bound to `mine` in one dimension may send. Whatever is not named here is refused to it.
ALLOWED: dict[str, dict[str, dict[str, Any]]] = {
    "channel": {
        "GetAvailability": {"channel": MINE},
        "BatchGetAvailability": {"channel": MINE},
        "CheckBasket": {"channel": MINE},
        "WatchAvailability": {"channel": MINE},
        "CreateReservation": {"channel": MINE},
        "ExtendReservation": {"reservation_id": "r-mine"},
        "CommitReservation": {"reservation_id": "r-mine"},
        "ReleaseReservation": {"reservation_id": "r-mine"},
        "GetReservation": {"reservation_id": "r-mine"},
        "GetOrder": {"order_source": MINE},
        "SetChannelPolicy": {"policy": pol.ChannelPolicy(channel=MINE, all_nodes=True)},
        "SetSkuOverride": {"channel": MINE},
        "ClearSkuOverride": {"channel": MINE},
        "SetSaleState": {"channel": MINE},
        "SetRingFence": {"channel": MINE},
        "GetPolicy": {"channel": MINE},
    },
    "source": {
        "ApplyDeltas": {"source": MINE},
        "StreamDeltas": {"source": MINE},
        "GetOrder": {"order_source": MINE},
        "ListStreams": {"source": MINE},
        "SkipGap": {"source": MINE},
        "ResetStream": {"source": MINE},
        "BeginSnapshot": {"source": MINE, "nodes": [OTHER]},
        "ListSnapshots": {"source": MINE},
        "ReadPositions": {"point": stk.SnapshotPoint(source=MINE)},
        "ReadOrderLines": {"point": stk.SnapshotPoint(source=MINE)},
        "ReportExceptions": {"source": MINE},
        "SetFeed": {"source": MINE, "node": OTHER},
    },
    "node": {
        "ApplyDeltas": {"source": OTHER},  # its deltas are looked at one by one
        "StreamDeltas": {"source": OTHER},
        "BeginSnapshot": {"source": OTHER, "nodes": [MINE]},
        "ReadPositions": {"point": stk.SnapshotPoint(source=OTHER, nodes=[MINE])},
        "ReadOrderLines": {"point": stk.SnapshotPoint(source=OTHER, nodes=[MINE])},
        "SetSafetyStock": {"node": MINE},
        "SetNode": {"node": MINE},
        "SetFeed": {"source": OTHER, "node": MINE},
    },
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, channel_of=CHANNEL_OF.get) as made:
        yield made


def send(served: Running, rpc: Rpc, token: str, request: Message) -> str:
    """Send one message; return what became of it: OK or the reason."""
    raw, options = (
        request.SerializeToString(),
        {"metadata": [("authorization", f"Bearer {token}")], "timeout": 10},
    )
    try:
        if rpc.client_streams:
            list(served.channel.stream_stream(rpc.path)(iter([raw]), **options))
        elif rpc.server_streams:
            list(served.channel.unary_stream(rpc.path)(raw, **options))
        else:
            served.channel.unary_unary(rpc.path)(raw, **options)
    except grpc.RpcError as error:
        return refusal_of(error).reason
    return "OK"


@pytest.mark.parametrize("kind", list(BOUND))
def test_every_rpc_is_closed_to_a_bound_token_but_for_what_it_is_bound_to(served: Running, kind: str) -> None:
    """With every scope: its own is answered, another's and an empty message never reach a handler."""
    token = add_token(served.tokens_file, id=kind, scopes=list(Scope), bounds=BOUND[kind])
    served.clock += 2
    served.handlers.answers["stream_deltas"] = lambda requests, _: iter(
        [stk.StreamDeltasResponse() for _ in requests]
    )
    served.handlers.answers["stream_snapshot"] = lambda requests, _: iter(
        [stk.StreamSnapshotResponse() for _ in requests]
    )
    for rpc, method in check_table().items():
        make = GetMessageClass(method.input_type)
        reached = len(served.handlers.contexts)
        if rpc.method in BY_THE_HANDLER and kind != "channel":
            continue
        own = ALLOWED[kind].get(rpc.method)
        free = kind == "node" and own is not None and "node" not in own  # batches: any source
        if own is not None:
            assert send(served, rpc, token, make(**own)) == "OK", f"{kind}: {rpc.method} of its own"
            reached += 1
            strange = make(**own)
            swapped(strange)
        else:
            strange = make()
        if free:
            continue
        for request in (strange, make()):
            if request == make() and rpc.method in ("ReadPositions", "ReadOrderLines") and kind != "channel":
                continue  # neither a point nor a snapshot is named: the handler refuses it
            if request == make() and own is not None and "reservation_id" in own:
                continue  # no reservation is named: nothing of another's is touched, the handler refuses it
            assert send(served, rpc, token, request) == "PERMISSION_DENIED", f"{kind}: {rpc.method} {request}"
        if not rpc.client_streams:  # a stream's handler runs; it is its messages that are refused
            assert len(served.handlers.contexts) == reached, f"{kind}: {rpc.method} reached its handler"


def swapped(message: Message) -> None:
    """Turn what is mine into another's."""
    for name, value in message.ListFields():
        if name.message_type is not None:
            swapped(value)
        elif name.is_repeated:
            values = [OTHER if one == MINE else one for one in value]
            del value[:]
            value.extend(values)
        elif value == MINE:
            setattr(message, name.name, OTHER)
        elif value == "r-mine":
            setattr(message, name.name, "r-other")


def test_an_unbound_token_is_not_asked(served: Running) -> None:
    """A token without bounds does what its scopes allow, and no claim is made up."""
    for rpc, method in check_table().items():
        request = GetMessageClass(method.input_type)()
        if rpc.client_streams:
            continue
        assert send(served, rpc, served.tokens[rpc.scope], request) == "OK"


def test_every_claim_belongs_to_an_rpc_that_may_exist() -> None:
    """A misspelt claim would close an RPC for good: those not in the table yet are known by name."""
    assert set(CLAIMS) - {rpc.method for rpc in RPCS} <= {"SetRingFence", "SetFeed"}


def test_all_bounds_of_a_token_hold_together() -> None:
    """Bound to a channel and a node: a policy needs both, and neither opens what the other closes."""
    both = bounds_of([MINE], None, [MINE])
    assert both is not None

    def answer(method: str, request: Message) -> str:
        try:
            refuse_outside(both, "t", method, request, CHANNEL_OF.get)
        except ServiceError as error:
            return error.reason.value
        return "OK"

    policy = pol.ChannelPolicy(channel=MINE, nodes=[MINE])
    assert answer("SetChannelPolicy", pol.SetChannelPolicyRequest(policy=policy)) == "OK"
    policy.nodes.append(OTHER)
    assert answer("SetChannelPolicy", pol.SetChannelPolicyRequest(policy=policy)) == "PERMISSION_DENIED"
    policy = pol.ChannelPolicy(channel=MINE, all_nodes=True)
    assert answer("SetChannelPolicy", pol.SetChannelPolicyRequest(policy=policy)) == "PERMISSION_DENIED"
    assert answer("SetSaleState", pol.SetSaleStateRequest(sku="a")) == "PERMISSION_DENIED"
    assert answer("NotYetBuilt", pol.SetNodeRequest(node=MINE)) == "PERMISSION_DENIED"
    everything = Claim(names={"nodes": ALL}, owner=("nodes",))
    assert everything.reservation_id == ""


@pytest.mark.parametrize(
    ("node", "to_node", "told"),
    [
        (MINE, "", True),
        (MINE, MINE, True),
        (OTHER, "", False),
        ("", "", False),
        (MINE, OTHER, False),
        (OTHER, MINE, False),
    ],
)
def test_a_token_bound_to_nodes_tells_of_these_only(node: str, to_node: str, told: bool) -> None:
    """Both ends of a transfer count, and a delta without a node may move stock anywhere."""
    delta = stk.Delta(node=node, to_node=to_node)
    assert may_tell(Bounds(nodes=frozenset([MINE])), delta) is told
    assert may_tell(Bounds(sources=frozenset([MINE])), delta)
    assert may_tell(None, delta)
    assert b"PERMISSION_DENIED" in bytes(pack(delta, MINE, "PERMISSION_DENIED")[0])


def test_a_reservation_belongs_to_its_channel(tmp_path: Path, names: Names) -> None:
    """Against a real ledger: another channel's reservation is neither shown, extended, committed nor released."""
    from availability.client import Client, ClientError

    tokens = tmp_path / "tokens.json"
    web, pos = names.channel("web"), names.channel("pos")
    admin = add_token(tokens, id="all", scopes=list(Scope))
    bound = add_token(
        tokens,
        id="web",
        scopes=list(Scope),
        bounds=Bounds(channels=frozenset([web]), sources=frozenset(["erp"])),
    )
    clerk = add_token(tokens, id="clerk", scopes=list(Scope), bounds=Bounds(nodes=frozenset(["n1"])))
    with serving(no_auth=False, settings={"AVAIL_AUTH__TOKENS_FILE": str(tokens)}) as started:
        with Client(started.grpc, admin) as everybody, Client(started.grpc, bound) as shop:
            told = everybody.apply_deltas("erp", [_receipt("1", "n1", "erp"), _receipt("2", "n2", "erp")])
            assert list(told.results) == [stk.DELTA_RESULT_APPLIED] * 2, told
            theirs = everybody.reserve(pos, {"a": 1}, hold_s=600).reservation.reservation_id
            own = shop.reserve(web, {"a": 1}, hold_s=600).reservation.reservation_id
            for change in (
                lambda: shop.commit(theirs, "o"),
                lambda: shop.extend(theirs, hold_s=60),
                lambda: shop.release(theirs),
                lambda: shop.reserve(pos, {"a": 1}, hold_s=60),
                lambda: shop.get(pos, "a"),
                lambda: shop.apply_deltas("wms", [_receipt("9", "n1", "wms")]),
            ):
                with pytest.raises(ClientError) as caught:
                    change()
                assert caught.value.reason == "PERMISSION_DENIED"
            assert shop.commit(own, "o1").reservation.channel == web
            with pytest.raises(ClientError, match="RESERVATION_NOT_FOUND"):
                shop.commit("nobody", "o2")
        with Client(started.grpc, clerk) as store:
            answer = store.apply_deltas("wms", [_receipt("3", "n2", "wms"), _receipt("4", "n1", "wms")])
            assert list(answer.results) == [stk.DELTA_RESULT_REJECTED, stk.DELTA_RESULT_APPLIED]
            assert answer.details[0].reason == "PERMISSION_DENIED"


def _receipt(event: str, node: str, source: str) -> stk.Delta:
    delta = stk.Delta(
        source=source, event_id=event, type=stk.DELTA_TYPE_RECEIPT, sku="a", node=node, quantity=5
    )
    delta.occurred_time.GetCurrentTime()
    return delta


# --- The token file ---------------------------------------------------------------------------------------


def test_bounds_survive_the_file(tmp_path: Path) -> None:
    """What binds a token is written, read and kept when another token is added."""
    path = tmp_path / "tokens.json"
    bounds = Bounds(channels=frozenset(["b", "a"]), nodes=frozenset(["n {1}"]))
    secret = add_token(
        path, id="t", scopes=[Scope.READ], bounds=bounds, calls_per_s=2.5, burst=4, certificate="cn"
    )
    add_token(path, id="u", scopes=[Scope.READ])
    first, second = list_tokens(path)
    assert (first.bounds, first.calls_per_s, first.burst, first.certificate) == (bounds, 2.5, 4, "cn")
    assert second.bounds is None
    store = TokenStore(path)
    assert store.principal(f"Bearer {secret}").bounds == bounds
    assert store.principal_of_certificate(["x", "cn"]) == store.principal(f"Bearer {secret}")
    assert store.principal_of_certificate([""]) is None


@pytest.mark.parametrize(
    "broken", ['"channels": []', '"nodes": [""]', '"sources": "erp"', '"calls_per_s": -1']
)
def test_bounds_that_say_nothing_are_refused(tmp_path: Path, broken: str) -> None:
    """An empty list could be read as nothing or as everything: it starts no server."""
    path = tmp_path / "tokens.json"
    add_token(path, id="t", scopes=[Scope.READ])
    path.write_text(path.read_text().replace('"scopes"', f'{broken}, "scopes"'))
    with pytest.raises(TokenFileError):
        TokenStore(path)


def test_a_certificate_has_one_owner(tmp_path: Path) -> None:
    """Two entries of one certificate would make it a matter of luck who calls."""
    path = tmp_path / "tokens.json"
    add_token(path, id="t", scopes=[Scope.READ], certificate="cn")
    add_token(path, id="u", scopes=[Scope.READ], certificate="cn")
    with pytest.raises(TokenFileError, match="certificate twice"):
        TokenStore(path)


# --- How often --------------------------------------------------------------------------------------------


def test_a_bucket_gives_its_rate_and_no_more() -> None:
    """A burst at once, then the rate; a refusal says when the next one is there."""
    now = [0.0]
    bucket = Bucket(10.0, 3, lambda: now[0])
    assert [bucket.take() is None for _ in range(5)] == [True, True, True, False, False]
    refusal = bucket.take()
    assert refusal is not None
    assert 100 <= refusal.retry_after_ms <= 200
    taken = 0
    for _ in range(1_000):  # 10 s
        now[0] += 0.01
        taken += bucket.take() is None
    assert 99 <= taken <= 101
    now[0] += 3_600
    assert [bucket.take() is None for _ in range(4)] == [True, True, True, False]


def test_a_token_that_calls_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED with RetryInfo for reads, reserves and policies; facts, commits and releases always pass."""
    with running(tmp_path, rate=TokenRate(calls_per_s=0.5, burst=2)) as served:
        slow = add_token(served.tokens_file, id="slow", scopes=list(Scope))
        quick = add_token(served.tokens_file, id="quick", scopes=list(Scope), calls_per_s=0)
        served.clock += 2
        for rpc, method in check_table().items():
            if rpc.client_streams:
                continue
            request = GetMessageClass(method.input_type)()
            answers = [send(served, rpc, slow, request) for _ in range(3)]
            assert set(answers[:2]) == {"OK"}, rpc.method
            assert answers[2] == ("OVERLOADED" if rpc.call_class in LIMITED else "OK"), rpc.method
            assert {send(served, rpc, quick, request) for _ in range(5)} == {"OK"}
            served.clock += 4  # two calls more
        assert CallClass.ORDER not in LIMITED
        assert CallClass.INGEST not in LIMITED


def test_reading_the_file_again_fills_no_bucket(tmp_path: Path) -> None:
    """A token that is at its limit stays there when another one is added; a new rate counts at once."""
    path = tmp_path / "tokens.json"
    now = [0.0]
    secret = f"Bearer {add_token(path, id='t', scopes=[Scope.READ], calls_per_s=1, burst=1)}"
    store = TokenStore(path, clock=lambda: now[0])
    before = store.principal(secret).bucket
    assert before is not None
    add_token(path, id="u", scopes=[Scope.READ])
    now[0] += 2
    assert store.principal(secret).bucket is before
    path.write_text(path.read_text().replace('"calls_per_s": 1.0', '"calls_per_s": 9.0'))
    now[0] += 2
    after = store.principal(secret).bucket
    assert after is not None
    assert after.calls_per_s == 9.0
    assert Reason.OVERLOADED.code.value == "RESOURCE_EXHAUSTED"
