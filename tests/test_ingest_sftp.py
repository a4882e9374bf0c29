"""Files at a real SFTP server: complete ones, once, from a server that we know, whatever dies in between."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from ingest.database import open_database
from ingest.settings import DropFolder, SettingsRefused, Sftp, read_source
from ingest.sources.feed import FeedFailed, FeedThread
from ingest.sources.sftp import SftpFeed

PASSWORD = "a password of some length"


class Door(asyncssh.SSHServer):
    """Lets in who knows the password."""

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("erp", PASSWORD)


class Cutting(asyncssh.SFTPServer):
    """An SFTP server whose connection is lost in the middle of a file, as often as told."""

    cuts = 0

    def read(self, file_obj: Any, offset: int, size: int) -> Any:
        if Cutting.cuts > 0 and offset > 0:
            Cutting.cuts -= 1
            raise asyncssh.SFTPConnectionLost("cut")
        return super().read(file_obj, offset, size)


class Remote:
    """A real SFTP server in a thread; ``files`` is what it shows."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "remote"
        self.files.mkdir()
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.user_key = asyncssh.generate_private_key("ssh-ed25519")
        self.user_key.write_private_key(str(folder / "id"))
        self.user_key.write_public_key(str(folder / "authorized"))
        (folder / "password").write_text(PASSWORD + "\n")
        self.port = 0
        self._authorized = str(folder / "authorized")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()
        known = self.host_key.export_public_key().decode()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {known}")

    def start(self) -> None:
        async def listen() -> Any:
            return await asyncssh.listen(
                "127.0.0.1",
                self.port,
                server_factory=Door,
                server_host_keys=[self.host_key],
                authorized_client_keys=self._authorized,
                sftp_factory=lambda channel: Cutting(channel, chroot=str(self.files).encode()),
            )

        self._server = asyncio.run_coroutine_threadsafe(listen(), self._loop).result(20)
        self.port = self._server.get_port()

    def stop(self) -> None:
        async def close() -> None:
            self._server.close()
            await self._server.wait_closed()

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(20)

    def end(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def write(self, name: str, content: bytes, at: int = 1_000) -> Path:
        path = self.files / name
        path.write_bytes(content)
        os.utime(path, (at, at))
        return path

    def names(self) -> set[str]:
        return {path.name for path in self.files.iterdir()}


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    Cutting.cuts = 0
    made = Remote(tmp_path)
    yield made
    made.end()


@pytest.fixture
def make(tmp_path: Path, remote: Remote) -> Callable[..., SftpFeed]:
    engine = open_database(str(tmp_path / "ingest.db"))

    def feed(pattern: str = "*", **changes: Any) -> SftpFeed:
        given: dict[str, Any] = {"known_hosts": tmp_path / "known_hosts", "settle_ms": 0, "folder": "/"}
        if "password_file" not in changes:
            given["key_file"] = tmp_path / "id"
        settings = Sftp(host="127.0.0.1", port=remote.port, username="erp", **{**given, **changes})
        return SftpFeed("wms", settings, DropFolder(folder=tmp_path / "drop", pattern=pattern), engine)

    return feed


def local(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "drop").iterdir()}


@pytest.mark.parametrize("after", ["leave", "rename", "delete"])
@pytest.mark.parametrize("lock", ["key", "password"])
def test_a_file_comes_once(
    make: Callable[..., SftpFeed], remote: Remote, tmp_path: Path, after: str, lock: str
) -> None:
    """And a restart does not fetch it again; over there it stays, is renamed or is gone, as the settings say."""
    changes = {"after": after, **({"password_file": tmp_path / "password"} if lock == "password" else {})}
    remote.write("stock.csv", b"1\n" * 500_000)
    assert make(**changes).fetch(once=True) == 1
    assert local(tmp_path) == {"stock.csv": b"1\n" * 500_000}
    expected = {"leave": {"stock.csv"}, "rename": {"stock.csv.fetched"}, "delete": set()}
    assert remote.names() == expected[after]
    (tmp_path / "drop" / "stock.csv").unlink()
    assert make(**changes).fetch(once=True) == 0
    assert local(tmp_path) == {}
    remote.write("stock.csv", b"2\n", at=2_000)  # tomorrow's
    assert make(**changes).fetch(once=True) == 1
    assert local(tmp_path) == {"stock.csv": b"2\n"}


