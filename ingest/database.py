"""The tables of ingest: artifacts and how far each was read, and dead letters. SQLite where nothing is configured.

Plain SQLAlchemy Core that SQLite and PostgreSQL share. One writer process a database file; PostgreSQL for more.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.schema import CreateIndex, CreateTable

TABLES_LOCK = 0x_696E_6765_7374
"""Number of PostgreSQL's advisory lock under which one process at a time makes tables."""
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
    sa.Column("event_id", sa.String(128), nullable=False, index=True),
    sa.Column("correlation_id", sa.String(128), nullable=False),
    sa.Column("first_seen_at", sa.Float, nullable=False),
    sa.Column("last_seen_at", sa.Float, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("closed_at", sa.Float),
    sa.Column("closed_reason", sa.Text, nullable=False, default=""),
)
"""State: WAITING, REPLAYED, DISCARDED. ``letter_id`` is made of source, raw bytes and reason."""

stream_marks = sa.Table(
    "ingest_stream_marks",
    metadata,
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("stream", sa.String(64), primary_key=True),
    sa.Column("watermark", sa.Float, nullable=False, default=0.0),
    sa.Column("settled_at", sa.Float, nullable=False, default=0.0),
    sa.Column("parked_at", sa.Float),
    sa.Column("waits_for", sa.BigInteger, nullable=False, default=0),
)
"""``watermark``: latest occurred_time that is settled. ``parked_at``: since when numbers are missing, or null."""

cutovers = sa.Table(
    "ingest_cutovers",
    metadata,
    sa.Column("cutover_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("from_source", sa.String(64), nullable=False),
    sa.Column("from_stream", sa.String(64), nullable=False),
    sa.Column("from_sequence", sa.BigInteger, nullable=False),
    sa.Column("to_source", sa.String(64), nullable=False),
    sa.Column("to_stream", sa.String(64), nullable=False),
    sa.Column("to_sequence", sa.BigInteger, nullable=False),
    sa.Column("at_time", sa.Float, nullable=False),
    sa.Column("nodes", sa.Text, nullable=False),
    sa.Column("skus", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("made_at", sa.Float, nullable=False),
)
"""Who speaks for what since when. ``nodes``, ``skus``: JSON lists, empty: all. Sequence -1, time 0: not given."""

shadow_positions = sa.Table(
    "ingest_shadow_positions",
    metadata,
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("sku", sa.String(64), primary_key=True),
    sa.Column("node", sa.String(64), primary_key=True),
    sa.Column("base", sa.BigInteger, nullable=False),
    sa.Column("base_kind", sa.String(16), nullable=False),
    sa.Column("net", sa.BigInteger, nullable=False),
    sa.Column("word_at", sa.Float, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("ledger", sa.BigInteger),
    sa.Column("compared_at", sa.Float),
    sa.Column("first_at", sa.Float, nullable=False),
    sa.Column("last_at", sa.Float, nullable=False),
)
"""What a source in shadow says of on_hand: ``base`` (LEDGER: read there; SAID: a SET_ON_HAND) and ``net`` since."""

shadow_events = sa.Table(
    "ingest_shadow_events",
    metadata,
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("seen_at", sa.Float, nullable=False),
)
"""Events that were compared once already, by a digest of their names."""

run_settings = sa.Table(
    "ingest_run_settings",
    metadata,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("source", sa.String(64), nullable=False, index=True),
    sa.Column("settings", sa.Text, nullable=False),
)
"""Format and mapping of a run, as JSON: by them its file is read again."""

unapplied_rows = sa.Table(
    "ingest_unapplied_rows",
    metadata,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("first_position", sa.BigInteger, primary_key=True),
    sa.Column("last_position", sa.BigInteger, nullable=False),
    sa.Column("result", sa.String(16), nullable=False),
)
"""Rows of a run that had no effect (REPEATED, STALE, REFUSED, KEPT_OUT); every other one was applied."""

order_recipes = sa.Table(
    "ingest_order_recipes",
    metadata,
    sa.Column("order_source", sa.String(64), primary_key=True),
    sa.Column("order_ref", sa.String(128), primary_key=True),
    sa.Column("kit_sku", sa.String(64), primary_key=True),
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("seen_at", sa.Float, nullable=False),
)
"""By which recipe a kit of an order was first exploded: later words about it mean the same parts."""


def upsert(connection: Connection | Engine, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT that knows ON CONFLICT, in the database's own dialect."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


feeds = sa.Table(
    "ingest_feeds",
    metadata,
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("settled", sa.String(256), nullable=False, default=""),
    sa.Column("number", sa.BigInteger, nullable=False, default=0),
    sa.Column("window_begun_at", sa.Float, nullable=False, default=0.0),
    sa.Column("calls", sa.Integer, nullable=False, default=0),
)
"""Where a feed that is fetched stands: up to ``settled`` (its own kind of place) the ledger's durable ack is there.
``number``: chunks written so far. ``calls`` were made since ``window_begun_at`` (seconds since 1970)."""

chunks = sa.Table(
    "ingest_chunks",
    metadata,
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("checksum", sa.String(64), nullable=False),
    sa.Column("position", sa.String(256), nullable=False),
)
"""Files that a feed has written and that are not settled yet; with them the feed stands at ``position``."""

feed_health = sa.Table(
    "ingest_feed_health",
    metadata,
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("worked_at", sa.Float, nullable=False),
    sa.Column("failing_since", sa.Float),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
)
"""How each feed fares. ``failing_since`` null: it works; ``failures`` in a row since then."""

fetched = sa.Table(
    "ingest_fetched",
    metadata,
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(1024), primary_key=True),
    sa.Column("size", sa.BigInteger, primary_key=True),
    sa.Column("changed_at", sa.BigInteger, primary_key=True),
    sa.Column("fetched_at", sa.Float, nullable=False),
)
"""Files that were picked up elsewhere. ``changed_at`` is the other side's word, whole seconds."""


def open_database(url: str) -> Engine:
    """Connect and make what is missing. ``url`` is SQLAlchemy's; a bare path is a SQLite file."""
    if "://" not in url:
        path = Path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{path}"
    # A PostgreSQL that was made without a locale is SQL_ASCII; there the driver would hand out bytes.
    arguments = {"client_encoding": "utf8"} if url.startswith("postgres") else {}
    # hide_parameters: rows may hold what letters leave out.
    engine = sa.create_engine(url, hide_parameters=True, connect_args=arguments)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _tuned)
    with engine.begin() as connection:  # another process may make them at the same moment
        if engine.dialect.name == "postgresql":  # where IF NOT EXISTS alone fails beside another's CREATE
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(TABLES_LOCK)))
        for table in metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(CreateIndex(index, if_not_exists=True))
    return engine


def _tuned(connection: object, _: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]  # the driver's connection
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()
