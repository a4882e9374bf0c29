"""What was answered then is what the journal says now, term by term; and who set each term."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random

import pytest

from availability.domain.version import Version
from availability.history.moment import NotInHistory, parse_at
from availability.history.origin import DELTA_TYPES
from availability.history.past import Past, PastTerms
from availability.v1 import stock_pb2
from tests.fakes_ledger import FakeLedger
from tests.history_lab import DAY_MS, NOON_MS, Lab
from tests.postgres import history_url, postgres, shared_database

__all__ = ["history_url", "postgres", "shared_database"]

CHANNELS = ("web", "pos", "outlet")
SKUS = ("x", "y", "z", "kit")


def assert_adds_up(answer: PastTerms) -> None:
    """The terms add up to the unit, by plain arithmetic."""
    terms = answer.terms
    if terms.components:
        least = min(part.sellable // part.units for part in terms.components)
        assert terms.sellable == (0 if terms.blocked else least)
        assert [part.terms.sellable for part in answer.parts] == [one.sellable for one in terms.components]
        for part in answer.parts:
            assert_adds_up(part)
        return
    for node in terms.nodes:
        assert node.give == max(0, node.on_hand - max(0, node.quarantined) - node.safety_stock)
        assert node.net == node.give - node.reserved - node.committed
    pool = sum(node.net if node.counted else min(0, node.net) for node in terms.nodes)
    assert pool == terms.pool
    assert terms.fenced == sum(fence.counted for fence in terms.fences)
    share = terms.pool - terms.buffer - terms.fenced + terms.oversell_limit
    assert terms.sellable == (0 if terms.blocked or not terms.known else max(0, share))


def random_change(ledger: FakeLedger, random: Random) -> None:
    """One change of anything that enters the formula."""
    sku, node, channel = random.choice("xyz"), random.choice("abc"), random.choice(CHANNELS)
    known = [(one, at) for one, nodes in ledger.now.positions.items() for at in nodes]
    fenced = [(of, one) for of, one in ledger.now.fences if ledger.now.positions.get(one)]
    match random.randrange(13):
        case 0 | 1 | 2:
            safety = random.choice([-1, -1, 0, 3])
            quarantined = random.choice([0, 0, 2, -1])
            figures = (
                random.randrange(-3, 60),
                quarantined,
                random.randrange(9),
                random.randrange(9),
                safety,
            )
            ledger.put((sku, node, figures))
        case 3 if known:
            ledger.reserve(*random.choice(known), random.choice([1, 2, -1]))
        case 4 if fenced:
            channel, sku = random.choice(fenced)
            ledger.reserve_fenced(channel, sku, next(iter(ledger.now.positions[sku])), random.choice([1, -1]))
        case 5:
            ledger.set_node(node, random.choice([1, 1, 2]), random.randrange(4))
        case 6:
            nodes = random.choice([None, ["b", "a"], ["a", "c"], ["c"]])
            for name in nodes or ():
                if name not in ledger.now.nodes:
                    ledger.set_node(name)
            buffer = random.choice([{"buffer_units": 3}, {"buffer_units": -1, "buffer_percent": 15}, {}])
            ledger.set_channel(
                channel,
                nodes,
                oversell_limit=random.choice([0, 5]),
                staleness=random.choice([1, 2]),
                **buffer,
            )
        case 7:
            for name in "ab":
                if name not in ledger.now.nodes:
                    ledger.set_node(name)
            ledger.set_override(
                channel, sku, units=random.choice([-1, 4]), excluded=random.choice(["", "a", "ab"])
            )
        case 8:
            ledger.clear_override(channel, sku)
        case 9:
            ledger.set_stop(random.choice(["", channel]), sku, blocked=random.random() < 0.4)
        case 10:
            ledger.set_fence(channel, sku, random.choice([0, 2, 9]))
        case 11:
            ledger.set_kit("kit", **random.choice([{"x": 1, "y": 2}, {"z": 3}, {}]))
        case 12 if node in ledger.now.nodes:
            ledger.set_feed("wms", node)
            ledger.hear("wms", node, stale=random.random() < 0.6)
        case _:
            ledger.put((sku, node, (random.randrange(60), 0, 0, 0, -1)))


@pytest.mark.parametrize("round_number", range(1))
def test_every_past_answer_is_explained_to_the_unit(
    history_url: str, tmp_path: Path, seed: int, full: bool, round_number: int
) -> None:
    """At random versions and times the journal gives what the plain formula gave at that version."""
    random = Random(f"{seed} {round_number}")
    lab = Lab(history_url, tmp_path)
    ledger = lab.ledger
    answered: list[tuple[Version, int, dict[tuple[str, str], tuple[int, int]]]] = []
    for _ in range(1_000 if full else 120):
        ledger.clock_ms += random.choice([1, 700, DAY_MS // 5])
        random_change(ledger, random)
        now = {(channel, sku): ledger.answer(channel, sku) for channel in CHANNELS for sku in SKUS}
        answered.append((ledger.version, ledger.clock_ms, now))
    lab.catch_up()
    past = Past(lab.engine)
    for version, clock_ms, then in random.sample(answered, 200 if full else 25):
        channel, sku = random.choice(CHANNELS), random.choice(SKUS)
        answer = past.explain(channel, sku, version)
        assert (answer.terms.sellable, answer.terms.state) == then[channel, sku], (version, channel, sku)
        assert answer.terms.version == version
        assert_adds_up(answer)
        by_time = past.explain(channel, sku, clock_ms)
        assert by_time == answer


@pytest.fixture
def lab(history_url: str, tmp_path: Path) -> Lab:
    made = Lab(history_url, tmp_path)
    made.ledger.set_node("a")
    made.ledger.set_channel("web")
    return made


def test_who_set_a_figure_is_told(lab: Lab) -> None:
    """Each figure names the last record that moved it, not the last that touched the position."""
    lab.ledger.put(("x", "a", (9, 0, 0, 0, -1)))
    held = lab.ledger.reserve("x", "a", 2)
    put = lab.ledger.put(("x", "a", (12, 0, 2, 0, -1)))
    moved = lab.ledger.put(("x", "a", (12, 1, 2, 0, -1)))
    lab.catch_up()
    answer = Past(lab.engine).explain("web", "x")
    told = {figure: (one.version, one.event) for (_, figure), one in answer.origins.items()}
    assert told == {
        "on_hand": (str(put), "DELTAS"),
        "quarantined": (str(moved), "DELTAS"),
        "reserved": (str(held), "RESERVED"),
    }
    assert answer.origins["a", "on_hand"].source == "wms"
    assert answer.origins["a", "reserved"].reservation_id == "r"
    (buffer, _) = answer.terms.policies
    assert (buffer.term, buffer.author, buffer.reason) == ("buffer", "ann", "because")


def test_what_is_left_of_a_fence_is_that_of_its_generation(lab: Lab) -> None:
    """A fence that is set anew has all of its units, whatever was taken from the one before it."""
    ledger = lab.ledger
    ledger.put(("x", "a", (20, 0, 0, 0, -1)))
    steps = (
        partial(ledger.set_fence, "web", "x", 9),
        partial(ledger.reserve_fenced, "web", "x", "a", 2),
        partial(ledger.set_fence, "web", "x", 4),
        partial(ledger.reserve_fenced, "web", "x", "a", 1),
        partial(ledger.set_fence, "web", "x", 0),
    )
    versions = [step() for step in steps]
    lab.catch_up()
    past = Past(lab.engine)
    told = [[fence.left for fence in past.explain("pos", "x", version).terms.fences] for version in versions]
    assert told == [[9], [7], [4], [3], []]
    assert [past.explain("pos", "x", version).terms.fenced for version in versions] == [9, 7, 4, 3, 0]


def test_a_moment_outside_of_the_history_is_refused_with_the_reason(lab: Lab) -> None:
    """Before it, after it, in a gap, or taken back: each in one sentence."""
    past = Past(lab.engine)
    with pytest.raises(NotInHistory, match="nothing is written yet"):
        past.explain("web", "x")
    lab.ledger.put(("x", "a", (9, 0, 0, 0, -1)))
    lab.catch_up()
    with pytest.raises(NotInHistory, match="written up to 1-3"):
        past.explain("web", "x", Version(1, 4))
    with pytest.raises(NotInHistory, match="does not reach back"):
        past.explain("web", "x", NOON_MS - 1)
    before = lab.ledger.now.copy()
    lost = lab.ledger.reserve("x", "a", 1)
    lab.catch_up()
    lab.ledger.now = before
    lab.ledger.hand_shake()
    lab.catch_up()
    with pytest.raises(NotInHistory, match="taken back by a failover"):
        past.explain("web", "x", lost)
    for _ in range(5):
        lab.ledger.reserve("x", "a", 1)
    lab.ledger.trim(2)
    lab.catch_up()
    with pytest.raises(NotInHistory, match="are missing"):
        past.explain("web", "x", Version(2, 3))
    assert past.explain("web", "x").terms.sellable == 4


def test_after_a_gap_only_what_stands_then_counts(lab: Lab) -> None:
    """An override that was cleared, and a position that was moved, while nobody wrote: the baseline knows better."""
    lab.ledger.put(("x", "a", (9, 0, 0, 0, -1)))
    lab.ledger.set_override("web", "x", units=5)
    lab.ledger.set_fence("web", "x", 3)
    lab.catch_up()
    assert Past(lab.engine).explain("web", "x").terms.sellable == 4
    lab.ledger.clear_override("web", "x")
    lab.ledger.put(("x", "a", (20, 0, 0, 0, -1)))
    lab.ledger.reserve_fenced("web", "x", "a", 1)
    lab.ledger.trim(1)
    lab.catch_up()
    answer = Past(lab.engine).explain("web", "x")
    assert answer.terms.sellable == 19
    assert [fence.left for fence in answer.terms.fences] == [2]
    assert answer.origins == {}
    lab.ledger.reserve_fenced("web", "x", "a", 1)
    lab.catch_up()
    answer = Past(lab.engine).explain("web", "x")
    assert [fence.left for fence in answer.terms.fences] == [1]
    assert list(answer.origins) == [("a", "reserved")]


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("1-42", Version(1, 42)),
        ("1970-01-02", DAY_MS),
        ("1970-01-02T00:00:00.250Z", DAY_MS + 250),
        ("1970-01-02 01:00+01:00", DAY_MS),
    ],
)
def test_a_version_or_a_time_is_read(text: str, means: Version | int) -> None:
    """--at takes both; a time without an offset is UTC."""
    assert parse_at(text) == means


def test_what_is_neither_is_refused() -> None:
    """With an example of each."""
    with pytest.raises(ValueError, match="neither a version such as"):
        parse_at("yesterday")


def test_names_of_delta_types_are_the_contracts() -> None:
    """Numbers in records mean what the wire contract says."""
    names = {value: name.removeprefix("DELTA_TYPE_") for name, value in stock_pb2.DeltaType.items()}
    assert dict(enumerate(DELTA_TYPES)) == names
