"""Shoppers of a flash sale for locust: browse → batch read → basket → reserve → pay or abandon → commit.

``python -m benchmarks.flash_sale`` starts the service, the feeds and this, and audits what happened. By hand:
``locust -f benchmarks/locustfile.py --host 127.0.0.1:7443`` against a server that is there. gRPC is made to work with
gevent in each process after locust has forked it, so nothing of it is touched when this file is read.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from locust import LoadTestShape, User, argument_parser, constant, events, runners, task

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.sale_plan import CHANNEL, HOT_SHARE, Zipf, read_plan

if TYPE_CHECKING:
    from benchmarks.sale_client import SaleClient

PLAN = read_plan()
# locust 2.47 makes its parser of 100 options anew for each option of each order to a process: on a busy machine no
# shopper had a turn for up to 30 s, seen in a traceback. The answer is always the same.
argument_parser.default_args_dict = functools.cache(argument_parser.default_args_dict)
runners.HEARTBEAT_LIVENESS = 60
"""Beats, a second each, after which a process counts as gone: a busy machine may leave one without a turn for long."""
BATCH_SKUS = 40


class Process:
    """What the shoppers of one locust process share: connections, and the file of what happened to them."""

    def __init__(self, host: str) -> None:
        from benchmarks.sale_client import SaleClient

        self.began = time.time()
        self.clients = [SaleClient(host or PLAN.target, PLAN.token) for _ in range(PLAN.connections)]
        self.turn = itertools.count()
        folder = Path(PLAN.out)
        self.journal = (folder / f"shoppers-{os.getpid()}.jsonl").open("w", buffering=1)

    def note(self, **what: Any) -> None:
        """Write one line: others read it while the sale is on."""
        self.journal.write(json.dumps(what) + "\n")


_process: Process | None = None


@events.test_start.add_listener
def _forget(**_: Any) -> None:
    global _process
    _process = None


def process(host: str) -> Process:
    """Return this process's part; made by its first shopper, after the fork."""
    global _process
    if _process is None:
        _process = Process(host)
    return _process


class Shopper(User):
    """One shopper after the other in one seat."""

    wait_time = constant(0)

    def on_start(self) -> None:
        self.mine = process(self.host)
        seat = next(self.mine.turn)
        self.connection = seat % PLAN.connections
        self.client: SaleClient = self.mine.clients[self.connection]
        self.chance = random.Random(f"{PLAN.seed} {os.getpid()} {seat}")
        self.zipf = Zipf(PLAN.skus, self.chance)

    @task
    def journey(self) -> None:
        """Come, look, and perhaps buy."""
        sale = PLAN.on_sale(time.time() - self.mine.began) and self.chance.random() < HOT_SHARE
        wanted = self.chance.choice(PLAN.hot) if sale else PLAN.sku(self.zipf.draw())
        for sku in [PLAN.sku(self.zipf.draw()), wanted]:
            self._look(sku)
        self.client.batch(CHANNEL, [PLAN.sku(self.zipf.draw()) for _ in range(BATCH_SKUS)])
        lines = {wanted: 1 if sale else self.chance.randint(1, 3)}
        while self.chance.random() < 0.3:
            lines[PLAN.sku(self.zipf.draw())] = 1
        if self.client.basket(CHANNEL, lines) is not False or self.chance.random() < 0.5:
            self._buy(wanted if sale else "", lines)
        self._sleep(*PLAN.pause_s)

    def _look(self, sku: str) -> None:
        asked = time.time()
        sellable = self.client.look(CHANNEL, sku)
        if sellable is not None and sku in PLAN.hot:
            self.mine.note(kind="read", sku=sku, asked=asked, sellable=sellable)

    def _buy(self, hot: str, lines: dict[str, int]) -> None:
        """Reserve; then pay, give back, or leave without a word."""
        asked = time.time()
        held = self.client.reserve(CHANNEL, lines, PLAN.reservation_s)
        if held is None:
            return
        told = time.time()
        self.mine.note(
            kind="reserve", asked=asked, told=told, hot=hot, connection=self.connection,
            granted=lines if held.reservation_id else {}, id=held.reservation_id,
        )  # fmt: skip
        if not held.reservation_id:
            return
        self._sleep(*PLAN.think_s)
        mood = self.chance.random()
        if mood < PLAN.pay_share:
            order = f"{held.reservation_id}-order"
            outcome = self.client.commit(held.reservation_id, order)
            early = time.time() < told + PLAN.reservation_s - 0.5
            if outcome == "OK":
                self.mine.note(kind="commit", id=held.reservation_id, order=order, lines=held.lines)
            elif outcome:
                self.mine.note(kind="lost" if early else "late", id=held.reservation_id, reason=outcome)
        elif mood < PLAN.pay_share + PLAN.release_share:
            if self.client.release(held.reservation_id):
                self.mine.note(kind="release", id=held.reservation_id)
        else:
            self.mine.note(kind="abandon", id=held.reservation_id)

    def _sleep(self, least_s: float, most_s: float) -> None:
        import gevent

        gevent.sleep(self.chance.uniform(least_s, most_s))


class FlashSale(LoadTestShape):
    """The plan's curve, told to locust second by second."""

    def tick(self) -> tuple[int, float] | None:
        """Return (shoppers, how many may come in a second); None ends the load."""
        users = PLAN.users_at(self.get_run_time())
        return None if users is None else (users, max(10.0, users / 2))
