"""How old an answer may be: max_staleness, min_version, strong, allow_stale (CONTRACT section 5)."""

from __future__ import annotations

import time
from typing import Protocol

from availability.domain.errors import Reason, ServiceError, invalid
from availability.domain.version import Version
from availability.ledger.ledger import Ledger
from availability.replica.replica import Replica
from availability.service.context import CallContext
from availability.service.ledger_calls import ledger_failures
from availability.v1 import common_pb2

ANSWER_MARGIN_S = 0.02
"""Kept of a caller's deadline to bring the answer home."""


class ReadOptions(Protocol):
    """The fields that every read request shares."""

    @property
    def min_version(self) -> str: ...
    @property
    def strong(self) -> bool: ...
    @property
    def allow_stale(self) -> bool: ...


class Freshness:
    """Decides whether memory may answer, and waits for it where asked."""

    def __init__(self, ledger: Ledger, replica: Replica, *, max_staleness_ms: int) -> None:
        self._ledger = ledger
        self._replica = replica
        self._max_ms = max_staleness_ms

    def check(self, request: ReadOptions, ctx: CallContext) -> tuple[int, bool]:
        """Return (age in ms, degraded), after any wait asked for.

        Raises ServiceError LEDGER_NOT_READY, STALE, VERSION_LOST, DEADLINE_EXCEEDED, LEDGER_UNREACHABLE.
        """
        replica = self._replica
        if request.strong or request.min_version:
            self._wait(request, ctx)
        if not replica.ready:
            raise ServiceError(Reason.LEDGER_NOT_READY, replica.not_ready_reason or "still loading")
        age_ms = replica.freshness_ms()
        if age_ms <= self._max_ms:
            return age_ms, False
        if not request.allow_stale:
            raise ServiceError(
                Reason.STALE,
                f"memory is {age_ms} ms old, at most {self._max_ms} ms may be; allow_stale takes it as it is",
                age_ms=str(age_ms),
            )
        return age_ms, True

    def latest(self, ctx: CallContext) -> common_pb2.AsOf:
        """Wait until memory shows the ledger's present; for operators, who look at what they just set."""
        with ctx.blocking():
            with ledger_failures():
                version = self._ledger.head().version
            self._wait_for(version, ctx)
        return common_pb2.AsOf(version=str(self._replica.version), age_ms=self._replica.freshness_ms())

    def is_fresh(self) -> bool:
        """Whether reads are served at all; for health."""
        return self._replica.ready and self._replica.freshness_ms() <= self._max_ms

    def _wait(self, request: ReadOptions, ctx: CallContext) -> None:
        wanted: list[Version] = []
        if request.min_version:
            try:
                wanted.append(Version.parse(request.min_version))
            except ValueError as error:
                raise invalid(str(error), field="min_version") from error
            if wanted[0].shard:
                raise invalid("this ledger has one shard", field="min_version")
        if not request.strong and self._replica.ready and self._replica.wait_for(wanted[0], time.monotonic()):
            return  # there already: the common case needs no other thread
        with ctx.blocking():
            if request.strong:
                with ledger_failures():
                    wanted.append(self._ledger.head().version)
            for version in wanted:
                self._wait_for(version, ctx)

    def _wait_for(self, version: Version, ctx: CallContext) -> None:
        if not self._replica.wait_for(version, ctx.deadline - ANSWER_MARGIN_S):
            raise ServiceError(
                Reason.DEADLINE_EXCEEDED, "memory did not reach the version in time", version=str(version)
            )
