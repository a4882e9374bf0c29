"""Everything of one shop that delivery, its feed and its keeper work with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from availability.telemetry import PublishMetrics
from publisher.catalogue import Catalogue
from publisher.coalescer import Coalescer
from publisher.listing_rows import ListingRows
from publisher.pace import Pace
from publisher.records import Records
from publisher.settings import ShopSettings
from publisher.state import State
from publisher.storefront import Storefront
from publisher.traces import Traces


@dataclass(slots=True, kw_only=True)
class Shop:
    """One shop, put together by `assembly`."""

    channel: str
    settings: ShopSettings
    storefront: Storefront
    coalescer: Coalescer
    catalogue: Catalogue
    pace: Pace
    state: State
    rows: ListingRows
    records: Records
    metrics: PublishMetrics
    traces: Traces = field(default_factory=Traces)
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
