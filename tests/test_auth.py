"""Tokens: who is known, for what, until when; what the file keeps and what nobody ever sees."""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from availability.domain.errors import Reason, ServiceError
from availability.service.auth import (
    ANONYMOUS,
    NoAuth,
    NotLoopback,
    Scope,
    TokenFileError,
    TokenStore,
    add_token,
    list_tokens,
    read_tokens,
    require_loopback,
    revoke_token,
)

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Clocks:
    """Both clocks of a store, moved by the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.wall = NOON.timestamp()

    def store(self, path: Path) -> TokenStore:
        return TokenStore(path, clock=lambda: self.now, wall_clock=lambda: self.wall)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def refused(store: TokenStore, authorization: str) -> str:
    with pytest.raises(ServiceError) as caught:
        store.principal(authorization)
    assert caught.value.reason is Reason.UNAUTHENTICATED
    return caught.value.message


def test_a_token_says_who_and_what(path: Path, clocks: Clocks) -> None:
    """The principal has the id, exactly the listed scopes."""
    token = add_token(path, id="erp", scopes=[Scope.ADMIN])
    principal = clocks.store(path).principal(f"Bearer {token}")
    assert principal.id == "erp"
    assert principal.scopes == {Scope.ADMIN}  # admin implies no other


def test_a_restriction_that_is_not_enforced_is_refused(path: Path, clocks: Clocks) -> None:
    """A file that restricts a token in a way that this release does not know does not start a server."""
    add_token(path, id="erp", scopes=[Scope.ADMIN])
    path.write_text(path.read_text().replace('"scopes"', '"regions":["eu"],"scopes"'))
    with pytest.raises(TokenFileError):
        clocks.store(path)


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer ", "Bearer nobody", "Basic {token}", "{token}", "Bearer {token}x", "Bearer\t{token}"],
)
def test_everything_else_is_unauthenticated(path: Path, clocks: Clocks, authorization: str) -> None:
    """No token, another scheme and a wrong token are refused, in words that repeat none of it."""
    token = add_token(path, id="shop", scopes=[Scope.READ])
    message = refused(clocks.store(path), authorization.format(token=token))
    assert token not in message
    assert "nobody" not in message


def test_the_scheme_is_case_insensitive(path: Path, clocks: Clocks) -> None:
    """RFC 7235: `bearer` is `Bearer`."""
    token = add_token(path, id="shop", scopes=[Scope.READ])
    assert clocks.store(path).principal(f"bearer {token}").id == "shop"


def test_a_token_ends(path: Path, clocks: Clocks) -> None:
    """At not_after a token is no longer good, without any reload."""
    token = add_token(path, id="shop", scopes=[Scope.READ], not_after=NOON + timedelta(seconds=5))
    store = clocks.store(path)
    assert store.principal(f"Bearer {token}").id == "shop"
    clocks.wall += 5
    assert "ended" in refused(store, f"Bearer {token}")


def test_rotation_has_two_tokens_and_no_restart(path: Path, clocks: Clocks) -> None:
    """A second token of an id is good within a second; the first goes by its fingerprint."""
    old = add_token(path, id="shop", scopes=[Scope.READ])
    old_fingerprint = list_tokens(path)[0].fingerprint
    store = clocks.store(path)
    new = add_token(path, id="shop", scopes=[Scope.READ])
    refused(store, f"Bearer {new}")  # not looked yet
    clocks.now += 1
    assert store.principal(f"Bearer {new}").id == store.principal(f"Bearer {old}").id == "shop"
    assert revoke_token(path, "shop", old_fingerprint) == 1
    clocks.now += 1
    refused(store, f"Bearer {old}")
    assert store.principal(f"Bearer {new}").id == "shop"


@pytest.mark.parametrize("broken", ["", "{", '{"tokens": [{"id": "shop"}]}', '{"token": []}', None])
def test_a_broken_file_keeps_the_old_tokens(path: Path, clocks: Clocks, broken: str | None) -> None:
    """A file that cannot be read changes nothing but the log, once; a good one after it counts again."""
    token = add_token(path, id="shop", scopes=[Scope.READ])
    good = path.read_bytes()
    store = clocks.store(path)
    path.unlink() if broken is None else path.write_text(broken)
    with capture_logs() as logs:
        for _ in range(3):
            clocks.now += 1
            assert store.principal(f"Bearer {token}").id == "shop"
    assert [(log["log_level"], log["event"]) for log in logs] == [("error", "token_file_refused")]
    path.write_bytes(good.replace(b"shop", b"till"))
    clocks.now += 1
    assert store.principal(f"Bearer {token}").id == "till"


def test_a_server_does_not_start_on_a_broken_file(path: Path) -> None:
    """At start there are no old tokens to keep."""
    with pytest.raises(TokenFileError, match="cannot read"):
        TokenStore(path)
    path.write_text("[]")
    with pytest.raises(TokenFileError, match="not valid"):
        TokenStore(path)


def test_the_file_is_private_and_holds_no_token(path: Path) -> None:
    """Mode 0600 whatever the umask or the mode before, hashes only, nothing half-written left behind."""
    umask = os.umask(0)
    try:
        token = add_token(path, id="shop", scopes=[Scope.READ, Scope.RESERVE])
        path.chmod(0o644)
        other = add_token(path, id="erp", scopes=[Scope.INGEST], not_after=NOON)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_text()
    assert token not in content
    assert other not in content
    assert not list(path.parent.glob("*.new"))
    assert [entry["id"] for entry in json.loads(content)["tokens"]] == ["shop", "erp"]
    assert read_tokens(path)[1].not_after == NOON


def test_no_repr_shows_a_token_or_its_hash(path: Path) -> None:
    """What may end in a log is safe to read."""
    token = add_token(path, id="shop", scopes=[Scope.READ])
    [stored] = list_tokens(path)
    for text in (repr(stored), repr(TokenStore(path)), repr(stored.principal())):
        assert token not in text
        assert stored.digest.hex() not in text
        assert repr(stored.digest) not in text


def test_tokens_are_256_random_bits(path: Path) -> None:
    """32 bytes from the system's source, marked for scanners of leaked secrets."""
    tokens = {add_token(path, id="shop", scopes=[Scope.READ]) for _ in range(3)}
    assert len(tokens) == 3
    assert all(token.startswith("avl_") and len(token) == 4 + 43 for token in tokens)


