"""Policies as a TOML file: what is set, read through the API; how a file differs; the requests that settle it.

One table per thing that is set, in `[[sections]]`. A section that a file does not have is not the file's business;
an empty one says that nothing of the kind is set. Defaults may be left out. Channels and nodes cannot be removed.
This module knows the contract's messages, not the screen: `policy_files` prints.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from availability.v1 import common_pb2 as common
from availability.v1 import policy_pb2 as pol

if TYPE_CHECKING:
    from availability.client import Client

NOTHING = "-"
"""The etag of what nobody has set."""

Key = tuple[str, ...]
Row = dict[str, Any]  # Any: what a TOML table holds; `_checked` knows which
Rows = dict[Key, Row]


class PolicyFileError(Exception):
    """A policy file cannot be used; the message names the section and the entry."""


class Kind(StrEnum):
    """What a difference is."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"
    LEFT = "left"  # the file does not have it, and it cannot be removed


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """How one kind of thing stands in a file: its key, and its other fields with their defaults."""

    key: tuple[str, ...]
    fields: Mapping[str, tuple[type, ...]]
    defaults: Mapping[str, Any]
    optional_key: bool = False
    removable: bool = True


_BUFFER = (int, str)
SECTIONS: Mapping[str, Section] = {
    "nodes": Section(
        key=("node",),
        fields={"state": (str,), "safety_stock": (int,)},
        defaults={"state": "ONLINE", "safety_stock": 0},
        removable=False,
    ),
    "channels": Section(
        key=("channel",),
        fields={
            "nodes": (list,),
            "all_nodes": (bool,),
            "buffer": _BUFFER,
            "oversell_limit": (int,),
            "low_stock_threshold": (int,),
            "publish_limit": (int,),
            "staleness": (str,),
        },
        defaults={
            "nodes": [],
            "all_nodes": False,
            "buffer": 0,
            "oversell_limit": 0,
            "low_stock_threshold": 0,
            "staleness": "KEEP",
        },
        removable=False,
    ),
    "kits": Section(key=("kit_sku",), fields={"components": (list,)}, defaults={}),
    "overrides": Section(
        key=("channel", "sku"),
        fields={
            "buffer": _BUFFER,
            "oversell_limit": (int,),
            "publish_limit": (int,),
            "excluded_nodes": (list,),
        },
        defaults={"excluded_nodes": []},
    ),
    "safety_stocks": Section(key=("sku", "node"), fields={"quantity": (int,)}, defaults={}),
    "feeds": Section(
        key=("source", "node"),
        fields={"expected_interval_s": (int, float), "grace_s": (int, float)},
        defaults={"grace_s": 0},
    ),
    "ring_fences": Section(key=("channel", "sku"), fields={"units": (int,)}, defaults={}),
    "stops": Section(key=("channel", "sku"), fields={"until": (datetime,)}, defaults={}, optional_key=True),
}
"""In the order in which differences are settled: nodes before the channels that name them, and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """All that is set: rows by section and key, and the version of each (none is known of a safety stock)."""

    rows: Mapping[str, Rows]
    etags: Mapping[tuple[str, Key], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One entry in which a file and the ledger differ."""

    section: str
    key: Key
    kind: Kind
    now: Row
    wanted: Row
    etag: str

    @property
    def name(self) -> str:
        """Name the entry for a person."""
        return f"{self.section} {' '.join(part or '*' for part in self.key)}"

    def fields(self) -> Iterator[tuple[str, Any, Any]]:
        """Yield (field, now, wanted) of what differs; None where it is absent."""
        for field in SECTIONS[self.section].fields:
            now, wanted = self.now.get(field), self.wanted.get(field)
            if now != wanted:
                yield field, now, wanted


# --- Reading and writing ----------------------------------------------------------------------------------


