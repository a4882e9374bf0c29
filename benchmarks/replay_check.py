"""Prove a replay: recompute every balance in polars from what was sent and answered, and compare.

Independent of the ledger: nothing of it is imported, the formula and the order function (CONTRACT section 2)
are written here once more, over columns with a suffix per node. Three results: the balances and sellables of
the end; whether every grant was covered at its own version; whether every refusal was told the right number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import add

import grpc
import numpy as np
import polars as pl

from availability.domain.version import Version
from availability.v1 import availability_pb2 as av
from availability.v1 import availability_pb2_grpc as av_grpc
from availability.v1 import stock_pb2 as stk
from benchmarks.replay_plan import AUDIT_CHANNEL, NODES, Plan
from benchmarks.replay_words import (
    ADJUSTMENT,
    COMMIT,
    GRANT,
    ORDER_ALLOCATED,
    ORDER_CANCELLED,
    ORDER_CHANGED,
    QUARANTINE,
    QUARANTINE_RELEASE,
    REASONS,
    RECEIPT,
    RETURN_RECEIVED,
    SHIPMENT,
    WRITE_OFF,
    HoldAnswer,
    Refused,
    ReplayFailed,
    Told,
)

NODE_NUMBERS = range(len(NODES))
BALANCES = ("on_hand", "quarantined", "reserved", "committed")
BATCH_SKUS_MAX = 4000
CALL_TIMEOUT_S = 30.0
EPOCH_UNITS = 1 << 40
"""A version as one integer: epoch × this + seq."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was sent and answered."""

    plan: Plan
    erp: list[Told]
    wms: list[Told]
    answers: list[HoldAnswer]
    refused: list[Refused]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the proof found; the lists hold sentences."""

    grants: int
    oversold: list[str]
    refusals: int
    misjudged: list[str]
    differences: list[str]
    skus_different: int
    balances: int
    sellables: int


def judge(evidence: Evidence, channel: grpc.Channel) -> Verdict:
    """Recompute, read the service, compare."""
    facts = facts_frame([*evidence.erp, *evidence.wms])
    moves = moves_frame(evidence.answers)
    final = final_balances(evidence.plan, facts, moves)
    history = timeline(facts, moves)
    oversold, grants = uncovered_grants(evidence.plan, history, moves)
    misjudged = wrong_refusals(evidence.plan, history, evidence.refused)
    latest = max([0, *facts["version"].tail(1), *moves["version"].tail(1)])
    differences, skus_different, sellables = compare(evidence.plan, final, channel, latest)
    return Verdict(
        grants=grants,
        oversold=oversold,
        refusals=len(evidence.refused),
        misjudged=misjudged,
        differences=differences,
        skus_different=skus_different,
        balances=final.height * len(NODES) * len(BALANCES),
        sellables=sellables,
    )


# --- what was sent and answered, as columns -------------------------------------------------------


def version_number(text: str) -> int:
    """Order versions of the one shard as integers."""
    version = Version.parse(text)
    return version.epoch * EPOCH_UNITS + version.seq


def facts_frame(told: Iterable[Told]) -> pl.DataFrame:
    """Put the APPLIED deltas in the order of their versions."""
    rows: list[tuple[int, ...]] = []
    results: list[int] = []
    versions: list[np.ndarray] = []
    sequences: list[np.ndarray] = []
    for batch in told:
        rows += batch.facts
        results += batch.results
        ends = [index for index, _ in batch.calls[1:]] + [len(batch.facts)]
        numbers = [version_number(version) for _, version in batch.calls]
        sizes = [
            min(end, len(batch.facts)) - index for (index, _), end in zip(batch.calls, ends, strict=True)
        ]
        versions.append(np.repeat(np.array(numbers, np.int64), np.maximum(0, sizes)))
        sequences.append(np.arange(batch.first_sequence, batch.first_sequence + len(batch.facts)))
    names = ("type", "sku", "node", "quantity", "order", "reason", "occurred_s")
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.Int64), orient="row")
    return (
        frame.with_columns(
            pl.Series("result", results, pl.Int64),
            pl.Series("version", np.concatenate(versions), pl.Int64),
            pl.Series("sequence", np.concatenate(sequences), pl.Int64),
        )
        .filter(pl.col("result") == stk.DELTA_RESULT_APPLIED)
        .drop("result")
        .sort("version", "sequence")
    )


def moves_frame(answers: list[HoldAnswer]) -> pl.DataFrame:
    """Put what answers did to holds in the order of their versions, a row per sku and node."""
    several = pl.List(pl.Int64)
    return (
        pl.DataFrame(
            {
                "version": [version_number(answer.version) for answer in answers],
                "kind": [answer.kind for answer in answers],
                "channel": [answer.channel for answer in answers],
                "order": [answer.order for answer in answers],
                "sku": pl.Series([answer.skus for answer in answers], dtype=several),
                "node": pl.Series([answer.nodes for answer in answers], dtype=several),
                "quantity": pl.Series([answer.quantities for answer in answers], dtype=several),
            },
        )
        .explode("sku", "node", "quantity")
        .sort("version", maintain_order=True)
    )


def per_node(name: str) -> list[str]:
    """Name the columns of a number, one per node."""
    return [f"{name}_{node}" for node in NODE_NUMBERS]


def spread(value: pl.Expr, name: str) -> list[pl.Expr]:
    """Add a value up into the column of the row's node."""
    return [
        value.filter(pl.col("node") == node).sum().alias(column)
        for node, column in zip(NODE_NUMBERS, per_node(name), strict=True)
    ]


