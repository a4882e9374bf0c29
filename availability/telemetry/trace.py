"""W3C trace context: one name for what a source's event set off, from its arrival to the storefront's write.

What travels through the ledger is the correlation id. Where a caller sends `traceparent` and no correlation id of its
own, the trace id (32 hex digits) is the correlation id; whoever calls on (the publisher to a storefront) makes a
`traceparent` of it again, with a span of its own. A correlation id that is no trace id travels as it is and gets a
trace id by its hash, so that the same id always gives the same trace. Pure. Format: W3C Trace Context, version 00.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b

_TRACEPARENT = re.compile(
    r"\A(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-|\Z)"
)
_TRACE_ID = re.compile(r"\A(?!0{32}\Z)[0-9a-f]{32}\Z")
SAMPLED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace and the span that is the parent of what comes next. Ids are lower-case hex digits, 32 and 16."""

    trace_id: str
    span_id: str
    sampled: bool = False

    @classmethod
    def parse(cls, traceparent: str) -> Trace | None:
        """Read a `traceparent`; None where it is not one (the standard's rule: go on as if there was none)."""
        found = _TRACEPARENT.match(traceparent)
        if found is None or (traceparent.startswith("00") and len(traceparent) != 55):
            return None
        return cls(trace_id=found[1], span_id=found[2], sampled=bool(int(found[3], 16) & SAMPLED))

    @classmethod
    def of_correlation(cls, correlation_id: str, span_id: str) -> Trace:
        """Return the trace of a correlation id, with a span of the caller's."""
        if _TRACE_ID.match(correlation_id):
            return cls(trace_id=correlation_id, span_id=span_id)
        digest = blake2b(correlation_id.encode(), digest_size=16).hexdigest()
        return cls(trace_id=digest if int(digest, 16) else "1".zfill(32), span_id=span_id)

    def traceparent(self) -> str:
        """Return the header's value."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def correlation_of(correlation_id: str, traceparent: str) -> str:
    """Return the correlation id of an event: its own, else its trace's, else ""."""
    if correlation_id:
        return correlation_id
    trace = Trace.parse(traceparent)
    return trace.trace_id if trace is not None else ""