def test_revoking_takes_all_of_an_id_or_nothing(path: Path) -> None:
    """Without a fingerprint all of the id's tokens go; an unknown id changes nothing."""
    for id in ("shop", "shop", "erp"):
        add_token(path, id=id, scopes=[Scope.READ])
    before = path.stat().st_mtime_ns
    assert revoke_token(path, "nobody") == 0
    assert path.stat().st_mtime_ns == before
    assert revoke_token(path, "shop") == 2
    assert [token.id for token in list_tokens(path)] == ["erp"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_servers_user_can_read_what_root_wrote(path: Path, clocks: Clocks) -> None:
    """Owner, group and the group's right stay: else a revoked token would go on counting."""
    token = add_token(path, id="shop", scopes=[Scope.READ])
    os.chown(path, 12_345, 23_456)
    path.chmod(0o640)
    store = clocks.store(path)
    add_token(path, id="erp", scopes=[Scope.INGEST])
    assert revoke_token(path, "shop") == 1
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12_345, 23_456, 0o640)
    clocks.now += 1
    refused(store, f"Bearer {token}")


def test_a_group_that_reads_goes_on_reading(path: Path) -> None:
    """0640 stays 0640, and becomes no more than that."""
    add_token(path, id="shop", scopes=[Scope.READ])
    for mode, kept in ((0o640, 0o640), (0o660, 0o640), (0o400, 0o400), (0o646, 0o600)):
        path.chmod(mode)
        add_token(path, id="erp", scopes=[Scope.READ])
        assert stat.S_IMODE(path.stat().st_mode) == kept


def test_a_file_that_cannot_be_given_back_stays_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not leave the file to its owner does not write it at all, and is told why."""
    add_token(path, id="shop", scopes=[Scope.READ])
    before, content = path.stat(), path.read_bytes()

    def of_somebody(self: Path, **_: object) -> os.stat_result:
        return os.stat_result((*before[:4], 12_345, *before[5:]))

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", of_somebody)
    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(ValueError, match=r"belongs to 12345:.* do it as root"):
        add_token(path, id="erp", scopes=[Scope.READ])
    assert path.read_bytes() == content
    assert not list(path.parent.glob("*.new"))


@pytest.mark.parametrize(
    "bad",
    [
        {"id": ""},
        {"id": "x" * 65},
        {"scopes": []},
        {"scopes": ["root"]},
        {"not_after": datetime(2026, 5, 1)},  # noqa: DTZ001 -- what must be refused
    ],
)
def test_what_cannot_be_read_again_is_not_written(path: Path, bad: dict) -> None:
    """A token that the server would refuse is refused before it reaches the file."""
    with pytest.raises(ValueError):  # noqa: PT011 -- each says something else
        add_token(path, **{"id": "shop", "scopes": [Scope.READ], **bad})
    assert list_tokens(path) == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:50051",
        "127.8.9.10:1",
        "localhost:50051",
        "LOCALHOST:0",
        "[::1]:50051",
        "::1",
        "127.0.0.1",
        "unix:/run/avail.sock",
        "unix:///run/avail.sock",
        "unix-abstract:avail",
        "ipv4:127.0.0.1:5",
        "ipv6:[::1]:5",
        "dns:///localhost:5",
    ],
)
def test_loopback_addresses_may_go_without_tokens(address: str) -> None:
    """Nobody else reaches these."""
    require_loopback(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:50051",
        "[::]:50051",
        "::",
        ":50051",
        "",
        "*:50051",
        "10.0.0.1:50051",
        "example.org:50051",
        "localhost.example.org:1",
        "127.0.0.1.example.org:1",
        "128.0.0.1:1",
        "[fe80::1]:1",
        "[::ffff:10.0.0.1]:1",
        "ipv4:127.0.0.1:5,0.0.0.0:5",
        "unix:",
        "0:50051",
        "vsock:-1:5",
    ],
)
def test_other_addresses_may_not(address: str) -> None:
    """Every interface, other hosts and names of any kind need tokens; the message says what to do."""
    with pytest.raises(NotLoopback, match="loopback"):
        require_loopback(address)


def test_without_authentication_everybody_is_anonymous() -> None:
    """The anonymous principal has every scope."""
    assert NoAuth().principal("") is ANONYMOUS
    assert ANONYMOUS.scopes == set(Scope)
