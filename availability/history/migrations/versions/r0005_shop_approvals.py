"""Zeros that wait for an operator.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "shop_approvals",
        sa.Column("channel", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False),
        sa.Column("held", sa.Integer(), nullable=False),
        sa.Column("on_sale", sa.Integer(), nullable=False),
        sa.Column("since", sa.Float(), nullable=True),
        sa.Column("approved_until", sa.Float(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("channel"),
    )
