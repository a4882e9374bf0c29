"""Many rows into a table fast: COPY on PostgreSQL, one prepared statement on SQLite. One adapter for both drivers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from availability.history.database import HistoryError
from availability.history.rows import Row

_NOT_IN_ENCODING = "22021"
"""SQLSTATE of a character that the database's encoding does not have: in UTF-8 only NUL."""
_TYPES = {"BIGINT": "int8", "INTEGER": "int4", "SMALLINT": "int2", "TEXT": "text", "BLOB": "bytea"}


class TextRefused(HistoryError):
    """A text holds NUL, which PostgreSQL does not take. Nothing was written."""

    reason = "TEXT_REFUSED"


def insert_rows(connection: Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert rows whose values stand in the order of the table's columns."""
    if not rows:
        return
    if connection.dialect.name != "postgresql":
        connection.exec_driver_sql(_insert(table), list(rows))
        return
    with _cursor(connection) as cursor:
        cursor.adapters.register_dumper(
            bytes, _bytes_dumper()
        )  # by its type psycopg would take one in Python
        with cursor.copy(_copy(table)) as copy:
            copy.set_types(_types(table))
            write = copy.write_row
            for row in rows:
                write(row)


def insert_names(
    connection: Connection, table: sa.Table, names: Collection[Sequence[Any]]
) -> None:  # Any: text
    """Insert names that are not there yet; ``table`` has text columns only. In order, so that writers never cross."""
    if not names:
        return
    rows = sorted(tuple(name) for name in names)
    if connection.dialect.name != "postgresql":
        connection.exec_driver_sql(_insert(table) + " ON CONFLICT DO NOTHING", rows)
        return
    columns = list(zip(*rows, strict=True))
    arrays = ", ".join(["%s::text[]"] * len(columns))
    with _cursor(connection) as cursor:
        cursor.execute(
            f"INSERT INTO {table.name} SELECT * FROM unnest({arrays}) ON CONFLICT DO NOTHING",
            [list(column) for column in columns],
        )


@contextmanager
def _cursor(
    connection: Connection,
) -> Iterator[Any]:  # Any: psycopg's cursor, inside SQLAlchemy's transaction
    driver: Any = connection.connection.driver_connection  # Any: psycopg's connection
    errors: Any = connection.dialect.loaded_dbapi  # Any: psycopg itself
    try:
        with driver.cursor() as cursor:
            yield cursor
    except errors.DataError as error:
        if error.sqlstate == _NOT_IN_ENCODING or "NUL" in str(error):
            raise TextRefused("a text has a character that PostgreSQL does not take") from error
        raise _wrapped(error, lost=False) from error
    except errors.Error as error:
        if driver.closed:
            connection.invalidate(error)
        raise _wrapped(error, lost=driver.closed) from error


def _wrapped(error: Exception, *, lost: bool) -> Exception:
    """Return what SQLAlchemy would have raised, had it made the call."""
    names = (base.__name__ for base in type(error).__mro__)
    known = (getattr(sa.exc, name) for name in names if name.endswith("Error") and hasattr(sa.exc, name))
    kind = next(known, sa.exc.DBAPIError)
    made: Exception = kind(None, None, error, hide_parameters=True, connection_invalidated=lost)
    return made


@cache
def _bytes_dumper() -> Any:  # Any: a class of psycopg's
    from psycopg.types.string import BytesBinaryDumper

    return BytesBinaryDumper


@cache
def _insert(table: sa.Table) -> str:
    marks = ", ".join("?" * len(table.columns))
    return f"INSERT INTO {table.name} VALUES ({marks})"


@cache
def _copy(table: sa.Table) -> str:
    columns = ", ".join(column.name for column in table.columns)
    return f"COPY {table.name} ({columns}) FROM STDIN (FORMAT BINARY)"


@cache
def _types(table: sa.Table) -> list[str]:
    return [_TYPES[str(column.type)] for column in table.columns]