def total(name: str) -> pl.Expr:
    """Add up a number's columns."""
    return reduce(add, (pl.col(column) for column in per_node(name)))


def signed(plus: Iterable[int], minus: Iterable[int]) -> pl.Expr:
    """Quantity of a delta with the sign that its type has for a balance."""
    kind = pl.col("type")
    return (
        pl.when(kind.is_in(list(plus)))
        .then(pl.col("quantity"))
        .when(kind.is_in(list(minus)))
        .then(-pl.col("quantity"))
        .otherwise(0)
    )


ON_HAND = signed((RECEIPT, ADJUSTMENT, RETURN_RECEIVED), (SHIPMENT, WRITE_OFF))
QUARANTINED = signed((QUARANTINE, RETURN_RECEIVED), (QUARANTINE_RELEASE, WRITE_OFF))
RESERVED = pl.when(pl.col("kind") == GRANT).then(pl.col("quantity")).otherwise(-pl.col("quantity"))


# --- the order function ---------------------------------------------------------------------------


def order_changes(facts: pl.DataFrame, moves: pl.DataFrame) -> pl.DataFrame:
    """Give what each version said of an order's sku: sourced and shipped to add; allocated, word to set.

    Sorted by order, sku, version. ``word`` is the source's own quantity; a whole-order cancel is 0 for all.
    """
    keys = ("order", "sku", "version")
    sourced = moves.filter(pl.col("kind") == COMMIT).group_by(keys).agg(spread(pl.col("quantity"), "sourced"))
    of_orders = facts.filter((pl.col("order") >= 0) & (pl.col("type") != RETURN_RECEIVED))
    whole = of_orders.filter((pl.col("type") == ORDER_CANCELLED) & (pl.col("sku") < 0))
    pairs = sourced.select("order", "sku").unique()
    expanded = whole.drop("sku").join(pairs, on="order").select(of_orders.columns)
    of_orders = pl.concat([of_orders.filter(pl.col("sku") >= 0), expanded])
    kind = pl.col("type")
    # One ERP stream, whose times never go back within an order: its latest word has the last sequence.
    of_orders = of_orders.sort("sequence", maintain_order=True)
    told = of_orders.group_by(keys).agg(
        *spread(pl.when(kind == SHIPMENT).then(pl.col("quantity")).otherwise(0), "shipped"),
        *(
            pl.col("quantity")
            .filter((kind == ORDER_ALLOCATED) & (pl.col("node") == node))
            .last()
            .alias(column)
            for node, column in zip(NODE_NUMBERS, per_node("allocated"), strict=True)
        ),
        pl.col("quantity").filter(kind.is_in([ORDER_CHANGED, ORDER_CANCELLED])).last().alias("word"),
    )
    return (
        pl.concat([sourced, told], how="diagonal")
        .with_columns(pl.col(per_node("sourced") + per_node("shipped")).fill_null(0))
        .sort(keys)
    )


