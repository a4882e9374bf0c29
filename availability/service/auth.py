"""Who asks, and what they may: bearer tokens with scopes, kept as hashes in a small JSON file.

The file is `{"tokens": [{"id", "sha256", "scopes", "not_after"?, "channels"?, "sources"?, "nodes"?, "calls_per_s"?,
"burst"?, "certificate"?}]}`; a field that this release does not
enforce is an error, so that no restriction is believed that is not there. An id may have several tokens, so
that a new one is in use before the old one is revoked. A changed file is read again within a second; a broken
one changes nothing and is logged. A token itself is shown once, by `add_token`, and is neither stored nor
printed. It is 256 random bits, so a plain hash is enough: nobody guesses it, and a slow hash would cost every
call.

This module knows no transport. Who asks it: `grpc_pipeline`; who edits the file: the CLI's `token` command.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
import structlog

from availability.domain.errors import Reason, ServiceError
from availability.service.bounds import Bounds, bounds_of
from availability.service.rate import Bucket

_LOG = structlog.get_logger(__name__)

TOKEN_PREFIX = "avl_"  # so that scanners of leaked secrets can find one
TOKEN_BYTES = 32
FINGERPRINT_DIGITS = 12
RELOAD_CHECK_S = 1.0
TOKENS_MAX = 10_000
NAMES_MAX = 2_000
"""Channels, sources or nodes that one token is bound to."""


class Scope(StrEnum):
    """What a token may do. None implies another."""

    READ = "read"
    RESERVE = "reserve"
    INGEST = "ingest"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody whose token was good, the scopes that it has, and what binds it (None: nothing)."""

    id: str
    scopes: frozenset[Scope]
    bounds: Bounds | None = None
    bucket: Bucket | None = None
    """How often it may call; None: as often as it likes."""


ANONYMOUS = Principal(id="anonymous", scopes=frozenset(Scope))
"""Everybody, where authentication is off; only on addresses that pass `require_loopback`."""


class Authenticator(Protocol):
    """Answers who sent an `authorization` value ("" where there is none)."""

    def principal(self, authorization: str) -> Principal:
        """Return who it is; ServiceError UNAUTHENTICATED where nobody known."""
        ...

    def principal_of_certificate(self, common_names: Sequence[str]) -> Principal | None:
        """Return who shows a client certificate (verified already) with these names; None where nobody known."""
        ...


class NoAuth:
    """Takes everybody for `anonymous`, with every scope."""

    def principal(self, authorization: str) -> Principal:
        """Return ANONYMOUS."""
        return ANONYMOUS

    def principal_of_certificate(self, common_names: Sequence[str]) -> Principal | None:
        """Return nobody: an empty authorization is good enough here."""
        return None


class TokenFileError(Exception):
    """The token file cannot be read or used; the message holds no token and no hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A stored token. `fingerprint` names it among those of its id; the hash is not printed."""

    id: str
    digest: bytes = field(repr=False)
    scopes: frozenset[Scope]
    not_after: datetime | None = None
    bounds: Bounds | None = None
    calls_per_s: float | None = None
    """None: the server's setting; 0: no limit."""
    burst: int | None = None
    """None: the server's setting."""
    certificate: str = ""
    """Common name of a client certificate that is as good as the token; empty: none is."""

    @property
    def fingerprint(self) -> str:
        """First digits of the hash: enough to tell tokens apart, useless to anybody else."""
        return self.digest.hex()[:FINGERPRINT_DIGITS]

    def principal(self, bucket: Bucket | None = None) -> Principal:
        """Return who a caller with this token is."""
        return Principal(id=self.id, scopes=self.scopes, bounds=self.bounds, bucket=bucket)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRate:
    """How often a token may call where its entry does not say: 0 is no limit, burst 0 a second's worth."""

    calls_per_s: float = 0.0
    burst: int = 0


# --- Checking ---------------------------------------------------------------------------------------------


