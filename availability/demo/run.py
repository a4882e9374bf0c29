"""Put the demo together: a server of our own, the actors, the view, the audit, the verdict."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from availability.client import Client, Retry
from availability.demo.audit import Audit, audit
from availability.demo.catalogue import CHANNELS, FENCE_SKU, FLASH, ITEMS, KIT, NODES, SKUS
from availability.demo.gate import gate
from availability.demo.journal import Journal
from availability.demo.people import SHOPPERS, await_expiries, flash_sale, shopper
from availability.demo.shop import CHANNEL, DemoShop, Shown, demo_shop
from availability.demo.story import Story
from availability.demo.systems import erp, operator, set_up, wms
from availability.demo.view import show_live, show_plain

SECONDS_DEFAULT = 22.0
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
CALL_TIMEOUT_S = 15.0
"""Longer than the client's default: a busy laptop is no reason for the show to fail."""
PATIENCE = Retry(attempts_max=40)
"""A server that sheds load on a busy machine is asked again until the deadline."""
LISTED_MAX = 20
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class DemoError(Exception):
    """The demo could not begin; one sentence why."""


def run(*, seconds: float, seed: int, keep: bool) -> int:
    """Run the demo; return the exit code: 0 only when nothing was oversold and nothing differs."""
    console = Console()
    signal.signal(signal.SIGTERM, _leave)  # end the server and remove the data on the way out
    with (
        _data_dir() as data_dir,
        _server(data_dir) as target,
        Client(target, timeout_s=CALL_TIMEOUT_S, retry=PATIENCE) as client,
        demo_shop(data_dir, target) as shop,
    ):
        verdict = play(client, console, seconds=seconds, seed=seed, shop=shop)
        if keep:
            _keep(console, target)
    return verdict


def play(client: Client, console: Console, *, seconds: float, seed: int, shop: DemoShop | None = None) -> int:
    """Play the story against a running service and audit it, and the shop; return the exit code."""
    story = Story(client, Journal(), seed, seconds)
    set_up(story)

    def show() -> None:
        _perform(story)
        await_expiries(story)

    if console.is_terminal:
        show_live(story, console, show)
    else:
        show_plain(story, show)
    found = audit(client, story.journal, SKUS)
    shown = None if shop is None else shop.settled(client, SKUS)
    _report_shop(console, shop, shown)
    return _report(story.journal, found, [] if shown is None else [one for one in shown if not one.same])


def _perform(story: Story) -> None:
    """Run all actors for the length of the show; the systems finish what the people left them."""
    story.begin_s = time.monotonic()
    people = [story.run(f"shopper {number}", shopper(number)) for number in range(SHOPPERS)]
    people += [story.run("operator", operator), story.run("flash sale", flash_sale)]
    systems = [story.run("ERP", erp), story.run("WMS", wms), story.run("gate", gate)]
    try:
        story.stop.wait(story.length_s)
    finally:
        story.stop.set()
        for actor in people + systems:
            actor.join(timeout=60.0)


def _report_shop(console: Console, shop: DemoShop | None, shown: list[Shown] | None) -> None:
    """Show the shop's numbers beside the ledger's."""
    if shop is None or shown is None:
        print("\nno shop was published to: pip install 'availability[publisher]' brings one")
        return
    print(f"\nthe shop's numbers beside the ledger's ({CHANNEL}), after {shop.written()} writes", flush=True)
    table = Table("sku", "ledger", "shop")
    for one in shown:
        style = "default" if one.same else "bold red"
        table.add_row(one.sku, str(one.ledger), str(one.shop), style=style)
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    if not all(one.same for one in shown):
        print(shop.last_words())