def test_only_complete_files_that_are_asked_for(
    make: Callable[..., SftpFeed], remote: Remote, tmp_path: Path
) -> None:
    """Unfinished, hidden, other names and folders stay; a name that is a path cannot come."""
    for name in ("a.csv.tmp", "b.csv.part", ".c.csv", "d.txt", "e.csv", "back\\slash.csv", "new\nline.csv"):
        remote.write(name, b"x")
    (remote.files / "folder.csv").mkdir()
    (remote.files / "link.csv").symlink_to("/etc/hostname")
    assert make(pattern="*.csv").fetch(once=True) == 1
    assert set(local(tmp_path)) == {"e.csv"}


def test_with_companions_a_file_waits_for_its_own(
    make: Callable[..., SftpFeed], remote: Remote, tmp_path: Path
) -> None:
    """Both are put away, the companion first."""
    remote.write("stock.csv", b"x")
    feed = make(done_suffix=".done", after="rename", settle_ms=600_000)
    assert feed.fetch(once=False) == 0
    remote.write("stock.csv.done", b"")
    assert feed.fetch(once=False) == 1
    assert remote.names() == {"stock.csv.fetched", "stock.csv.done.fetched"}
    assert set(local(tmp_path)) == {"stock.csv"}


def test_a_file_that_grows_is_waited_for(
    make: Callable[..., SftpFeed], remote: Remote, tmp_path: Path
) -> None:
    """It counts once it looked the same for the time set, by our clock."""
    feed, clock = make(settle_ms=5_000), [0.0]
    feed._monotonic = lambda: clock[0]
    counts = []
    for moment, size in ((0.0, 1), (4.0, 2), (8.0, 2), (9.0, 2), (20.0, 2)):
        clock[0] = moment
        remote.write("stock.csv", b"x" * size)
        counts.append(feed.fetch(once=False))
    assert counts == [0, 0, 0, 1, 0]
    assert local(tmp_path) == {"stock.csv": b"xx"}


@pytest.mark.parametrize(("dies_in", "downloads"), [("_remember", 2), ("_publish", 1), ("_put_away", 1)])
def test_killed_between_the_steps(
    make: Callable[..., SftpFeed],
    remote: Remote,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dies_in: str,
    downloads: int,
) -> None:
    """Before the note it is downloaded again, after it only finished; one file here, none over there."""
    remote.write("stock.csv", b"x" * 100_000)
    feed = make(after="delete")

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feed, dies_in, dies)
        with pytest.raises(KeyboardInterrupt):
            feed.fetch(once=True)
    assert ("stock.csv" in local(tmp_path)) == (dies_in == "_put_away")
    again = make(after="delete")
    assert again.fetch(once=True) == downloads - 1
    assert local(tmp_path) == {"stock.csv": b"x" * 100_000}
    assert remote.names() == set()


def test_a_lost_connection_leaves_nothing_half(
    make: Callable[..., SftpFeed], remote: Remote, tmp_path: Path
) -> None:
    """The failure is told; the next look brings the whole file."""
    content = os.urandom(12_000_000)
    remote.write("stock.csv", content)
    Cutting.cuts = 1
    with pytest.raises(FeedFailed):
        make().fetch(once=True)
    assert not any(name == "stock.csv" for name in local(tmp_path))
    assert make().fetch(once=True) == 1
    assert local(tmp_path) == {"stock.csv": content}


def test_a_file_does_not_replace_one_that_waits(
    make: Callable[..., SftpFeed], remote: Remote, tmp_path: Path
) -> None:
    """While the ledger is away, tomorrow's file of the same name stays where it is; and so does what is too much."""
    remote.write("stock.csv", b"monday")
    make().fetch(once=True)
    remote.write("stock.csv", b"tuesday", at=2_000)
    assert make().fetch(once=True) == 0
    assert local(tmp_path) == {"stock.csv": b"monday"}
    remote.write("other.csv", b"x")
    assert make(waiting_bytes_max=3).fetch(once=True) == 0
    assert make(file_bytes_max=1).fetch(once=True) == 1


