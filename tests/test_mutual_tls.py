"""Certificates on both sides, made for the test: who is let in, and for whom a certificate speaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from availability.cli.root import run
from availability.client import Client, ClientError
from availability.service.auth import Scope, add_token, revoke_token
from availability.service.bounds import Bounds
from tests.conftest import Server, serving


class Pki:
    """An authority of the server, one of the clients, one of strangers, and PEM files of all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ours, clients, strangers = trustme.CA(), trustme.CA(), trustme.CA()
        ours.cert_pem.write_to_path(folder / "ca.pem")
        clients.cert_pem.write_to_path(folder / "clients.pem")
        self._issue(ours, "server", "localhost")
        self._issue(clients, "shop", "shop", common_name="shop-eu")
        self._issue(clients, "unknown", "unknown", common_name="somebody")
        self._issue(strangers, "stranger", "shop", common_name="shop-eu")
        self.tokens = folder / "tokens.json"

    def _issue(self, ca: trustme.CA, name: str, host: str, common_name: str | None = None) -> None:
        issued = ca.issue_cert(host, common_name=common_name)
        issued.private_key_pem.write_to_path(self.folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(self.folder / f"{name}.pem")

    def client(self, server: Server, name: str | None, token: str | None = None) -> Client:
        return Client(
            f"localhost:{server.grpc.rpartition(':')[2]}",
            token,
            self.folder / "ca.pem",
            2.0,
            tls_cert=self.folder / f"{name}.pem" if name else None,
            tls_key=self.folder / f"{name}.key" if name else None,
        )


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


@pytest.fixture
def server(pki: Pki) -> Iterator[Server]:
    add_token(
        pki.tokens,
        id="eu",
        scopes=[Scope.READ],
        bounds=Bounds(channels=frozenset(["web"])),
        certificate="shop-eu",
    )
    settings = {
        "AVAIL_AUTH__TOKENS_FILE": str(pki.tokens),
        "AVAIL_TLS__CERT_FILE": str(pki.folder / "server.pem"),
        "AVAIL_TLS__KEY_FILE": str(pki.folder / "server.key"),
        "AVAIL_TLS__CLIENT_CA_FILE": str(pki.folder / "clients.pem"),
    }
    with serving(no_auth=False, settings=settings) as started:
        yield started


def refused(client: Client, channel: str = "web") -> str:
    with client, pytest.raises(ClientError) as caught:
        client.get(channel, "a")
    return caught.value.code


def test_certificates_of_the_clients_authority_only(pki: Pki, server: Server) -> None:
    """Without one, or with another authority's, nobody is heard, whatever the token; with one a token is asked for."""
    token = add_token(pki.tokens, id="shop", scopes=[Scope.READ])
    for name in (None, "stranger"):
        assert refused(pki.client(server, name, token)) in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert refused(pki.client(server, "unknown")) == "UNAUTHENTICATED"
    with pki.client(server, "unknown", _known(pki, server, token)) as client:
        assert client.get("web", "a").sellable_quantity == 0


def _known(pki: Pki, server: Server, token: str) -> str:
    """Wait until the server has read the token file again: it does when it is asked, at most once a second."""
    for _ in range(100):
        try:
            with pki.client(server, "unknown", token) as client:
                client.get("web", "a")
                return token
        except ClientError as error:
            if error.reason != "UNAUTHENTICATED":
                raise
    raise AssertionError("a new token is never read")


def test_a_certificate_that_an_entry_names_is_as_good_as_its_token(pki: Pki, server: Server) -> None:
    """It has the entry's scopes and bounds; a token that is shown counts instead, and a removed entry ends it."""
    with pki.client(server, "shop") as client:
        assert client.get("web", "a").sellable_quantity == 0
    assert refused(pki.client(server, "shop"), "pos") == "PERMISSION_DENIED"
    assert refused(pki.client(server, "shop", "avl_wrong")) == "UNAUTHENTICATED"
    assert revoke_token(pki.tokens, "eu") == 1
    for _ in range(200):
        try:
            with pki.client(server, "shop") as client:
                client.get("web", "a")
        except ClientError as error:
            if error.code == "UNAUTHENTICATED":
                return
            raise
    raise AssertionError("a removed entry goes on speaking for its certificate")


def test_the_command_line_shows_a_certificate(
    pki: Pki, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By options of the root command; half a pair is a usage error."""
    monkeypatch.delenv("AVAIL_TOKEN", raising=False)
    target = f"localhost:{server.grpc.rpartition(':')[2]}"
    get = ["get", "a", "--channel", "web", "--target", target, "--tls-ca", str(pki.folder / "ca.pem")]
    own = ["--tls-cert", str(pki.folder / "shop.pem"), "--tls-key", str(pki.folder / "shop.key")]
    assert run([*own, *get]) == 0, capsys.readouterr().err
    assert run([*own[:2], *get]) == 2
    assert "belong together" in capsys.readouterr().err
    assert run(get) == 4
