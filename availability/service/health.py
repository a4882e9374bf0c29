"""Health per service, and how a server leaves without losing a call.

Reads depend on the replica, writes on the ledger, so each service has a check of its own; the server as a
whole ("") serves when all do. The checks are called from one thread and must not wait. Who builds this:
`grpc_adapter`; what a check asks: the composition root's callables.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import structlog
from grpc_health.v1 import health, health_pb2  # type: ignore[import-untyped]  # it ships no types

_LOG = structlog.get_logger(__name__)

OVERALL = ""
LIVENESS = "liveness"
"""Serves while this process answers at all, whatever becomes of the ledger: a restart mends nothing else."""
INTERVAL_S = 0.25
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def service_checks(
    replica_is_fresh: Callable[[], bool],
    ledger_is_reachable: Callable[[], bool],
    package: str = "availability.v1",
) -> dict[str, Callable[[], bool]]:
    """Return the check of each of the contract's services."""
    return {
        f"{package}.AvailabilityService": replica_is_fresh,
        f"{package}.ReservationService": ledger_is_reachable,
        f"{package}.StockService": ledger_is_reachable,
        f"{package}.PolicyService": ledger_is_reachable,
        f"{package}.ExceptionService": ledger_is_reachable,
    }


class Health:
    """Keep a HealthServicer's statuses as the checks say. NOT_SERVING until the first refresh."""

    def __init__(self, checks: Mapping[str, Callable[[], bool]]) -> None:
        self._checks = dict(checks)
        # Blocking watchers, on a pool of their own: with the other kind, one watcher that does not read
        # stops every change of status.
        self.servicer = health.HealthServicer(experimental_non_blocking=False)
        self._told: dict[str, bool] = {}
        self._failing: set[str] = set()  # checks that raised last time: logged once, not four times a second
        self._ended = threading.Event()
        for service in (OVERALL, *self._checks):
            self._tell(service, False)
        self._tell(LIVENESS, True)

    def start(self, interval_s: float = INTERVAL_S) -> None:
        """Refresh now, and then again and again on a thread until the server drains."""
        self.refresh()

        def refresh_until_drained() -> None:
            while not self._ended.wait(interval_s):
                self.refresh()

        threading.Thread(target=refresh_until_drained, name="health", daemon=True).start()

    def refresh(self) -> None:
        """Ask every check once and publish what changed. A check that raises is a check that failed."""
        answers = {service: self._ask(service, check) for service, check in self._checks.items()}
        for service, serves in (*answers.items(), (OVERALL, all(answers.values()))):
            if self._told.get(service) is not serves:
                self._tell(service, serves)
                _LOG.info("health_changed", service=service or "overall", serving=serves)

    def drain(self) -> None:
        """Say NOT_SERVING for every service, for good."""
        self._ended.set()
        self.servicer.enter_graceful_shutdown()

    def _tell(self, service: str, serves: bool) -> None:
        self._told[service] = serves
        self.servicer.set(service, _SERVING if serves else _NOT_SERVING)

    def _ask(self, service: str, check: Callable[[], bool]) -> bool:
        try:
            answer = bool(check())
        except Exception:
            if service not in self._failing:
                _LOG.exception("health_check_failed", service=service)
            self._failing.add(service)
            return False
        self._failing.discard(service)
        return answer
