"""Answers that come together are given together, each exactly once."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from availability.service.later import ANSWERS_MAX, Answers


def test_every_answer_is_given_once_from_any_thread() -> None:
    """Eight threads put at once: nothing is forgotten, nothing is told twice."""
    each, writers = 40 * ANSWERS_MAX, 8
    given: Counter[tuple[int, int]] = Counter()
    done, lock = threading.Event(), threading.Lock()

    def answer(owed: tuple[int, int]) -> None:
        with lock:
            given[owed] += 1
            if len(given) == writers * each:
                done.set()

    with ThreadPoolExecutor(2) as pool:
        answers = Answers(pool)

        def put(writer: int) -> None:
            for number in range(each):
                answers.put(answer, (writer, number))

        threads = [threading.Thread(target=put, args=(writer,)) for writer in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done.wait(30)
    assert set(given.values()) == {1}


def test_an_answer_that_fails_harms_no_other() -> None:
    """One that raises is logged; those behind it are given."""
    given: list[int] = []
    done = threading.Event()

    def answer(owed: int) -> None:
        if owed == 1:
            raise RuntimeError("this one cannot be sent")
        given.append(owed)
        if owed == 2:
            done.set()

    with ThreadPoolExecutor(1) as pool:
        answers = Answers(pool)
        for number in range(3):
            answers.put(answer, number)
        assert done.wait(10)
    assert given == [0, 2]