def read_policies(client: Client) -> Policies:
    """Ask the service for all that is set. Overrides of channels without a policy are not told by it."""
    answer = client.call(client.policies.ListPolicies, pol.ListPoliciesRequest())
    found: list[tuple[str, Row, str]] = []
    for node in answer.nodes:
        state = common.NodeState.Name(node.state).removeprefix("NODE_STATE_")
        row: Row = {"node": node.node, "state": state, "safety_stock": node.safety_stock}
        found.append(("nodes", row, node.version))
    for policy in answer.policies:
        found.append(("channels", _channel_row(policy), policy.version))
        found += [
            ("overrides", _override_row(policy.channel, entry), entry.version)
            for entry in _overrides(client, policy.channel)
        ]
    for kit in answer.kits:
        components = [{"sku": part.sku, "units": part.units} for part in kit.components]
        found.append(("kits", {"kit_sku": kit.kit_sku, "components": components}, kit.version))
    for stock in answer.safety_stocks:
        row = {"sku": stock.sku, "node": stock.node, "quantity": stock.quantity}
        found.append(("safety_stocks", row, ""))
    for feed in answer.feeds:
        row = {
            "source": feed.source,
            "node": feed.node,
            "expected_interval_s": feed.expected_interval.ToMilliseconds() / 1000,
            "grace_s": feed.grace.ToMilliseconds() / 1000,
        }
        found.append(("feeds", row, feed.version))
    for fence in answer.ring_fences:
        if fence.units:
            row = {"channel": fence.channel, "sku": fence.sku, "units": fence.units}
            found.append(("ring_fences", row, fence.version))
    for stop in answer.stops:
        row = {"channel": stop.channel, "sku": stop.sku}
        if stop.HasField("until"):
            row["until"] = stop.until.ToDatetime(UTC)
        found.append(("stops", row, stop.version))
    rows: dict[str, Rows] = {name: {} for name in SECTIONS}
    etags: dict[tuple[str, Key], str] = {}
    for section, entry, version in found:
        key, normal = _normal(section, entry)
        rows[section][key] = normal
        etags[section, key] = version
    return Policies(rows=rows, etags=etags)


def to_toml(policies: Policies) -> str:
    """Write all that is set; the same state is always the same text."""
    import tomli_w

    document: dict[str, list[Row]] = {}
    for name, section in SECTIONS.items():
        rows = policies.rows[name]
        document[name] = [
            {
                **_named(section, key),
                **{field: rows[key][field] for field in section.fields if field in rows[key]},
            }
            for key in sorted(rows, key=_bytes)
        ]
    return tomli_w.dumps(document)


