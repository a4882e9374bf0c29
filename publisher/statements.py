"""The statements that run for every write to a shop, made once: building them costs more than running them.

What is bound is named ``b_…``. Who runs them, and why: `state`.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from availability.history.shop_tables import shop_skus, shops

_skus = shop_skus.c
_CHANNEL = sa.bindparam("b_channel", type_=sa.Text)
_NOW = sa.bindparam("b_now", type_=sa.Float)
_OWNER = sa.bindparam("b_owner", type_=sa.Text)
_ONE = sa.and_(_skus.channel == _CHANNEL, _skus.sku == sa.bindparam("b_sku", type_=sa.Text))
_VERSION = sa.bindparam("b_version", type_=sa.Text)
_PENDING = sa.bindparam("b_pending", type_=sa.Boolean)
_SHOWN = sa.bindparam("b_shown", type_=sa.BigInteger)
_STATUS = sa.bindparam("b_status", type_=sa.Text)

HOLD = (
    sa.update(shops)
    .where(
        shops.c.channel == _CHANNEL,
        shops.c.owner == _OWNER,
        shops.c.owned_until >= sa.bindparam("b_clock", type_=sa.Float),
    )
    .values(owner=_OWNER)
)
"""Changes nothing, and locks the shop's row: one row where it is ours."""

PLACE = (
    sa.update(shops)
    .where(shops.c.channel == _CHANNEL)
    .values(
        heard_at=_NOW,
        resume_version=sa.func.coalesce(sa.bindparam("b_resume", type_=sa.Text), shops.c.resume_version),
    )
)

BEGIN = (
    sa.update(shop_skus)
    .where(_ONE)
    .values(
        sending=sa.bindparam("b_quantity", type_=sa.BigInteger),
        sending_at=_NOW,
        sending_owner=_OWNER,
        asked=False,
    )
)

SAW = sa.update(shop_skus).where(_ONE).values(shown=_SHOWN, shown_status=_STATUS, shown_at=_NOW)

_OVER = {
    "sending": None,
    "sending_at": None,
    "sending_owner": "",
    "asked": False,
    "shown": sa.func.coalesce(_SHOWN, _skus.shown),
    "shown_status": sa.case((_SHOWN.is_(None), _skus.shown_status), else_=_STATUS),
    "shown_at": sa.case((_SHOWN.is_(None), _skus.shown_at), else_=_NOW),
}
_ACKED = sa.bindparam("b_acked", type_=sa.BigInteger)

ACKED = (
    sa.update(shop_skus)
    .where(_ONE)
    .values(
        acked=_ACKED,
        acked_version=_VERSION,
        acked_at=_NOW,
        pending=sa.or_(_PENDING, _skus.wanted != _ACKED),
        **_OVER,
    )
)
"""The shop acknowledged a number; another one that was heard meanwhile stays pending."""

NOT_ACKED = (
    sa.update(shop_skus)
    .where(_ONE)
    .values(
        acked=sa.case((sa.bindparam("b_forget", type_=sa.Boolean), sa.null()), else_=_skus.acked),
        pending=sa.or_(_PENDING, _skus.wanted != sa.bindparam("b_sent", type_=sa.BigInteger)),
        **_OVER,
    )
)


def _heard(dialect: str) -> sqlite.Insert | postgresql.Insert:
    insert = postgresql.insert(shop_skus) if dialect == "postgresql" else sqlite.insert(shop_skus)
    statement = insert.values(
        {
            "channel": _CHANNEL,
            "sku": sa.bindparam("b_sku", type_=sa.Text),
            "sellable": sa.bindparam("b_sellable", type_=sa.BigInteger),
            "wanted": sa.bindparam("b_wanted", type_=sa.BigInteger),
            "wanted_version": _VERSION,
            "wanted_since": sa.bindparam("b_heard_at", type_=sa.Float),
            "blocked": sa.bindparam("b_blocked", type_=sa.Boolean),
            "pending": True,
            "asked": False,
            "acked_version": "",
            "shown_status": "",
            "sending_owner": "",
        }
    )
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["channel", "sku"],
        set_={
            "sellable": new.sellable,
            "wanted": new.wanted,
            "wanted_version": new.wanted_version,
            "wanted_since": sa.case((_skus.pending, _skus.wanted_since), else_=new.wanted_since),
            "blocked": new.blocked,
            "pending": sa.or_(
                sa.bindparam("b_always", type_=sa.Boolean),
                _skus.acked.is_(None),
                _skus.acked != new.wanted,
                _skus.sending.is_not(None),
            ),
        },
    )


HEARD = {dialect: _heard(dialect) for dialect in ("postgresql", "sqlite")}
"""The ledger's latest number of a sku, by the database's dialect."""
