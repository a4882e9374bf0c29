"""From the ledger's changes to what a shop shall show: follows WatchAvailability and fills the coalescer.

The watch runs on a thread of its own, because the client blocks; it waits where too many messages wait to be kept, so a
slow publisher slows the stream, and the server then sends the latest value per sku. What comes within a short time is
kept together: a transaction costs as much as many rows. What a batch brought and its version are
one transaction: a killed publisher resumes there. publish_limit comes from the channel's policy and is asked for again
and again, because a change of it moves no sellable.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import grpc
import structlog

from availability.client import Client, ClientError
from availability.v1 import availability_pb2 as av
from availability.v1 import policy_pb2 as pol
from publisher.numbers import Limits, wanted
from publisher.shop import Shop
from publisher.state import Change, Kept

_LOG = structlog.get_logger(__name__)

LIMITS_S = 30.0
PAUSE_S = 1.0
PAUSE_MAX_S = 30.0
OVERRIDES_PER_PAGE = 1_000
INBOX_MESSAGES = 64
"""So many messages of the stream wait to be kept, at most."""
GATHER_S = 0.02
STOP_LOOK_S = 0.2
NOTHING_YET = "0-0"
"""Version of a stream that has not been complete once: resuming from it would start over."""


class Ledger(Protocol):
    """What the feed asks of the ledger. Methods block, and raise ClientError."""

    def watch(
        self, channel: str, *, resume_version: str, opened: Callable[[grpc.Call], None]
    ) -> Iterator[av.WatchAvailabilityResponse]:
        """Yield current values, then changes."""
        ...

    def limits(self, channel: str) -> Limits | None:
        """Return the channel's publish_limits; None where we may not read policies."""
        ...


