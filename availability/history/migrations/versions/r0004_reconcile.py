"""Reconciliation: runs, variances, the parts of their causes, approvals, what shops showed, the lock.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _name() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "reconcile_approvals",
        sa.Column("approval", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("run_id", _name(), nullable=False),
        sa.Column("author", _name(), nullable=False),
        sa.Column("reason", _name(), nullable=False),
        sa.Column("variances", sa.BigInteger(), nullable=False),
        sa.Column("approved_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("approval"),
    )
    op.create_index("ix_reconcile_approvals_run_id", "reconcile_approvals", ["run_id"], unique=False)
    op.create_table(
        "reconcile_locks",
        sa.Column("name", _name(), nullable=False),
        sa.Column("holder", _name(), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "reconcile_parts",
        sa.Column("run_id", _name(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("cause", _name(), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("sentence", _name(), nullable=False),
        sa.Column("evidence", _name(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "number", "part"),
    )
    op.create_table(
        "reconcile_runs",
        sa.Column("run_id", _name(), nullable=False),
        sa.Column("snapshot", _name(), nullable=False),
        sa.Column("source", _name(), nullable=False),
        sa.Column("kind", _name(), nullable=False),
        sa.Column("state", _name(), nullable=False),
        sa.Column("file", _name(), nullable=False),
        sa.Column("checksum", _name(), nullable=False),
        sa.Column("snapshot_id", _name(), nullable=False),
        sa.Column("as_of", _name(), nullable=False),
        sa.Column("point_kind", _name(), nullable=False),
        sa.Column("point_version", sa.BigInteger(), nullable=False),
        sa.Column("point_at", sa.Float(), nullable=True),
        sa.Column("nodes", _name(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("absent", _name(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("positions", sa.BigInteger(), nullable=False),
        sa.Column("counts", _name(), nullable=False),
        sa.Column("findings", _name(), nullable=False),
        sa.Column("reason", _name(), nullable=False),
        sa.Column("folder", _name(), nullable=False),
        sa.Column("begun_at", sa.Float(), nullable=False),
        sa.Column("compared_at", sa.Float(), nullable=True),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_index("reconcile_runs_snapshot", "reconcile_runs", ["snapshot", "begun_at"], unique=False)
    op.create_table(
        "reconcile_shops",
        sa.Column("night", _name(), nullable=False),
        sa.Column("channel", _name(), nullable=False),
        sa.Column("sku", _name(), nullable=False),
        sa.Column("source_on_hand", sa.BigInteger(), nullable=True),
        sa.Column("sellable", sa.BigInteger(), nullable=False),
        sa.Column("wanted", sa.BigInteger(), nullable=False),
        sa.Column("acked", sa.BigInteger(), nullable=True),
        sa.Column("shown", sa.BigInteger(), nullable=True),
        sa.Column("difference", _name(), nullable=False),
        sa.PrimaryKeyConstraint("night", "channel", "sku"),
    )
    op.create_table(
        "reconcile_variances",
        sa.Column("run_id", _name(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", _name(), nullable=False),
        sa.Column("sku", _name(), nullable=False),
        sa.Column("node", _name(), nullable=False),
        sa.Column("reason", _name(), nullable=False),
        sa.Column("order_source", _name(), nullable=False),
        sa.Column("order_ref", _name(), nullable=False),
        sa.Column("line", _name(), nullable=False),
        sa.Column("said", sa.BigInteger(), nullable=False),
        sa.Column("ledger", sa.BigInteger(), nullable=False),
        sa.Column("variance", sa.BigInteger(), nullable=False),
        sa.Column("cause", _name(), nullable=False),
        sa.Column("state", _name(), nullable=False),
        sa.Column("hold", _name(), nullable=False),
        sa.Column("delta", sa.LargeBinary(), nullable=False),
        sa.Column("message", _name(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "number"),
    )
    op.create_index(
        "reconcile_variances_open", "reconcile_variances", ["run_id", "state", "number"], unique=False
    )
    op.create_index("reconcile_variances_place", "reconcile_variances", ["sku", "node"], unique=False)
