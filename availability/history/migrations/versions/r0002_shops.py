"""Storefronts: what each sku shall show and shows, who publishes, the shop's catalogue, dead letters.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _name() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "shop_skus",
        sa.Column("channel", _name(), nullable=False),
        sa.Column("sku", _name(), nullable=False),
        sa.Column("sellable", sa.BigInteger(), nullable=False),
        sa.Column("wanted", sa.BigInteger(), nullable=False),
        sa.Column("wanted_version", sa.Text(), nullable=False),
        sa.Column("wanted_since", sa.Float(), nullable=False),
        sa.Column("blocked", sa.Boolean(), nullable=False),
        sa.Column("pending", sa.Boolean(), nullable=False),
        sa.Column("asked", sa.Boolean(), nullable=False),
        sa.Column("acked", sa.BigInteger(), nullable=True),
        sa.Column("acked_version", sa.Text(), nullable=False),
        sa.Column("acked_at", sa.Float(), nullable=True),
        sa.Column("shown", sa.BigInteger(), nullable=True),
        sa.Column("shown_status", sa.Text(), nullable=False),
        sa.Column("shown_at", sa.Float(), nullable=True),
        sa.Column("sending", sa.BigInteger(), nullable=True),
        sa.Column("sending_at", sa.Float(), nullable=True),
        sa.Column("sending_owner", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("channel", "sku"),
    )
    op.create_index(
        "shop_skus_open",
        "shop_skus",
        ["channel", "sku"],
        postgresql_where=sa.text("pending OR asked"),
        sqlite_where=sa.text("pending OR asked"),
    )
    op.create_table(
        "shops",
        sa.Column("channel", _name(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("owned_until", sa.Float(), nullable=False),
        sa.Column("resume_version", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state_since", sa.Float(), nullable=False),
        sa.Column("heard_at", sa.Float(), nullable=True),
        sa.Column("catalogue_at", sa.Float(), nullable=True),
        sa.Column("changes_since", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("channel"),
    )
    op.create_table(
        "shop_listings",
        sa.Column("channel", _name(), nullable=False),
        sa.Column("listing_id", _name(), nullable=False),
        sa.Column("sku", _name(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("managed", sa.Text(), nullable=False),
        sa.Column("parent_id", _name(), nullable=False),
        sa.Column("walk", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("channel", "listing_id"),
    )
    op.create_table(
        "shop_letters",
        sa.Column("channel", _name(), nullable=False),
        sa.Column("sku", _name(), nullable=False),
        sa.Column("letter_id", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("first_seen_at", sa.Float(), nullable=False),
        sa.Column("last_seen_at", sa.Float(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("closed_at", sa.Float(), nullable=True),
        sa.Column("closed_reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("channel", "sku"),
        sa.UniqueConstraint("letter_id"),
    )