class TokenStore:
    """The tokens of a file, followed as it changes. Thread-safe; a check costs about 2 µs."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        rate: TokenRate | None = None,
    ) -> None:
        """Read the file; TokenFileError where it is missing or broken: a server does not start without."""
        self._path = path
        self._rate = rate or TokenRate()
        self._clock = clock
        self._wall_clock = wall_clock
        self._reloading = threading.Lock()
        self._seen = _signature(path)
        self._by_digest: dict[bytes, _Known] = {}
        self._by_certificate: dict[str, _Known] = {}
        self._take(read_tokens(path))
        self._next_check = clock() + RELOAD_CHECK_S

    def __repr__(self) -> str:
        return f"TokenStore({str(self._path)!r}, {len(self._by_digest)} tokens)"

    def principal(self, authorization: str) -> Principal:
        """Return whose token `Bearer <token>` is; ServiceError UNAUTHENTICATED otherwise."""
        if self._clock() >= self._next_check:
            self._reload_if_changed()
        if not authorization:
            raise ServiceError(Reason.UNAUTHENTICATED, "a bearer token is required")
        if authorization[:7].lower() != "bearer ":
            raise ServiceError(Reason.UNAUTHENTICATED, "the authorization is not a bearer token")
        digest = _digest(authorization[7:])
        found = self._by_digest.get(digest)
        # The lookup compares hashes of what the caller chose, so its time tells nothing about a token; the
        # comparison in constant time keeps that true whatever becomes of the lookup.
        if found is None or not hmac.compare_digest(found.digest, digest):
            raise ServiceError(Reason.UNAUTHENTICATED, "the token is not known")
        if found.ends_at is not None and self._wall_clock() >= found.ends_at:
            raise ServiceError(Reason.UNAUTHENTICATED, "the token has ended")
        return found.principal

    def principal_of_certificate(self, common_names: Sequence[str]) -> Principal | None:
        """Return whose entry names the certificate; None where none does, or the entry has ended."""
        if self._clock() >= self._next_check:
            self._reload_if_changed()
        for name in common_names:
            found = self._by_certificate.get(name)
            if found is not None and (found.ends_at is None or self._wall_clock() < found.ends_at):
                return found.principal
        return None

    def _take(self, tokens: Collection[Token]) -> None:
        """Let these tokens count from now on; one that calls often does not start anew."""
        known = {token.digest: self._known(token) for token in tokens}
        self._by_certificate = {
            token.certificate: known[token.digest] for token in tokens if token.certificate
        }
        self._by_digest = known

    def _known(self, token: Token) -> _Known:
        rate = self._rate.calls_per_s if token.calls_per_s is None else token.calls_per_s
        burst = (self._rate.burst if token.burst is None else token.burst) or rate
        before = self._by_digest.get(token.digest)
        bucket = None
        if rate:
            same = before is not None and before.rate == (rate, burst)
            bucket = before.principal.bucket if before is not None and same else None
            bucket = bucket or Bucket(rate, burst, self._clock)
        return _Known(token, bucket, (rate, burst))

    def _reload_if_changed(self) -> None:
        if not self._reloading.acquire(blocking=False):
            return  # another thread is at it; the old tokens hold until it is done
        try:
            self._next_check = self._clock() + RELOAD_CHECK_S
            signature = _signature(self._path)
            if signature == self._seen:
                return
            self._seen = signature
            try:
                tokens = read_tokens(self._path)
            except TokenFileError as error:
                _LOG.error("token_file_refused", error=str(error), tokens_kept=len(self._by_digest))
                return
            self._take(tokens)
            _LOG.info("token_file_read", tokens=len(tokens))
        finally:
            self._reloading.release()


class _Known:
    """A token as the hot path wants it."""

    __slots__ = ("digest", "ends_at", "principal", "rate")

    def __init__(self, token: Token, bucket: Bucket | None, rate: tuple[float, float]) -> None:
        self.digest = token.digest
        self.ends_at = token.not_after.timestamp() if token.not_after else None
        self.principal = token.principal(bucket)
        self.rate = rate


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


# --- The file ---------------------------------------------------------------------------------------------

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Names = Annotated[list[_Name], msgspec.Meta(min_length=1, max_length=NAMES_MAX)]
"""An empty list is an error: it could be read as nothing or as everything."""


class _Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    id: _Name
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1)]
    not_after: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    channels: _Names | None = None
    sources: _Names | None = None
    nodes: _Names | None = None
    calls_per_s: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | None = None
    burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    certificate: Annotated[str, msgspec.Meta(max_length=64)] = ""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    tokens: Annotated[list[_Entry], msgspec.Meta(max_length=TOKENS_MAX)]


def read_tokens(path: Path) -> list[Token]:
    """Read every token of the file, in its order; TokenFileError where it is missing or broken."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TokenFileError(f"cannot read the token file {path}: {error.strerror}") from error
    try:
        entries = msgspec.json.decode(content, type=_File).tokens
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TokenFileError(f"the token file {path} is not valid: {error}") from error
    tokens = [_token(entry) for entry in entries]
    if len({token.digest for token in tokens}) < len(tokens):
        raise TokenFileError(f"the token file {path} lists a token twice")
    certificates = [token.certificate for token in tokens if token.certificate]
    if len(set(certificates)) < len(certificates):
        raise TokenFileError(f"the token file {path} names a certificate twice")
    return tokens


