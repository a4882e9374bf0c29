"""What differs between a snapshot and the ledger as of the same point: frames in, frames out, nothing else.

``said`` are a file's typed rows (``staging``), ``book`` is the ledger's side (``book``). Variance is ledger minus what
the snapshot implies (CONTRACT §1, §6). Both sides are scanned lazily; where there are more rows than ``batch_rows``,
skus are taken in several rounds, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import polars as pl

EXAMPLES_MAX = 5
ROUND_SEED = 7
Kind = Literal["ON_HAND", "QUARANTINED", "OPEN"]
_COMPARED = ("kind", "sku", "node", "reason", "said", "ledger", "variance", "settled", "known", "absent")
_FIGURES = ("on_hand_now", "reserved", "committed")
VARIANCE_COLUMNS = (*_COMPARED, *_FIGURES)
"""``variance`` is ledger minus said, ledger as of the point; ``known``: the ledger has the position; ``absent``: the
file does not; the last three are of now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a snapshot of positions is to be read. ``nodes``: what it speaks for."""

    nodes: tuple[str, ...]
    basis: Literal["PHYSICAL", "NET"] = "PHYSICAL"
    quarantine: Literal["LEFT", "INCLUDED", "BESIDE"] = "LEFT"
    absent: Literal["IGNORE", "ZERO"] = "IGNORE"
    batch_rows: int = 5_000_000


@dataclass(slots=True, kw_only=True)
class Counts:
    """What a comparison saw. Positions are those of the ledger at the nodes; units are on hand as of the point."""

    rows: int = 0
    positions: int = 0
    with_stock: int = 0
    units: int = 0
    matched: int = 0
    zero_rows: int = 0
    moved: int = 0
    zeroed: int = 0
    units_moved: int = 0
    missing_with_stock: int = 0
    new_positions: int = 0
    unsettled: int = 0
    foreign_rows: int = 0
    negative_rows: int = 0
    ratios: dict[int, int] = field(default_factory=dict)
    """Whole ratio r > 1: rows whose figure is the ledger's by r (r > 0), or r times the ledger's (key -r)."""

    def add(self, other: Counts) -> None:
        """Add up two rounds."""
        for one in fields(self):
            if one.name == "ratios":
                for ratio, count in other.ratios.items():
                    self.ratios[ratio] = self.ratios.get(ratio, 0) + count
            else:
                setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubled:
    """Keys that come more than once: how many, and the first few as (key, rows)."""

    keys: int
    examples: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The outcome: variances (none of them 0, but unsettled ones may be), or doubled rows and nothing else."""

    variances: pl.DataFrame
    counts: Counts
    doubled: Doubled | None = None


def compare_positions(
    said: pl.LazyFrame, book: pl.LazyFrame, reasons: pl.LazyFrame, rules: Rules
) -> Compared:
    """Compare rows (``staging.POSITION_COLUMNS``) with positions (``book.BOOK_SCHEMA``, ``book.REASON_SCHEMA``).

    A row that comes twice says nothing: then the result names the doubled rows and no variance.
    """
    import polars as pl

    counts, found = Counts(), []
    for said_part, book_part, reasons_part, rows, positions in _rounds(said, book, reasons, rules.batch_rows):
        told = _told(book_part, rules)
        joined = _joined(said_part, told, rules)
        differing = _with_rest(_differing(joined), told)
        if rules.quarantine == "INCLUDED":
            rows = said_part.select((~pl.col("quarantine")).sum()).collect().item()
        if _repeated(differing, rows, positions):
            doubled = doubled_rows(said)
            if doubled is None:
                raise AssertionError("the ledger's side names a position twice")
            return Compared(variances=empty_variances(), counts=counts, doubled=doubled)
        counts.add(_count(said_part, book_part, differing, positions, rules))
        found.append(_on_hand_variances(differing, rules))
        if rules.quarantine != "LEFT":
            quarantine = _quarantine(said_part, reasons_part, joined, told, rules)
            if quarantine is None:
                return Compared(variances=empty_variances(), counts=counts, doubled=doubled_rows(said))
            found.append(quarantine)
    return Compared(variances=pl.concat(found) if found else empty_variances(), counts=counts)


def empty_variances() -> pl.DataFrame:
    """Return no variance, in the columns that variances have."""
    import polars as pl

    texts, flags = {"kind", "sku", "node", "reason"}, {"settled", "known", "absent"}
    return pl.DataFrame(
        schema={
            name: pl.String if name in texts else pl.Boolean if name in flags else pl.Int64
            for name in VARIANCE_COLUMNS
        }
    )


def doubled_rows(said: pl.LazyFrame) -> Doubled | None:
    """Return the keys of positions that come more than once; None where there are none."""
    import polars as pl

    keys = ["sku", "node", "quarantine", "reason"]
    reason = pl.when("quarantine").then("reason").otherwise(pl.lit(""))
    grouped = said.with_columns(reason=reason).group_by(keys).agg(pl.col("row"), count=pl.len())
    twice = grouped.filter(pl.col("count") > 1).collect(engine="streaming")
    if not twice.height:
        return None
    first = twice.with_columns(pl.col("row").list.sort()).sort(pl.col("row").list.first()).head(EXAMPLES_MAX)
    examples = tuple(
        (f"{sku} at {node}" + (f" ({why})" if quarantined else ""), tuple(rows[:3]))
        for sku, node, quarantined, why, rows, _ in first.iter_rows()
    )
    return Doubled(keys=twice.height, examples=examples)