def test_a_server_that_we_do_not_know_is_not_spoken_to(
    make: Callable[..., SftpFeed], remote: Remote, tmp_path: Path
) -> None:
    """Another host key, or none noted: nothing is shown to it; without the file the feed does not even start."""
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    for known in (f"[127.0.0.1]:{remote.port} {other}", ""):
        (tmp_path / "known_hosts").write_text(known)
        with pytest.raises(FeedFailed) as refused:
            make(password_file=tmp_path / "password").fetch(once=True)
        assert refused.value.reason == "HOST_KEY"
    (tmp_path / "known_hosts").unlink()
    with pytest.raises(ValueError, match="known_hosts"):
        make()


def test_a_wrong_secret_is_told_and_not_shown(
    make: Callable[..., SftpFeed], remote: Remote, tmp_path: Path
) -> None:
    """The password is in no message."""
    (tmp_path / "password").write_text("hunter2hunter2")
    with pytest.raises(FeedFailed) as refused:
        make(password_file=tmp_path / "password").fetch(once=True)
    assert refused.value.reason == "AUTHENTICATION"
    assert "hunter2" not in f"{refused.value!r}{refused.value.__cause__!r}"
    with pytest.raises(FeedFailed, match="cannot be read"):
        make(password_file=tmp_path / "nothing").fetch(once=True)
    with pytest.raises(FeedFailed, match="/nowhere"):
        make(folder="/nowhere").fetch(once=True)


@pytest.mark.parametrize("form", ["pkcs8-pem", "openssh"])
def test_a_key_may_have_a_passphrase(
    make: Callable[..., SftpFeed], remote: Remote, tmp_path: Path, form: str
) -> None:
    """From a file of its own; a wrong one is told as such."""
    remote.write("stock.csv", b"x")
    remote.user_key.write_private_key(str(tmp_path / "locked"), form, "open sesame")
    changes = {"key_file": tmp_path / "locked", "passphrase_file": tmp_path / "phrase"}
    (tmp_path / "phrase").write_text("hunter2hunter2\n")
    with pytest.raises(FeedFailed) as refused:
        make(**changes).fetch(once=True)
    assert refused.value.reason == "SECRET"
    assert "hunter2" not in str(refused.value)
    (tmp_path / "phrase").write_text("open sesame\n")
    assert make(**changes).fetch(once=True) == 1


def test_it_comes_back_by_itself(make: Callable[..., SftpFeed], remote: Remote, tmp_path: Path) -> None:
    """An outage is told once, waited out with growing pauses, and then the file is there."""
    remote.write("stock.csv", b"x")
    remote.stop()
    told: list[str] = []
    pauses: list[float] = []
    came = threading.Event()

    def waited(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 2:
            remote.start()
        if local(tmp_path):
            came.set()

    thread = FeedThread(make(), told=told.append, rand=lambda: 0.0, waited=waited)
    assert came.wait(20)
    thread.stop()
    thread.join(5.0)
    assert pauses[:2] == [0.5, 1.0]
    assert len(told) == 2
    assert "UNREACHABLE" in told[0]
    assert "fetches again" in told[1]


def test_settings_want_a_lock_and_a_folder(tmp_path: Path) -> None:
    """All at once, each with its place."""
    text = """
source = "s"
format = { kind = "json_lines" }
mapping = { version = "1", author = "a", columns = { type = "t", sku = "s" } }
sftp = { host = "h", username = "u", known_hosts = "k" }
"""
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(SettingsRefused, match="key_file or password_file"):
        read_source(tmp_path / "s.toml")
    (tmp_path / "s.toml").write_text(text.replace('"k" }', '"k", key_file = "id" }'))
    with pytest.raises(SettingsRefused, match=r"\[drop\]"):
        read_source(tmp_path / "s.toml")
    (tmp_path / "s.toml").write_text(text.replace('"k" }', '"k", key_file = "id" }\ndrop = { folder = "d" }'))
    sftp = read_source(tmp_path / "s.toml").sftp
    assert sftp is not None
    assert (sftp.key_file, sftp.known_hosts) == (tmp_path / "id", tmp_path / "k")
