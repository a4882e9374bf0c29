"""Open the history database: SQLite in the data folder, or PostgreSQL where a URL says so; tables up to date.

One database serves the historian, the publisher and reconciliation. PostgreSQL takes several processes and days as
partitions; SQLite is for small shops: one file, one writer at a time. Nothing else in the project builds an engine
for these tables. Who keeps what: `tables.py`, and `shop_tables.py` where a publisher runs.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

SQLITE_FILE = "history.sqlite"
CONNECT_TIMEOUT_S = 5
BUSY_TIMEOUT_MS = 10_000
WAL_ATTEMPTS, WAL_PAUSE_S = 100, 0.02
POOL_MAX = 4
STATEMENT_TIMEOUT_MS = 60_000
"""A statement that takes longer is ended by PostgreSQL: a caller is told instead of hanging."""
_UPGRADE_LOCK = 0x_617661_696C
"""Number of the advisory lock under which one process at a time changes tables."""
_READS = "availability_reads"


class HistoryError(Exception):
    """The history cannot be read or written; the message is for a person and holds no address."""

    reason = "HISTORY_FAILED"


class DatabaseUnreachable(HistoryError):
    """The database does not answer (yet, or any more). Trying again later is right."""

    reason = "HISTORY_UNREACHABLE"


class DatabaseRefused(HistoryError):
    """The database answers and will not do it: settings or permissions are wrong, or its tables are newer."""

    reason = "HISTORY_REFUSED"


def open_database(url: str, data_dir: Path, *, upgrade: bool = True) -> Engine:
    """Return an engine on tables that are up to date. ``url`` empty: `history.sqlite` in ``data_dir``.

    ``url`` is `postgresql://user@host/name` or `sqlite:///file`, or the path of a SQLite file. Raises
    DatabaseUnreachable or DatabaseRefused, with no password in the message.
    """
    engine = sa.create_engine(_address(url, data_dir), **_options(url))
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _sqlite_connected)
        sa.event.listen(engine, "begin", _sqlite_begin)
    try:
        if upgrade:
            upgrade_tables(engine)
    except HistoryError:
        engine.dispose()
        raise
    return engine


def upgrade_tables(engine: Engine) -> None:
    """Run the migrations that this database has not seen, one process at a time."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of its plugins when it is imported
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    with failures(), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise DatabaseRefused(f"the history's tables belong to another release: {error}") from error


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Turn what the driver raises into a HistoryError."""
    try:
        yield
    except DBAPIError as error:
        raise translated(error) from error


def translated(error: DBAPIError) -> HistoryError:
    """Return our error for the driver's: only its own first line, never statement, parameters or address."""
    first = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
    state = getattr(error.orig, "sqlstate", None)
    lost = error.connection_invalidated or isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
    if state is None and lost:
        # libpq names host and port in what it says of a connection; that is not for logs.
        kind = "is locked" if "locked" in first else "does not answer"
        return DatabaseUnreachable(f"the history database {kind} ({type(error.orig).__name__})")
    if state is not None and (state[:2] in {"08", "53", "57"} or state in {"40001", "40P01", "55P03"}):
        return DatabaseUnreachable(f"the history database cannot work now: {first}")
    return DatabaseRefused(f"the history database refuses: {first}")


@contextlib.contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that writes; all of it is kept, or nothing. Raises HistoryError."""
    with failures(), engine.begin() as connection:
        yield connection


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One transaction that only reads, all of it at one moment. Raises HistoryError."""
    with failures(), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        else:
            connection = connection.execution_options(**{_READS: True})
        with connection.begin():
            yield connection


def upsert(connection: Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT that knows ON CONFLICT, in the database's own dialect."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def _address(url: str, data_dir: Path) -> URL:
    if "://" not in url:
        path = Path(url) if url else data_dir / SQLITE_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        return URL.create("sqlite+pysqlite", database=str(path))
    try:
        address = sa.make_url(url)
        if address.get_backend_name() == "postgresql":
            return address.set(drivername="postgresql+psycopg")
        if address.get_backend_name() != "sqlite":
            raise DatabaseRefused("the history's database must be postgresql:// or sqlite://")
        address.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):  # ValueError: a port that is no number
        raise DatabaseRefused("the history's database URL cannot be understood") from None
    return address


def _options(url: str) -> dict[str, Any]:  # Any: what create_engine takes
    if not url.startswith("postgres"):
        return {"connect_args": {"timeout": BUSY_TIMEOUT_MS / 1000}, "hide_parameters": True}
    return {
        "hide_parameters": True,
        "pool_size": POOL_MAX,
        "max_overflow": 0,
        "pool_pre_ping": True,
        "pool_timeout": CONNECT_TIMEOUT_S,
        "connect_args": {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "availability history",
            # A cluster that was made without a locale is SQL_ASCII; there the driver would hand out bytes.
            "client_encoding": "utf8",
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC",
            # A server that vanished without a word is noticed, instead of being waited for.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
    }


def _sqlite_connected(connection: Any, _: object) -> None:  # Any: the driver's connection
    connection.isolation_level = None  # transactions begin where we say so, table changes included
    cursor = connection.cursor()
    _use_wal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _use_wal(cursor: Any) -> None:  # Any: as above
    """Switch to the write-ahead log. Whoever is not first may be told `locked` at once, whatever the timeout."""
    for attempt in range(WAL_ATTEMPTS):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if attempt == WAL_ATTEMPTS - 1:
                raise
            time.sleep(WAL_PAUSE_S)
        else:
            return


def _sqlite_begin(connection: Connection) -> None:
    """Take the write lock at once, unless only reads follow: upgrading it later may fail at any moment."""
    reads = connection.get_execution_options().get(_READS)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
