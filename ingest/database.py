"""The tables of ingest: artifacts and how far each was read, and dead letters. SQLite where nothing is configured.

Plain SQLAlchemy Core that SQLite and PostgreSQL share. One writer process a database file; PostgreSQL for more.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine

metadata = sa.MetaData()

artifacts = sa.Table(
    "ingest_artifacts",
    metadata,
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("checksum", sa.String(64), primary_key=True),
    sa.Column("run_id", sa.String(36), nullable=False, unique=True),
    sa.Column("name", sa.String(1024), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False, default=0),
    sa.Column("applied", sa.BigInteger, nullable=False, default=0),
    sa.Column("repeated", sa.BigInteger, nullable=False, default=0),
    sa.Column("refused", sa.BigInteger, nullable=False, default=0),
    sa.Column("ignored", sa.BigInteger, nullable=False, default=0),
    sa.Column("deliveries", sa.Integer, nullable=False, default=1),
    sa.Column("mapping_version", sa.String(32), nullable=False),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("begun_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
)
"""``position``: up to it every row is settled. State: OPEN, DONE, REFUSED. Times: seconds since 1970."""

dead_letters = sa.Table(
    "ingest_dead_letters",
    metadata,
    sa.Column("letter_id", sa.String(32), primary_key=True),
    sa.Column("source", sa.String(64), nullable=False, index=True),
    sa.Column("artifact", sa.String(1024), nullable=False),
    sa.Column("run_id", sa.String(36), nullable=False, index=True),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("category", sa.String(32), nullable=False, index=True),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("raw", sa.LargeBinary, nullable=False),
    sa.Column("context", sa.LargeBinary, nullable=False),
    sa.Column("event_id", sa.String(128), nullable=False),
    sa.Column("correlation_id", sa.String(128), nullable=False),
    sa.Column("first_seen_at", sa.Float, nullable=False),
    sa.Column("last_seen_at", sa.Float, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("closed_at", sa.Float),
    sa.Column("closed_reason", sa.Text, nullable=False, default=""),
)
"""State: WAITING, REPLAYED, DISCARDED. ``letter_id`` is made of source, raw bytes and reason."""


def open_database(url: str) -> Engine:
    """Connect and make what is missing. ``url`` is SQLAlchemy's; a bare path is a SQLite file."""
    if "://" not in url:
        path = Path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{path}"
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _tuned)
    metadata.create_all(engine)
    return engine


def _tuned(connection: object, _: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]  # the driver's connection
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()
