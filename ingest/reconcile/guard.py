"""Whether a comparison may be acted on: what a person must see first, and what no person can approve. Pure.

REFUSED: the file itself is wrong, nobody can approve it. HELD: it may be true, an operator looks and approves. Each
finding is a plain sentence with the figures behind it and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ingest.reconcile.compare import Counts, Doubled
from ingest.reconcile.orders import OrdersCompared
from ingest.reconcile.settings import Guard

LOOKALIKE_SHARE = 0.5
RATIO_SHARE = 0.5
"""Share of the differing rows from which on one reason stands behind all of them."""
ROWS_MIN = 5
"""Fewer rows look like nothing."""


class Severity(StrEnum):
    """What a finding does to a run."""

    HELD = "HELD"
    REFUSED = "REFUSED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One reason not to act at once."""

    severity: Severity
    code: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """What is known of the file besides its rows. Times: seconds since 1970. ``rows_said``: by its point file."""

    rows: int
    refused: int
    rows_said: int | None = None
    point_at: float | None = None
    previous_rows: int | None = None
    same_as_run: str = ""
    newer_run: str = ""
    first_reason: str = ""
    may_be_empty: bool = False


def judge_file(file: File, guard: Guard, now: float) -> list[Finding]:
    """Look at the file before anything is compared."""
    found = []
    if file.same_as_run:
        found.append(
            _refused("SAME_FILE", f"this very file was run {file.same_as_run[:8]} already: deliver a new one")
        )
    if file.newer_run:
        text = (
            f"its point lies before that of run {file.newer_run[:8]}: it is older than what was compared last"
        )
        found.append(_refused("OLDER", text))
    if file.rows_said is not None and file.rows_said != file.rows:
        text = f"it has {file.rows:,} rows, and its point file says {file.rows_said:,}: it is half written"
        found.append(_refused("HALF_WRITTEN", text))
    if file.rows == 0 and not file.may_be_empty:
        found.append(_refused("EMPTY", "it has no row at all"))
    if file.point_at is not None and now - file.point_at > guard.age_hours_max * 3_600:
        hours = (now - file.point_at) / 3_600
        text = f"its point is {hours:,.0f} hours old, and {guard.age_hours_max:,.0f} are allowed: is it last week's?"
        found.append(_refused("TOO_OLD", text))
    if (
        file.rows
        and file.refused * 100 > guard.refused_percent_max * file.rows
        and file.refused > guard.free_positions
    ):
        text = f"{file.refused:,} of {file.rows:,} rows cannot be read, the first because {file.first_reason}"
        found.append(_held("UNREADABLE", text))
    if file.previous_rows and file.rows:
        lost = file.previous_rows - file.rows
        if lost * 100 > guard.missing_percent_max * file.previous_rows and lost > guard.free_positions:
            text = f"it has {file.rows:,} rows, and the one before had {file.previous_rows:,}: is it half written?"
            found.append(_held("FEWER_ROWS", text))
    return found


def doubled(found: Doubled) -> Finding:
    """Return what is said of rows that come twice."""
    key, rows = found.examples[0]
    where = " and ".join(str(row) for row in rows)
    several = f"{found.keys:,} positions come more than once, {key} for one"
    text = (
        f"{several if found.keys > 1 else f'{key} comes more than once'} (rows {where}): which row is true?"
    )
    return _refused("DOUBLED_ROWS", text)


