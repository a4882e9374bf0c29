"""Names that stand beside rows (positions, policies): each has rows, and each row has its name."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from availability.history.tables import (
    baseline_positions,
    policies,
    policy_names,
    position_changes,
    positions,
)

LISTED_MAX = 50


def names_findings(connection: Connection) -> Iterator[tuple[str, str, str]]:
    """Yield (table, where, what) of each name without rows, and of rows without their name."""
    own = positions.c
    for sku, node in connection.execute(
        sa.select(own.sku, own.node)
        .where(
            ~_named(position_changes, positions, "sku", "node"),
            ~_named(baseline_positions, positions, "sku", "node"),
        )
        .limit(LISTED_MAX)
    ).all():
        yield "positions", f"{sku} at {node}", "stands there, and no record names it"
    noted = baseline_positions.c
    for sku, node in connection.execute(
        sa.select(noted.sku, noted.node)
        .where(~_named(positions, baseline_positions, "sku", "node"))
        .limit(LISTED_MAX)
    ).all():
        yield "positions", f"{sku} at {node}", "is missing, and a baseline names it"
    keys = ("what", "channel", "sku")
    for table, other, what in (
        (policy_names, policies, "stands there, and no policy has it"),
        (policies, policy_names, "is missing, and a policy has it"),
    ):
        rows = connection.execute(
            sa.select(*(table.c[key] for key in keys))
            .where(~_named(other, table, *keys))
            .distinct()
            .limit(LISTED_MAX)
        ).all()
        for row in rows:
            yield "policy_names", " ".join(filter(None, row)), what


def _named(rows: sa.Table, names: sa.Table, *keys: str) -> sa.Exists:
    return sa.exists().where(*(rows.c[key] == names.c[key] for key in keys))
