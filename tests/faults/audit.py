"""What must hold of a ledger's keys at any moment, and a dump that two moments can be compared by.

Written from the layout that the Lua files state, not from their code: log, head, positions, holds, deadlines and
order facts are read whole and must agree.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any  # Any: values of any Redis type, and its client

import msgspec

from availability.domain.version import Version
from availability.ledger.record import CommittedBody, DeltasBody, Entry, Kind, chain_after, decode_body
from tests.faults.lab import BASE, HEAD, META

ACTIVE, COMMITTED, RELEASED, EXPIRED = 1, 2, 3, 4
Dump = dict[str, Any]
_decode = msgspec.msgpack.decode


def dump(client: Any) -> Dump:
    """Read every key as a plain value, in two round trips."""
    found = sorted(key.decode("utf-8", "surrogateescape") for key in client.keys("*"))
    ask = client.pipeline(transaction=False)
    for key in found:
        ask.type(key.encode("utf-8", "surrogateescape"))
    kinds = ask.execute()
    ask = client.pipeline(transaction=False)
    for key, kind in zip(found, kinds, strict=True):
        name = key.encode("utf-8", "surrogateescape")
        {
            b"hash": lambda n: ask.hgetall(n),
            b"string": lambda n: ask.get(n),
            b"zset": lambda n: ask.zrange(n, 0, -1, withscores=True),
            b"list": lambda n: ask.lrange(n, 0, -1),
            b"set": lambda n: ask.smembers(n),
            b"stream": lambda n: ask.xrange(n),
        }[kind](name)
    return dict(zip(found, ask.execute(), strict=True))


def differences(before: Dump, after: Dump, *, exempt: tuple[str, ...] = ()) -> list[str]:
    """Name the keys that differ, but those that start with an exempt name."""
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(tuple(BASE + e for e in exempt) or "\0")
    ]


def entries(keys: Dump) -> list[Entry]:
    """Give the log, oldest first."""
    rows = keys.get(BASE + "log", [])
    return [Entry(Version.parse(name.decode()), f[b"c"].decode(), f[b"r"]) for name, f in rows]


def audit(client: Any) -> Dump:
    """Check everything at once; the dump that was checked."""
    keys = dump(client)
    _check_log(keys)
    _check_positions(keys)
    _check_holds(keys)
    _check_orders(keys)
    check_ends(keys)
    return keys


def _check_log(keys: Dump) -> None:
    epoch, seq, _, _, _, _, chain, _ = struct.unpack(HEAD, keys[META][b"head"])
    log = entries(keys)
    if not log:
        return
    assert (log[-1].version, log[-1].chain) == (Version(epoch, seq), chain.decode()), (
        "head and the last entry differ"
    )
    previous: Entry | None = None
    for entry in log:
        if previous is not None:
            follows = entry.version in (
                Version(previous.version.epoch, previous.version.seq + 1),
                Version(previous.version.epoch + 1, 1),
            )
            assert follows, f"{entry.version} follows {previous.version}"
            assert entry.chain == chain_after(previous.chain, str(entry.version), entry.raw)
        elif entry.version == Version(1, 1):
            assert entry.chain == chain_after("", str(entry.version), entry.raw)
        previous = entry


def positions_of(keys: Dump) -> dict[tuple[str, str], tuple[int, ...]]:
    """Give on_hand, quarantined, reserved, committed and safety stock of each (sku, node)."""
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    for key, fields in keys.items():
        if key.startswith(BASE + "pos:"):
            sku = key.removeprefix(BASE + "pos:")
            for name, raw in fields.items():
                if name[:1] == b"n":
                    found[sku, name[1:].decode()] = struct.unpack_from("<5q", raw)
    return found


def _whole(keys: Dump) -> bool:
    log = entries(keys)
    return log[0].version == Version(1, 1) if log else struct.unpack(HEAD, keys[META][b"head"])[:2] == (1, 0)


def _check_positions(keys: Dump) -> None:
    positions = positions_of(keys)
    last: dict[tuple[str, str], tuple[int, ...]] = {}
    sums: dict[tuple[str, str], list[int]] = {}
    for entry in entries(keys):
        for p in entry.record().positions:
            after = (p.on_hand, p.quarantined, p.reserved, p.committed, p.safety_stock)
            changes = (p.on_hand_change, p.quarantined_change, p.reserved_change, p.committed_change)
            last[p.sku, p.node] = after
            total = sums.setdefault((p.sku, p.node), [0, 0, 0, 0])
            for i, change in enumerate(changes):
                total[i] += change
    for place, state in last.items():
        assert positions.get(place) == state, (
            f"{place}: the log says {state}, the position {positions.get(place)}"
        )
    if _whole(keys):
        assert positions.keys() == last.keys(), "positions without a log entry"
        for place, total in sums.items():
            assert tuple(total) == positions[place][:4], f"{place}: the log's changes add up to {total}"
    reserved: Counter[tuple[str, str]] = Counter()
    committed: Counter[tuple[str, str]] = Counter()
    for key, fields in keys.items():
        if not key.startswith(BASE + "use:"):
            continue
        sku = key.removeprefix(BASE + "use:")
        for name, raw in fields.items():
            if name[:1] == b"o":
                for node, quantity in _decode(raw).items():
                    committed[sku, node] += quantity
            elif name[:1] == b"w":
                for node, quantity in _decode(raw)[0].items():
                    reserved[sku, node] -= quantity
    for units in active_holds(keys).values():
        reserved.update(units)
    for place in positions.keys() | reserved.keys() | committed.keys():
        state = positions.get(place, (0, 0, 0, 0, 0))
        assert state[2] == reserved[place], f"{place}: reserved {state[2]}, its holds {reserved[place]}"
        assert state[3] == committed[place], f"{place}: committed {state[3]}, its orders {committed[place]}"
    listed = [sku.decode() for sku in keys.get(BASE + "skus", [])]
    assert len(listed) == len(set(listed)), "a sku is listed twice"
    marked = {
        key.removeprefix(BASE + "pos:")
        for key, fields in keys.items()
        if key.startswith(BASE + "pos:") and b"i" in fields
    }
    assert set(listed) == marked, "the list of skus and their marks differ"
    assert {sku for sku, _ in positions} <= marked


def active_holds(keys: Dump) -> dict[str, Counter[tuple[str, str]]]:
    """Give the units of each active hold by (sku, node)."""
    found: dict[str, Counter[tuple[str, str]]] = {}
    for key, raw in keys.items():
        if key.startswith(BASE + "res:") and (hold := _decode(raw))[0] == ACTIVE:
            units = found[key.removeprefix(BASE + "res:")] = Counter()
            for sku, _, sources in hold[10]:
                for node, quantity, *_ in sources:
                    units[sku, node] += quantity
    return found


def _check_holds(keys: Dump) -> None:
    due = dict(keys.get(BASE + "due", []))
    ended = {state: dict(keys.get(f"{BASE}ended:{state}", [])) for state in (COMMITTED, RELEASED, EXPIRED)}
    units = active_holds(keys)
    for key, raw in keys.items():
        if not key.startswith(BASE + "res:"):
            continue
        name, hold = key.removeprefix(BASE + "res:"), _decode(raw)
        state, raw_name = hold[0], name.encode()
        assert due.get(raw_name) == (hold[5] if state == ACTIVE else None), f"{name}: its deadline"
        for ended_state, rows in ended.items():
            end_ms = hold[7] if ended_state == state else None
            assert rows.get(raw_name) == end_ms, f"{name}: among the ended ones of state {ended_state}"
    assert {name.decode() for name in due} == units.keys(), "deadlines and active reservations differ"
    indexed: dict[str, set[str]] = {name: set() for name in units}
    for key, fields in keys.items():
        if key.startswith(BASE + "use:"):
            for name in fields:
                if name[:1] == b"h":
                    indexed.setdefault(name[1:].decode(), set()).add(key.removeprefix(BASE + "use:"))
    held = {name: {sku for sku, _ in places} for name, places in units.items()}
    assert indexed == held, "holds and the index of holds differ"
    first = struct.unpack(HEAD, keys[META][b"head"])[4]
    if due:
        assert 0 < first <= min(due.values()), (
            f"the first deadline is {min(due.values())}, the head says {first}"
        )


def _check_orders(keys: Dump) -> None:
    used: dict[tuple[str, str], Any] = {}
    for key, fields in keys.items():
        if key.startswith(BASE + "use:"):
            for name, raw in fields.items():
                if name[:1] == b"o":
                    used[name[1:].decode(), key.removeprefix(BASE + "use:")] = _decode(raw)
    facts: dict[tuple[str, str], Any] = {}
    open_orders = set()
    for key, fields in keys.items():
        if key.startswith(BASE + "ord:"):
            order = key.removeprefix(BASE + "ord:")
            if b"m" in fields:
                open_orders.add(order.encode())
            for name, raw in fields.items():
                if name[:1] == b"s" and (committed := _decode(raw)[3]):
                    facts[order, name[1:].decode()] = committed
    assert used == facts, "what orders commit and the index of orders differ"
    assert open_orders >= {name for name, _ in keys.get(BASE + "ord_last", [])}, (
        "a last fact without its order"
    )


def check_ends(keys: Dump) -> Counter[str]:
    """Check that each hold of the log ended at most once; how holds ended."""
    live: dict[str, int] = {}
    ends: Counter[str] = Counter()
    whole = _whole(keys)
    expired = set()

    def end(name: str, how: str) -> None:
        assert live.pop(name, None) or not whole, f"{name} ended twice: {how}"
        ends[how] += 1

    for entry in entries(keys):
        record = entry.record()
        if record.kind in (Kind.RESERVED, Kind.EXTENDED, Kind.COMMITTED, Kind.RELEASED, Kind.EXPIRED):
            body = decode_body(record)
            name = body.reservation_id
            if record.kind == Kind.RESERVED:
                assert name not in live
                live[name] = 1
            elif isinstance(body, CommittedBody) and body.reserved_anew:
                assert name in expired or not whole
                expired.discard(name)
                ends["committed anew"] += 1
            elif record.kind == Kind.COMMITTED:
                end(name, "committed")
            elif record.kind == Kind.EXPIRED:
                end(name, "expired")
                expired.add(name)
            elif record.kind == Kind.RELEASED and body.ended:
                end(name, "released")
        elif record.kind == Kind.DELTAS:
            deltas: DeltasBody = decode_body(record)
            for body in deltas.released:
                if body.ended:
                    end(body.reservation_id, "cancelled")
    if whole:
        due = {name.decode() for name, _ in keys.get(BASE + "due", [])}
        assert live.keys() == due, "the log's live holds and the deadlines differ"
    return ends