def place(facts: pl.DataFrame) -> pl.DataFrame:
    """Add ``committed_n``: where an order's open units sit, by CONTRACT section 2 ("Orders").

    ``facts`` has sourced_n, shipped_n, allocated_n (null: the ERP never spoke of the node) and word (null:
    nobody but our own commits named a quantity).
    """
    allocated = total_known("allocated")
    ordered = pl.coalesce("word", pl.when(total("sourced") > 0).then(total("sourced")).otherwise(allocated))
    frame = facts.with_columns(
        open=(ordered - total("shipped")).clip(0),
        excess=reduce(add, ((shipped(n) - allocated_at(n)).clip(0) for n in NODE_NUMBERS)),
        **{f"confirmed_{n}": (allocated_at(n) - shipped(n)).clip(0) for n in NODE_NUMBERS},
    )
    for n in NODE_NUMBERS:  # shipped beyond a node's allocation: others ship less, by name
        lowered = pl.min_horizontal(f"confirmed_{n}", "excess")
        frame = frame.with_columns(
            (pl.col(f"confirmed_{n}") - lowered).alias(f"confirmed_{n}"), excess=pl.col("excess") - lowered
        )
    for n in NODE_NUMBERS:  # never above what is open
        kept = pl.min_horizontal(f"confirmed_{n}", "open")
        frame = frame.with_columns(
            kept.alias(f"confirmed_{n}"), kept.alias(f"committed_{n}"), open=pl.col("open") - kept
        )
    walk = [(n, known) for known in (False, True) for n in NODE_NUMBERS]
    for n, known in walk:  # the rest sits where it was sourced, nodes without an allocation first
        room = (pl.col(f"sourced_{n}") - shipped(n).clip(0) - pl.col(f"confirmed_{n}")).clip(0)
        put = pl.when(is_place(n, known)).then(pl.min_horizontal(room, "open")).otherwise(0)
        frame = frame.with_columns(
            (pl.col(f"committed_{n}") + put).alias(f"committed_{n}"), open=pl.col("open") - put
        )
    for n, known in walk:  # what found no room: at the first of them
        put = pl.when(is_place(n, known)).then(pl.col("open")).otherwise(0)
        frame = frame.with_columns(
            (pl.col(f"committed_{n}") + put).alias(f"committed_{n}"), open=pl.col("open") - put
        )
    return frame.drop("open", "excess", *per_node("confirmed"))


def shipped(node: int) -> pl.Expr:
    """Units shipped from a node."""
    return pl.col(f"shipped_{node}")


def allocated_at(node: int) -> pl.Expr:
    """Units allocated at a node; 0 where the ERP never spoke of it."""
    return pl.col(f"allocated_{node}").fill_null(0)


def total_known(name: str) -> pl.Expr:
    """Add up a number's columns, null as 0."""
    return reduce(add, (pl.col(column).fill_null(0) for column in per_node(name)))


def is_place(node: int, known: bool) -> pl.Expr:
    """Tell whether our commits sourced from a node and the ERP spoke of it, or did not."""
    spoken = pl.col(f"allocated_{node}").is_not_null()
    return (pl.col(f"sourced_{node}") > 0) & (spoken if known else ~spoken)


# --- the end --------------------------------------------------------------------------------------


