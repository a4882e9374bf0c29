"""Reservation ids: unlike each other whoever draws them, in order of age, as long as the contract says."""

from __future__ import annotations

import os
import threading

from availability.service.reservation_ids import new_reservation_id


def test_ids_differ_whoever_draws_them() -> None:
    """Eight threads draw 16,000, more than is drawn from the system at once; no two are alike."""
    drawn: list[list[str]] = [[] for _ in range(8)]

    def draw(into: list[str]) -> None:
        into += [new_reservation_id() for _ in range(2_000)]

    threads = [threading.Thread(target=draw, args=(into,)) for into in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [one for into in drawn for one in into]
    assert len(set(ids)) == len(ids) == 16_000
    assert {len(one) for one in ids} == {26}
    assert all(into == sorted(into, key=lambda one: one[:9]) for into in drawn)  # 45 bits of time lead


def test_a_child_draws_none_of_its_parents_ids() -> None:
    """What was drawn ahead is forgotten in a fork, or both would give out the same."""
    new_reservation_id()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, "".join(new_reservation_id()[10:] for _ in range(50)).encode())
        os._exit(0)
    os.close(writing)
    mine = [new_reservation_id()[10:] for _ in range(50)]
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    theirs = [told[at : at + 16] for at in range(0, len(told), 16)]
    assert len(theirs) == 50
    assert not set(mine) & set(theirs)
