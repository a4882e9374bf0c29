"""The HTTP door: 202 means on the disk, nobody enters without the secret, a full house says when to come again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from ingest.settings import Webhook
from ingest.sources.webhook import OPEN_SUFFIX, Spool, SpoolFull, recover, webhook_app

SECRET = b"a secret of some length"


def door(folder: Path, **changes: object) -> Iterator[TestClient]:
    (folder / "secret").write_bytes(SECRET + b"\n")
    made = Webhook(secret_file=folder / "secret", rotate_ms=10, **changes)
    app = webhook_app({"wms": (made, folder / "drop")}, lambda path: path.read_bytes().strip())
    with TestClient(app) as client:
        yield client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    yield from door(tmp_path)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


BEARER = {"authorization": f"Bearer {SECRET.decode()}"}


def events(folder: Path) -> list[dict[str, object]]:
    return [
        json.loads(line)
        for path in sorted((folder / "drop").iterdir())
        for line in path.read_bytes().splitlines()
    ]


@pytest.mark.parametrize(
    ("body", "count"),
    [(b'{"n":1}', 1), (b'[{"n":1},{"n":2}]', 2), (b'{"n":1}\n{"n":2}\n', 2), (b'{"n":\n1}', 1)],
)
def test_an_accepted_event_is_on_the_disk(
    client: TestClient, tmp_path: Path, body: bytes, count: int
) -> None:
    """One, a list, lines, one over several lines: each is a line of a file when 202 is told."""
    answer = client.post("/events/wms", content=body, headers=BEARER)
    assert (answer.status_code, answer.json()) == (202, {"accepted": count})
    assert [event["n"] for event in events(tmp_path)] == list(range(1, count + 1))


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer wrong"}, {"authorization": SECRET.decode()}, {"authorization": "Basic x"}],
)
def test_nobody_comes_in_without_the_secret(
    client: TestClient, tmp_path: Path, headers: dict[str, str]
) -> None:
    """Nor is it told which sources there are."""
    refused = client.post("/events/wms", content=b'{"n":1}', headers=headers)
    unknown = client.post("/events/nobody", content=b'{"n":1}', headers=BEARER)
    assert (refused.status_code, refused.content) == (unknown.status_code, unknown.content)
    assert refused.status_code == 401
    assert events(tmp_path) == []


def test_signatures_are_of_the_raw_body(tmp_path: Path) -> None:
    """The right one enters; one of other bytes, or of another secret, does not."""
    for client in door(tmp_path, lock="hmac"):
        body = b'{ "n" : 1 }'
        right = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
        wrong = hmac.new(SECRET, b'{"n":1}', hashlib.sha256).hexdigest()
        forged = hmac.new(b"another secret here", body, hashlib.sha256).hexdigest()
        told = {
            signature: client.post(
                "/events/wms", content=body, headers={"x-signature-sha256": signature}
            ).status_code
            for signature in (right, f"sha256={right}", wrong, forged, "", "zz")
        }
        assert told == {right: 202, f"sha256={right}": 202, wrong: 401, forged: 401, "": 401, "zz": 401}


def test_a_full_spool_says_when_to_come_again(tmp_path: Path) -> None:
    """503 with Retry-After; what was accepted stays."""
    for client in door(tmp_path, spool_bytes_max=1_000):
        body = json.dumps({"n": "x" * 400}).encode()
        answers = [client.post("/events/wms", content=body, headers=BEARER) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [202, 202, 503, 503]
        assert answers[-1].headers["retry-after"] == "5"
        assert len(events(tmp_path)) == 2


def test_a_file_that_is_carried_while_the_spool_is_measured_is_no_error(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is gone between the look at the folder and the look at the file: 202, not 500."""
    monkeypatch.setattr("ingest.sources.webhook.USED_CHECK_S", 0.0)
    gone = tmp_path / "drop" / "gone.jsonl"
    gone.parent.mkdir(exist_ok=True)
    real = os.scandir

    def scandir(path: str | Path | int) -> object:
        gone.write_bytes(b"{}\n")
        found = real(path)
        entries = list(found)
        found.close()
        gone.unlink(missing_ok=True)
        return contextlib.nullcontext(entries)

    monkeypatch.setattr(os, "scandir", scandir)
    assert client.post("/events/wms", content=b'{"n": 1}', headers=BEARER).status_code == 202


def test_too_much_at_once_is_refused(tmp_path: Path) -> None:
    """By length and by count, before anything is kept."""
    for client in door(tmp_path, body_bytes_max=100, events_max=2):
        assert client.post("/events/wms", content=b"{" + b" " * 100 + b"}", headers=BEARER).status_code == 413
        assert client.post("/events/wms", content=b"[{},{},{}]", headers=BEARER).status_code == 400
        assert events(tmp_path) == []


def test_no_body_crashes_the_door(client: TestClient) -> None:
    """Any bytes: accepted as events, or a clear refusal."""

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode)))
    def check(body: bytes) -> None:
        answer = client.post("/events/wms", content=body, headers=BEARER)
        assert answer.status_code in (202, 400)
        if answer.status_code == 400:
            assert answer.json()["message"]

    check()


