"""One side of a comparison: calls of one method of one server, block by block."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from benchmarks.common import IN_FLIGHT, Meter, Server, Size
from benchmarks.load import Load, closed_loop


class Arm:
    """Calls of one method; remembers the server's processor time per call and how busy others were."""

    def __init__(
        self,
        load: Load,
        server: Server,
        path: str,
        size: Size,
        requests: Callable[[], Sequence[bytes]],
        *,
        once: bool = False,
        in_flight: int = IN_FLIGHT,
    ) -> None:
        self._load, self._server, self._seconds = load, server, size.block_s
        self._path, self._requests, self._once, self._in_flight = path, requests, once, in_flight
        self._cpu_us: list[float] = []
        self._others: list[float] = []
        self.calls = 0
        """Calls answered so far."""
        self.shed = 0
        """Calls refused as OVERLOADED: they are in no rate, only in the processor time of the others."""

    def __call__(self) -> float:
        """Run one block; return calls a second."""
        requests = self._requests()
        meter = Meter([self._server.pid, self._load.pid])
        rate, count, shed = self._load.run(
            closed_loop,
            self._server.grpc,
            self._path,
            self._server.token,
            requests,
            self._once,
            self._seconds,
            self._in_flight,
        )
        (server_s, _), others = meter.used()
        self.shed += shed
        self._cpu_us.append(server_s / count * 1e6)
        self._others.append(others)
        self.calls += count
        return float(rate)

    @property
    def cpu_us(self) -> float:
        """Processor time of the server's process for one call: the least of the blocks, neighbours only add."""
        return min(self._cpu_us)

    @property
    def others(self) -> float:
        """Cores that others on the machine kept busy meanwhile."""
        return statistics.median(self._others)
