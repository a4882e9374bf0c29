"""The demo's shop: a WooCommerce double whose numbers the publisher keeps, as `availability publish run` does it.

The shop takes as long as a real one and fails now and then; its numbers have to be the ledger's all the same, soon
after the last change. Needs the extra ``publisher``; without it the demo runs without a shop, and says so.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from availability.client import Client
from availability.demo.catalogue import SKUS

if TYPE_CHECKING:
    from publisher.testing.server import Storefront

CHANNEL = "web"
NEEDED = ("alembic", "httpx2", "starlette", "uvicorn")
KEY, SECRET = "ck_demo", "cs_demo"
SETTLED_S = 20.0
"""So long after the last change the shop may differ: it has just been left unreachable, and nothing was forgotten."""
LOOK_S = 0.1
LOG_LINES = 5
STOP_TIMEOUT_S = 15.0
SETTINGS = """
[shops.{channel}]
url = "{url}"
key = {{ env = "DEMO_SHOP_KEY" }}
secret = {{ env = "DEMO_SHOP_SECRET" }}
mode = "OWNER"
timeout_ms = 5000
recheck_ms = 1000
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One sku at the end: what the ledger sells in the shop's channel, and what the shop shows."""

    sku: str
    ledger: int
    shop: int | float | None

    @property
    def same(self) -> bool:
        """Say whether the shop shows the ledger's number."""
        return self.ledger == self.shop


@dataclass(slots=True, kw_only=True)
class DemoShop:
    """A running shop with its publisher."""

    front: Storefront
    log: Path

    def settled(self, client: Client, skus: Sequence[str]) -> list[Shown]:
        """Wait until the shop shows the ledger's numbers, or the time for it is over; return both."""
        deadline = time.monotonic() + SETTLED_S
        while True:
            shown = self._compare(client, skus)
            if all(one.same for one in shown) or time.monotonic() > deadline:
                return shown
            time.sleep(LOOK_S)

    def _compare(self, client: Client, skus: Sequence[str]) -> list[Shown]:
        ledger = client.batch_get(CHANNEL, skus, strong=True).sellable_quantities
        with self.front.shop.lock:
            return [
                Shown(sku=sku, ledger=units, shop=self.front.shop.stock(sku))
                for sku, units in zip(skus, ledger, strict=True)
            ]

    def last_words(self) -> str:
        """Return the end of what the publisher said."""
        return "".join(self.log.read_text(errors="replace").splitlines(keepends=True)[-LOG_LINES:])

    def written(self) -> int:
        """Return how many calls of the publisher the shop has answered."""
        with self.front.shop.lock:
            return sum(one.method in ("POST", "PUT") for one in self.front.shop.log)


@contextmanager
def demo_shop(data_dir: Path, target: str) -> Iterator[DemoShop | None]:
    """Run the shop and its publisher; None where the extra is not installed."""
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        yield None
        return
    from publisher.testing.faults import Fault, Kind
    from publisher.testing.keys import ApiKey
    from publisher.testing.latency import Latency
    from publisher.testing.server import serve
    from publisher.testing.shop import Shop

    shop = Shop(clock=time.time, keys={KEY: ApiKey(secret=SECRET)})
    shop.settings.reduces_stock = False
    for sku in SKUS:
        shop.add(sku, 0)
    with serve(shop, latency=Latency()) as front:
        for kind in (Kind.BAD_GATEWAY, Kind.CUT_ANSWER, Kind.LOCK_TIMEOUT):  # one each, when it comes to it
            front.faults.add(Fault(kind=kind, method="POST", path="/batch"))
        settings, log = data_dir / "shops.toml", data_dir / "publisher.log"
        settings.write_text(SETTINGS.format(channel=CHANNEL, url=front.url))
        with log.open("wb") as out:
            publisher = subprocess.Popen(
                [
                    *(sys.executable, "-m", "availability", "publish", "run"),
                    *(
                        "--shops",
                        str(settings),
                        "--data-dir",
                        str(data_dir / "publisher"),
                        "--target",
                        target,
                    ),
                ],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={
                    **{name: value for name, value in os.environ.items() if not name.startswith("AVAIL_")},
                    "DEMO_SHOP_KEY": KEY,
                    "DEMO_SHOP_SECRET": SECRET,
                },
            )
        try:
            yield DemoShop(front=front, log=log)
        finally:
            publisher.send_signal(signal.SIGTERM)
            try:
                publisher.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                publisher.kill()
                publisher.wait()