def final_balances(plan: Plan, facts: pl.DataFrame, moves: pl.DataFrame) -> pl.DataFrame:
    """Give every sku's balances per node as of the end, and quarantined by reason. One row per sku."""
    on_stock = facts.filter(pl.col("node") >= 0)
    stock = on_stock.group_by("sku").agg(
        *spread(ON_HAND, "on_hand"),
        *spread(QUARANTINED, "quarantined"),
        *(
            column.alias(f"{column.meta.output_name()}_{REASONS[reason]}")
            for reason in range(1, len(REASONS))
            for column in spread(pl.when(reason_of() == reason).then(QUARANTINED).otherwise(0), "quarantined")
        ),
    )
    held = moves.group_by("sku").agg(spread(RESERVED, "reserved"))
    ends = (
        order_changes(facts, moves)
        .group_by("order", "sku")
        .agg(
            pl.col(per_node("sourced") + per_node("shipped")).sum(),
            *(pl.col(name).drop_nulls().last() for name in [*per_node("allocated"), "word"]),
        )
    )
    committed = place(ends).group_by("sku").agg(pl.col(per_node("committed")).sum())
    every_sku = pl.DataFrame({"sku": range(len(plan.skus))}, schema={"sku": pl.Int64})
    joined = every_sku
    for part in (stock, held, committed):
        joined = joined.join(part, on="sku", how="left")
    return joined.fill_null(0).sort("sku")


def reason_of() -> pl.Expr:
    """Reason of a quarantine movement; a return has its own."""
    return (
        pl.when(pl.col("type") == RETURN_RECEIVED).then(REASONS.index("return")).otherwise(pl.col("reason"))
    )


def with_terms(plan: Plan, frame: pl.DataFrame) -> pl.DataFrame:
    """Add the formula's terms to rows of (channel, sku, balances): give_n, net_n, pool, buffer, sellable."""
    rules = pl.DataFrame(
        [
            {
                "channel": number,
                "units": rule.buffer_units,
                "percent": rule.buffer_percent,
                "oversell_limit": rule.oversell_limit,
                **{f"member_{n}": n in rule.nodes for n in NODE_NUMBERS},
            }
            for number, rule in enumerate(plan.rules)
        ]
    )
    overrides = pl.DataFrame(
        [
            (
                r.channel,
                r.sku,
                r.buffer_units,
                r.oversell_limit,
                *(n in r.excluded_nodes for n in NODE_NUMBERS),
            )
            for r in plan.sku_rules
        ],
        schema={
            **dict.fromkeys(("channel", "sku", "own_units", "own_oversell_limit"), pl.Int64),
            **dict.fromkeys(per_node("excluded"), pl.Boolean),
        },
        orient="row",
    )
    safety = pl.DataFrame(
        [
            (sku, *(plan.safety_stock.get((sku, n), plan.node_safety_stock.get(n, 0)) for n in NODE_NUMBERS))
            for sku in range(len(plan.skus))
        ],
        schema={"sku": pl.Int64, **dict.fromkeys(per_node("safety"), pl.Int64)},
        orient="row",
    )
    joined = (
        frame.join(rules, on="channel", how="left", maintain_order="left")
        .join(overrides, on=["channel", "sku"], how="left", maintain_order="left")
        .join(safety, on="sku", how="left", maintain_order="left")
        .with_columns(pl.col(per_node("excluded")).fill_null(False))
        .with_columns(
            oversell_limit=pl.coalesce("own_oversell_limit", "oversell_limit"),
            percent=pl.when(pl.col("own_units").is_null()).then(pl.col("percent")).otherwise(0),
            units=pl.coalesce("own_units", "units"),
        )
    )
    joined = joined.with_columns(
        (pl.col(f"on_hand_{n}") - pl.col(f"quarantined_{n}").clip(0) - pl.col(f"safety_{n}"))
        .clip(0)
        .alias(f"give_{n}")
        for n in NODE_NUMBERS
    ).with_columns(
        (pl.col(f"give_{n}") - pl.col(f"reserved_{n}") - pl.col(f"committed_{n}")).alias(f"net_{n}")
        for n in NODE_NUMBERS
    )
    pool, gives = pl.lit(0), pl.lit(0)
    for n in NODE_NUMBERS:
        member, counted = pl.col(f"member_{n}"), ~pl.col(f"excluded_{n}")
        net = pl.col(f"net_{n}")
        pool = pool + pl.when(~member).then(0).when(counted).then(net).otherwise(net.clip(None, 0))
        gives = gives + pl.when(member & counted).then(pl.col(f"give_{n}")).otherwise(0)
    return joined.with_columns(
        pool=pool, buffer=pl.col("units") + (pl.col("percent") * gives + 99) // 100
    ).with_columns(sellable=(pl.col("pool") - pl.col("buffer") + pl.col("oversell_limit")).clip(0))


