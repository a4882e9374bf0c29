"""What is known of storefronts: what each shall show, last acknowledged and last showed, per (channel, sku).

The publisher writes these tables; reconciliation reads ``shop_skus`` and knows nothing else of a shop. A sku has one
row however often it changes, so what waits for a shop cannot grow past one entry a sku. Times: seconds since 1970.
"""

from __future__ import annotations

import sqlalchemy as sa

from availability.history.tables import Name, metadata

__all__ = ["TO_DO", "metadata", "shop_approvals", "shop_letters", "shop_listings", "shop_skus", "shops"]

shop_skus = sa.Table(
    "shop_skus",
    metadata,
    sa.Column("channel", Name, primary_key=True),
    sa.Column("sku", Name, primary_key=True),
    sa.Column("sellable", sa.BigInteger, nullable=False),
    sa.Column("wanted", sa.BigInteger, nullable=False),
    sa.Column("wanted_version", sa.Text, nullable=False),
    sa.Column("wanted_since", sa.Float, nullable=False),
    sa.Column("blocked", sa.Boolean, nullable=False),
    sa.Column("pending", sa.Boolean, nullable=False),
    sa.Column("asked", sa.Boolean, nullable=False),
    sa.Column("acked", sa.BigInteger),
    sa.Column("acked_version", sa.Text, nullable=False),
    sa.Column("acked_at", sa.Float),
    sa.Column("shown", sa.BigInteger),
    sa.Column("shown_status", sa.Text, nullable=False),
    sa.Column("shown_at", sa.Float),
    sa.Column("sending", sa.BigInteger),
    sa.Column("sending_at", sa.Float),
    sa.Column("sending_owner", sa.Text, nullable=False),
)
"""``sellable``: the ledger's word; ``wanted``: the number to show, after publish_limit and rules. ``acked``: what the
shop last acknowledged, null: nothing yet; ``shown``: what it last showed when read. ``pending``: ``wanted`` has yet to
be written; ``asked``: an operator asked for another write. ``sending``: under way right now, since when, by which
process. ``wanted_since``: when the oldest change was heard that the shop does not show yet."""

TO_DO = sa.text("(pending OR asked)")
"""What the index ``shop_skus_open`` holds, in its own words: SQLite uses it for a query that says the same in the same
words, and otherwise looks at every row of the channel."""
sa.Index(
    "shop_skus_open",
    shop_skus.c.channel,
    shop_skus.c.sku,
    postgresql_where=TO_DO,
    sqlite_where=TO_DO,
)

shops = sa.Table(
    "shops",
    metadata,
    sa.Column("channel", Name, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("owned_until", sa.Float, nullable=False),
    sa.Column("resume_version", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("state_since", sa.Float, nullable=False),
    sa.Column("heard_at", sa.Float),
    sa.Column("catalogue_at", sa.Float),
    sa.Column("changes_since", sa.Float),
)
"""One publisher owns a shop until ``owned_until``. ``resume_version``: up to it the ledger's changes are in shop_skus.
State: RUNNING, OPEN (the breaker), STOPPED (keys refused), WAITING (an operator decides). ``catalogue_at``: last walk
of the catalogue; ``changes_since``: its changes are known up to here; ``heard_at``: the ledger's last word."""

shop_listings = sa.Table(
    "shop_listings",
    metadata,
    sa.Column("channel", Name, primary_key=True),
    sa.Column("listing_id", Name, primary_key=True),
    sa.Column("sku", Name, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("managed", sa.Text, nullable=False),
    sa.Column("parent_id", Name, nullable=False),
    sa.Column("walk", sa.Float, nullable=False),
)
"""The shop's catalogue as last seen; ``walk``: the walk that saw it. What a whole walk did not see is gone."""

shop_letters = sa.Table(
    "shop_letters",
    metadata,
    sa.Column("channel", Name, primary_key=True),
    sa.Column("sku", Name, primary_key=True),
    sa.Column("letter_id", sa.Text, nullable=False, unique=True),
    sa.Column("category", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("first_seen_at", sa.Float, nullable=False),
    sa.Column("last_seen_at", sa.Float, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("closed_at", sa.Float),
    sa.Column("closed_reason", sa.Text, nullable=False),
)
"""What could not be published: one letter a sku, with the latest reason. State: WAITING, REPLAYED, DISCARDED, and
RESOLVED where the sku was published after all."""

shop_approvals = sa.Table(
    "shop_approvals",
    metadata,
    sa.Column("channel", Name, primary_key=True),
    sa.Column("held", sa.Integer, nullable=False),
    sa.Column("on_sale", sa.Integer, nullable=False),
    sa.Column("since", sa.Float),
    sa.Column("approved_until", sa.Float, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
"""Zeros that wait for an operator: ``held`` of ``on_sale`` skus, ``since`` when; approved until, by whom and why."""
