"""Policies as files: what was exported can be brought back from any other state, and a diff says what is different."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from availability.cli.policy_file import PolicyFileError, from_toml
from availability.cli.root import run
from availability.v1 import policy_pb2 as pol
from tests.conftest import serving
from tests.model import Refusal
from tests.test_preview import KITS, prepared, send, write
from tests.wire import Service


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    for name in ("AVAIL_TOKEN", "AVAIL_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        monkeypatch.setenv("AVAIL_TARGET", server.grpc)
        service = Service(server.grpc)
        yield service
        service.close()


def cli(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    capsys.readouterr()
    code = run(args)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def change(client: Service, drawn: random.Random, count: int) -> None:
    """Make so many policy writes of any kind that are accepted, on declared channels."""
    made = 0
    while made < count:
        method, fields = write(drawn)
        if fields.get("channel", "web").startswith("opened"):
            continue  # an override of a channel without a policy is not listed
        if method == "SetSafetyStock" and fields.get("sku") in KITS:
            continue  # a sku that has a position never becomes a kit again: there is no way back
        try:
            send(client, method, fields, validate_only=False)
            made += 1
        except Refusal:
            continue


def clear_what_could_not_be_set(client: Service) -> None:
    """Take away fences that the pool has shrunk below since: a state with those cannot be brought back."""
    answer: pol.ListPoliciesResponse = client.call(client.policies.ListPolicies, pol.ListPoliciesRequest())
    for fence in answer.ring_fences:
        fields = {"channel": fence.channel, "sku": fence.sku}
        try:
            send(client, "SetRingFence", {**fields, "units": fence.units}, validate_only=True)
        except Refusal as refusal:
            if refusal.reason != "FENCE_OVER_POOL":
                raise
            send(client, "SetRingFence", {**fields, "units": 0}, validate_only=False)


def test_an_export_can_be_brought_back(
    client: Service, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From one random state to another and back: import, then no difference, then the same file byte for byte."""
    drawn = random.Random(seed)
    prepared(client, drawn)
    for name in ("web", "pos", "eu", "outlet", "opened by a policy"):
        policy = pol.ChannelPolicy(channel=name, all_nodes=True)
        send(client, "SetChannelPolicy", {"policy": policy}, validate_only=False)
    for node in ("n1", "n {2}", "ñ:3", "n4", "n5", "n6"):
        send(client, "SetNode", {"node": node, "state": 1}, validate_only=False)
    change(client, drawn, 60)
    clear_what_could_not_be_set(client)
    first, second, again = tmp_path / "first.toml", tmp_path / "second.toml", tmp_path / "again.toml"
    assert cli(capsys, "policy", "export", str(first))[0] == 0
    assert cli(capsys, "policy", "diff", str(first)) == (0, "no difference\n")
    change(client, drawn, 60)
    clear_what_could_not_be_set(client)
    assert cli(capsys, "policy", "export", str(second))[0] == 0
    code, told = cli(capsys, "policy", "diff", str(first))
    assert code == 1, told
    for wanted in (first, second, first):
        code, plan = cli(capsys, "policy", "import", str(wanted), "--reason", "test", "--dry-run")
        assert "would be made" in plan
        for _ in range(3):  # a fence or a kit may have to wait until another entry made room for it
            code, told = cli(capsys, "policy", "import", str(wanted), "--reason", "as it was")
            if code == 0:
                break
        assert code == 0, told
        assert cli(capsys, "policy", "diff", str(wanted)) == (0, "no difference\n")
        cli(capsys, "policy", "export", str(again))
        assert again.read_bytes() == wanted.read_bytes()


