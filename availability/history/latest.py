"""The last change of a sku's positions up to a moment, and of each of their figures: index seeks, one statement.

PostgreSQL seeks by LATERAL through the latest days first: planning over many partitions costs more than the answer.
SQLite seeks by a correlated subquery for the row's number. Conditions of partial indexes stand in the text itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from availability.history.moment import Moment
from availability.history.tables import policies, policy_names

WINDOWS_DAYS = (7, 62, 1 << 20)
"""Days looked at, step by step, until everything is found."""
STATE = "state"
MOVED = {
    STATE: "",
    "on_hand": " AND (p.on_hand_change != 0 OR p.quarantined_change != 0) AND p.on_hand_change != 0",
    "quarantined": " AND (p.on_hand_change != 0 OR p.quarantined_change != 0) AND p.quarantined_change != 0",
    "reserved": " AND p.reserved_change != 0",
    "committed": " AND p.committed_change != 0",
}
"""Which changes moved a figure; each finds a partial index."""
FIGURES = tuple(what for what in MOVED if what != STATE)
_SEEK = (
    "FROM position_changes p WHERE p.sku = n.sku AND p.node = n.node AND p.day <= :day AND p.day > :low "
    "AND p.version <= :version AND p.version > :floor{moved} ORDER BY p.day DESC, p.version DESC LIMIT 1"
)
_POSTGRESQL = sa.text(
    "SELECT n.node AS place, c.* FROM positions n LEFT JOIN LATERAL ("
    + " UNION ALL ".join(
        f"(SELECT '{what}' AS what, p.* {_SEEK.format(moved=moved)})" for what, moved in MOVED.items()
    )
    + ") c ON true WHERE n.sku = :sku AND n.node = ANY(:nodes)"
)
_SQLITE = sa.text(
    " UNION ALL ".join(
        f"SELECT '{what}' AS what, f.* FROM positions n JOIN position_changes f ON f.rowid = "
        f"(SELECT p.rowid {_SEEK.format(moved=moved)}) WHERE n.sku = :sku"
        for what, moved in MOVED.items()
    )
)
_NODES = sa.text("SELECT node FROM positions WHERE sku = :sku")

Changes = dict[tuple[str, str], sa.Row[Any]]  # Any: rows of position_changes


def latest_changes(connection: Connection, at: Moment, sku: str) -> Changes:
    """Return (node, STATE or a figure) → the last change of the position, or the last that moved the figure.

    A figure that is 0 and has not moved for a week may be left out: nobody is behind it.
    """
    values: dict[str, Any] = {"sku": sku, "day": at.day, "version": at.version, "floor": at.floor}
    if connection.dialect.name != "postgresql":
        rows = connection.execute(_SQLITE, {**values, "low": -1})
        return {(row.node, row.what): row for row in rows}
    found: Changes = {}
    nodes = set(connection.scalars(_NODES, {"sku": sku}))
    high = at.day
    for days in WINDOWS_DAYS:
        if not nodes or high < 0:
            break
        low = max(-1, at.day - days)
        window = {**values, "day": high, "low": low, "nodes": sorted(nodes)}
        for row in connection.execute(_POSTGRESQL, window):
            if row.what is not None:
                found.setdefault((row.place, row.what), row)
        nodes = {node for node in nodes if _wanting(found, node)}
        high = low
    return found


def _wanting(found: Changes, node: str) -> bool:
    """Say whether a node's state, or who moved a figure that is not 0, is still to be found."""
    state = found.get((node, STATE))
    if state is None:
        return True
    return any(getattr(state, figure) != 0 and (node, figure) not in found for figure in FIGURES)


def latest_policies(
    connection: Connection, at: Moment, names: sa.ColumnElement[bool]
) -> Sequence[sa.Row[Any]]:  # Any: rows of policies
    """Return the last state of each policy whose name (of policy_names) fits."""
    own = [policies.c[key] == policy_names.c[key] for key in ("what", "channel", "sku")]
    where = (*own, policies.c.version <= at.version, policies.c.version >= at.floor)
    order = (policies.c.version.desc(), policies.c.number.desc())
    if connection.dialect.name == "postgresql":
        last = (
            sa.select(policies)
            .where(*where)
            .order_by(*order)
            .limit(1)
            .correlate(policy_names)
            .lateral("last")
        )
        query = sa.select(last).select_from(policy_names.join(last, sa.true())).where(names)
        return connection.execute(query).all()
    number: sa.ColumnElement[int] = sa.literal_column("policies.rowid")
    row = sa.select(number).select_from(policies).where(*where).order_by(*order).limit(1)
    outer = policies.alias("found")
    same = sa.literal_column("found.rowid") == row.correlate(policy_names).scalar_subquery()
    return connection.execute(sa.select(outer).select_from(policy_names.join(outer, same)).where(names)).all()