def _rounds(
    said: pl.LazyFrame, book: pl.LazyFrame, reasons: pl.LazyFrame, batch_rows: int
) -> Iterator[tuple[pl.LazyFrame, pl.LazyFrame, pl.LazyFrame, int, int]]:
    """Yield all of it, or by the hash of the sku in as many rounds as bound memory; with rows and positions of each."""
    import polars as pl

    rows, positions = (
        frame.item() for frame in pl.collect_all([said.select(pl.len()), book.select(pl.len())])
    )
    rounds = -(-max(rows, positions) // batch_rows)
    if rounds <= 1:
        yield said, book, reasons, rows, positions
        return
    for number in range(rounds):
        mine = pl.col("sku").hash(ROUND_SEED) % rounds == number
        parts = [said.filter(mine), book.filter(mine)]
        lengths = pl.collect_all([part.select(pl.len()) for part in parts], engine="streaming")
        yield *parts, reasons.filter(mine), *(one.item() for one in lengths)


def _told(book: pl.LazyFrame, rules: Rules) -> pl.LazyFrame:
    """Return the ledger's side by the basis of the snapshot."""
    import polars as pl

    if rules.basis != "NET":
        return book
    return book.with_columns(  # on_hand without what the source has confirmed
        on_hand=pl.col("on_hand") - pl.col("confirmed"),
        settled=pl.col("settled") & pl.col("confirmed_settled"),
    )


def _joined(said: pl.LazyFrame, told: pl.LazyFrame, rules: Rules) -> pl.LazyFrame:
    """Return every position of either side with what each says of on_hand; ``said`` null: it has no row."""
    import polars as pl

    rows = said
    if rules.quarantine == "LEFT":
        rows = rows.select("sku", "node", said="quantity")
    elif rules.quarantine == "INCLUDED":
        rows = rows.filter(~pl.col("quarantine")).select("sku", "node", said="quantity")
    else:  # the sum of what is sellable and what is not; a doubled row is found by its count
        rows = rows.group_by("sku", "node").agg(
            pl.col("quantity").sum().alias("said"),
            (~pl.col("quarantine")).sum().alias("plain"),
        )
    return rows.join(told.select("sku", "node", "on_hand"), on=["sku", "node"], how="full", coalesce=True)


def _differing(joined: pl.LazyFrame) -> pl.DataFrame:
    """Return what is not equal on both sides."""
    import polars as pl

    said, ledger = pl.col("said"), pl.col("on_hand")
    differing = said.is_null() | ledger.is_null() | (said != ledger)
    if "plain" in joined.collect_schema().names():
        differing = differing | (pl.col("plain") > 1)
    return joined.filter(differing).collect(engine="streaming")


def _with_rest(rows: pl.DataFrame, told: pl.LazyFrame) -> pl.DataFrame:
    """Add what else the ledger says of these positions: only of those that differ, which are few."""
    import polars as pl

    keys = ["sku", "node"]
    wanted = told.select(*keys, "settled", *_FIGURES).join(rows.lazy().select(keys), on=keys, how="semi")
    return (
        rows.lazy()
        .join(wanted, on=keys, how="left", maintain_order="left")
        .with_columns(pl.col("settled").fill_null(True), *(pl.col(name).fill_null(0) for name in _FIGURES))
        .collect(engine="streaming")
    )


def _repeated(differing: pl.DataFrame, rows: int, positions: int) -> bool:
    """Whether a row came twice. ``rows``: that were joined; the ledger has each of its ``positions`` once.

    So many rows found a position as there are positions that found a row, unless two rows found the same one.
    """
    import polars as pl

    if "plain" in differing.columns:  # one row each, by their sum
        if differing.select((pl.col("plain") > 1).any()).item():
            return True
    elif rows - differing["on_hand"].null_count() != positions - differing["said"].null_count():
        return True
    new = differing.lazy().filter(pl.col("on_hand").is_null()).select("sku", "node").collect()
    return new.n_unique() != new.height if new.height else False


def _count(
    said: pl.LazyFrame, book: pl.LazyFrame, differing: pl.DataFrame, positions: int, rules: Rules
) -> Counts:
    import polars as pl

    in_file, in_book = pl.col("said").is_not_null(), pl.col("on_hand").is_not_null()
    implied = pl.col("said").fill_null(0) if rules.absent == "ZERO" else pl.col("said")
    variance = pl.col("on_hand") - implied
    moved = (variance != 0).fill_null(False) & pl.col("settled") & in_book
    quantity, plain = pl.col("quantity"), ~pl.col("quarantine")
    stock = pl.col("on_hand") > 0
    frames = pl.collect_all(
        [
            said.select(
                rows=plain.sum(),
                zero_rows=(plain & (quantity == 0)).sum(),
                negative_rows=(plain & (quantity < 0)).sum(),
            ),
            book.select(
                with_stock=stock.sum(),
                units=pl.when(stock).then("on_hand").otherwise(0).sum(),
                unsettled=(~pl.col("settled")).sum(),
            ),
            differing.lazy().select(
                moved=moved.sum(),
                zeroed=(moved & stock & (implied <= 0)).sum(),
                units_moved=pl.when(moved).then(variance.abs()).otherwise(0).sum(),
                missing_with_stock=(~in_file & stock).sum(),
                missing=(~in_file).sum(),
                new_positions=(~in_book).sum(),
                foreign_rows=(
                    (~in_book & ~pl.col("node").is_in(rules.nodes)).sum() if rules.nodes else pl.lit(0)
                ),
            ),
        ],
        engine="streaming",
    )
    found = {name: int(value or 0) for frame in frames for name, value in frame.row(0, named=True).items()}
    matched = positions - found.pop("missing")
    counts = Counts(positions=positions, matched=matched)
    for name, value in found.items():
        setattr(counts, name, value)
    counts.ratios = _ratios(differing)
    return counts


def _ratios(differing: pl.DataFrame) -> dict[int, int]:
    """Count rows that differ by a whole factor, by factor; only factors that are frequent."""
    import polars as pl

    both = (pl.col("said") > 0) & (pl.col("on_hand") > 0) & (pl.col("said") != pl.col("on_hand"))
    rows = differing.lazy().filter(both)
    fewer = rows.filter(pl.col("on_hand") % pl.col("said") == 0).select(
        ratio=pl.col("on_hand") // pl.col("said")
    )
    more = rows.filter(pl.col("said") % pl.col("on_hand") == 0).select(
        ratio=-(pl.col("said") // pl.col("on_hand"))
    )
    grouped = pl.concat([fewer, more]).group_by("ratio").len().sort("len", descending=True).head(20).collect()
    return {int(ratio): int(count) for ratio, count in grouped.iter_rows()}


def _on_hand_variances(differing: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    import polars as pl

    rows = differing.lazy()
    if rules.absent == "IGNORE":
        rows = rows.filter(pl.col("said").is_not_null())
    else:
        rows = rows.with_columns(absent=pl.col("said").is_null(), said=pl.col("said").fill_null(0))
    if "absent" not in rows.collect_schema().names():
        rows = rows.with_columns(absent=pl.lit(False))
    known = pl.col("on_hand").is_not_null()
    ledger = pl.col("on_hand").fill_null(0)
    made = rows.with_columns(
        kind=pl.lit("ON_HAND"),
        reason=pl.lit(""),
        ledger=ledger,
        variance=ledger - pl.col("said"),
        known=known,
    )
    return made.filter(pl.col("variance") != 0).select(VARIANCE_COLUMNS).collect()


def _quarantine(
    said: pl.LazyFrame, reasons: pl.LazyFrame, joined: pl.LazyFrame, told: pl.LazyFrame, rules: Rules
) -> pl.DataFrame | None:
    """Return variances by reason of positions that the file names; None where a row comes twice."""
    import polars as pl

    keys = ["sku", "node", "reason"]
    rows = (
        said.filter("quarantine").group_by(keys).agg(pl.col("quantity").sum().alias("said"), count=pl.len())
    )
    taken = rows.collect()
    if taken.height and taken.select((pl.col("count") > 1).any()).item():
        return None
    in_scope = joined
    if rules.absent == "IGNORE":
        in_scope = in_scope.filter(pl.col("said").is_not_null())
    places = in_scope.select("sku", "node", "on_hand")
    both = (
        taken.lazy()
        .select(*keys, "said")
        .join(reasons.select(*keys, ledger="quantity"), on=keys, how="full", coalesce=True)
    )
    made = both.join(places, on=["sku", "node"], how="inner").with_columns(
        kind=pl.lit("QUARANTINED"),
        absent=pl.col("said").is_null(),
        said=pl.col("said").fill_null(0),
        ledger=pl.col("ledger").fill_null(0),
        known=pl.col("on_hand").is_not_null(),
    )
    made = made.with_columns(variance=pl.col("ledger") - pl.col("said"))
    return _with_rest(made.filter(pl.col("variance") != 0).collect(), told).select(VARIANCE_COLUMNS)


def lookalike(said: pl.LazyFrame, others: pl.LazyFrame, nodes: Sequence[str]) -> dict[str, float]:
    """Return for each other node which share of the rows is equal to what the ledger has there, of rows with stock."""
    import polars as pl

    rows = said.filter(~pl.col("quarantine") & (pl.col("quantity") > 0)).select("sku", said="quantity")
    total = rows.select(pl.len()).collect().item()
    if not total or not nodes:
        return {}
    there = others.filter(pl.col("node").is_in(list(nodes))).select("sku", "node", "on_hand")
    same = rows.join(there, on="sku").filter(pl.col("said") == pl.col("on_hand")).group_by("node").len()
    return {node: count / total for node, count in same.collect(engine="streaming").iter_rows()}