class ClientLedger:
    """The ledger behind a client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def watch(
        self, channel: str, *, resume_version: str, opened: Callable[[grpc.Call], None]
    ) -> Iterator[av.WatchAvailabilityResponse]:
        """See ``Ledger``."""
        return self._client.watch(channel, resume_version=resume_version, opened=opened)

    def limits(self, channel: str) -> Limits | None:
        """See ``Ledger``."""
        by_sku: dict[str, int] = {}
        page_token = ""
        while True:
            request = pol.GetPolicyRequest(
                channel=channel, page_size=OVERRIDES_PER_PAGE, page_token=page_token
            )
            try:
                page = self._client.call(self._client.policies.GetPolicy, request)
            except ClientError as error:
                if error.code == "PERMISSION_DENIED":
                    return None
                raise
            by_sku |= {
                one.sku: one.override.publish_limit
                for one in page.overrides
                if one.override.HasField("publish_limit")
            }
            page_token = page.next_page_token
            if not page_token:
                limit = page.policy.publish_limit if page.policy.HasField("publish_limit") else None
                return Limits(channel=limit, skus=by_sku)


class Feed:
    """One channel's feed into one shop. ``lost_at``: since when the ledger is not heard, None while it is."""

    def __init__(
        self,
        shop: Shop,
        ledger: Ledger,
        wake: Callable[[], None],
        *,
        always: bool,
        allowed: frozenset[str] | None = None,
    ) -> None:
        self._shop = shop
        self._ledger = ledger
        self._wake = wake
        self._always = always
        self._allowed = allowed
        self._limits = Limits()
        self._limits_told = False
        self._stop = threading.Event()
        self._inbox: queue.Queue[tuple[float, av.WatchAvailabilityResponse]] = queue.Queue(INBOX_MESSAGES)
        self._came = asyncio.Event()
        self._call: grpc.Call | None = None
        self.skus: set[str] = set()
        self.lost_at: float | None = shop.now()
        self.heard_version = ""
        """Up to here everything is noted and on its way."""
        self.complete = asyncio.Event()
        """Everything of before the start has been heard."""

    async def run(self, resume_version: str) -> None:
        """Follow until ``stop``. Raises OwnerLost."""
        if resume_version:
            self.complete.set()
        await self._ask_limits()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def follow() -> None:
            failure: BaseException | None
            try:
                self._follow(loop, resume_version)
                failure = None
            except BaseException as error:  # handed over: the loop decides
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has ended before us
                loop.call_soon_threadsafe(_end, ended, failure)

        keeping = asyncio.create_task(self._keep_all())
        thread = threading.Thread(target=follow, name=f"feed {self._shop.channel}", daemon=True)
        thread.start()
        try:
            while not ended.done() and not keeping.done():
                await asyncio.wait([ended, keeping], timeout=LIMITS_S, return_when=asyncio.FIRST_COMPLETED)
                if not ended.done() and not keeping.done():
                    await self._ask_limits()
            (ended if ended.done() else keeping).result()
        finally:
            self.stop()
            keeping.cancel()

    def stop(self) -> None:
        """End the watch; for any thread."""
        self._stop.set()
        call = self._call
        if call is not None:
            call.cancel()

    def allows(self, sku: str) -> bool:
        """Say whether a sku is published at all (a pilot names its skus)."""
        return self._allowed is None or sku in self._allowed

    def number(self, sku: str, sellable: int) -> int:
        """Return the number to show."""
        settings = self._shop.settings
        return wanted(
            sellable,
            channel=self._shop.channel,
            limit=self._limits.of(sku),
            shop_limit=settings.publish_limit,
            ranked=settings.ranked,
        )

    def load(self, rows: Sequence[Kept]) -> list[Kept]:
        """Take up what a publisher before us had to do; returns what was under way when it ended."""
        shop, now, wall = self._shop, self._shop.monotonic(), self._shop.now()
        orphans: list[Kept] = []
        for row in rows:
            self.skus.add(row.sku)
            if not self.allows(row.sku):
                continue
            if (
                row.sending is not None
            ):  # ours as well: we had lost the shop, and whoever was writing was ended
                orphans.append(row)
                sent_ago_s = max(0.0, wall - (row.sending_at or 0.0))
                wait_s = max(0.0, shop.settings.orphan_ms / 1000 - sent_ago_s)
                shop.coalescer.learn(row.sku, None)
                shop.coalescer.force(
                    row.sku,
                    row.wanted,
                    row.wanted_version,
                    row.wanted_since,
                    blocked=row.blocked,
                    not_before=now + wait_s,
                    read_first=True,
                )
            elif row.asked or not shop.coalescer.offer(
                row.sku, row.wanted, row.wanted_version, row.wanted_since, blocked=row.blocked
            ):  # asked for; or the shop acknowledged it, and something was to be repaired
                shop.coalescer.force(
                    row.sku, row.wanted, row.wanted_version, wall, blocked=row.blocked, read_first=True
                )
        return orphans

    # --- On the feed's thread -----------------------------------------------------------------------------

    def _follow(self, loop: asyncio.AbstractEventLoop, resume_version: str) -> None:
        pause_s = PAUSE_S
        while not self._stop.is_set():
            try:
                for message in self._ledger.watch(
                    self._shop.channel, resume_version=resume_version, opened=self._opened
                ):
                    if message.as_of.version not in ("", NOTHING_YET):
                        resume_version = message.as_of.version
                    pause_s = PAUSE_S
                    if not self._put(loop, message):
                        return
                if self._stop.is_set():
                    return
                failure = "the stream ended"
            except ClientError as error:
                failure = f"{error.reason}: {error.message}"
            if self.lost_at is None:
                self.lost_at = self._shop.now()
            _LOG.warning("the ledger is not heard", channel=self._shop.channel, reason=failure)
            self._stop.wait(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    def _put(self, loop: asyncio.AbstractEventLoop, message: av.WatchAvailabilityResponse) -> bool:
        """Hand a message over; wait where too many wait to be kept. Returns False when stopped."""
        heard_at = self._shop.now()
        while not self._stop.is_set():
            try:
                self._inbox.put((heard_at, message), timeout=STOP_LOOK_S)
            except queue.Full:
                continue
            with contextlib.suppress(RuntimeError):  # the loop has ended before us
                loop.call_soon_threadsafe(self._came.set)
            return True
        return False

    def _opened(self, call: grpc.Call) -> None:
        self._call = call
        if self._stop.is_set():
            call.cancel()

    # --- On the loop --------------------------------------------------------------------------------------

    async def _keep_all(self) -> None:
        """Keep what comes, for ever. Raises OwnerLost."""
        while True:
            await self._came.wait()
            await asyncio.sleep(GATHER_S)
            self._came.clear()
            messages: list[tuple[float, av.WatchAvailabilityResponse]] = []
            with contextlib.suppress(queue.Empty):
                while True:
                    messages.append(self._inbox.get_nowait())
            if messages:
                await self._heard(messages)

    async def _heard(self, messages: Sequence[tuple[float, av.WatchAvailabilityResponse]]) -> None:
        """Keep messages together: the latest number of each sku, the time of the first word of it."""
        self.lost_at = None
        changes: dict[str, Change] = {}
        version = ""
        for heard_at, message in messages:
            if message.as_of.version not in ("", NOTHING_YET):
                version = message.as_of.version
            for one in message.changes:
                before = changes.get(one.sku)
                changes[one.sku] = Change(
                    sku=one.sku,
                    sellable=one.sellable_quantity,
                    wanted=self.number(one.sku, one.sellable_quantity),
                    version=message.as_of.version,
                    heard_at=heard_at if before is None else before.heard_at,
                    blocked=one.state == av.AVAILABILITY_STATE_BLOCKED,
                )
            self._shop.traces.heard([one.sku for one in message.changes], message.correlation_ids)
        await self._keep(list(changes.values()), version)
        self.heard_version = messages[-1][1].as_of.version
        if version or not messages[-1][1].initial:
            self.complete.set()

    async def _keep(self, changes: Sequence[Change], version: str) -> None:
        shop = self._shop
        await shop.records.insist(shop.state.heard, changes, version, shop.now(), always=self._always)
        for one in changes:
            self.skus.add(one.sku)
            if self.allows(one.sku):
                shop.coalescer.offer(one.sku, one.wanted, one.version, one.heard_at, blocked=one.blocked)
        if changes:
            self._wake()

    async def _ask_limits(self) -> None:
        """Ask for publish_limit; where it moved, what the shop shall show moves with it."""
        shop = self._shop
        try:
            found = await asyncio.to_thread(self._ledger.limits, shop.channel)
        except ClientError as error:
            _LOG.warning("publish_limit cannot be asked for", channel=shop.channel, reason=error.reason)
            return
        if found is None:
            if not self._limits_told:
                _LOG.warning(
                    "the token may not read policies: only the shop's own publish_limit holds",
                    channel=shop.channel,
                )
            self._limits_told = True
            return
        if found == self._limits:
            return
        self._limits = found
        rows = await shop.records.insist(shop.state.rows)
        now = shop.now()
        moved = [
            Change(
                sku=row.sku,
                sellable=row.sellable,
                wanted=number,
                version=row.wanted_version,
                heard_at=now,
                blocked=row.blocked,
            )
            for row in rows
            if (number := self.number(row.sku, row.sellable)) != row.wanted
        ]
        if moved:
            await self._keep(moved, "")


def _end(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