def test_a_dry_run_changes_nothing_and_tells_what_would_move(
    client: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows each difference with its preview; diff and --json say the same."""
    prepared(client, random.Random(1))
    file = tmp_path / "policies.toml"
    file.write_text(
        '[[nodes]]\nnode = "n1"\nstate = "OFFLINE"\n[[stops]]\nsku = "s1"\nuntil = 2099-01-01T00:00:00Z\n'
    )
    client.sellables("web", ["s1"])
    code, told = cli(capsys, "policy", "import", str(file), "--reason", "test", "--dry-run")
    assert code == 0
    assert "~ nodes n1\n    state: ONLINE → OFFLINE\n    would move" in told
    assert (
        "+ stops * s1\n    until: (none) → 2099-01-01T00:00:00+00:00\n    would move 1 sellables of 1 skus"
        in told
    )
    assert "= nodes n4" in told  # it cannot be removed
    code, told = cli(capsys, "policy", "diff", str(file), "--json")
    assert code == 1
    kinds = {(one["section"], *one["key"]): one["kind"] for one in json.loads(told)}
    assert kinds["nodes", "n1"] == "change"
    assert kinds["stops", "", "s1"] == "add"
    assert client.sellables("web", ["s1"])[0][0] > 0


def test_one_refused_entry_stops_no_other(
    client: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal is shown with its reason, the rest is made, and the exit code says that not all was."""
    prepared(client, random.Random(1))
    file = tmp_path / "policies.toml"
    fence = '[[ring_fences]]\nchannel = "web"\nsku = "s1"\nunits = 1000000\n'
    file.write_text(fence + '[[safety_stocks]]\nsku = "s2"\nnode = "n1"\nquantity = 1\n')
    code, told = cli(capsys, "policy", "import", str(file), "--reason", "test")
    assert code == 3
    assert "REFUSED FENCE_OVER_POOL" in told
    assert "1 change made, 1 refused, 0 left" in told
    code, told = cli(capsys, "policy", "diff", str(file))
    assert told.startswith("+ ring_fences web s1\n    units: (none) → 1000000\n1 difference\n")


def test_an_import_never_overwrites_what_it_has_not_seen(
    client: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody is faster between the reading and the writing: ETAG_MISMATCH, and his change stays."""
    from availability.cli import policy_file

    send(client, "SetNode", {"node": "n1", "state": 1}, validate_only=False)
    file = tmp_path / "policies.toml"
    file.write_text('[[nodes]]\nnode = "n1"\nstate = "OFFLINE"\nsafety_stock = 5\n')
    read, faster = policy_file.read_policies, threading.Event()

    def slow(connected: object) -> policy_file.Policies:
        found = read(connected)  # type: ignore[arg-type]  # the CLI's own client
        if not faster.is_set():
            send(client, "SetSafetyStock", {"node": "n1", "quantity": 9}, validate_only=False)
        faster.set()
        return found

    monkeypatch.setattr(policy_file, "read_policies", slow)
    code, told = cli(capsys, "policy", "import", str(file), "--reason", "test")
    assert code == 3
    assert "REFUSED ETAG_MISMATCH" in told
    code, told = cli(capsys, "policy", "import", str(file), "--reason", "test")
    assert (code, "1 change made" in told) == (0, True), told


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x", "not TOML"),
        ("nonsense = []", "no section 'nonsense'"),
        ("nodes = 3", "not a list of tables"),
        ('[[nodes]]\nnode = "a"\ncolour = "red"', "no field 'colour'"),
        ("[[nodes]]\nnode = 3", "node is not str"),
        ('[[nodes]]\nstate = "ONLINE"', "node name an entry"),
        ('[[nodes]]\nnode = "a"\nstate = "AWAY"', "no state 'AWAY'"),
        ('[[nodes]]\nnode = "a"\nsafety_stock = true', "safety_stock is not int"),
        ('[[nodes]]\nnode = "a"\n[[nodes]]\nnode = "a"', "named twice"),
        ('[[channels]]\nchannel = "a"\nbuffer = "many"', "no buffer"),
        ('[[overrides]]\nchannel = "a"', "channel and sku name an entry"),
        ('[[stops]]\nsku = "a"\nuntil = 2026-01-01T00:00:00', "needs a time zone"),
        ('[[kits]]\nkit_sku = "a"\ncomponents = [{sku = "b"}]', "a component is"),
    ],
)
def test_a_broken_file_is_told_where(text: str, problem: str) -> None:
    """Nothing of it is used; the sentence names the section and the entry."""
    with pytest.raises(PolicyFileError, match=problem):
        from_toml(text)
