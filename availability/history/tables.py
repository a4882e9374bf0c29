"""The journal's tables. Plain SQLAlchemy Core that SQLite and PostgreSQL share; migrations/ makes them.

``journal`` is the log, record by record, with its bytes and its chain: the truth. ``position_changes``, ``deltas`` and
``policies`` say the same in columns, so that a past moment is found by index; each of their rows can be made again
from the journal, and `audit verify-chain` does. On PostgreSQL the tables with a ``day`` are partitioned by it
(`partitions`): retention drops whole days. Who writes them: `journal.py`; who reads them: `past.py`, `story.py`.

``version`` is a ledger version packed into one number (`packed`), so that it compares as (epoch, seq) does.
``day`` is the ledger clock's day, counted from 1970-01-01 UTC; clocks are milliseconds since 1970, ledger clock.
"""

from __future__ import annotations

import sqlalchemy as sa

from availability.domain.version import Version

VERSION_TABLE = "history_schema"
"""Where Alembic notes which migrations ran."""

DAY_MS = 86_400_000
SEQ_BITS = 44
EPOCH_MAX = (1 << (63 - SEQ_BITS)) - 1

RETAINED = -1
"""``baseline`` of the positions as they stood when the last days were dropped: the one set that retention renews."""

metadata = sa.MetaData()

Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
"""Text from outside, compared bytewise as everywhere else in the service."""


def packed(version: Version) -> int:
    """Return a version as one number in the same order: epoch × 2**44 + seq. Raises OverflowError beyond it."""
    if version.epoch > EPOCH_MAX or version.seq >> SEQ_BITS:
        raise OverflowError(f"version {version} is beyond what history can number")
    return version.epoch << SEQ_BITS | version.seq


def unpacked(number: int) -> Version:
    """Return the version of a number."""
    return Version(number >> SEQ_BITS, number & ((1 << SEQ_BITS) - 1))


def _by_day(name: str, *columns: sa.schema.SchemaItem) -> sa.Table:
    return sa.Table(name, metadata, *columns, postgresql_partition_by="RANGE (day)")


