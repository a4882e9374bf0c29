"""A Redis that is wrong, slow, gone, or not the one it was: fenced, refused with one line, or waited out."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any  # Any: redis' clients answer unions

import grpc
import msgspec
import pytest
import redis

from availability.ledger import preflight
from availability.ledger.commit_queue import NoLedger
from availability.ledger.embedded import EmbeddedRedis
from availability.ledger.ledger import Ledger
from availability.ledger.library import packaged
from availability.ledger.record import EpochBody, Kind, decode_body
from availability.replica.replica import Replica
from availability.replica.settings import ReplicaSettings
from availability.v1 import availability_pb2 as av
from availability.v1 import stock_pb2 as stk
from tests.faults.audit import audit, differences, dump, entries
from tests.faults.lab import BASE, LEDGER_ID, META, Lab, Process, deadline, delta, poll, reserve
from tests.model import Refusal
from tests.wire import Service, refusal_of, reserve_request

MAX_STALENESS_S = 2.0


def change_replication_id(client: Any) -> None:
    """Give the primary another replication id, as a failover does."""
    before = client.info("replication")["master_replid"]
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    client.execute_command("REPLICAOF", "NO", "ONE")
    assert client.info("replication")["master_replid"] != before


# --- fence and epochs


@pytest.mark.parametrize("epoch", ["0", "2", "999", "-1", "x", ""])
def test_a_call_with_a_wrong_epoch_does_nothing(lab: Lab, epoch: str) -> None:
    """Every mutating function answers FENCED to a caller of another epoch, and writes nothing."""
    lab.receive("a", "n1", 5)
    lab.ledger.close()
    before = dump(lab.redis)
    for name in (
        "reserve",
        "extend",
        "commit",
        "release",
        "deltas",
        "facts",
        "stream",
        "policy",
        "sweep",
        "trim",
    ):
        call: object = reserve("q", [("a", 1)])
        if name in ("deltas", "facts"):
            call = ("erp", [], True, 1)
        payload = msgspec.msgpack.encode(call)
        reply = lab.redis.execute_command("FCALL", lab.library.function(name), 1, META, epoch, payload)
        assert msgspec.msgpack.decode(reply)[0] == "FENCED", name
    assert differences(before, dump(lab.redis)) == []


def test_a_primary_is_known_by_its_data_too(lab: Lab) -> None:
    """Calls of one millisecond do not ask Redis anew who it is: a handshake made elsewhere meanwhile still fences."""
    lab.receive("a", "n1", 50)
    lab.ledger.close()
    function, theirs = lab.library.function("reserve"), "0" * 40
    mine = lab.redis.hget(META, "replid")
    for number in range(20):
        ours, late = (
            msgspec.msgpack.encode(reserve(f"{name}{number}", [("a", 1)])) for name in ("q", "late")
        )
        pipeline = lab.redis.pipeline(transaction=True)
        pipeline.execute_command("FCALL", function, 1, META, "1", ours)
        pipeline.hset(META, "replid", theirs)
        pipeline.execute_command("FCALL", function, 1, META, "1", late)
        pipeline.hset(META, "replid", mine)
        first, _, second, _ = pipeline.execute()
        assert msgspec.msgpack.decode(first)[0] == "RESERVED"
        assert msgspec.msgpack.decode(second) == ["FENCED"]
    audit(lab.redis)


def test_clients_and_replicas_go_on_after_the_replication_id_changed(lab: Lab) -> None:
    """After a failover the first call opens the next epoch, once; every client and replica goes on, ids count once."""
    other = Ledger(lab.settings, library=lab.library)
    other.open("not used")
    assert other.ledger_id == LEDGER_ID
    replica = Replica(lab.ledger, ReplicaSettings(auto_create=True), time.monotonic, random.Random(1))
    replica.start()
    try:
        lab.receive("a", "n1", 50)
        assert other.reserve(reserve("before", [("a", 1)]), deadline()).status == "RESERVED"
        end = entries(dump(lab.redis))[-1]
        change_replication_id(lab.redis)
        sent = [
            ledger.submit("reserve", reserve(f"r{n}", [("a", 1)]), deadline())
            for n in range(20)
            for ledger in (lab.ledger, other)  # the same ids by both
        ]
        assert all(b"RESERVED" in pending.wait() for pending in sent)
        assert (lab.ledger.queue.epoch, other.queue.epoch) == (2, 2)
        keys = audit(lab.redis)
        records = [(e.version, e.record()) for e in entries(keys)]
        epochs = [(v, decode_body(r)) for v, r in records if r.kind == Kind.EPOCH]
        assert [(v.epoch, v.seq) for v, _ in epochs] == [(2, 1)]
        assert epochs[0][1] == EpochBody(1, end.version.seq, end.chain)
        assert lab.position("a", "n1") == (50, 0, 21, 0)
        poll(lambda: replica.version == records[-1][0], "the replica went on")
        assert replica.ready
        assert list(replica.batch("web", ["a"])[0]) == [29]
    finally:
        replica.stop()
        other.close()


def test_a_repeated_request_of_the_old_epoch_is_a_replay(lab: Lab) -> None:
    """A call answered in the old epoch and sent again in the new one has its first answer."""
    lab.receive("a", "n1", 5)
    first = lab.reserve("q", [("a", 1)])
    change_replication_id(lab.redis)
    again = lab.reserve("q", [("a", 1)])
    assert (again.replayed, again.version) == (True, first.version)
    assert lab.ledger.head().epoch == 2
    audit(lab.redis)


def test_another_ledger_under_our_prefix_is_not_written(lab: Lab) -> None:
    """Where Redis came back with another ledger, or none, calls fail as LEDGER_NOT_READY would, and write nothing."""
    lab.receive("a", "n1", 5)
    lab.redis.hset(META, mapping={"ledger_id": "somebody", "replid": "0" * 40})
    before = dump(lab.redis)
    with pytest.raises(NoLedger):
        lab.reserve("q", [("a", 1)])
    assert differences(before, dump(lab.redis)) == []
    lab.redis.flushdb()
    with pytest.raises(NoLedger):
        lab.reserve("q", [("a", 1)])
    assert dump(lab.redis) == {}


def test_functions_that_were_lost_are_loaded_again(lab: Lab) -> None:
    """A Redis that came back without our functions gets them at the next call, which counts once."""
    lab.receive("a", "n1", 5)
    lab.redis.execute_command("FUNCTION", "FLUSH")
    assert lab.reserve("q", [("a", 1)]).status == "RESERVED"
    lab.redis.execute_command("FUNCTION", "FLUSH")
    assert lab.ledger.head().seq == 2
    audit(lab.redis)


# --- a Redis that stops


def test_a_stopped_redis_is_told_and_recovered_from(make_process: Callable[..., Process]) -> None:
    """SIGSTOP: reads are refused or flagged in 2.5 s, writes fail in their deadline; 5 s after SIGCONT all works."""
    process = make_process()
    process.start()
    service = Service(process.grpc)
    service.call(
        service.stock.ApplyDeltas,
        _deltas_request(delta("RECEIPT", "a", "n1", 9)),
    )
    version = service.version
    assert service.sellables("web", ["a"], at=version) == [(9, "IN_STOCK")]
    redis_pid = process.redis_pid()
    os.kill(redis_pid, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        writing = service.reservations.CreateReservation.future(
            reserve_request("q", "web", [("a", 1)]), timeout=3
        )
        refused = poll(lambda: _refused(service), "reads are refused", within_s=MAX_STALENESS_S + 2)
        assert time.monotonic() - stopped <= MAX_STALENESS_S + 0.5
        assert refused == "STALE"
        stale = service.reads.GetAvailability(
            av.GetAvailabilityRequest(channel="web", sku="a", allow_stale=True), timeout=2
        )
        assert (stale.availability.sellable_quantity, stale.availability.as_of.degraded) == (9, True)
        with pytest.raises(grpc.RpcError) as caught:
            writing.result()
        assert refusal_of(caught.value).reason == "LEDGER_UNREACHABLE"
        assert time.monotonic() - stopped <= 3.5
        with pytest.raises(grpc.RpcError) as caught:
            service.reads.GetAvailability(
                av.GetAvailabilityRequest(channel="web", sku="a", strong=True), timeout=1
            )
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    finally:
        os.kill(redis_pid, signal.SIGCONT)
    continued = time.monotonic()
    answer = poll(lambda: _reserved(service, "q"), "writes work again", within_s=5)
    assert answer == "RESERVED"
    poll(lambda: not _refused(service), "reads work again", within_s=5)
    assert time.monotonic() - continued <= 5
    with process.redis() as client:
        audit(client)
    assert service.sellables("web", ["a"], strong=True) == [(8, "IN_STOCK")]
    service.close()


def _deltas_request(*deltas: Any) -> Any:
    return stk.ApplyDeltasRequest(source="erp", deltas=deltas)


def _refused(service: Service) -> str:
    """Reason for which a read is refused, or ''. Its answer before must not be older than is allowed."""
    try:
        answer = service.reads.GetAvailability(
            av.GetAvailabilityRequest(channel="web", sku="a"), timeout=1
        ).availability
    except grpc.RpcError as error:
        return refusal_of(error).reason
    assert answer.as_of.age_ms <= MAX_STALENESS_S * 1_000
    assert not answer.as_of.degraded
    return ""


def _reserved(service: Service, request_id: str) -> str:
    try:
        return service.reserve(request_id, "web", [("a", 1)]).outcome
    except Refusal as refusal:
        if refusal.reason != "LEDGER_UNREACHABLE":
            raise
        return ""


# --- a Redis that is not fit


@contextmanager
def _config(client: Any, **values: str) -> Iterator[None]:
    before = {name: client.config_get(name.replace("_", "-"))[name.replace("_", "-")] for name in values}
    for name, value in values.items():
        client.config_set(name.replace("_", "-"), value)
    try:
        yield
    finally:
        for name, value in before.items():
            client.config_set(name.replace("_", "-"), value)


@contextmanager
def _replica_of_nobody(client: Any) -> Iterator[None]:
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        client.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def _keys(client: Any, **values: str) -> Iterator[None]:
    client.mset(values)
    yield


@contextmanager
def _foreign_hash(client: Any) -> Iterator[None]:
    client.hset(META, "colour", "red")
    yield


@contextmanager
def _ours_without_head(client: Any) -> Iterator[None]:
    client.hset(BASE + "pos:a", "k", "1")
    yield


@contextmanager
def _other_code(client: Any) -> Iterator[None]:
    name = packaged().name
    client.execute_command(
        "FUNCTION", "LOAD", f"#!lua name={name}\nredis.register_function('{name}_x', function() end)"
    )
    yield


@contextmanager
def _no_right(client: Any, command: str) -> Iterator[None]:
    client.execute_command("ACL", "SETUSER", "default", f"-{command}")
    try:
        yield
    finally:
        client.execute_command("ACL", "SETUSER", "default", "+@all")


UNFIT: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "no persistence": (lambda c: _config(c, appendonly="no"), "persistence", "appendonly yes"),
    "never fsynced": (lambda c: _config(c, appendfsync="no"), "persistence", "appendfsync"),
    "eviction": (lambda c: _config(c, maxmemory_policy="allkeys-lru"), "eviction", "noeviction"),
    "a replica": (_replica_of_nobody, "role", "primary"),
    "keys of others": (lambda c: _keys(c, basket="1"), "keys", "somebody else"),
    "our meta is not ours": (_foreign_hash, "keys", "not ours"),
    "our keys without a head": (_ours_without_head, "keys", "no ledger"),
    "other functions under our name": (_other_code, "functions", "other code"),
    "no right to write deadlines": (lambda c: _no_right(c, "zadd"), "permissions", "ZADD"),
    "no right to write the log": (lambda c: _no_right(c, "xadd"), "permissions", "XADD"),
}


@pytest.fixture
def plain(redis_server: EmbeddedRedis) -> Iterator[Any]:
    """An empty Redis that nobody prepared for us."""
    redis_server.restart()
    client: Any = redis.Redis.from_url(redis_server.url)
    client.flushall()
    client.execute_command("FUNCTION", "FLUSH")
    client.config_set("maxmemory", 0)
    yield client
    client.close()


@pytest.mark.parametrize("case", UNFIT)
def test_an_unfit_redis_is_found_out(plain: Any, redis_server: EmbeddedRedis, case: str) -> None:
    """Each way in which a Redis cannot be trusted is one finding that names it and says what to change."""
    spoil, what, words = UNFIT[case]
    with spoil(plain):
        findings = preflight.inspect(redis_server.url, "demo", "avail")
    errors = [f for f in findings if f.severity == "error"]
    assert what in [f.what for f in errors], findings
    finding = next(f for f in errors if f.what == what)
    assert words in f"{finding.found} {finding.advice}"
    assert finding.advice


def test_a_fit_redis_has_no_error(plain: Any, redis_server: EmbeddedRedis) -> None:
    """An empty Redis with an append-only file passes, and the check leaves no key behind."""
    findings = preflight.inspect(redis_server.url, "demo", "avail")
    assert [f for f in findings if f.severity != "ok"] == []
    assert dump(plain) == {}


@pytest.mark.parametrize("case", ["no persistence", "other functions under our name"])
def test_serve_refuses_an_unfit_redis_with_one_line(
    plain: Any, redis_server: EmbeddedRedis, make_process: Callable[..., Process], case: str
) -> None:
    """`serve` on such a Redis ends with an exit code above 0, one line that says why, and nothing written."""
    spoil, _, words = UNFIT[case]
    process = over(make_process, redis_server)
    with spoil(plain):
        before = dump(plain)
        code, lines = process.refuses()
        assert differences(before, dump(plain)) == []
    assert code > 0
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in lines[0]


def over(make_process: Callable[..., Process], server: EmbeddedRedis, **env: str) -> Process:
    """A server over a Redis that it did not start."""
    return make_process(embedded=False, AVAIL_REDIS__URL=server.url, AVAIL_REDIS__PROFILE="demo", **env)


def test_serve_refuses_a_redis_that_is_not_there(make_process: Callable[..., Process]) -> None:
    """No Redis at the address: one line, exit code above 0."""
    process = make_process(
        embedded=False, AVAIL_REDIS__URL="unix:///nowhere.sock", AVAIL_REDIS__PROFILE="demo"
    )
    code, lines = process.refuses()
    assert code > 0
    assert len(lines) == 1
    assert "connection" in lines[0]


@pytest.mark.parametrize(
    ("version", "fit"), [("6.2.14", False), ("5.0", False), ("7.0.0", True), ("7.2.4", True)]
)
def test_a_redis_that_is_too_old_is_found_out(
    plain: Any, redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, version: str, fit: bool
) -> None:
    """Below 7.0 there are no functions: the finding says so."""
    info = {k: v for k, v in plain.info().items() if k != "valkey_version"} | {"redis_version": version}
    monkeypatch.setattr(redis.Redis, "info", lambda *_: info)
    findings = preflight.inspect(redis_server.url, "demo", "avail")
    found = next(f for f in findings if f.what == "version")
    assert found.severity == ("ok" if fit else "error")
    assert fit or "7.0" in found.advice


def test_a_ledger_that_came_back_empty_is_not_served(
    plain: Any, redis_server: EmbeddedRedis, make_process: Callable[..., Process]
) -> None:
    """A Redis that lost the ledger this machine worked with, or holds another one, is refused with one line."""
    process = over(make_process, redis_server, AVAIL_AUTO_CREATE="true")
    process.start()
    service = Service(process.grpc)
    service.call(service.stock.ApplyDeltas, _deltas_request(delta("RECEIPT", "a", "n1", 9)))
    service.close()
    seen = process.data_dir / "ledger-seen.json"
    poll(lambda: seen.exists() and b'"seq":1' in seen.read_bytes(), "the point is noted")
    process.stop()
    kept = plain.dump(META), plain.dump(BASE + "log")
    plain.flushall()
    code, lines = process.refuses()
    assert (code, len(lines)) == (1, 1)
    assert "holds no ledger" in lines[0]
    assert dump(plain) == {}, "a new ledger was made in place of the lost one"
    for key, value in zip((META, BASE + "log"), kept, strict=True):
        plain.restore(key, 0, value)
    plain.hset(META, "ledger_id", "somebody")
    code, lines = process.refuses()
    assert (code, len(lines)) == (1, 1)
    assert "another ledger" in lines[0]


def test_a_slow_redis_delays_and_breaks_nothing(lab: Lab) -> None:
    """A Redis that sleeps for a while answers late; calls within their deadline succeed and count once."""
    lab.receive("a", "n1", 9)
    sleeper: Any = redis.Redis(connection_pool=lab.redis.connection_pool)
    pausing = threading.Thread(target=lambda: sleeper.execute_command("CLIENT", "PAUSE", 700, "ALL"))
    pausing.start()
    pausing.join()
    started = time.monotonic()
    assert lab.reserve("q", [("a", 1)]).status == "RESERVED"
    assert 0.3 < time.monotonic() - started < 5
    assert lab.position("a", "n1") == (9, 0, 1, 0)
    audit(lab.redis)
