"""Checks of a Redis before a ledger is trusted to it; ``availability doctor`` shows the same list."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import msgspec
import redis
from redis.exceptions import RedisError

from availability.ledger import keys
from availability.ledger.connection import ConnectionSettings, load_library, make_client, translate
from availability.ledger.errors import LedgerError
from availability.ledger.library import Library, packaged
from availability.ledger.primary import Primary

VERSION_MIN = (7, 0, 0)
CLOCK_OFFSET_WARN_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check. ``severity`` is ok, warning or error; an error refuses the start."""

    severity: str
    what: str
    found: str
    advice: str = ""


def inspect(
    url: str, profile: str = "demo", prefix: str = "avail", *, shared_database: bool = False
) -> list[Finding]:
    """Check a Redis. Never raises: what cannot be checked is a finding."""
    settings = ConnectionSettings(url=url, prefix=prefix)
    try:
        client = make_client(settings)
    except ValueError as error:
        return [
            _error(
                "url",
                "not understood",
                f"use redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// ({error})",
            )
        ]
    with client:
        try:
            info: dict[str, Any] = client.info()  # Any: the library's own type
        except (RedisError, OSError) as error:
            return [
                _error("connection", str(translate(error)), "check redis.url, its password and the network")
            ]
        return [*_followed(client), *_findings(client, info, settings, profile, shared_database)]


def _followed(client: redis.Redis) -> list[Finding]:
    """Tell where the primary was found, where the address leaves that to Sentinels or a Cluster."""
    primary: Primary | None = client.connection_pool.connection_kwargs.get("primary")
    if primary is None or primary.address is None:
        return []
    host, port = primary.address
    return [_ok("address", f"the primary is at {host}:{port}, and is followed")]


def _ok(what: str, found: str) -> Finding:
    return Finding(severity="ok", what=what, found=found)


def _warning(what: str, found: str, advice: str) -> Finding:
    return Finding(severity="warning", what=what, found=found, advice=advice)


def _error(what: str, found: str, advice: str) -> Finding:
    return Finding(severity="error", what=what, found=found, advice=advice)


def _findings(
    client: redis.Redis, info: dict[str, Any], settings: ConnectionSettings, profile: str, shared: bool
) -> list[Finding]:
    findings = [_version(info), _role(info)]
    if any(f.severity == "error" for f in findings):
        return findings  # nothing more can be learned, and nothing may be written
    config = _config(client)
    findings += _persistence(info, config, profile)
    findings += [_eviction(info, config), _replicas(info, config, profile), _clock(client)]
    tenant = _tenant(client, settings, shared)
    findings.append(tenant)
    if tenant.severity != "error":
        findings += [_functions(client), _canary(client, settings)]
    return findings


def _version(info: dict[str, Any]) -> Finding:
    text = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in text.split(".")[:3] if part.isdigit())
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {text}"
    if numbers < VERSION_MIN:
        return _error("version", name, "7.0 or newer is needed: the ledger is made of Redis Functions")
    return _ok("version", name)


def _role(info: dict[str, Any]) -> Finding:
    if info.get("role") != "master":
        return _error("role", "replica", "connect to the primary")
    return _ok("role", "primary")


def _config(client: redis.Redis) -> dict[str, str] | None:
    """Settings, or None where CONFIG is not allowed (managed services)."""
    try:
        raw: dict[str, str] = {}
        for pattern in ("append*", "maxmemory*", "min-replicas-to-write", "save"):
            raw.update({_text(k): _text(v) for k, v in client.config_get(pattern).items()})
        return raw
    except (RedisError, OSError):
        return None


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _persistence(info: dict[str, Any], config: dict[str, str] | None, profile: str) -> list[Finding]:
    aof = bool(int(info.get("aof_enabled", 0)))
    if not aof:
        return [
            _error(
                "persistence",
                "appendonly no",
                "set appendonly yes: without it a restart empties the ledger and every sku shows 0",
            )
        ]
    if config is None:
        return [
            _warning(
                "persistence",
                "appendonly yes; CONFIG is not allowed, appendfsync unknown",
                f"make sure that it fits the profile {profile}",
            )
        ]
    fsync = config.get("appendfsync", "?")
    if profile == "single-strict" and fsync != "always":
        return [
            _error(
                "persistence",
                f"appendonly yes, appendfsync {fsync}",
                "the profile single-strict needs appendfsync always",
            )
        ]
    if fsync == "no":
        return [_error("persistence", "appendfsync no", "set appendfsync everysec or always")]
    return [_ok("persistence", f"appendonly yes, appendfsync {fsync}")]


