"""Kits and baskets in the replica: one promise a test."""

from __future__ import annotations

import pytest

from availability.domain.errors import Reason, ServiceError
from availability.domain.formula import AvailabilityState
from tests.fakes_ledger import FakeLedger
from tests.replica_lab import UNKNOWN, Clock, answer, catch_up, clock, drained, ledger, served

__all__ = ["clock", "ledger"]


def test_a_kit_is_the_least_of_its_parts(ledger: FakeLedger, clock: Clock) -> None:
    """Set before anybody knows its parts, it follows them; it has no nodes, and its parts explain it."""
    ledger.set_kit("kit", x=2, later=1)
    replica = served(ledger, clock)
    assert answer(replica, "web", "kit") == (0, AvailabilityState.OUT_OF_STOCK)
    ledger.put(("later", "a", (9, 0, 0, 0, -1)))
    catch_up(replica, ledger)
    assert answer(replica, "web", "kit") == (3, AvailabilityState.IN_STOCK)
    assert replica.batch("web", ["kit", "x"])[0].tolist() == [3, 7]
    assert replica.nodes("web", "kit") == []
    parts = replica.terms("web", "kit").components
    assert [(part.sku, part.units, part.sellable) for part in parts] == [("later", 1, 8), ("x", 2, 7)]
    ledger.set_stop("", "x")
    catch_up(replica, ledger)
    assert answer(replica, "web", "kit") == (0, AvailabilityState.OUT_OF_STOCK)
    ledger.set_stop("web", "kit")
    catch_up(replica, ledger)
    assert answer(replica, "web", "kit") == (0, AvailabilityState.BLOCKED)
    ledger.set_kit("kit")
    catch_up(replica, ledger)
    assert answer(replica, "web", "kit") == (0, UNKNOWN)
    assert replica.policies().kits == ()


@pytest.mark.parametrize(
    ("threshold", "limit", "units", "state"),
    [
        (0, 0, {"x": 1}, AvailabilityState.IN_STOCK),
        (4, 0, {"x": 2}, AvailabilityState.LOW_STOCK),
        (9, 5, {"x": 1, "gone": 5}, AvailabilityState.OVERSELLING),
        (9, 5, {"x": 12, "gone": 1}, AvailabilityState.LOW_STOCK),  # gone is oversold, x sets the number
    ],
)
def test_the_state_of_a_kit(
    ledger: FakeLedger, clock: Clock, threshold: int, limit: int, units: dict[str, int], state: int
) -> None:
    """By the rules of plain skus on its own number; overselling where the part that sets it is."""
    ledger.put(("gone", "a", (0, 0, 0, 0, -1)))
    ledger.set_channel("web", ["b", "a"], low_stock_threshold=threshold, oversell_limit=limit)
    ledger.set_kit("kit", **units)
    replica = served(ledger, clock)
    assert replica.get("web", "kit").state == state


def test_watchers_see_kits_move_with_their_parts(ledger: FakeLedger, clock: Clock) -> None:
    """Whatever moves a part: a grant, a policy of the channel, a feed; and nothing where the kit stays."""
    ledger.set_kit("kit", x=2, y=1)
    ledger.put(("y", "b", (9, 0, 0, 0, -1)))
    replica = served(ledger, clock)
    watcher, single = replica.watch("web", None), replica.watch("web", ["kit"])
    assert drained(single) == [(True, {"kit": 3}, ledger.version)]
    drained(watcher)
    ledger.reserve("x", "a", 1)  # 6 of x: still 3 kits
    catch_up(replica, ledger)
    assert drained(watcher) == [(False, {"x": 6}, ledger.version)]
    assert drained(single) == []
    ledger.reserve("x", "a", 1)
    catch_up(replica, ledger)
    assert drained(watcher) == [(False, {"x": 5, "kit": 2}, ledger.version)]
    ledger.set_channel("web", ["b", "a"], buffer_units=4)
    catch_up(replica, ledger)
    assert drained(single)[-1][1] == {"kit": 1}
    ledger.set_node("b", state=2)
    catch_up(replica, ledger)
    assert drained(single)[-1][1] == {"kit": 0}


def test_a_basket_is_judged_as_a_whole(ledger: FakeLedger, clock: Clock) -> None:
    """Kits and plain skus that need the same sku are added up; each line's sellable is its own sku's."""
    ledger.set_kit("kit", x=2, y=1)
    replica = served(ledger, clock)

    def judged(*lines: tuple[str, int]) -> list[tuple[int, bool]]:
        return [(line.sellable, line.sufficient) for line in replica.basket("web", lines)[0]]

    assert judged(("kit", 1), ("x", 5)) == [(1, True), (7, True)]
    assert judged(("kit", 1), ("x", 6)) == [(1, False), (7, False)]
    assert judged(("y", 1), ("kit", 1), ("x", 1)) == [(1, False), (1, False), (7, True)]
    assert judged(("nobody", 1), ("x", 1)) == [(0, False), (7, True)]
    ledger.set_stop("", "kit")
    catch_up(replica, ledger)
    assert judged(("kit", 1), ("x", 1)) == [(0, False), (7, True)]


def test_a_basket_needs_a_node_even_to_oversell(ledger: FakeLedger, clock: Clock) -> None:
    """A limit alone grants nothing where every node is offline or excluded: there is none to source from."""
    ledger.set_channel("web", ["a"], oversell_limit=5)
    replica = served(ledger, clock)
    assert replica.basket("web", [("x", 10)])[0][0].sufficient
    ledger.set_override("web", "x", excluded="a")
    catch_up(replica, ledger)
    assert not replica.basket("web", [("x", 1)])[0][0].sufficient


def test_kits_of_one_basket_have_a_limit(ledger: FakeLedger, clock: Clock) -> None:
    """The same as that of a reservation, with the same reason."""
    for number in range(21):
        ledger.set_kit(f"kit {number}", **{f"part {part}": 1 for part in range(100)})
    replica = served(ledger, clock)
    replica.basket("web", [(f"kit {number}", 1) for number in range(20)])
    with pytest.raises(ServiceError) as caught:
        replica.basket("web", [(f"kit {number}", 1) for number in range(21)])
    assert caught.value.reason is Reason.BATCH_TOO_LARGE
