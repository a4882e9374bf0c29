"""The journal: every record of the log, its changes in columns, policies, days, baselines and forks.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _name() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "baseline_positions",
        sa.Column("sku", _name(), nullable=False),
        sa.Column("node", _name(), nullable=False),
        sa.Column("baseline", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("on_hand", sa.BigInteger(), nullable=False),
        sa.Column("quarantined", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("committed", sa.BigInteger(), nullable=False),
        sa.Column("safety_stock", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sku", "node", "baseline"),
    )
    op.create_table(
        "baselines",
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("clock_ms", sa.BigInteger(), nullable=False),
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("after_version", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("positions", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("seal", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("version"),
    )
    op.create_table(
        "deltas",
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("clock_ms", sa.BigInteger(), nullable=False),
        sa.Column("source", _name(), nullable=False),
        sa.Column("stream", _name(), nullable=False),
        sa.Column("source_sequence", sa.BigInteger(), nullable=False),
        sa.Column("event_id", _name(), nullable=False),
        sa.Column("type", sa.SmallInteger(), nullable=False),
        sa.Column("sku", _name(), nullable=False),
        sa.Column("node", _name(), nullable=False),
        sa.Column("to_node", _name(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("order_source", _name(), nullable=False),
        sa.Column("order_ref", _name(), nullable=False),
        sa.Column("line", _name(), nullable=False),
        sa.Column("reference", _name(), nullable=False),
        sa.Column("reason", _name(), nullable=False),
        sa.Column("occurred_us", sa.BigInteger(), nullable=False),
        sa.Column("author", _name(), nullable=False),
        sa.Column("correlation_id", _name(), nullable=False),
        postgresql_partition_by="RANGE (day)",
    )
    op.create_index("deltas_place", "deltas", ["sku", "node", "version"], unique=False)
    op.create_index("deltas_sequence", "deltas", ["source", "stream", "source_sequence"], unique=False)
    op.create_index("deltas_version", "deltas", ["version"], unique=False, postgresql_using="brin")
    op.create_table(
        "historian",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ledger_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("clock_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "journal",
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("clock_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("author", _name(), nullable=False),
        sa.Column("correlation_id", _name(), nullable=False),
        sa.Column("request_id", _name(), nullable=False),
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("day", "version"),
        postgresql_partition_by="RANGE (day)",
    )
    op.create_table(
        "journal_days",
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("first_version", sa.BigInteger(), nullable=False),
        sa.Column("last_version", sa.BigInteger(), nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.Column("first_clock_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_clock_ms", sa.BigInteger(), nullable=False),
        sa.Column("chain_before", sa.Text(), nullable=False),
        sa.Column("last_chain", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("seal", sa.Text(), nullable=False),
        sa.Column("archive", sa.Text(), nullable=False),
        sa.Column("archive_digest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("day"),
    )
    op.create_table(
        "journal_forks",
        sa.Column("fork", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("kept_version", sa.BigInteger(), nullable=False),
        sa.Column("seen_version", sa.BigInteger(), nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("noticed_ms", sa.BigInteger(), nullable=False),
        sa.Column("seal", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("fork"),
    )
    op.create_table(
        "journal_lost",
        sa.Column("fork", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("clock_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("author", _name(), nullable=False),
        sa.Column("correlation_id", _name(), nullable=False),
        sa.Column("request_id", _name(), nullable=False),
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("fork", "version"),
    )
    op.create_table(
        "policies",
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("channel", _name(), nullable=False),
        sa.Column("sku", _name(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("clock_ms", sa.BigInteger(), nullable=False),
        sa.Column("author", _name(), nullable=False),
        sa.Column("reason", _name(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("what", "channel", "sku", "version", "number"),
    )
    op.create_table(
        "policy_names",
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("channel", _name(), nullable=False),
        sa.Column("sku", _name(), nullable=False),
        sa.PrimaryKeyConstraint("what", "channel", "sku"),
    )
    op.create_index("policy_names_sku", "policy_names", ["what", "sku"], unique=False)
    op.create_table(
        "position_changes",
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("clock_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("sku", _name(), nullable=False),
        sa.Column("node", _name(), nullable=False),
        sa.Column("on_hand", sa.BigInteger(), nullable=False),
        sa.Column("quarantined", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("committed", sa.BigInteger(), nullable=False),
        sa.Column("safety_stock", sa.BigInteger(), nullable=False),
        sa.Column("on_hand_change", sa.BigInteger(), nullable=False),
        sa.Column("quarantined_change", sa.BigInteger(), nullable=False),
        sa.Column("reserved_change", sa.BigInteger(), nullable=False),
        sa.Column("committed_change", sa.BigInteger(), nullable=False),
        postgresql_partition_by="RANGE (day)",
    )
    op.create_index(
        "position_changes_committed",
        "position_changes",
        ["sku", "node", "day", "version"],
        unique=False,
        postgresql_where=sa.text("committed_change != 0"),
        sqlite_where=sa.text("committed_change != 0"),
    )
    op.create_index(
        "position_changes_place", "position_changes", ["sku", "node", "day", "version"], unique=False
    )
    op.create_index(
        "position_changes_reserved",
        "position_changes",
        ["sku", "node", "day", "version"],
        unique=False,
        postgresql_where=sa.text("reserved_change != 0"),
        sqlite_where=sa.text("reserved_change != 0"),
    )
    op.create_index(
        "position_changes_stock",
        "position_changes",
        ["sku", "node", "day", "version"],
        unique=False,
        postgresql_where=sa.text("on_hand_change != 0 OR quarantined_change != 0"),
        sqlite_where=sa.text("on_hand_change != 0 OR quarantined_change != 0"),
    )
    op.create_table(
        "positions",
        sa.Column("sku", _name(), nullable=False),
        sa.Column("node", _name(), nullable=False),
        sa.PrimaryKeyConstraint("sku", "node"),
    )
    op.create_index(
        "position_changes_version", "position_changes", ["version"], unique=False, postgresql_using="brin"
    )
