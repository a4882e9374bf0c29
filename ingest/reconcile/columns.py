"""A snapshot's cells in columns: what the mapper says of a row, as polars expressions.

A row is ``certain`` where these expressions give exactly what ``ingest.mapping.Mapper`` would; every other row is the
mapper's, one by one. So an expression here may give up, but may not guess: text that is not plain ASCII, units whose
factor is no whole number, numbers in an unusual dress.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from availability.domain.limits import QUANTITY_MAX
from ingest.reconcile.settings import SnapshotSettings

if TYPE_CHECKING:
    import polars as pl

PLAIN_64 = r"^[!-~](?:[ -~]{0,62}[!-~])?$"
"""Printable ASCII of at most 64 bytes without spaces around it: what nobody would strip, refuse or take otherwise."""
PLAIN_128 = r"^[!-~](?:[ -~]{0,126}[!-~])?$"
FACTOR_MAX = 1_000_000
LOOK_ROWS = 1_000
POSITION_COLUMNS = ("row", "sku", "node", "quantity", "quarantine", "reason")
ORDER_COLUMNS = ("row", "order_source", "order_ref", "line", "sku", "node", "quantity")


class Translation:
    """The mapping of a snapshot as expressions over its columns."""

    def __init__(self, settings: SnapshotSettings, lazy: pl.LazyFrame) -> None:
        self._settings = settings
        self._mapping = settings.mapping
        self._lazy = lazy
        self._schema = lazy.collect_schema()
        self.possible = self._possible()
        self._padded: set[str] = set()
        self._decimals = False
        if self.possible:
            self._look()

    def _possible(self) -> bool:
        """Whether the columns are of types whose texts are the mapper's."""
        import polars as pl

        for name, column in self._mapping.columns.items():
            kind = self._schema[column]
            if kind != pl.String and not kind.is_integer() and not (name == "quantity" and kind.is_float()):
                return False
        return True

    def _look(self) -> None:
        """See how the first rows are dressed: what comes otherwise later is the mapper's."""
        import polars as pl

        first = self._lazy.head(LOOK_ROWS).collect()
        for name, column in self._mapping.columns.items():
            if first[column].dtype != pl.String:
                continue
            if first.select((pl.col(column) != pl.col(column).str.strip_chars()).any()).item():
                self._padded.add(name)
            if name == "quantity":
                self._decimals = bool(first.select(pl.col(column).str.contains(r"[^0-9]").any()).item())

    def typed(self) -> pl.LazyFrame:
        """Return the typed columns, ``certain``, ``ignored``, ``short`` and ``empty``."""
        import polars as pl

        orders = self._settings.kind == "ORDERS"
        cells = [name for name in self._schema.names() if name != "row"]
        names = ORDER_COLUMNS if orders else POSITION_COLUMNS
        used = [name for name in (*names, "unit", "type") if name not in ("row", "quantity", "quarantine")]
        texts = self._lazy.with_columns(**{f"={name}": self._text(name) for name in used})
        checks = [pl.col(f"={name}").str.contains(PLAIN_64) for name in ("sku", "node")]
        if self._mapping.sku_pattern:
            checks.append(pl.col("=sku").str.contains(f"^(?:{self._mapping.sku_pattern})$"))
        texts = texts.with_columns(pl.all_horizontal(checks).alias("=plain"))
        kind = self._kind()
        if self._mapping.skus:
            texts = texts.with_columns(pl.col("=sku").replace(self._mapping.skus))
        made = self._with_factors(texts.with_columns(self._node().alias("=node")))
        made = made.with_columns(self._quantity(kind["factor"]).alias("=quantity"))
        checks = [pl.col("=plain"), pl.col("=quantity").is_not_null(), pl.col("=node").is_not_null()]
        if orders:
            source = pl.col("=order_source")
            checks += [(source == "") | source.str.contains(PLAIN_64), pl.col("=quantity") >= 0]
            checks += [pl.col("=order_ref").str.contains(PLAIN_128)]
            checks += [(pl.col("=line") == "") | pl.col("=line").str.contains(PLAIN_64)]
            source = pl.when(source == "").then(pl.lit(self._settings.source)).otherwise(source)
            made = made.with_columns(source.alias("=source"))
            own = {"order_source": pl.col("=source")}
        else:
            reason = pl.when(pl.col("=reason") == "").then(kind["reason"]).otherwise(pl.col("=reason"))
            if "reason" in self._mapping.columns:
                checks.append((pl.col("=reason") == "") | pl.col("=reason").str.contains(PLAIN_64))
            if self._settings.quarantine != "LEFT":
                checks.append(~kind["quarantine"] | ((reason != "") & (pl.col("=quantity") >= 0)))
            checks.append(kind["known"])
            own = {"reason": reason, "quarantine": kind["quarantine"]}
        certain = pl.all_horizontal(*(check.fill_null(False) for check in checks)) | kind["ignored"]
        made = made.with_columns(certain=certain)
        return made.select(
            *(own.get(name, pl.col("row" if name == "row" else f"={name}")).alias(name) for name in names),
            pl.col("certain"),
            kind["ignored"].alias("ignored"),
            pl.col(cells[-1]).is_null().alias("short"),
            # Of every cell something is asked: a column that polars need not read, it does not check either.
            pl.all_horizontal(pl.col(name).is_null() for name in cells).alias("empty"),
        )

    # --- Fields -------------------------------------------------------------------------------------------

    def _text(self, name: str) -> pl.Expr:
        import polars as pl

        column = self._mapping.columns.get(name)
        if column is None:
            return pl.lit(self._mapping.constants.get(name, ""))
        found = pl.col(column)
        if self._schema[column] != pl.String:
            found = found.cast(pl.String)
        elif name in self._padded:
            found = found.str.strip_chars()
        return found.fill_null("")

    def _node(self) -> pl.Expr:
        import polars as pl

        text, nodes = pl.col("=node"), self._mapping.nodes
        if self._mapping.other_nodes == "refuse":
            return text.replace_strict(nodes, default=None, return_dtype=pl.String)
        return text.replace(nodes) if nodes else text

    def _with_factors(self, lazy: pl.LazyFrame) -> pl.LazyFrame:
        """Add ``=factor``: base units in one, null where that is not a plain number."""
        import polars as pl

        if not {"unit"} & {*self._mapping.columns, *self._mapping.constants}:
            return lazy.with_columns(pl.lit(1, pl.Int64).alias("=factor"))
        units, unit = self._mapping.units, pl.col("=unit")
        general = {
            name: int(factor)
            for name, factor in units.factors.items()
            if factor == int(factor) and factor <= FACTOR_MAX
        }
        factor = (
            pl.when(unit == "")
            .then(pl.lit(1, pl.Int64))
            .otherwise(unit.replace_strict(general, default=None, return_dtype=pl.Int64))
        )
        if not units.by_sku:
            return lazy.with_columns(factor.alias("=factor"))
        own = [
            (sku, name, int(one) if one == int(one) and 0 < one <= FACTOR_MAX else None)
            for sku, by_unit in units.by_sku.items()
            for name, one in by_unit.items()
        ]
        table = pl.LazyFrame(
            own, schema={"=sku": pl.String, "=unit": pl.String, "=own": pl.Int64}, orient="row"
        ).with_columns(pl.lit(True).alias("=named"))
        joined = lazy.join(table, on=["=sku", "=unit"], how="left", maintain_order="left")
        return joined.with_columns(
            pl.when(pl.col("=named").fill_null(False)).then(pl.col("=own")).otherwise(factor).alias("=factor")
        )

    def _quantity(self, sign: pl.Expr) -> pl.Expr:
        import polars as pl

        column = self._mapping.columns.get("quantity")
        kind = self._schema[column] if column is not None else pl.String()
        if column is not None and kind.is_integer():
            number = pl.col(column).cast(pl.Int64, strict=False)
        elif column is not None and kind.is_float():
            found = pl.col(column)
            whole = found.is_finite() & (found == found.floor()) & (found.abs() <= QUANTITY_MAX)
            number = pl.when(whole).then(found).otherwise(None).cast(pl.Int64, strict=False)
        else:
            text = self._text("quantity")
            if self._mapping.thousands_separator and self._decimals:
                text = text.str.replace_all(self._mapping.thousands_separator, "", literal=True)
            if self._decimals:
                point = "[.,]" if self._mapping.decimal_separator == "," else r"\."
                text = text.str.extract(rf"^(-?[0-9]{{1,10}})(?:{point}0{{1,9}})?$", 1)
            number = text.cast(pl.Int64, strict=False)
        small = pl.when(number.abs() <= QUANTITY_MAX).then(number)
        made = small * pl.col("=factor") * sign
        return pl.when(made.abs() <= QUANTITY_MAX).then(made)

    def _kind(self) -> dict[str, pl.Expr]:
        """Return what the type of a row makes of it."""
        import polars as pl

        plain = {
            "factor": pl.lit(1, pl.Int64),
            "quarantine": pl.lit(False),
            "reason": pl.lit(""),
            "known": pl.lit(True),
            "ignored": pl.lit(False),
        }
        movements = self._mapping.movements
        if not movements and "type" in self._mapping.constants:
            plain["quarantine"] = pl.lit(self._mapping.constants["type"] == "QUARANTINE")
            return plain
        code = pl.col("=type")
        if not movements:
            plain["quarantine"] = code == "QUARANTINE"
            plain["known"] = code.is_in(["SET_ON_HAND", "QUARANTINE"])
            return plain
        absolute = [name for name, one in movements.items() if one.absolute]
        plain["quarantine"] = code.is_in(
            [name for name, one in movements.items() if one.type == "QUARANTINE"]
        )
        plain["known"] = code.is_in(list(movements)) & ~code.is_in(absolute)
        plain["ignored"] = code.is_in([name for name, one in movements.items() if one.ignore])
        plain["factor"] = code.replace_strict(
            {name: one.sign for name, one in movements.items()}, default=1, return_dtype=pl.Int64
        )
        plain["reason"] = code.replace_strict(
            {name: one.reason for name, one in movements.items()}, default="", return_dtype=pl.String
        )
        return plain


def plain_pattern(pattern: str) -> bool:
    """Whether a regular expression means the same here: it does not look around or back, nor name classes."""
    if re.search(r"\(\?|\\[1-9]|\\[dDwWsSbB]", pattern):
        return False
    return pattern.isascii()
