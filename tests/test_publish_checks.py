"""A Mirror shop beside a real server, from the command line: orders in, verify, resync, shadow, approve."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from availability.cli.root import run
from availability.v1 import policy_pb2 as pol
from publisher.testing.checkout import buy
from publisher.testing.orders import set_status
from publisher.testing.server import Storefront as Double
from publisher.testing.server import serve
from tests import shop_scene
from tests.conftest import Names, Server, fresh_names, serving
from tests.publishing import double_shop
from tests.shop_scene import ShopScene, options

SHOPS = """
[shops."{channel}"]
mode = "MIRROR"
url = "{url}"
key = {{ env = "SHOP_KEY" }}
secret = {{ env = "SHOP_SECRET" }}
recheck_ms = 2000
verify_ms = 2000
zero_guard_percent = 20
zero_guard_min = 2
[shops."{channel}".orders]
source = "{source}"
poll_ms = 300
settle_ms = 300
[shops."{channel}".orders.webhooks]
public_url = "{public}"
secret = {{ env = "HOOK_SECRET" }}
check_ms = 1000
[shops."{channel}".pace]
retry_ms = 50
"""
HOOK_SECRET = "a webhook's secret"
WITHIN_S = 25.0

wait_for = partial(shop_scene.wait_for, within_s=WITHIN_S)


class Scene(ShopScene):
    """One channel of the server, a double with its skus, and a publisher between them."""

    def __init__(self, folder: Path, server: Server, double: Double, names: Names) -> None:
        super().__init__(folder, server, double, names, skus=12, stock=7)
        self.source = names.id("shop")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.listen = f"127.0.0.1:{free.getsockname()[1]}"
        (folder / "shops.toml").write_text(
            SHOPS.format(
                channel=self.channel, url=double.url, source=self.source, public=f"http://{self.listen}"
            )
        )
        self.count(dict.fromkeys(self.skus, 20))
        self.log = folder / "publisher.log"
        self.process = self._start(server)

    def _start(self, server: Server) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "AVAIL_TARGET": server.grpc,
            "SHOP_KEY": "ck_test",
            "SHOP_SECRET": "cs_test",
            "HOOK_SECRET": HOOK_SECRET,
        }
        command = [sys.executable, "-m", "availability", "publish", "run", "--listen", self.listen]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*command, *options(self.folder)], env=environment, stdout=log, stderr=log
            )

    def equal(self) -> None:
        """Wait until the shop shows the ledger's numbers."""
        wait_for(
            lambda: self.shop() == self.ledger(),
            lambda: (self.shop(), self.ledger(), self.log.read_text(errors="replace")[-3_000:]),
        )

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.client.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of these tests' own: a shop is compared with every sku that its ledger knows."""
    with serving() as started:
        yield started