def from_toml(text: str) -> Mapping[str, Rows]:
    """Read a file; only the sections that it has. Raises PolicyFileError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyFileError(f"not TOML: {error}") from error
    found: dict[str, Rows] = {}
    for name, entries in document.items():
        if name not in SECTIONS:
            raise PolicyFileError(f"no section {name!r}: use {', '.join(SECTIONS)}")
        if not isinstance(entries, list):
            raise PolicyFileError(f"{name} is not a list of tables: write [[{name}]]")
        rows = found[name] = {}
        for number, entry in enumerate(entries, start=1):
            where = f"{name}, entry {number}"
            key, row = _normal(name, _checked(where, SECTIONS[name], entry))
            if key in rows:
                raise PolicyFileError(f"{where}: {' '.join(key)} is named twice")
            rows[key] = row
    return found


def _checked(where: str, section: Section, entry: Any) -> Row:
    if not isinstance(entry, dict):
        raise PolicyFileError(f"{where}: not a table")
    allowed: dict[str, tuple[type, ...]] = {**dict.fromkeys(section.key, (str,)), **section.fields}
    for name, value in entry.items():
        if name not in allowed:
            raise PolicyFileError(f"{where}: no field {name!r}: use {', '.join(allowed)}")
        is_bool = isinstance(value, bool)  # which Python counts among the integers
        if not isinstance(value, allowed[name]) or (is_bool and bool not in allowed[name]):
            raise PolicyFileError(f"{where}: {name} is not {' or '.join(t.__name__ for t in allowed[name])}")
    named = [name for name in section.key if entry.get(name)]
    if not named or (len(named) < len(section.key) and not section.optional_key):
        raise PolicyFileError(f"{where}: {' and '.join(section.key)} name an entry")
    _check_values(where, entry)
    return entry


def _check_values(where: str, entry: Row) -> None:
    buffer = entry.get("buffer")
    if isinstance(buffer, str) and re.fullmatch(r"\d{1,3}%", buffer, re.ASCII) is None:
        raise PolicyFileError(f"{where}: {buffer!r} is no buffer: use units (5) or a percentage ('10%')")
    for name in ("nodes", "excluded_nodes"):
        if not all(isinstance(node, str) for node in entry.get(name, [])):
            raise PolicyFileError(f"{where}: {name} holds something that is no text")
    for part in entry.get("components", []):
        if not isinstance(part, dict) or set(part) != {"sku", "units"} or type(part["units"]) is not int:
            raise PolicyFileError(f"{where}: a component is {{ sku = 'A', units = 1 }}")
    for name, words in (("state", common.NodeState), ("staleness", pol.Staleness)):
        prefix = {"state": "NODE_STATE_", "staleness": "STALENESS_"}[name]
        word = entry.get(name)
        if word is not None and (word == "UNSPECIFIED" or prefix + word not in words.keys()):  # noqa: SIM118 -- an enum
            raise PolicyFileError(f"{where}: no {name} {word!r}")
    until = entry.get("until")
    if until is not None and until.tzinfo is None:
        raise PolicyFileError(f"{where}: until needs a time zone: 2026-12-24T18:00:00Z")


def _normal(name: str, entry: Row) -> tuple[Key, Row]:
    """Split an entry into key and fields, the defaults among them."""
    section = SECTIONS[name]
    key = tuple(entry.get(part, "") for part in section.key)
    row = {**section.defaults, **{field: entry[field] for field in section.fields if field in entry}}
    return key, row


def _named(section: Section, key: Key) -> Row:
    return {name: part for name, part in zip(section.key, key, strict=True) if part}


def _bytes(key: Key) -> tuple[bytes, ...]:
    return tuple(part.encode() for part in key)


def _overrides(client: Client, channel: str) -> Iterator[pol.SkuOverrideEntry]:
    page_token = ""
    while True:
        request = pol.GetPolicyRequest(channel=channel, page_size=1_000, page_token=page_token)
        page = client.call(client.policies.GetPolicy, request)
        yield from page.overrides
        page_token = page.next_page_token
        if not page_token:
            return


def _channel_row(policy: pol.ChannelPolicy) -> Row:
    row: Row = {
        "channel": policy.channel,
        "nodes": list(policy.nodes),
        "all_nodes": policy.all_nodes,
        "buffer": _buffer_value(policy.buffer),
        "oversell_limit": policy.oversell_limit,
        "low_stock_threshold": policy.low_stock_threshold,
        "staleness": pol.Staleness.Name(policy.staleness or pol.STALENESS_KEEP).removeprefix("STALENESS_"),
    }
    if policy.HasField("publish_limit"):
        row["publish_limit"] = policy.publish_limit
    return row


def _override_row(channel: str, entry: pol.SkuOverrideEntry) -> Row:
    differs = entry.override
    row: Row = {"channel": channel, "sku": entry.sku, "excluded_nodes": list(differs.excluded_nodes)}
    if differs.HasField("buffer"):
        row["buffer"] = _buffer_value(differs.buffer)
    for name in ("oversell_limit", "publish_limit"):
        if differs.HasField(name):
            row[name] = getattr(differs, name)
    return row


def _buffer_value(buffer: common.Buffer) -> int | str:
    return f"{buffer.percent}%" if buffer.WhichOneof("value") == "percent" else buffer.units


def _buffer(value: int | str) -> common.Buffer:
    if isinstance(value, str):
        return common.Buffer(percent=int(value.removesuffix("%")))
    return common.Buffer(units=value)


# --- Differences ------------------------------------------------------------------------------------------


def differences(now: Policies, wanted: Mapping[str, Rows]) -> list[Difference]:
    """Return where a file differs from what is set, in the order in which to settle it."""
    found: list[Difference] = []
    for name, section in SECTIONS.items():
        if name not in wanted:
            continue
        old, new = now.rows[name], wanted[name]
        for key in sorted(old.keys() | new.keys(), key=_bytes):
            if old.get(key) == new.get(key):
                continue
            kind = Kind.ADD if key not in old else Kind.CHANGE if key in new else Kind.REMOVE
            if kind is Kind.REMOVE and not section.removable:
                kind = Kind.LEFT
            found.append(
                Difference(
                    section=name,
                    key=key,
                    kind=kind,
                    now=old.get(key, {}),
                    wanted=new.get(key, {}),
                    etag=now.etags.get((name, key), NOTHING),
                )
            )
    return _in_order(found)


def _in_order(found: list[Difference]) -> list[Difference]:
    """Put a kit after the kits that it contains, and whatever is taken away before what is set, but for stops."""
    kits = {one.key[0]: one for one in found if one.section == "kits"}

    def depth(kit: str, seen: tuple[str, ...] = ()) -> int:
        parts = kits[kit].wanted.get("components", []) if kit in kits and kit not in seen else []
        return 1 + max((depth(part["sku"], (*seen, kit)) for part in parts), default=0)

    def place(one: Difference) -> tuple[bool, int, int]:
        section = list(SECTIONS).index(one.section)
        if one.kind is Kind.REMOVE:
            return (True, section, 0) if one.section == "stops" else (False, -1 - section, 0)
        return False, section, depth(one.key[0]) if one.section == "kits" else 0

    return sorted(found, key=place)


# --- Requests ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One request that settles (a part of) a difference."""

    method: str
    request: Any  # Any: each policy write has its own message, with reason, etag and validate_only