historian = sa.Table(
    "historian",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("ledger_id", sa.Text, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("chain", sa.Text, nullable=False),
    sa.Column("clock_ms", sa.BigInteger, nullable=False),
)
"""How far the journal has come; changed in the transaction of its rows. One row, named JOURNAL."""

journal = _by_day(
    "journal",
    sa.Column("day", sa.Integer, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("clock_ms", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("author", Name, nullable=False),
    sa.Column("correlation_id", Name, nullable=False),
    sa.Column("request_id", Name, nullable=False),
    sa.Column("chain", sa.Text, nullable=False),
    sa.Column("raw", sa.LargeBinary, nullable=False),
)
"""Every record of the log. ``kind``: ledger.record.Kind, 0 for bytes that this release cannot read."""

position_changes = _by_day(
    "position_changes",
    sa.Column("day", sa.Integer, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("clock_ms", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("sku", Name, nullable=False),
    sa.Column("node", Name, nullable=False),
    sa.Column("on_hand", sa.BigInteger, nullable=False),
    sa.Column("quarantined", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("committed", sa.BigInteger, nullable=False),
    sa.Column("safety_stock", sa.BigInteger, nullable=False),
    sa.Column("on_hand_change", sa.BigInteger, nullable=False),
    sa.Column("quarantined_change", sa.BigInteger, nullable=False),
    sa.Column("reserved_change", sa.BigInteger, nullable=False),
    sa.Column("committed_change", sa.BigInteger, nullable=False),
)
"""A position's figures after each record that touched it, and its signed changes; safety_stock -1: the node's."""

_c = position_changes.c
_PLACE = (_c.sku, _c.node, _c.day, _c.version)
sa.Index("position_changes_place", *_PLACE)
sa.Index("position_changes_version", _c.version, postgresql_using="brin")
for _name, _moved in (
    ("stock", sa.or_(_c.on_hand_change != 0, _c.quarantined_change != 0)),
    ("reserved", _c.reserved_change != 0),
    ("committed", _c.committed_change != 0),
):
    sa.Index(
        f"position_changes_{_name}",
        *_PLACE,
        postgresql_where=_moved,
        sqlite_where=_moved,
    )
"""The last change of one figure is a seek, however often the others changed since."""

positions = sa.Table(
    "positions",
    metadata,
    sa.Column("sku", Name, primary_key=True),
    sa.Column("node", Name, primary_key=True),
)
"""Every position that the journal ever named: what is looked up for a sku without reading its changes."""

deltas = _by_day(
    "deltas",
    sa.Column("day", sa.Integer, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("clock_ms", sa.BigInteger, nullable=False),
    sa.Column("source", Name, nullable=False),
    sa.Column("stream", Name, nullable=False),
    sa.Column("source_sequence", sa.BigInteger, nullable=False),
    sa.Column("event_id", Name, nullable=False),
    sa.Column("type", sa.SmallInteger, nullable=False),
    sa.Column("sku", Name, nullable=False),
    sa.Column("node", Name, nullable=False),
    sa.Column("to_node", Name, nullable=False),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("order_source", Name, nullable=False),
    sa.Column("order_ref", Name, nullable=False),
    sa.Column("line", Name, nullable=False),
    sa.Column("reference", Name, nullable=False),
    sa.Column("reason", Name, nullable=False),
    sa.Column("occurred_us", sa.BigInteger, nullable=False),
    sa.Column("author", Name, nullable=False),
    sa.Column("correlation_id", Name, nullable=False),
    sa.Index("deltas_version", "version", postgresql_using="brin"),
    sa.Index("deltas_sequence", "source", "stream", "source_sequence"),
    sa.Index("deltas_place", "sku", "node", "version"),
)
"""Every applied delta as its source told it (record.Cause); ``number``: its place in the record, from 0."""

policies = sa.Table(
    "policies",
    metadata,
    sa.Column("what", sa.Text, primary_key=True),
    sa.Column("channel", Name, primary_key=True),
    sa.Column("sku", Name, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("clock_ms", sa.BigInteger, nullable=False),
    sa.Column("author", Name, nullable=False),
    sa.Column("reason", Name, nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
)
"""Policies as each change left them, msgpack of the State classes of ledger.record; kept for ever.

``what``: NODE, CHANNEL, OVERRIDE, STOP, KIT, FENCE, FENCE_LEFT, FEED, SILENCE or SAFETY_STOCK. ``channel`` and ``sku``
are its names, empty where it has none: a node's and a kit's name stands in ``sku``, a feed's source in ``channel`` and
its node in ``sku``, the node of a position's own safety stock in ``channel``. An empty ``state`` is one that was
removed. ``number``: the latest of several in one record.
"""

policy_names = sa.Table(
    "policy_names",
    metadata,
    sa.Column("what", sa.Text, primary_key=True),
    sa.Column("channel", Name, primary_key=True),
    sa.Column("sku", Name, primary_key=True),
    sa.Index("policy_names_sku", "what", "sku"),
)
"""Every name that ``policies`` has rows of."""

journal_days = sa.Table(
    "journal_days",
    metadata,
    sa.Column("day", sa.Integer, primary_key=True),
    sa.Column("first_version", sa.BigInteger, nullable=False),
    sa.Column("last_version", sa.BigInteger, nullable=False),
    sa.Column("records", sa.BigInteger, nullable=False),
    sa.Column("first_clock_ms", sa.BigInteger, nullable=False),
    sa.Column("last_clock_ms", sa.BigInteger, nullable=False),
    sa.Column("chain_before", sa.Text, nullable=False),
    sa.Column("last_chain", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, default="KEPT"),
    sa.Column("seal", sa.Text, nullable=False, default=""),
    sa.Column("archive", sa.Text, nullable=False, default=""),
    sa.Column("archive_digest", sa.Text, nullable=False, default=""),
)
"""What the journal holds of each day, and the head of its chain. State: KEPT, ARCHIVED, DROPPED.

``seal`` (seal.py) closes a day that is over, over all of its row and the seal of the day before it.
"""

baselines = sa.Table(
    "baselines",
    metadata,
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("day", sa.Integer, nullable=False),
    sa.Column("clock_ms", sa.BigInteger, nullable=False),
    sa.Column("chain", sa.Text, nullable=False),
    sa.Column("after_version", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("positions", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("seal", sa.Text, nullable=False),
)
"""Points at which every position was noted although no record said so.

Reason GAP: the records between ``after_version`` and it are missing. RETENTION: the days up to it were dropped; nothing
before ``after_version`` counts for what came after it (an earlier gap). ``digest``: of the positions, and policies.
"""

baseline_positions = sa.Table(
    "baseline_positions",
    metadata,
    sa.Column("sku", Name, primary_key=True),
    sa.Column("node", Name, primary_key=True),
    sa.Column("baseline", sa.BigInteger, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("on_hand", sa.BigInteger, nullable=False),
    sa.Column("quarantined", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("committed", sa.BigInteger, nullable=False),
    sa.Column("safety_stock", sa.BigInteger, nullable=False),
)
"""Figures of positions at a baseline (its version, or RETAINED). ``version``: the record that left them so."""

journal_forks = sa.Table(
    "journal_forks",
    metadata,
    sa.Column("fork", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kept_version", sa.BigInteger, nullable=False),
    sa.Column("seen_version", sa.BigInteger, nullable=False),
    sa.Column("records", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("noticed_ms", sa.BigInteger, nullable=False),
    sa.Column("seal", sa.Text, nullable=False),
)
"""Failovers that took back what the journal had read: versions after ``kept_version`` up to ``seen_version``."""

journal_lost = sa.Table(
    "journal_lost",
    metadata,
    sa.Column("fork", sa.Integer, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("clock_ms", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("author", Name, nullable=False),
    sa.Column("correlation_id", Name, nullable=False),
    sa.Column("request_id", Name, nullable=False),
    sa.Column("chain", sa.Text, nullable=False),
    sa.Column("raw", sa.LargeBinary, nullable=False),
)
"""The records that a fork took back, kept so that they can be applied again by their ids."""
