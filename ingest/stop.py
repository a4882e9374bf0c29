"""A stop that waits for nobody: what is under way has a moment, then it is cut off and done again at the next start."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_S = 1
"""How long what is under way may go on when the process is asked to stop. Whole seconds."""
LOOK_S = 0.1


@contextmanager
def cut_off(stopped: Callable[[], bool], cut: Callable[[], None]) -> Iterator[None]:
    """Cut what is under way a moment after ``stopped`` says so: a ledger that does not answer holds nobody up."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_S):
            if stopped():
                if not over.wait(STOP_S):
                    cut()
                return

    thread = threading.Thread(target=watch, name="stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