def test_what_a_killed_process_left_is_cut_at_its_last_whole_event(tmp_path: Path) -> None:
    """Half an event was accepted from nobody."""
    path = tmp_path / f"a.jsonl{OPEN_SUFFIX}"
    path.write_bytes(b'{"n":1}\n{"n":')
    recover(path)
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"n":1}\n'
    path.write_bytes(b'{"n":')
    recover(path)
    assert not path.exists()


SERVER = """
import sys, uvicorn
from pathlib import Path
from ingest.settings import Webhook
from ingest.sources.webhook import webhook_app
folder = Path(sys.argv[1])
made = Webhook(secret_file=folder / "secret", rotate_ms=20)
app = webhook_app({"wms": (made, folder / "drop")}, lambda path: path.read_bytes().strip())
uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""


def test_killed_at_any_moment_every_accepted_event_is_there(tmp_path: Path, free_port: int) -> None:
    """kill -9 under load, five times: each event that was told 202 is in a file once the door opens again."""
    (tmp_path / "secret").write_bytes(SECRET)
    accepted: list[int] = []
    number = 0
    for _ in range(5):
        command = [sys.executable, "-c", SERVER, str(tmp_path), str(free_port)]
        process = subprocess.Popen(command)
        until = time.monotonic() + 20
        begun = 0
        while time.monotonic() < until and begun < 20:
            number += 1
            request = urllib.request.Request(
                f"http://127.0.0.1:{free_port}/events/wms", json.dumps({"n": number}).encode(), headers=BEARER
            )
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    if answer.status == 202:
                        accepted.append(number)
                        begun += 1
            except OSError:
                time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    for path in (tmp_path / "drop").glob(f"*{OPEN_SUFFIX}"):
        recover(path)
    assert len(accepted) == 100
    kept = [event["n"] for event in events(tmp_path)]
    assert set(accepted) <= set(kept)
    assert len(kept) == len(set(kept))


def test_a_calls_trace_is_a_member_of_its_events(client: TestClient, tmp_path: Path) -> None:
    """Of each event, however written; an event's own stands; what is no traceparent is nothing."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    body = b'{"n": 1}\n { }\n{"traceparent": "mine", "n": 3}'
    assert (
        client.post("/events/wms", content=body, headers={**BEARER, "traceparent": trace}).status_code == 202
    )
    assert (
        client.post("/events/wms", content=b'{"n": 4}', headers={**BEARER, "traceparent": 'x"'}).status_code
        == 202
    )
    assert events(tmp_path) == [
        {"traceparent": trace, "n": 1},
        {"traceparent": trace},
        {"traceparent": "mine", "n": 3},
        {"n": 4},
    ]


async def _spooled(folder: Path, *batches: bytes) -> tuple[list[bool], list[bytes]]:
    """Put batches one after another; which of them were taken, and what the closed files hold."""
    spool = Spool(folder, Webhook(secret_file=folder / "secret", rotate_ms=10))
    task = asyncio.create_task(spool.run())
    taken = []
    for batch in batches:
        try:
            async with asyncio.timeout(5):
                await spool.put(batch)
        except SpoolFull:
            taken.append(False)
        else:
            taken.append(True)
    spool.stop()
    await task
    return taken, [path.read_bytes() for path in sorted(folder.glob("*.jsonl"))]


def test_of_a_write_that_failed_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full within an event: who sent it is told to come again, so it is not in the file, half or whole."""
    write, full = os.write, [False]

    def writing(handle: int, data: memoryview) -> int:
        if b"big" not in bytes(data):
            return write(handle, data)
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        full[0] = True
        return write(handle, data[: len(data) // 2 + 3])

    monkeypatch.setattr(os, "write", writing)
    taken, files = asyncio.run(_spooled(tmp_path, b'{"n":1}\n', b'{"n":2}\n{"n":"big"}\n', b'{"n":3}\n'))
    assert taken == [True, False, True]
    assert b"".join(files) == b'{"n":1}\n{"n":3}\n'


def test_a_name_that_cannot_be_given_is_given_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is complete and cannot be renamed keeps its events, and the door stays open."""
    replace, failures = Path.replace, [2]

    def replacing(path: Path, target: Path) -> Path:
        if failures[0]:
            failures[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replacing)
    batches = [b'{"n":%d}\n' % number for number in range(3)]

    async def slowly() -> tuple[list[bool], list[bytes]]:
        spool = Spool(tmp_path, Webhook(secret_file=tmp_path / "secret", rotate_ms=10))
        task = asyncio.create_task(spool.run())
        taken = []
        for batch in batches:
            async with asyncio.timeout(5):
                await spool.put(batch)
            taken.append(True)
            await asyncio.sleep(0.03)
        spool.stop()
        await task
        return taken, [path.read_bytes() for path in sorted(tmp_path.glob("*.jsonl"))]

    taken, files = asyncio.run(slowly())
    assert taken == [True] * 3
    assert failures == [0]
    assert sorted(files) == sorted(batches)
    assert list(tmp_path.glob(f"*{OPEN_SUFFIX}")) == []
