"""Orders of shops: what the ledger was told of them, webhooks' hints, and how far they were polled.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _name() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "shop_orders",
        sa.Column("channel", _name(), nullable=False),
        sa.Column("order_id", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("open_units", sa.BigInteger(), nullable=False),
        sa.Column("modified_us", sa.BigInteger(), nullable=False),
        sa.Column("checked_at", sa.Float(), nullable=False),
        sa.Column("gone", sa.Boolean(), nullable=False),
        sa.Column("told", sa.LargeBinary(), nullable=False),
        sa.Column("unsent", sa.LargeBinary(), nullable=False),
        sa.Column("refused", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("channel", "order_id"),
    )
    op.create_index("shop_orders_checked", "shop_orders", ["channel", "gone", "checked_at"], unique=False)
    op.create_table(
        "shop_order_hints",
        sa.Column("channel", _name(), nullable=False),
        sa.Column("order_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("channel", "order_id"),
    )
    op.create_table(
        "shop_order_places",
        sa.Column("channel", _name(), nullable=False),
        sa.Column("modified_us", sa.BigInteger(), nullable=False),
        sa.Column("begun_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("channel"),
    )