@pytest.fixture(scope="module")
def scene(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serve(double_shop(), tls=False) as double:
        made = Scene(tmp_path_factory.mktemp("publish"), server, double, fresh_names())
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(autouse=True)
def _environment(scene: Scene, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVAIL_TARGET", server.grpc)
    monkeypatch.setenv("SHOP_KEY", "ck_test")
    monkeypatch.setenv("SHOP_SECRET", "cs_test")
    monkeypatch.delenv("AVAIL_TOKEN", raising=False)


def publish(scene: Scene, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run a command of the group; return its exit code and what it printed."""
    capsys.readouterr()
    code = run(["publish", *arguments, *options(scene.folder)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_sale_of_the_shop_is_the_ledgers_order(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """By webhook, signed and through the publisher's own door; a cancel by polling; verify finds nothing."""
    scene.equal()
    wait_for(lambda: len(scene.double.shop.webhooks) == 4)
    sku = scene.skus[0]
    order = buy(scene.double.shop, {sku: 3})
    assert order is not None
    assert {one.status for one in scene.double.deliver_webhooks()} == {200}
    wait_for(lambda: scene.ledger()[sku] == 17)
    told = scene.client.get_order(scene.source, str(order.id))
    assert [(line.sku, line.ordered) for line in told.lines] == [(sku, 3)]
    set_status(scene.double.shop, order, "cancelled")
    wait_for(lambda: scene.ledger()[sku] == 20)
    scene.equal()
    code, said = publish(scene, capsys, "verify", "--settle", "0.5s")
    assert (code, said.count("all as they should be")) == (0, 1), said
    code, said = publish(scene, capsys, "orders", scene.channel, "--json")
    assert code == 0
    assert json.loads(said)["orders"] == 1
    capsys.readouterr()
    assert run(["publish", "orders", scene.channel, "--retell", str(order.id), *options(scene.folder)]) == 0
    told_to = capsys.readouterr()
    assert told_to.out == f"order {order.id} was told\n"
    assert "unencrypted" in told_to.err, "logs are no answers: they go to stderr"
    code, said = publish(scene, capsys, "orders", scene.channel, "--retell", "987654")
    assert code == 3
    assert "REFUSED: order 987654: nothing was told: the shop does not have it" in said, said


def test_a_kit_that_the_shop_sells_is_its_parts_in_the_ledger(scene: Scene) -> None:
    """The kit's own number is published, and an order of kits commits what they are made of."""
    kit, part = f"{scene.skus[8]}-kit", scene.skus[8]
    scene.double.shop.add(kit, 1)
    request = pol.SetKitRequest(kit_sku=kit, reason="sold in pairs")
    request.components.add(sku=part, units=2)
    scene.client.call(scene.client.policies.SetKit, request)
    wait_for(
        lambda: scene.double.shop.stock(kit) == 10,
        lambda: (scene.double.shop.stock(kit), scene.ledger(), scene.log.read_text()[-2_500:]),
    )
    order = buy(scene.double.shop, {kit: 3})
    assert order is not None
    wait_for(lambda: scene.ledger()[part] == 14, lambda: scene.log.read_text()[-2_500:])
    told = scene.client.get_order(scene.source, str(order.id))
    assert [(line.sku, line.ordered) for line in told.lines] == [(part, 6)]
    scene.equal()
    wait_for(lambda: scene.double.shop.stock(kit) == 7)


def test_what_somebody_changed_in_the_shop_is_found_and_mended(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rolling verification finds it without being asked, and writes the ledger's number."""
    scene.equal()
    with scene.double.shop.lock:
        product = scene.double.shop.find(scene.skus[3])[0]
        product.quantity = 999
        scene.double.shop.store(product)
    scene.equal()


def test_shadow_tells_what_would_be_written(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written: neither to the shop nor to what publishers know."""
    scene.equal()
    before = scene.shop()
    shops = (scene.folder / "shops.toml").read_text()
    other = scene.folder / "limited.toml"
    other.write_text(shops.replace("verify_ms = 2000", "verify_ms = 2000\npublish_limit = 5"))
    code = run(
        ["publish", "shadow", scene.channel, "--settle", "0s", "--json", "--shops", str(other), "--data-dir",
         str(scene.folder / "empty")]
    )  # fmt: skip
    said = json.loads(capsys.readouterr().out)
    assert code == 0
    assert said["would_write"] == {"all": 13, "to_zero": 0, "from_zero": 0, "up": 0, "down": 13}
    assert said["by_cause"] == {"NEVER_PUBLISHED": 13}
    assert scene.shop() == before


def test_a_mass_of_zeros_waits_for_an_operator(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the shop is counted to 0: the zeros are held, told by verify, and go when they are approved."""
    scene.equal()
    code, said = publish(scene, capsys, "approve", scene.channel, "--reason", "nothing waits")
    assert (code, said.startswith("NOTHING_WAITS")) == (3, True)
    half = scene.skus[:6]
    scene.count(dict.fromkeys(half, 0) | {scene.skus[7]: 4})
    wait_for(lambda: scene.shop()[scene.skus[7]] == 4)

    def held() -> int:
        code, said = publish(scene, capsys, "verify", "--settle", "0s", "--json")
        assert code == 3
        return int(json.loads(said)[0]["by_cause"].get("HELD", 0))

    wait_for(lambda: held() >= 4)
    code, said = publish(scene, capsys, "status", "--json")
    assert json.loads(said)[0]["held"] >= 4, said
    assert sum(scene.shop()[sku] == 0 for sku in half) <= 2
    code, said = publish(scene, capsys, "approve", scene.channel, "--reason", "end of the season")
    assert code == 0, said
    scene.equal()
    scene.count(dict.fromkeys(half, 20))
    scene.equal()


def test_resync_asks_for_what_differs_only(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """With the publisher stopped a difference stays; resync asks for it, and the next publisher writes it."""
    scene.equal()
    scene.process.send_signal(signal.SIGTERM)
    assert scene.process.wait(20) == 0
    with scene.double.shop.lock:
        product = scene.double.shop.find(scene.skus[5])[0]
        product.quantity = 1
        scene.double.shop.store(product)
    code, said = publish(scene, capsys, "verify", "--settle", "0s", "--json")
    assert code == 3
    (difference,) = json.loads(said)[0]["differences"]
    assert (difference["sku"], difference["cause"]) == (scene.skus[5], "CHANGED_IN_SHOP")
    code, said = publish(scene, capsys, "resync", "--settle", "0s")
    assert code == 0
    assert "1 asked for" in said
    writes = len(scene.double.shop.log)
    scene.process = scene._start(Server(os.environ["AVAIL_TARGET"], "", scene.log, scene.process))
    scene.equal()
    wait_for(lambda: len(scene.double.shop.log) > writes)
    batches = [one for one in list(scene.double.shop.log)[writes:] if one.path.endswith("batch")]
    assert {item for one in batches for item in one.items} == {scene.double.shop.find(scene.skus[5])[0].id}