def _report(journal: Journal, found: Audit, wrongly_shown: Sequence[Shown]) -> int:
    counts = journal.counts
    answers = counts["reserved"] + counts["refused"]
    print(
        f"""
{counts["reserved"]} holds, {counts["refused"]} refused; {counts["orders"]} orders; \
{counts["expired"]} abandoned holds expired; {counts["shipped"]} units shipped
{counts["deltas"]} deltas, {counts["duplicates"]} of them sent twice; \
{counts["double clicks"]} double clicks, each answered once
{counts["files"]} files dropped at the gate; {counts["letters"]} bad row in them, now a dead letter
recomputed: {found.compared} numbers ({len(SKUS)} skus × {len(CHANNELS)} channels × {len(NODES)} nodes)
and {answers} checkout answers, each at its own version"""
    )
    wrong = [*journal.failures, *found.broken_promises, *found.differences]
    wrong += [
        f"the shop shows {one.shop} of {one.sku}, the ledger sells {one.ledger}" for one in wrongly_shown
    ]
    for line in wrong[:LISTED_MAX]:
        print(f"  {line}")
    if len(wrong) > LISTED_MAX:
        print(f"  … and {len(wrong) - LISTED_MAX} more")
    differences = len(found.differences) + len(found.broken_promises) + len(wrongly_shown)
    if journal.failures:
        print(f"{len(journal.failures)} things failed on the way")
    print(f"oversold {found.oversold}, differences {differences}", flush=True)
    return 0 if found.clean and not journal.failures and not wrongly_shown else 1


def _keep(console: Console, target: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m availability"
    if shutil.which("availability"):
        command = "availability"
    sku = shlex.quote(ITEMS[-1].sku)
    print(f"\nThe server stays up at {target} until Ctrl-C. Try, in another terminal:\n")
    console.print(f"  export AVAIL_TARGET={target}", highlight=False)
    for words in (
        f"get TEE-M {sku} --channel web --nodes",
        "explain TEE-M --channel web",
        "watch --channel market --all",
        f"explain {KIT} --channel web",
        f"explain {FENCE_SKU} --channel web",
        "reserve --channel web TEE-M=2 LAMP=1 --hold 15m",
        f"adjust TEE-M --node {NODES[0]} --quantity 5 --reason found",
        f"policy node {NODES[1]} offline --reason 'fire drill'",
        f"reserve --channel pos {FLASH.sku}=1",
    ):
        console.print(f"  {command} {words}", highlight=False, soft_wrap=True)
    try:
        while True:
            time.sleep(1.0)
    except KeyboardInterrupt:
        print("\nstopping")


# --- The server -------------------------------------------------------------------------------------------


@contextmanager
def _data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="availability-demo-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def _server(data_dir: Path) -> Iterator[str]:
    """Start ``availability serve --embedded`` as a child; yield its target; end it."""
    ready, log = data_dir / "ready.json", data_dir / "server.log"
    command = [sys.executable, "-m", "availability", "serve", "--embedded", "--no-auth"]
    command += ["--listen", "127.0.0.1:0", "--data-dir", str(data_dir / "ledger"), "--ready-file", str(ready)]
    with log.open("wb") as out:
        # A group of its own: Ctrl-C is for us, and we end the server in our own time.
        server = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent(ctypes.CDLL(None)),  # no thread of ours runs yet
            env=_environment(),
        )
    try:
        yield _target(server, ready, log)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _end_with_parent(libc: ctypes.CDLL) -> Callable[[], None]:
    """Return what a child runs first: asked of Linux, it gets SIGTERM when we are killed without a word."""

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask


def _environment() -> dict[str, str]:
    """Return our environment without settings of another server: the demo needs no other set-up."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AVAIL_")}


def _target(server: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if ready.exists() and (text := ready.read_text()).strip():
            return str(json.loads(text)["grpc"])
        if server.poll() is not None:
            break
        time.sleep(0.02)
    last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
    code = server.poll()
    state = f"is not ready in {START_TIMEOUT_S:g} s" if code is None else f"ended with {code}"
    raise DemoError(f"the server {state}: {''.join(last) or 'it said nothing'}")
