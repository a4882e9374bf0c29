"""What an operator writes down about snapshots: one TOML file each, checked as a whole, all errors at once."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ingest.formats import FormatSettings
from ingest.mapping_settings import MappingSettings
from ingest.settings import SettingsRefused

POSITION_FIELDS = ("type", "sku", "node", "quantity", "unit", "reason")
ORDER_FIELDS = ("sku", "node", "quantity", "unit", "order_source", "order_ref", "line")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SnapshotFiles(_Section):
    """Where snapshots appear. Beside ``stock.csv``, ``stock.csv.point`` says in JSON what its point is."""

    folder: Path = Field(description="Where snapshots appear; `archive` and `rejected` are made below it.")
    pattern: str = Field("*", description="Names that count, as a shell writes them.")
    unfinished: tuple[str, ...] = Field(
        (".tmp", ".part", ".filepart"), description="Names that end so are still being written."
    )
    point_suffix: str = Field(
        ".point", min_length=1, description="Ending of the file that says the point of a snapshot."
    )
    point_required: bool = Field(
        False, description="A snapshot waits for its point; off: without one it is only reported."
    )
    settle_ms: int = Field(500, ge=0, le=600_000, description="Least age of a file's last change.")


class Guard(_Section):
    """From where on an operator must look first. Percents are of the positions that the snapshot speaks for."""

    position_units_max: int = Field(
        1_000, ge=1, description="A position that would move by more waits for approval, the others do not."
    )
    moved_percent_max: float = Field(5.0, ge=0, le=100, description="Positions that would move.")
    zeroed_percent_max: float = Field(
        1.0, ge=0, le=100, description="Positions with stock that would have none."
    )
    missing_percent_max: float = Field(
        5.0, ge=0, le=100, description="Positions with stock that the file does not name."
    )
    units_percent_max: float = Field(10.0, ge=0, le=1_000, description="Units moved, of all units on hand.")
    unknown_percent_max: float = Field(
        5.0, ge=0, le=100, description="Rows whose sku the ledger does not know, of the file's rows."
    )
    refused_percent_max: float = Field(
        1.0, ge=0, le=100, description="Rows that cannot be translated, of the file's rows."
    )
    free_positions: int = Field(
        10, ge=0, le=1_000_000, description="So many are never too many, whatever the percent."
    )
    age_hours_max: float = Field(36.0, gt=0, le=8_760, description="Age of a snapshot's point.")


class SnapshotSettings(_Section):
    """One kind of snapshot of one source."""

    name: str = Field(min_length=1, max_length=64, description="Name of the snapshot; one file each.")
    source: str = Field(min_length=1, max_length=64, description="Source in the ledger that it speaks for.")
    kind: Literal["POSITIONS", "ORDERS"] = Field(
        "POSITIONS", description="Stock by sku and node, or open order lines."
    )
    format: FormatSettings
    mapping: MappingSettings
    files: SnapshotFiles
    nodes: tuple[str, ...] = Field(
        (), description="Nodes that it speaks for; none: those that its rows name."
    )
    basis: Literal["PHYSICAL", "NET"] = Field(
        "PHYSICAL", description="What its quantities count; NET: without what the source has confirmed."
    )
    quarantine: Literal["LEFT", "INCLUDED", "BESIDE"] = Field(
        "LEFT",
        description="LEFT: it says nothing of quarantine. Its QUARANTINE rows are INCLUDED in the on_hand rows, or"
        " BESIDE them.",
    )
    absent: Literal["IGNORE", "ZERO"] = Field(
        "IGNORE", description="A position that has no row is left alone, or has nothing."
    )
    unknown_skus: Literal["REPORT", "TAKE"] = Field(
        "REPORT", description="A sku that the ledger has nowhere is told, or taken in."
    )
    streams: tuple[str, ...] = Field(
        (),
        description="Streams that move these positions, as STREAM or SOURCE/STREAM: a point by sequences names each.",
    )
    rank: int = Field(
        100,
        ge=0,
        le=1_000,
        description="Where two snapshots give one position, the lower rank speaks for it.",
    )
    order_sources: tuple[str, ...] = Field(
        (), description="Whose orders an ORDERS snapshot lists; none: all that name its nodes."
    )
    batch_rows: int = Field(
        5_000_000, ge=1_000, le=100_000_000, description="Rows compared at once: bounds memory."
    )
    rows_max: int = Field(100_000_000, ge=1, description="A file with more rows is refused.")
    wait_s: float = Field(
        300.0, ge=0, le=86_400, description="Longest wait for the ledger to reach a snapshot's point."
    )
    due_hours: float = Field(
        0.0, ge=0, le=8_760, description="A snapshot must have come within so long; 0: whenever it comes."
    )
    guard: Guard = Guard.model_validate({})

    @model_validator(mode="before")
    @classmethod
    def _type_is_given(cls, given: Any) -> Any:  # Any: as the file says it
        """A snapshot's rows are counts, or allocations, without saying so."""
        mapping = given.get("mapping") if isinstance(given, dict) else None
        if not isinstance(mapping, dict):
            return given
        mapping = dict(mapping)
        constants = dict(mapping.get("constants") or {})
        if "type" not in {**(mapping.get("columns") or {}), **constants}:
            constants["type"] = "ORDER_ALLOCATED" if given.get("kind") == "ORDERS" else "SET_ON_HAND"
        mapping["constants"] = constants
        mapping.setdefault("author", "reconcile")
        return {**given, "mapping": mapping}

    @model_validator(mode="after")
    def _consistent(self) -> SnapshotSettings:
        orders = self.kind == "ORDERS"
        allowed = ORDER_FIELDS if orders else POSITION_FIELDS
        given = {*self.mapping.columns, *self.mapping.constants}
        problems = [
            f"mapping: a row of {self.kind} has no field {name}"
            for name in sorted(given - {*allowed, "type"})
        ]
        needed = ("sku", "node", "quantity", *(("order_ref",) if orders else ()))
        problems += [f"mapping: {name} is not given" for name in needed if name not in given]
        types = {movement.type for movement in self.mapping.movements.values() if movement.type}
        if not types <= ({"ORDER_ALLOCATED"} if orders else {"SET_ON_HAND", "QUARANTINE"}):
            problems.append("mapping.movements: SET_ON_HAND and QUARANTINE (of orders: ORDER_ALLOCATED) only")
        if not orders and ("QUARANTINE" in types) != (self.quarantine != "LEFT"):
            problems.append("quarantine is INCLUDED or BESIDE where movements name QUARANTINE, else LEFT")
        if orders and (self.basis != "PHYSICAL" or self.quarantine != "LEFT"):
            problems.append("basis and quarantine are of POSITIONS")
        if self.basis == "NET" and self.quarantine != "LEFT":
            problems.append("basis NET says nothing of quarantine")
        if self.absent == "ZERO" and not self.nodes:
            problems.append("absent = ZERO needs nodes: of which is everything listed?")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def read_snapshot(path: Path) -> SnapshotSettings:
    """Read one file; paths in it are relative to it. Raises SettingsRefused."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsRefused(f"{path}: {error}") from error
    try:
        settings = SnapshotSettings.model_validate(found)
    except ValidationError as error:
        raise SettingsRefused(
            "\n".join(
                f"{path}: {'.'.join(str(part) for part in one['loc']) or 'file'}: {one['msg']}"
                for one in error.errors()
            )
        ) from error
    folder = (path.parent / settings.files.folder).resolve()
    return settings.model_copy(update={"files": settings.files.model_copy(update={"folder": folder})})


def read_snapshots(folder: Path) -> dict[str, SnapshotSettings]:
    """Read every ``*.toml`` of a folder, by name. Raises SettingsRefused with all errors of all files."""
    problems: list[str] = []
    found: dict[str, SnapshotSettings] = {}
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise SettingsRefused(f"{folder}: no *.toml of a snapshot is here")
    for path in paths:
        try:
            settings = read_snapshot(path)
        except SettingsRefused as error:
            problems.append(str(error))
            continue
        if settings.name in found:
            problems.append(f"{path}: the snapshot {settings.name!r} has a file already")
        found[settings.name] = settings
    if problems:
        raise SettingsRefused("\n".join(problems))
    return found