# --- every version --------------------------------------------------------------------------------


def timeline(facts: pl.DataFrame, moves: pl.DataFrame) -> pl.DataFrame:
    """Give a sku's balances after each version that touched it, sorted by sku and version."""
    line = ("order", "sku")
    orders = order_changes(facts, moves).with_columns(
        *(pl.col(name).cum_sum().over(line) for name in per_node("sourced") + per_node("shipped")),
        *(pl.col(name).forward_fill().over(line) for name in [*per_node("allocated"), "word"]),
    )
    orders = place(orders).select(
        "sku",
        "version",
        *(pl.col(name) - pl.col(name).shift(1, fill_value=0).over(line) for name in per_node("committed")),
    )
    at = ("sku", "version")
    stock = (
        facts.filter(pl.col("node") >= 0)
        .group_by(at)
        .agg(*spread(ON_HAND, "on_hand"), *spread(QUARANTINED, "quarantined"))
    )
    held = moves.group_by(at).agg(spread(RESERVED, "reserved"))
    columns = [column for balance in BALANCES for column in per_node(balance)]
    return (
        pl.concat([orders, stock, held], how="diagonal")
        .group_by(at)
        .agg(pl.col(columns).sum())
        .sort(at)
        .with_columns(pl.col(columns).cum_sum().over("sku"))
    )


def uncovered_grants(plan: Plan, history: pl.DataFrame, moves: pl.DataFrame) -> tuple[list[str], int]:
    """List grants that left too little: net < 0 at a granting node, or the pool below the channel's buffer.

    Returns the sentences and the number of (grant, sku) looked at. Where a policy allows oversell, only the
    pool is bound, by so much less.
    """
    grants = (
        moves.filter(pl.col("kind") == GRANT)
        .group_by("version", "channel", "sku")
        .agg(spread(pl.col("quantity"), "granted"))
    )
    after = with_terms(plan, grants.join(history, on=["sku", "version"], how="left"))
    below = reduce(
        lambda a, b: a | b, ((pl.col(f"granted_{n}") > 0) & (pl.col(f"net_{n}") < 0) for n in NODE_NUMBERS)
    )
    wrong = after.filter(
        (below & (pl.col("oversell_limit") == 0))
        | (pl.col("pool") < pl.col("buffer") - pl.col("oversell_limit"))
    ).sort("version")
    return [
        f"{plan.skus[row['sku']]!r} in {plan.rules[row['channel']].channel!r} at {seq_of(row['version'])}: "
        f"granted {[row[c] for c in per_node('granted')]}, net then {[row[c] for c in per_node('net')]}, "
        f"pool {row['pool']}, buffer {row['buffer']}"
        for row in wrong.iter_rows(named=True)
    ], grants.height


def wrong_refusals(plan: Plan, history: pl.DataFrame, refused: list[Refused]) -> list[str]:
    """List shortages whose sellable_quantity is not the formula's at their version.

    Where part was granted, at the version before it.
    """
    if not refused:
        return []
    told = pl.DataFrame(refused, schema=list(Refused._fields), orient="row").with_columns(
        pl.col("version").map_elements(version_number, pl.Int64)
    )
    seen = told.with_columns(version=pl.col("version") - pl.col("partial").cast(pl.Int64), at="version")
    then = seen.sort("version").join_asof(
        history.sort("version"), on="version", by="sku", check_sortedness=False
    )
    columns = [column for balance in BALANCES for column in per_node(balance)]
    expected = with_terms(plan, then.with_columns(pl.col(columns).fill_null(0)).rename({"sellable": "said"}))
    wrong = expected.filter(pl.col("said") != pl.col("sellable")).sort("at")
    return [
        f"{plan.skus[row['sku']]!r} in {plan.rules[row['channel']].channel!r} at {seq_of(row['at'])}: "
        f"said {row['said']}, the formula gives {row['sellable']} of {row['requested']}"
        for row in wrong.iter_rows(named=True)
    ]


