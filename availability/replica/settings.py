"""Settings and named limits of a replica. Values only: composition roots read them from somewhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """What an operator may change about a replica."""

    auto_create: bool = False
    """An unknown channel sells from every node with no buffer instead of being UNKNOWN_CHANNEL."""
    channels_max: int = 1_000
    """Most channels opened by reading their name; declared channels do not count."""
    page_skus: int = 1_000
    """Skus of one bootstrap page."""
    batch_records: int = 1_000
    """Most records folded into one recompute."""
    gather_ms: int = 5
    """Pause after a read that did not fill a batch, so that the next one brings more. It is part of the lag, but not
    for those who wait for a version: that ends the pause."""
    block_ms: int = 250
    """How long a read of the log waits, and so the age of an idle replica: far below max_staleness."""
    verify_skus: int = 64
    """Skus read back and compared after a bootstrap. At most 1,000."""
    digest_skus_per_s: int = 300
    """How fast the rolling digest walks: 250,000 skus in 14 minutes. 0: not at all."""
    digest_batch_skus: int = 64
    """Skus of one piece of it: what Redis and the following thread do in one go. At most 1,000."""
    backoff_min_ms: int = 50
    backoff_max_ms: int = 5_000
    doubt_window_ms: int = 60_000
    """A second unreadable record or disagreement within it makes the replica not ready until it is mended."""
    hysteresis_units: int = 0
    """A sku is back in stock so far above the low stock threshold, or by percent of it; the larger counts."""
    hysteresis_percent: int = 20
    watch_chunk_skus: int = 1_000
    """Most skus of one batch handed to a watcher."""
    chunk_rows: int = 1 << 18
    """Positions computed at once when everything moves; bounds temporary memory."""
