"""Publishers that are killed, and that meet: the shop ends with the ledger's numbers, and never two writes at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from availability.cli.root import run
from publisher.testing.latency import Latency
from publisher.testing.server import Storefront as Double
from publisher.testing.server import serve
from tests import shop_scene
from tests.conftest import Names, Server, serving
from tests.publishing import double_shop
from tests.shop_scene import ShopScene, options

SHOPS = """
[shops."{channel}"]
url = "{url}"
key = {{ env = "SHOP_KEY" }}
secret = {{ env = "SHOP_SECRET" }}
orphan_ms = 1500
recheck_ms = 2000
timeout_ms = 10000
[shops."{channel}".pace]
retry_ms = 50
open_ms = 100
"""
SKUS, SKUS_FULL = 60, 400
KILLS, KILLS_FULL = 2, 20
WITHIN_S = 90.0

wait_for = partial(shop_scene.wait_for, within_s=WITHIN_S)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of each test's own: a shop is sent every sku that its ledger knows."""
    with serving() as started:
        yield started


@contextmanager
def process(folder: Path, server: Server, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `availability publish run` in a process of its own; what is left of it is killed."""
    environment = {**os.environ, "AVAIL_TARGET": server.grpc, "SHOP_KEY": "ck_test", "SHOP_SECRET": "cs_test"}
    with (folder / "publisher.log").open("ab") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "availability", "publish", "run", *options(folder), *arguments],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


class Scene(ShopScene):
    """A shop that shows one of each sku, and its settings."""

    def __init__(self, folder: Path, server: Server, double: Double, names: Names, skus: int) -> None:
        super().__init__(folder, server, double, names, skus=skus, stock=1)
        (folder / "shops.toml").write_text(SHOPS.format(channel=self.channel, url=double.url))

    def settle(self) -> None:
        """Wait until the shop shows the ledger's numbers."""
        wait_for(lambda: self.shop() == self.ledger(), lambda: f"{self.different()} differ")

    def different(self) -> int:
        shown, ledger = self.shop(), self.ledger()
        return sum(shown[sku] != ledger[sku] for sku in self.skus)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_killed_in_the_middle_of_a_burst(
    folder: Path, server: Server, names: Names, seed: int, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 again and again while numbers change: nothing is forgotten, no entry is doubled, no two writes meet."""
    chance = random.Random(seed)
    with serve(double_shop(), latency=Latency(factor=0.1), tls=False) as double:
        scene = Scene(folder, server, double, names, SKUS_FULL if full else SKUS)
        scene.count({sku: chance.randrange(1, 50) for sku in scene.skus})
        for _ in range(KILLS_FULL if full else KILLS):
            with process(folder, server) as publisher:
                before = len(double.shop.log)
                wait_for(lambda seen=before: len(double.shop.log) > seen + 2, lambda: tail(folder))  # type: ignore[misc]
                scene.count({sku: chance.randrange(0, 50) for sku in scene.skus})
                seen = len(double.shop.log)
                wait_for(lambda: len(double.shop.log) > seen + chance.randrange(4), lambda: tail(folder))  # noqa: B023
                publisher.send_signal(signal.SIGKILL)
                publisher.wait()
                scene.count({sku: chance.randrange(0, 50) for sku in chance.sample(scene.skus, 5)})
        with process(folder, server) as publisher:
            scene.settle()
            publisher.send_signal(signal.SIGTERM)
            assert publisher.wait(30) == 0, tail(folder)
        assert double.shop.overlaps == []
        assert run(["publish", "status", "--json", *options(folder)]) == 3, "nobody publishes now"
        status = json.loads(capsys.readouterr().out)[0]
        assert (status["backlog"], status["letters"], status["skus"]) == (0, 0, len(scene.skus))


def test_two_processes_on_one_shop(folder: Path, server: Server, names: Names, seed: int, full: bool) -> None:
    """One works, the other stands by and takes over when the first is killed; no two writes of a product meet."""
    chance = random.Random(seed)
    with serve(double_shop(), latency=Latency(factor=0.1), tls=False) as double:
        scene = Scene(folder, server, double, names, SKUS)
        scene.count(dict.fromkeys(scene.skus, 9))
        with process(folder, server) as first, process(folder, server) as second:
            scene.settle()
            for _ in range(3):
                scene.count({sku: chance.randrange(0, 50) for sku in scene.skus})
                time.sleep(0.1)  # both are at it
            scene.settle()
            log = (folder / "publisher.log").read_text(errors="replace")
            assert log.count('"publishing"') == 1, log[-2000:]
            owner = next(
                json.loads(line)["channel"]
                for line in log.splitlines()
                if "standing by" in line and line[0] == "{"
            )
            assert owner == scene.channel
            first.kill()
            first.wait()
            scene.count({sku: chance.randrange(0, 50) for sku in scene.skus})
            scene.settle()
            assert second.poll() is None
        assert double.shop.overlaps == []


def tail(folder: Path) -> str:
    return (folder / "publisher.log").read_text(errors="replace")[-3000:]