def seq_of(version: int) -> str:
    """Write a version as the service does."""
    return f"{version // EPOCH_UNITS}-{version % EPOCH_UNITS}"


# --- the service's answers ------------------------------------------------------------------------


def compare(
    plan: Plan, final: pl.DataFrame, channel: grpc.Channel, latest: int
) -> tuple[list[str], int, int]:
    """Compare balances (Explain) and sellables (Batch): differences, skus with one, sellables compared."""
    stub = av_grpc.AvailabilityServiceStub(channel)
    found: list[tuple[int, str]] = []
    for row, terms in zip(final.iter_rows(named=True), explained(plan, stub, latest), strict=True):
        found += [(row["sku"], text) for text in balance_differences(plan, row, terms)]
    sellables = 0
    stopped = pl.DataFrame(plan.blocked, schema={"channel": pl.Int64, "sku": pl.Int64}, orient="row")
    for number, rule in enumerate(plan.rules):
        ours = (
            with_terms(plan, final.with_columns(channel=pl.lit(number, pl.Int64)))
            .join(stopped.with_columns(stop=True), on=["channel", "sku"], how="left", maintain_order="left")
            .select(pl.when(pl.col("stop").is_null()).then(pl.col("sellable")).otherwise(0))
            .to_series()
            .to_list()
        )
        theirs = batch(stub, rule.channel, plan.skus)
        sellables += len(ours)
        found += [
            (sku, f"{plan.skus[sku]!r} in {rule.channel!r}: sellable {there}, expected {here}")
            for sku, (here, there) in enumerate(zip(ours, theirs, strict=True))
            if here != there
        ]
    return [text for _, text in found], len({sku for sku, _ in found}), sellables


def explained(
    plan: Plan, stub: av_grpc.AvailabilityServiceStub, latest: int
) -> Iterator[av.AvailabilityTerms]:
    """Ask for every sku's terms, as the audit channel sees them."""
    for sku in plan.skus:
        request = av.ExplainAvailabilityRequest(channel=AUDIT_CHANNEL, sku=sku)
        answer = stub.ExplainAvailability(request, timeout=CALL_TIMEOUT_S)
        if version_number(answer.as_of.version) < latest:
            raise ReplayFailed(
                f"explained at {answer.as_of.version}, before the last change at {seq_of(latest)}"
            )
        yield answer.terms


def balance_differences(plan: Plan, row: dict[str, int], terms: av.AvailabilityTerms) -> Iterator[str]:
    """Compare one sku's balances at every node."""
    by_node = {node.node: node for node in terms.nodes}
    for n, name in enumerate(NODES):
        node = by_node.get(name, av.NodeTerms())
        pairs = [(balance, getattr(node, balance), row[f"{balance}_{n}"]) for balance in BALANCES]
        pairs += [
            (
                f"quarantined for {reason}",
                node.quarantined_by_reason.get(reason, 0),
                row[f"quarantined_{n}_{reason}"],
            )
            for reason in REASONS[1:]
        ]
        for what, there, here in pairs:
            if there != here:
                yield f"{plan.skus[row['sku']]!r} at {name}: {what} {there}, expected {here}"


def batch(stub: av_grpc.AvailabilityServiceStub, channel: str, skus: list[str]) -> list[int]:
    """Read what a channel can sell of all skus, at or after the ledger's version of now."""
    found: list[int] = []
    bounds = [*range(0, len(skus), BATCH_SKUS_MAX), len(skus)]
    for start, end in pairwise(bounds):
        request = av.BatchGetAvailabilityRequest(channel=channel, skus=skus[start:end], strong=True)
        found += stub.BatchGetAvailability(request, timeout=CALL_TIMEOUT_S).sellable_quantities
    return found