def judge(
    counts: Counts,
    guard: Guard,
    *,
    absent_is_zero: bool,
    unknown_rows: int,
    factors: Mapping[str, int],
    lookalikes: Mapping[str, float],
    nodes: Sequence[str] = (),
) -> list[Finding]:
    """Look at what the comparison saw. ``lookalikes``: share of rows that equal what another node has."""
    found = []
    free = guard.free_positions
    if counts.foreign_rows > free or counts.foreign_rows * 2 > counts.rows:
        text = f"{counts.foreign_rows:,} rows are of other nodes than {', '.join(nodes)}: is it another node's file?"
        found.append(_refused("WRONG_NODE", text))
    if counts.rows >= ROWS_MIN and counts.zero_rows == counts.rows and counts.with_stock:
        text = f"all {counts.rows:,} quantities are 0, where the ledger has {counts.units:,} units"
        found.append(_held("ALL_ZERO", text))
    moved_share = _percent(counts.moved, counts.positions)
    if counts.moved > free and moved_share > guard.moved_percent_max:
        text = (
            f"{counts.moved:,} of {counts.positions:,} positions would move ({moved_share:.1f} %, allowed are"
        )
        found.append(_held("MANY_MOVED", f"{text} {guard.moved_percent_max:g} %)"))
    zero_share = _percent(counts.zeroed, counts.with_stock)
    if counts.zeroed > free and zero_share > guard.zeroed_percent_max:
        text = f"{counts.zeroed:,} of {counts.with_stock:,} positions with stock would have none ({zero_share:.1f} %,"
        found.append(_held("MANY_ZEROED", f"{text} allowed are {guard.zeroed_percent_max:g} %)"))
    missing_share = _percent(counts.missing_with_stock, counts.with_stock)
    if counts.missing_with_stock > free and missing_share > guard.missing_percent_max:
        what = "and would have none" if absent_is_zero else "and are left alone"
        text = f"{counts.missing_with_stock:,} of {counts.with_stock:,} positions with stock are not in it {what}"
        found.append(_held("MANY_MISSING", f"{text} ({missing_share:.1f} %): is it half written?"))
    units_share = _percent(counts.units_moved, counts.units)
    if counts.moved > free and units_share > guard.units_percent_max:
        text = f"{counts.units_moved:,} units would move, of {counts.units:,} on hand ({units_share:.1f} %, allowed are"
        found.append(_held("MANY_UNITS", f"{text} {guard.units_percent_max:g} %)"))
    unknown_share = _percent(unknown_rows, counts.rows)
    if unknown_rows > free and unknown_share > guard.unknown_percent_max:
        text = f"{unknown_rows:,} of {counts.rows:,} rows have a sku that the ledger does not know"
        found.append(_held("UNKNOWN_SKUS", f"{text} ({unknown_share:.1f} %): is it another company's file?"))
    if found:  # what may stand behind it
        found += _behind(counts, factors, lookalikes)
    return found


def judge_orders(compared: OrdersCompared, guard: Guard) -> list[Finding]:
    """Look at what the comparison of open orders saw."""
    found = []
    moved, free = len(compared.variances), guard.free_positions
    moved_share, missing_share = _percent(moved, compared.lines), _percent(compared.missing, compared.lines)
    if moved > free and moved_share > guard.moved_percent_max:
        text = (
            f"{moved:,} of {compared.lines:,} open order lines would change ({moved_share:.1f} %, allowed are"
        )
        found.append(_held("MANY_MOVED", f"{text} {guard.moved_percent_max:g} %)"))
    if compared.missing > free and missing_share > guard.missing_percent_max:
        text = f"{compared.missing:,} of {compared.lines:,} open order lines are not in it ({missing_share:.1f} %):"
        found.append(_held("MANY_MISSING", f"{text} is it half written?"))
    return found


def _behind(counts: Counts, factors: Mapping[str, int], lookalikes: Mapping[str, float]) -> list[Finding]:
    found = []
    if counts.moved >= ROWS_MIN:
        ranked = sorted(counts.ratios.items(), key=lambda item: -item[1])
        known = set(factors.values())
        for sign in (1, -1):  # skus have their own factors: all that are known count together
            together = sum(rows for ratio, rows in ranked if ratio * sign > 0 and abs(ratio) in known)
            ranked = [
                (ratio, together if ratio * sign > 0 and abs(ratio) in known else rows)
                for ratio, rows in ranked
            ]
        for ratio, rows in sorted(ranked, key=lambda item: -item[1]):
            if rows < RATIO_SHARE * counts.moved:
                break
            unit = next((name for name, factor in factors.items() if factor == abs(ratio)), "")
            of = f", 1 {unit}" if unit else ""
            if ratio > 0:
                text = f"{rows:,} quantities are the ledger's divided by {ratio:,}{of}:"
                text += " are they in cases instead of eaches?"
            else:
                text = (
                    f"{rows:,} quantities are {-ratio:,} times the ledger's{of}: was a factor applied twice?"
                )
            found.append(_held("UNIT", text))
            break
    node = max(lookalikes, key=lambda name: lookalikes[name], default="")
    if node and lookalikes[node] >= LOOKALIKE_SHARE:
        share = lookalikes[node] * 100
        found.append(
            _held("OTHER_NODE", f"{share:.0f} % of its rows are what {node} has: is it {node}'s file?")
        )
    return found


def worth_a_look(findings: Sequence[Finding]) -> bool:
    """Whether it is worth asking what other nodes have."""
    return any(finding.code in ("MANY_MOVED", "MANY_UNITS", "MANY_ZEROED") for finding in findings)


def verdict(findings: Sequence[Finding]) -> Severity | None:
    """Return the gravest; None: act."""
    if any(finding.severity is Severity.REFUSED for finding in findings):
        return Severity.REFUSED
    return Severity.HELD if findings else None


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else (100.0 if part else 0.0)


def _held(code: str, sentence: str) -> Finding:
    return Finding(severity=Severity.HELD, code=code, sentence=sentence)


def _refused(code: str, sentence: str) -> Finding:
    return Finding(severity=Severity.REFUSED, code=code, sentence=sentence)
