"""Metrics of the publisher: how far each storefront is behind the ledger, and what its writes came to.

`demand` is `high` for the skus that the catalogue or the settings name so, else `normal`: a late sync of a best-seller
is told apart. A breach is a value that was acknowledged later than the channel's agreed time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from availability.telemetry.asked import AskedMetrics, Family, Sample

DELAY_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0)
REQUEST_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
DEMANDS = ("normal", "high")
WRITE_RESULTS = ("acknowledged", "failed", "refused", "superseded")
ORDER_RESULTS = ("told", "repeated", "draft", "before", "vanished", "refused", "unmapped", "unreadable")
WEBHOOK_RESULTS = ("kept", "ping", "unwanted", "unreadable", "forged", "lost")

_FAMILIES = (
    Family(
        name="availability_publish_backlog",
        help="Skus whose latest value a storefront has yet to acknowledge.",
        labels=("channel",),
    ),
    Family(
        name="availability_publish_lag_seconds",
        help="Age of the oldest change that a storefront has yet to acknowledge; 0: none.",
        labels=("channel", "demand"),
    ),
    Family(
        name="availability_publish_rate_limit",
        help="Writes per second that the pace allows towards a storefront.",
        labels=("channel",),
    ),
    Family(
        name="availability_publish_breaker_open",
        help="1 while a storefront is left alone because its calls fail.",
        labels=("channel",),
    ),
    Family(
        name="availability_publish_dead_letters",
        help="Values and orders that a storefront refused, waiting for a person.",
        labels=("channel",),
    ),
    Family(
        name="availability_publish_zeros_held",
        help="Skus that would go to 0 and wait for an operator, because they are too many at once.",
        labels=("channel",),
    ),
    Family(
        name="availability_publish_verify_age_seconds",
        help="Time since what a storefront shows was last read back and compared.",
        labels=("channel",),
    ),
    Family(
        name="availability_publish_feed_age_seconds",
        help="Time since the ledger was last heard by the publisher.",
        labels=("channel",),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFigures:
    """How a storefront fares; None: not known (yet)."""

    channel: str
    backlog: int
    lag_s: float
    high_demand_lag_s: float = 0.0
    rate_limit: float | None = None
    breaker_open: bool = False
    dead_letters: int | None = None
    zeros_held: int | None = None
    verify_age_s: float | None = None
    feed_age_s: float | None = None


class PublishMetrics:
    """See the module."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._writes = Counter(
            "availability_publish_writes_total",
            f"Values sent to storefronts by result: {', '.join(WRITE_RESULTS)}.",
            ["channel", "result"],
            registry=self.registry,
        )
        self._delay = Histogram(
            "availability_publish_delay_seconds",
            "Time from hearing of a change to its acknowledgement by the storefront.",
            ["channel", "demand"],
            buckets=DELAY_BUCKETS_S,
            registry=self.registry,
        )
        self._breaches = Counter(
            "availability_publish_breaches_total",
            "Values acknowledged later than the channel's agreed time.",
            ["channel", "demand"],
            registry=self.registry,
        )
        self._requests = Histogram(
            "availability_publish_request_duration_seconds",
            "HTTP calls to storefronts, by status class (2xx, 4xx, 5xx) or failure (timeout, unreachable).",
            ["channel", "status"],
            buckets=REQUEST_BUCKETS_S,
            registry=self.registry,
        )
        self._differences = Counter(
            "availability_publish_verify_differences_total",
            "Values that were read back and were not what had been acknowledged.",
            ["channel"],
            registry=self.registry,
        )
        self._orders = Counter(
            "availability_publish_orders_total",
            f"Orders read from storefronts by result: {', '.join(ORDER_RESULTS)}.",
            ["channel", "result"],
            registry=self.registry,
        )
        self._webhooks = Counter(
            "availability_publish_webhooks_total",
            f"Deliveries of storefronts' webhooks by result: {', '.join(WEBHOOK_RESULTS)}.",
            ["channel", "result"],
            registry=self.registry,
        )
        self._webhooks_disabled = Counter(
            "availability_publish_webhooks_disabled_total",
            "Webhooks that a storefront switched off after failures; they were made anew.",
            ["channel", "topic"],
            registry=self.registry,
        )
        self._asked = AskedMetrics(self.registry, "publish", _FAMILIES)

    def known(self, channel: str, topics: Iterable[str]) -> None:
        """Begin a channel's counts at 0: what a rate or an increase first sees of a series is where it counts from.

        ``topics``: those of the webhooks that a storefront may switch off.
        """
        for result in WRITE_RESULTS:
            self._writes.labels(channel, result)
        for demand in DEMANDS:
            self._delay.labels(channel, demand)
            self._breaches.labels(channel, demand)
        self._differences.labels(channel)
        for result in ORDER_RESULTS:
            self._orders.labels(channel, result)
        for result in WEBHOOK_RESULTS:
            self._webhooks.labels(channel, result)
        for topic in topics:
            self._webhooks_disabled.labels(channel, topic)

    def written(self, channel: str, result: str, count: int = 1) -> None:
        """Count values by what became of them."""
        self._writes.labels(channel, result).inc(count)

    def acknowledged(self, channel: str, delay_s: float, *, high_demand: bool, late: bool) -> None:
        """Record one acknowledged value: how long it took, and whether that was longer than agreed."""
        demand = DEMANDS[high_demand]
        self._delay.labels(channel, demand).observe(delay_s)
        if late:
            self._breaches.labels(channel, demand).inc()

    def requested(self, channel: str, status: str, seconds: float) -> None:
        """Record an HTTP call."""
        self._requests.labels(channel, status).observe(seconds)

    def differed(self, channel: str, count: int = 1) -> None:
        """Count values that the storefront shows otherwise than it acknowledged."""
        self._differences.labels(channel).inc(count)

    def order(self, channel: str, result: str) -> None:
        """Count an order that was read."""
        self._orders.labels(channel, result).inc()

    def webhook(self, channel: str, result: str) -> None:
        """Count a delivery of a webhook."""
        self._webhooks.labels(channel, result).inc()

    def webhook_disabled(self, channel: str, topic: str) -> None:
        """Count a webhook that the storefront switched off."""
        self._webhooks_disabled.labels(channel, topic).inc()

    def watch(self, figures: Callable[[], Iterable[ChannelFigures]]) -> None:
        """Ask for the channels' figures at each scrape."""
        self._asked.watch(lambda: _samples(figures()))


def _samples(channels: Iterable[ChannelFigures]) -> Iterator[Sample]:
    for one in channels:
        channel = (one.channel,)
        yield "availability_publish_backlog", channel, float(one.backlog)
        yield "availability_publish_lag_seconds", (one.channel, "normal"), one.lag_s
        yield "availability_publish_lag_seconds", (one.channel, "high"), one.high_demand_lag_s
        yield "availability_publish_breaker_open", channel, float(one.breaker_open)
        optional: tuple[tuple[str, float | None], ...] = (
            ("availability_publish_rate_limit", one.rate_limit),
            ("availability_publish_dead_letters", one.dead_letters),
            ("availability_publish_zeros_held", one.zeros_held),
            ("availability_publish_verify_age_seconds", one.verify_age_s),
            ("availability_publish_feed_age_seconds", one.feed_age_s),
        )
        for name, value in optional:
            if value is not None:
                yield name, channel, float(value)