def _eviction(info: dict[str, Any], config: dict[str, str] | None) -> Finding:
    policy = str(info.get("maxmemory_policy") or (config or {}).get("maxmemory-policy", "?"))
    if policy != "noeviction":
        return _error(
            "eviction",
            f"maxmemory-policy {policy}",
            "set maxmemory-policy noeviction: Redis would drop stock to make room",
        )
    limit = int(info.get("maxmemory", 0) or 0)
    if not limit:
        return _ok("eviction", "noeviction, no maxmemory")
    used = int(info.get("used_memory", 0)) / limit
    if used > 0.8:
        return _warning(
            "memory",
            f"{used:.0%} of maxmemory used",
            "raise maxmemory: above it new reservations are refused",
        )
    return _ok("eviction", f"noeviction, {used:.0%} of maxmemory used")


def _replicas(info: dict[str, Any], config: dict[str, str] | None, profile: str) -> Finding:
    attached = int(info.get("connected_slaves", 0))
    if not profile.startswith("ha"):
        return _ok("replicas", f"{attached} attached, profile {profile} needs none")
    if attached < 1:
        return _error("replicas", "none attached", f"the profile {profile} needs at least one replica")
    least = (config or {}).get("min-replicas-to-write", "?")
    if config is not None and least in ("0", "?"):
        return _error(
            "replicas", f"{attached} attached, min-replicas-to-write {least}", "set min-replicas-to-write 1"
        )
    if least.isdigit() and attached <= int(least):  # who is promoted has one less than his predecessor had
        return _warning(
            "replicas",
            f"{attached} attached, min-replicas-to-write {least}",
            f"attach {int(least) + 1 - attached} more: after a failover, or without this one, writes are refused",
        )
    return _ok("replicas", f"{attached} attached, min-replicas-to-write {least}")


def _clock(client: redis.Redis) -> Finding:
    before = time.time()
    seconds, micros = client.time()
    offset = seconds + micros / 1e6 - (before + time.time()) / 2
    if abs(offset) > CLOCK_OFFSET_WARN_S:
        return _warning(
            "clock",
            f"{offset:+.1f} s from this machine's",
            "run NTP on both; holds are safe, expire_time is shown wrongly",
        )
    return _ok("clock", f"{offset * 1000:+.1f} ms from this machine's")


def _tenant(client: redis.Redis, settings: ConnectionSettings, shared: bool) -> Finding:
    meta_key = keys.meta(settings.prefix, settings.shard)
    try:
        if client.exists(meta_key):
            ledger_id = client.hget(meta_key, "ledger_id")
            if not ledger_id:
                return _error("keys", f"{meta_key} is not ours", "choose another redis.prefix")
            return _ok("keys", f"ledger {_text(ledger_id)}")
        ours = (
            next(client.scan_iter(match=f"{settings.prefix}:{{{settings.shard}}}:*", count=1000), None)
            if client.dbsize()
            else None
        )
        if ours is not None:
            return _error(
                "keys",
                "keys with our prefix but no ledger",
                "somebody else's keys, or a ledger that lost its head: choose another redis.prefix or restore",
            )
        if client.dbsize() and not shared:
            return _error(
                "keys",
                f"{client.dbsize()} keys of somebody else",
                "use a Redis of its own, or set redis.shared_database",
            )
        return _ok(
            "keys",
            "empty, a new ledger will be made"
            if not client.dbsize()
            else "shared with others, no ledger yet",
        )
    except (RedisError, OSError) as error:
        return _error("keys", str(translate(error)), "choose another redis.prefix")


def _functions(client: redis.Redis, library: Library | None = None) -> Finding:
    library = library or packaged()
    try:
        load_library(client, library)
        listed = client.function_list(library.name, withcode=True)
        code = _code_of(listed)
    except (RedisError, OSError) as error:
        return _error("functions", str(translate(error)), "allow FUNCTION and FCALL to this user")
    except LedgerError as error:
        return _error("functions", str(error), "allow FUNCTION and FCALL to this user")
    if code != library.code:
        return _error(
            "functions",
            f"{library.name} holds other code",
            f"somebody changed it: FUNCTION DELETE {library.name}",
        )
    return _ok("functions", library.name)


def _code_of(listed: Any) -> str:  # Any: a list of pairs or of maps, by protocol version
    for entry in listed:
        pairs = entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True))
        for key, value in pairs.items():
            if _text(key) == "library_code":
                return _text(value)
    return ""


def _canary(client: redis.Redis, settings: ConnectionSettings) -> Finding:
    try:
        meta_key = keys.meta(settings.prefix, settings.shard)
        reply = client.execute_command("FCALL", packaged().function("canary"), 1, meta_key)
        _, replication_id = msgspec.msgpack.decode(reply)
    except (RedisError, OSError) as error:
        return _error(
            "permissions", str(translate(error)), "allow this user every command on keys of our prefix"
        )
    if not replication_id:
        return _error("permissions", "INFO replication shows no replication id", "allow INFO to this user")
    return _ok("permissions", "every write that the functions use works")
