"""What a call of `client` ends in when it fails, and how often it is sent again before that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class ClientError(Exception):
    """A refused or failed call: canonical code, the contract's reason, a sentence, and facts.

    Where the server gave no reason (the network failed before it could), the reason is the code.
    """

    def __init__(
        self, code: str, reason: str, message: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})


class SequenceGapError(ClientError):
    """The ledger waits for a number that the sender has not sent; go on from ``expected_sequence``."""

    def __init__(self, source: str, stream: str, expected_sequence: int) -> None:
        facts = {"source": source, "stream": stream, "expected_sequence": str(expected_sequence)}
        message = f"stream {stream!r} of {source!r} waits for number {expected_sequence}"
        super().__init__("FAILED_PRECONDITION", "PARKED", message, facts)
        self.stream = stream
        self.expected_sequence = expected_sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and how fast to send again, within the call's own deadline."""

    attempts_max: int = 6
    backoff_s: float = 0.05
    backoff_max_s: float = 2.0
