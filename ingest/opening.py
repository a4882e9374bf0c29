"""The first load before go-live: stock and open orders in one checked step.

Both files are read and translated first, and one bad row refuses both. Stock goes in before orders, so that orders
without a node are placed where stock lies. Both go through the pipeline: killed anywhere, the same command goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from availability.v1 import stock_pb2 as pb
from ingest.database import artifacts
from ingest.pipeline import Pipeline
from ingest.rows import ArtifactRefused
from ingest.runs import Outcome, checksum_of

PROBLEMS_MAX = 1_000
_STOCK = frozenset(
    {
        pb.DELTA_TYPE_RECEIPT,
        pb.DELTA_TYPE_SET_ON_HAND,
        pb.DELTA_TYPE_QUARANTINE,
        pb.DELTA_TYPE_EXPECTED,
    }
)
_ORDERS = frozenset(
    {
        pb.DELTA_TYPE_ORDER_PLACED,
        pb.DELTA_TYPE_ORDER_CHANGED,
        pb.DELTA_TYPE_ORDER_ALLOCATED,
        pb.DELTA_TYPE_LINK_ORDER,
    }
)


@dataclass(slots=True)
class Opening:
    """What the files say, and what is wrong with them: (file, place, what)."""

    problems: list[tuple[str, int, str]] = field(default_factory=list)
    positions: int = 0
    units: int = 0
    orders: int = 0
    ordered_units: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def problem(self, file: Path, position: int, what: str) -> None:
        """Note what is wrong, up to a limit."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append((file.name, position, what))


def earlier_load(engine: Engine, source: str, files: Collection[Path]) -> str:
    """Say what the source has brought already, other than these files; '' for nothing."""
    own = {checksum_of(path)[0] for path in files}
    query = sa.select(artifacts.c.name, artifacts.c.checksum).where(
        artifacts.c.source == source, (artifacts.c.applied > 0) | (artifacts.c.repeated > 0)
    )
    with engine.connect() as connection:
        found = [name for name, checksum in connection.execute(query) if checksum not in own]
    return f"{len(found)} files of it were carried, {found[0]} for one" if found else ""


def validate(
    stock_file: Path,
    orders_file: Path,
    stock: Pipeline,
    orders: Pipeline,
    nodes: Collection[str] | None,
    kits: Collection[str] = (),
) -> Opening:
    """Read both files and look at every row. ``nodes``: those that the ledger knows; None: it takes new ones."""
    found = Opening()
    quantities: dict[tuple[str, str], int] = {}
    said: set[tuple[str, str]] = set()
    order_names: set[tuple[str, str]] = set()
    types: Counter[int] = Counter()
    for path, pipeline, allowed in ((stock_file, stock, _STOCK), (orders_file, orders, _ORDERS)):
        try:
            with path.open("rb") as artifact:
                for row, delta, refused in pipeline.translated(artifact, checksum_of(path)[0]):
                    if refused is not None:
                        found.problem(path, row.position, f"{refused.reason}: {refused.message}")
                        continue
                    if delta is None:
                        continue
                    name = pb.DeltaType.Name(delta.type).removeprefix("DELTA_TYPE_")
                    types[delta.type] += 1
                    if delta.type not in allowed:
                        found.problem(path, row.position, f"{name} has no place in this file")
                    elif problem := _problem(delta, name, nodes):
                        found.problem(path, row.position, problem)
                    elif delta.type in _STOCK and delta.sku in kits:
                        found.problem(path, row.position, f"{delta.sku} is a kit: it has no stock of its own")
                    elif delta.type in _ORDERS:
                        order_names.add((delta.order_source, delta.order_ref))
                        if delta.type != pb.DELTA_TYPE_LINK_ORDER:
                            found.ordered_units += delta.quantity
                    else:
                        key = (delta.sku, delta.node)
                        if delta.type == pb.DELTA_TYPE_SET_ON_HAND:
                            if key in said:
                                found.problem(path, row.position, f"{delta.sku} at {delta.node} comes twice")
                            said.add(key)
                        if delta.type in (pb.DELTA_TYPE_SET_ON_HAND, pb.DELTA_TYPE_RECEIPT):
                            quantities[key] = quantities.get(key, 0) + delta.quantity
        except ArtifactRefused as error:
            found.problem(path, 0, str(error))
    found.positions, found.units, found.orders = len(quantities), sum(quantities.values()), len(order_names)
    return found


def _problem(delta: pb.Delta, name: str, nodes: Collection[str] | None) -> str:
    """What the ledger would refuse, as far as it can be said without it."""
    if not delta.sku and delta.type != pb.DELTA_TYPE_LINK_ORDER:
        return "the row has no sku"
    if delta.type in _ORDERS and not delta.order_ref:
        return "the row has no order_ref"
    if not delta.node and (delta.type in _STOCK or delta.type == pb.DELTA_TYPE_ORDER_ALLOCATED):
        return "the row has no node"
    if delta.node and nodes is not None and delta.node not in nodes:
        return f"the ledger knows no node {delta.node!r}"
    least = 1 if delta.type in (pb.DELTA_TYPE_RECEIPT, pb.DELTA_TYPE_QUARANTINE) else 0
    if delta.quantity < least:
        return f"a quantity of {delta.quantity} in {name}"
    if delta.type == pb.DELTA_TYPE_QUARANTINE and not delta.reason:
        return "QUARANTINE needs a reason"
    absolute = (delta.type in _ORDERS and name != "LINK_ORDER") or name in ("SET_ON_HAND", "EXPECTED")
    if absolute and not delta.HasField("occurred_time"):
        return f"{name} needs an occurred_time"
    return ""


def loaded_by(engine: Engine, source: str, files: Collection[Path]) -> bool:
    """Tell whether these very files have been begun: then the command goes on where it was."""
    own = {checksum_of(path)[0] for path in files}
    query = sa.select(artifacts.c.checksum).where(artifacts.c.source == source, artifacts.c.checksum.in_(own))
    with engine.connect() as connection:
        return connection.execute(query).first() is not None
