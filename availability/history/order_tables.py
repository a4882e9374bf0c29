"""What a publisher keeps of a shop's orders. `publisher/orders/book.py` writes it; nothing else reads it.

Of an order only ids, skus, quantities, its status and times are kept: no name, no address, no price, nothing that a
customer wrote. The bytes in ``told`` and ``unsent`` are lists of such values (`publisher/orders/facts.py`).
"""

from __future__ import annotations

import sqlalchemy as sa

from availability.history.tables import Name, metadata

__all__ = ["metadata", "shop_order_hints", "shop_order_places", "shop_orders"]

shop_orders = sa.Table(
    "shop_orders",
    metadata,
    sa.Column("channel", Name, primary_key=True),
    sa.Column("order_id", sa.BigInteger, primary_key=True),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("open_units", sa.BigInteger, nullable=False),
    sa.Column("modified_us", sa.BigInteger, nullable=False),
    sa.Column("checked_at", sa.Float, nullable=False),
    sa.Column("gone", sa.Boolean, nullable=False),
    sa.Column("told", sa.LargeBinary, nullable=False),
    sa.Column("unsent", sa.LargeBinary, nullable=False),
    sa.Column("refused", sa.Text, nullable=False),
    sa.Index("shop_orders_checked", "channel", "gone", "checked_at"),
)
"""What the ledger was told of each order. ``unsent``: words of the last revision that it has not acknowledged; empty:
none. ``gone``: trashed or deleted in the shop. ``checked_at``: when it was last seen there, seconds since 1970.
``refused``: why the ledger did not take a word of it; empty: it took them all."""

shop_order_hints = sa.Table(
    "shop_order_hints",
    metadata,
    sa.Column("channel", Name, primary_key=True),
    sa.Column("order_id", sa.BigInteger, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
"""Orders that the shop's webhooks named and that are still to be read. ``number`` grows with each of them."""

shop_order_places = sa.Table(
    "shop_order_places",
    metadata,
    sa.Column("channel", Name, primary_key=True),
    sa.Column("modified_us", sa.BigInteger, nullable=False),
    sa.Column("begun_us", sa.BigInteger, nullable=False),
)
"""How far a shop's orders were polled, by the shop's own times; ``begun_us``: since when they are told at all."""