def writes(difference: Difference) -> list[Write]:
    """Return the requests that settle a difference, without reason; none for what is left.

    The first carries the etag; a second one (a node's two numbers) wants the version of the first.
    """
    if difference.kind is Kind.LEFT:
        return []
    made = _WRITES[difference.section](difference)
    if made and difference.etag:
        made[0].request.etag = difference.etag
    return made


def _node_writes(one: Difference) -> list[Write]:
    (node,) = one.key
    made = []
    if one.kind is Kind.ADD or one.now["state"] != one.wanted["state"]:
        state = common.NodeState.Value(f"NODE_STATE_{one.wanted['state']}")
        made.append(Write(method="SetNode", request=pol.SetNodeRequest(node=node, state=state)))
    if one.now.get("safety_stock", 0) != one.wanted["safety_stock"]:
        request = pol.SetSafetyStockRequest(node=node, quantity=one.wanted["safety_stock"])
        made.append(Write(method="SetSafetyStock", request=request))
    return made


def _channel_writes(one: Difference) -> list[Write]:
    row = one.wanted
    policy = pol.ChannelPolicy(
        channel=one.key[0],
        nodes=row["nodes"],
        all_nodes=row["all_nodes"],
        buffer=_buffer(row["buffer"]),
        oversell_limit=row["oversell_limit"],
        low_stock_threshold=row["low_stock_threshold"],
        publish_limit=row.get("publish_limit"),
        staleness=pol.Staleness.Value(f"STALENESS_{row['staleness']}"),
    )
    return [Write(method="SetChannelPolicy", request=pol.SetChannelPolicyRequest(policy=policy))]


def _kit_writes(one: Difference) -> list[Write]:
    components = [pol.KitComponent(**part) for part in one.wanted.get("components", [])]
    return [Write(method="SetKit", request=pol.SetKitRequest(kit_sku=one.key[0], components=components))]


def _override_writes(one: Difference) -> list[Write]:
    channel, sku = one.key
    if one.kind is Kind.REMOVE:
        return [
            Write(method="ClearSkuOverride", request=pol.ClearSkuOverrideRequest(channel=channel, sku=sku))
        ]
    row = one.wanted
    override = pol.SkuOverride(
        buffer=_buffer(row["buffer"]) if "buffer" in row else None,
        oversell_limit=row.get("oversell_limit"),
        publish_limit=row.get("publish_limit"),
        excluded_nodes=row["excluded_nodes"],
    )
    request = pol.SetSkuOverrideRequest(channel=channel, sku=sku, override=override)
    return [Write(method="SetSkuOverride", request=request)]


def _safety_writes(one: Difference) -> list[Write]:
    sku, node = one.key
    request = pol.SetSafetyStockRequest(sku=sku, node=node, quantity=one.wanted.get("quantity"))
    return [Write(method="SetSafetyStock", request=request)]


def _feed_writes(one: Difference) -> list[Write]:
    source, node = one.key
    request = pol.SetFeedRequest(source=source, node=node)
    if one.kind is not Kind.REMOVE:
        request.expected_interval.FromMilliseconds(round(one.wanted.get("expected_interval_s", 0) * 1000))
        request.grace.FromMilliseconds(round(one.wanted["grace_s"] * 1000))
    return [Write(method="SetFeed", request=request)]


def _fence_writes(one: Difference) -> list[Write]:
    channel, sku = one.key
    request = pol.SetRingFenceRequest(channel=channel, sku=sku, units=one.wanted.get("units", 0))
    return [Write(method="SetRingFence", request=request)]


def _stop_writes(one: Difference) -> list[Write]:
    channel, sku = one.key
    blocked = one.kind is not Kind.REMOVE
    state = common.SALE_STATE_BLOCKED if blocked else common.SALE_STATE_SELLABLE
    request = pol.SetSaleStateRequest(channel=channel, sku=sku, state=state)
    if "until" in one.wanted:
        request.until.FromDatetime(one.wanted["until"])
    return [Write(method="SetSaleState", request=request)]


_WRITES: Mapping[str, Callable[[Difference], list[Write]]] = {
    "nodes": _node_writes,
    "channels": _channel_writes,
    "kits": _kit_writes,
    "overrides": _override_writes,
    "safety_stocks": _safety_writes,
    "feeds": _feed_writes,
    "ring_fences": _fence_writes,
    "stops": _stop_writes,
}
