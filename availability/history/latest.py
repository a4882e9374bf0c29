"""The last row of each of several names up to a version, one index seek a name. What both databases do alike.

PostgreSQL seeks by LATERAL, and looks at the latest month's partitions before all older ones; SQLite by a correlated
subquery for the row's number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from availability.history.moment import Moment
from availability.history.tables import policies, policy_names, position_changes, positions

RECENT_DAYS = 31
"""Partitions looked at first: planning over all of them costs more than most answers need."""
_ZERO: sa.ColumnElement[int] = sa.literal_column("0")
"""Not a parameter: a partial index is used only where its condition stands in the query itself."""

Figure = tuple[str, tuple[str, ...]]
_c = position_changes.c
MOVED: dict[str, tuple[sa.ColumnElement[bool], ...]] = {
    "on_hand": (
        sa.or_(_c.on_hand_change != _ZERO, _c.quarantined_change != _ZERO),
        _c.on_hand_change != _ZERO,
    ),
    "quarantined": (
        sa.or_(_c.on_hand_change != _ZERO, _c.quarantined_change != _ZERO),
        _c.quarantined_change != _ZERO,
    ),
    "reserved": (_c.reserved_change != _ZERO,),
    "committed": (_c.committed_change != _ZERO,),
    "safety_stock": (_c.kind == sa.literal_column("7"),),
}
"""Which changes moved a figure; each finds a partial index."""


def latest_changes(
    connection: Connection, at: Moment, sku: str, moved: str | None = None
) -> dict[str, sa.Row[Any]]:  # Any: rows of position_changes
    """Return per node the last change of the sku's position, or the last that moved one of its figures."""
    where = (*_within(at), *(MOVED[moved] if moved else ()))
    names, ours = positions.c, positions.c.sku == sku

    def found_in(
        more: Sequence[sa.ColumnElement[bool]], wanted: sa.ColumnElement[bool]
    ) -> dict[str, sa.Row[Any]]:
        seek = _by_lateral if connection.dialect.name == "postgresql" else _by_rowid
        rows = seek(
            connection, positions, position_changes, ("sku", "node"), (*where, *more), _order(), wanted
        )
        return {row.node: row for row in rows}

    if connection.dialect.name != "postgresql":
        return found_in((), ours)
    low = at.day - RECENT_DAYS
    found = found_in([_c.day > low], ours)
    missing = connection.scalars(sa.select(names.node).where(ours, names.node.not_in(list(found)))).all()
    return (
        {**found, **found_in([_c.day <= low], sa.and_(ours, names.node.in_(missing)))} if missing else found
    )


def latest_policies(
    connection: Connection, at: Moment, names: sa.ColumnElement[bool]
) -> Sequence[sa.Row[Any]]:  # Any: rows of policies
    """Return the last state of each policy whose name (of policy_names) fits."""
    where = (policies.c.version <= at.version, policies.c.version >= at.floor)
    order = (policies.c.version.desc(), policies.c.number.desc())
    seek = _by_lateral if connection.dialect.name == "postgresql" else _by_rowid
    return seek(connection, policy_names, policies, ("what", "channel", "sku"), where, order, names)


def _within(at: Moment) -> tuple[sa.ColumnElement[bool], ...]:
    return _c.day <= at.day, _c.version <= at.version, _c.version > at.floor


def _order() -> tuple[sa.ColumnElement[Any], ...]:
    return _c.day.desc(), _c.version.desc()


def _by_lateral(
    connection: Connection,
    names: sa.Table,
    rows: sa.Table,
    keys: Sequence[str],
    where: Sequence[sa.ColumnElement[bool]],
    order: Sequence[sa.ColumnElement[Any]],
    wanted: sa.ColumnElement[bool],
) -> Sequence[sa.Row[Any]]:
    own = [rows.c[key] == names.c[key] for key in keys]
    last = sa.select(rows).where(*own, *where).order_by(*order).limit(1).correlate(names).lateral("last")
    query = sa.select(last).select_from(names.join(last, sa.true())).where(wanted)
    return connection.execute(query).all()


def _by_rowid(
    connection: Connection,
    names: sa.Table,
    rows: sa.Table,
    keys: Sequence[str],
    where: Sequence[sa.ColumnElement[bool]],
    order: Sequence[sa.ColumnElement[Any]],
    wanted: sa.ColumnElement[bool],
) -> Sequence[sa.Row[Any]]:
    own = [rows.c[key] == names.c[key] for key in keys]
    number: sa.ColumnElement[int] = sa.literal_column(f"{rows.name}.rowid")
    last = sa.select(number).select_from(rows).where(*own, *where).order_by(*order).limit(1)
    outer = rows.alias("found")
    query = (
        sa.select(outer)
        .select_from(
            names.join(outer, sa.literal_column("found.rowid") == last.correlate(names).scalar_subquery())
        )
        .where(wanted)
    )
    return connection.execute(query).all()
