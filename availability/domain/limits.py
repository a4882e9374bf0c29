"""Named limits of the contract. Those an operator may change are settings with these defaults."""

from __future__ import annotations

QUANTITY_MAX = 1_000_000_000
"""Largest quantity of one request, delta or policy, in base units (CONTRACT section 1)."""

BALANCE_ABS_MAX = 100_000_000_000
"""Largest balance of a position: sums over 500 nodes times 100 percent stay exact in a double (below 2**53)."""

ID_BYTES_MAX = 64
"""skus, nodes, channels, reasons, request ids, sources and streams, in UTF-8 bytes."""

REFERENCE_BYTES_MAX = 128
"""order references, event ids, references, correlation ids, authors, in UTF-8 bytes."""

REASON_TEXT_BYTES_MAX = 512
"""The sentence an operator gives with a change."""

HOLD_MS_MIN = 1_000
HOLD_MS_MAX = 24 * 3_600_000
FEED_INTERVAL_MS_MIN = 1_000
FEED_INTERVAL_MS_MAX = 7 * 24 * 3_600_000
FEED_GRACE_MS_MAX = 7 * 24 * 3_600_000
BATCH_SKUS_MAX = 5_000
BATCH_DELTAS_MAX = 5_000
CALL_DELTAS_MAX = 250
"""Deltas of one ledger call: a call blocks Redis, and multi-value commands take at most 1,000 values."""

ORDER_NAMES_MAX = 16
"""Names of one order, linked together: an order's facts are evaluated over all of them at once."""

REJECTED_NUMBERS_KEPT = 100_000
"""Rejected numbers of a stream that the ledger tells again; functions/11_streams.lua. A sender has fewer on the way."""

SOURCE_STREAMS_MAX = 10_000
"""Streams of one source: a mark is kept for ever, and with it up to 80 KB by which repeats are told."""

SNAPSHOT_CHUNK_ROWS_MAX = 5_000
SNAPSHOT_ROWS_MAX = 10_000_000
"""Rows of one snapshot that are kept for who compares them; some 10 bytes each in Redis, until it is closed."""

SNAPSHOT_STREAMS_MAX = 1_000
"""Streams that a snapshot's point may name."""

LINES_DEFAULT = 500
LINES_MAX = 2_000
PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000
CHANNEL_NODES_MAX = 500
KIT_COMPONENTS_MAX = 100
"""Components of a kit as set, and again once it is flattened; functions/07_kits.lua names the others."""

KIT_UNITS_MAX = 1_000_000
"""Units of a component in one kit, as set."""

EXPLODED_LINES_MAX = 2_000
"""Lines of a basket with kits once they are exploded; functions/10_reservations.lua holds grants to it."""

REQUEST_ID_WINDOW_MS = 24 * 3_600_000