def add_token(
    path: Path,
    *,
    id: str,
    scopes: Collection[Scope],
    not_after: datetime | None = None,
    bounds: Bounds | None = None,
    calls_per_s: float | None = None,
    burst: int | None = None,
    certificate: str = "",
    new_secret: Callable[[int], str] = secrets.token_urlsafe,
) -> str:
    """Add a token to the file (made where it is missing) and return it: the only time that it is seen.

    An id that has one already gets a second: add, roll out, then revoke the old one by its fingerprint.
    """
    if not_after is not None and not_after.tzinfo is None:
        raise ValueError("not_after needs a time zone")
    secret = TOKEN_PREFIX + new_secret(TOKEN_BYTES)
    token = Token(
        id=id,
        digest=_digest(secret),
        scopes=frozenset(Scope(scope) for scope in scopes),
        not_after=not_after,
        bounds=bounds,
        calls_per_s=calls_per_s,
        burst=burst,
        certificate=certificate,
    )
    with _locked(path):
        _write(path, [*(read_tokens(path) if path.exists() else []), token])
    return secret


def revoke_token(path: Path, id: str, fingerprint: str | None = None) -> int:
    """Take the id's tokens (or the one with this fingerprint) out of the file; return how many those were."""
    with _locked(path):
        tokens = read_tokens(path)
        kept = [
            token
            for token in tokens
            if token.id != id or (fingerprint is not None and token.fingerprint != fingerprint)
        ]
        if len(kept) < len(tokens):
            _write(path, kept)
    return len(tokens) - len(kept)


def list_tokens(path: Path) -> list[Token]:
    """Return the file's tokens; none where there is no file."""
    return read_tokens(path) if path.exists() else []


def _token(entry: _Entry) -> Token:
    return Token(
        id=entry.id,
        digest=bytes.fromhex(entry.sha256),
        scopes=frozenset(entry.scopes),
        not_after=entry.not_after,
        bounds=bounds_of(entry.channels, entry.sources, entry.nodes),
        calls_per_s=entry.calls_per_s,
        burst=entry.burst,
        certificate=entry.certificate,
    )


def _listed(names: frozenset[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)


def _entry(token: Token) -> _Entry:
    bounds = token.bounds or Bounds()
    return _Entry(
        id=token.id,
        sha256=token.digest.hex(),
        scopes=sorted(token.scopes),
        not_after=token.not_after.astimezone(UTC) if token.not_after else None,
        channels=_listed(bounds.channels),
        sources=_listed(bounds.sources),
        nodes=_listed(bounds.nodes),
        calls_per_s=token.calls_per_s,
        burst=token.burst,
        certificate=token.certificate,
    )


def _kept_mode(before: int) -> int:
    """Return the new file's mode: the owner's, and that a group reads. What everybody could read is private again."""
    return 0o600 if before & stat.S_IRWXO else before & 0o640


def _write(path: Path, tokens: list[Token]) -> None:
    """Replace the file in one step; a new one is readable by its owner only.

    One that is there keeps its owner, its group and that the group may read it: a server that runs as somebody else
    must still be able to, or a revoked token would go on counting. ValueError where the caller may not give it away.
    """
    content = msgspec.json.format(msgspec.json.encode(_File(tokens=[_entry(token) for token in tokens])))
    try:
        msgspec.json.decode(
            content, type=_File
        )  # what is written must be readable: it checks lengths and counts
    except msgspec.ValidationError as error:
        raise ValueError(f"not a token that can be stored: {error}") from error
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    before = path.stat() if path.exists() else None
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if before is not None:
                own = os.fstat(descriptor)
                if (own.st_uid, own.st_gid) != (before.st_uid, before.st_gid):
                    _give(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, _kept_mode(before.st_mode))
            file.write(content + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _give(descriptor: int, uid: int, gid: int) -> None:
    try:
        os.fchown(descriptor, uid, gid)
    except PermissionError as error:
        raise ValueError(f"the file belongs to {uid}:{gid} and would not any more: do it as root") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other editors out; a lock file of its own, because the file itself is replaced."""
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- Where authentication may be off ----------------------------------------------------------------------


class NotLoopback(ValueError):
    """Authentication is off and the address can be reached from elsewhere."""


def require_loopback(address: str) -> None:
    """Refuse an address that other machines may reach; NotLoopback says which and why.

    Accepted: 127.0.0.0/8, ::1, `localhost` and unix sockets. Another name is refused whatever it resolves to
    now: tomorrow it may resolve to something else.
    """
    if re.match(r"unix(-abstract)?:.", address):
        return
    host = _host(address)
    if host.lower() == "localhost":
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        pass  # a name, an empty host (every interface) or several addresses
    raise NotLoopback(
        f"authentication is off, so the server may listen on a loopback address only, and {address!r} is not "
        "one: use 127.0.0.1, [::1], localhost or unix:<path>, or configure tokens"
    )


def _host(address: str) -> str:
    rest = re.sub(r"\A(ipv4:|ipv6:|dns:(///)?)", "", address)
    bracketed = re.fullmatch(r"\[([^\]]*)\](:\d+)?", rest)
    if bracketed:
        return bracketed[1]
    if rest.count(":") > 1:  # an IPv6 address without a port
        return rest
    return rest.rpartition(":")[0] if ":" in rest else rest
