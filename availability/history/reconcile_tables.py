"""What reconciliation keeps: runs, variances with the parts of their causes, approvals, and who reconciles now.

Written by ``ingest.reconcile``. Figures are base units, times are seconds since 1970, versions are packed (`tables`).
"""

from __future__ import annotations

import sqlalchemy as sa

from availability.history.tables import Name, metadata

__all__ = [
    "metadata",
    "reconcile_approvals",
    "reconcile_locks",
    "reconcile_parts",
    "reconcile_runs",
    "reconcile_shops",
    "reconcile_variances",
]

reconcile_runs = sa.Table(
    "reconcile_runs",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("snapshot", Name, nullable=False),
    sa.Column("source", Name, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("checksum", sa.Text, nullable=False),
    sa.Column("snapshot_id", sa.Text, nullable=False),
    sa.Column("as_of", sa.Text, nullable=False),
    sa.Column("point_kind", sa.Text, nullable=False),
    sa.Column("point_version", sa.BigInteger, nullable=False),
    sa.Column("point_at", sa.Float),
    sa.Column("nodes", sa.Text, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("absent", sa.Text, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("positions", sa.BigInteger, nullable=False),
    sa.Column("counts", sa.Text, nullable=False),
    sa.Column("findings", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("begun_at", sa.Float, nullable=False),
    sa.Column("compared_at", sa.Float),
    sa.Column("ended_at", sa.Float),
)
"""One comparison of one snapshot. State: OPEN (being compared), CORRECTING, HELD (waits for approval), REPORTED
(nothing may be corrected), REFUSED, DONE, SUPERSEDED. ``nodes``, ``as_of``, ``counts``, ``findings``: JSON. ``folder``:
its frames."""

sa.Index("reconcile_runs_snapshot", reconcile_runs.c.snapshot, reconcile_runs.c.begun_at)

reconcile_variances = sa.Table(
    "reconcile_variances",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("sku", Name, nullable=False),
    sa.Column("node", Name, nullable=False),
    sa.Column("reason", Name, nullable=False),
    sa.Column("order_source", Name, nullable=False),
    sa.Column("order_ref", Name, nullable=False),
    sa.Column("line", Name, nullable=False),
    sa.Column("said", sa.BigInteger, nullable=False),
    sa.Column("ledger", sa.BigInteger, nullable=False),
    sa.Column("variance", sa.BigInteger, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("hold", sa.Text, nullable=False),
    sa.Column("delta", sa.LargeBinary, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
)
"""What differed. ``variance`` is ledger minus said. State: REPORTED, HELD (waits for approval), PENDING (is to be
corrected), CORRECTED, REFUSED (the ledger did not take the correction: ``message``). ``hold``: why it is not corrected.
``delta``: the correction, encoded, with its event id: what is sent again after a kill is the same bytes."""

sa.Index(
    "reconcile_variances_open",
    reconcile_variances.c.run_id,
    reconcile_variances.c.state,
    reconcile_variances.c.number,
)
sa.Index("reconcile_variances_place", reconcile_variances.c.sku, reconcile_variances.c.node)

reconcile_parts = sa.Table(
    "reconcile_parts",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("units", sa.BigInteger, nullable=False),
    sa.Column("sentence", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),
)
"""Why a variance is there; the units of its parts add up to it. ``evidence``: JSON."""

reconcile_approvals = sa.Table(
    "reconcile_approvals",
    metadata,
    sa.Column("approval", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.Text, nullable=False, index=True),
    sa.Column("author", Name, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("variances", sa.BigInteger, nullable=False),
    sa.Column("approved_at", sa.Float, nullable=False),
)
"""Who let a held run go on, and why."""

reconcile_shops = sa.Table(
    "reconcile_shops",
    metadata,
    sa.Column("night", sa.Text, primary_key=True),
    sa.Column("channel", Name, primary_key=True),
    sa.Column("sku", Name, primary_key=True),
    sa.Column("source_on_hand", sa.BigInteger),
    sa.Column("sellable", sa.BigInteger, nullable=False),
    sa.Column("wanted", sa.BigInteger, nullable=False),
    sa.Column("acked", sa.BigInteger),
    sa.Column("shown", sa.BigInteger),
    sa.Column("difference", sa.Text, nullable=False),
)
"""What a shop shows otherwise than it should, as of a night (YYYY-MM-DD, UTC); only skus that differ."""

reconcile_locks = sa.Table(
    "reconcile_locks",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("until", sa.Float, nullable=False),
)
"""Who reconciles now; whoever does not renew it has lost it at ``until``."""
