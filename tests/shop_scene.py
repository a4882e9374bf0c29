"""A channel of a real server and the double of a shop: what is told to the one, and what each of them shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from availability.client import Client
from availability.v1 import stock_pb2 as stk
from publisher.testing.server import Storefront as Double
from tests.conftest import Names, Server


class ShopScene:
    """The skus of one shop, each with so many units over there; `folder` gets the shops' settings."""

    def __init__(
        self, folder: Path, server: Server, double: Double, names: Names, *, skus: int, stock: int
    ) -> None:
        self.folder, self.double, self.client = folder, double, Client(server.grpc)
        self.channel, self.node, self.stock_source = names.channel("web"), names.node("east"), names.id("wms")
        self.skus = [f"{names.id('sku')}-{number}" for number in range(skus)]
        self._number = 0
        (folder / "data").mkdir()
        for sku in self.skus:
            double.shop.add(sku, stock)

    def count(self, quantities: Mapping[str, int]) -> None:
        """Set what is on hand."""
        deltas = []
        for sku, quantity in quantities.items():
            self._number += 1
            delta = stk.Delta(
                source=self.stock_source,
                event_id=f"e-{self._number}",
                type=stk.DELTA_TYPE_SET_ON_HAND,
                sku=sku,
                node=self.node,
                quantity=quantity,
            )
            delta.occurred_time.FromNanoseconds(time.time_ns())
            deltas.append(delta)
        answer = self.client.apply_deltas(self.stock_source, deltas)
        assert not answer.details, answer.details[:2]

    def ledger(self) -> dict[str, int]:
        """Read what the shop shall show."""
        answer = self.client.batch_get(self.channel, self.skus, strong=True)
        return dict(zip(self.skus, answer.sellable_quantities, strict=True))

    def shop(self) -> dict[str, int | float | None]:
        """Read what it shows."""
        with self.double.shop.lock:
            return {sku: self.double.shop.stock(sku) for sku in self.skus}


def options(folder: Path) -> list[str]:
    """Give the options of every command about the shops of a folder."""
    return ["--shops", str(folder / "shops.toml"), "--data-dir", str(folder / "data")]


def wait_for(
    what: Callable[[], bool], said: Callable[[], object] = lambda: "waited in vain", *, within_s: float
) -> None:
    """Wait until something is so; `said` tells what was the case instead."""
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)
