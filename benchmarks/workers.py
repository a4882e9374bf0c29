"""Server processes on one port, one, two and four: reads and reserves through gRPC, over several connections.

The client is a process of its own and needs a core too: on a machine of two the rates say little, so the processor
time of all server processes for one call stands beside them.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from benchmarks.common import IN_FLIGHT, Found, Meter, Plot, Row, Server, Size, in_turns, say, short
from benchmarks.load import Load, client, spread_loop
from benchmarks.reads import GET, filled_service, get_requests
from benchmarks.reserves import CREATE, create_requests, uniform

CONNECTIONS = 8
CREATES_PER_S_MAX = 12_000


class SpreadArm:
    """Calls of one method to all processes of a server; remembers their processor time per call."""

    def __init__(self, load: Load, server: Server, path: str, size: Size) -> None:
        self._load, self._server, self._path, self._size = load, server, path, size
        self._cpu_us: list[float] = []
        self._runs = 0

    def __call__(self) -> float:
        """Run one block; return calls a second."""
        creates = self._path == CREATE
        count = int(CREATES_PER_S_MAX * (self._size.block_s + 1))
        requests = get_requests()
        if creates:
            self._runs += 1
            made = create_requests(uniform, count, f"{self._server.pid}-{self._runs}")
            requests = [request.SerializeToString() for request in made]
        server = self._server
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        pids = [server.pid, *(int(pid) for pid in children if int(pid) != server.redis_pid)]
        meter = Meter(pids)
        rate, answered, _ = self._load.run(
            spread_loop,
            server.grpc,
            self._path,
            server.token,
            requests,
            creates,
            self._size.block_s,
            IN_FLIGHT,
            CONNECTIONS,
        )
        used, _ = meter.used()
        self._cpu_us.append(sum(used) / answered * 1e6)
        return float(rate)

    @property
    def cpu_us(self) -> float:
        """Processor time of the server's processes for one call: the least of the blocks."""
        return min(self._cpu_us)


def run(size: Size) -> list[Found]:
    """Measure both methods with each number of processes; one at a time, for each has a Redis of its own."""
    rows: list[Found] = []
    lines: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        load = stack.enter_context(client())
        servers = {count: stack.enter_context(filled_service(workers=count)) for count in size.workers}
        for name, path in (("GetAvailability", GET), ("CreateReservation", CREATE)):
            arms = {str(count): SpreadArm(load, server, path, size) for count, server in servers.items()}
            rates = in_turns(size.blocks, dict(arms))
            one = str(size.workers[0])
            for count in size.workers:
                rate, cost = rates[str(count)], arms[str(count)].cpu_us
                say(f"  {name}, {count} processes: {short(rate.median)}/s, {cost:.0f} µs a call")
                lines.setdefault(name, []).append((count, rate.median))
                rows.append(
                    Row(
                        measure=f"{name}, server processes: {count}",
                        figure=f"{short(rate.median)}/s; {cost:.0f} µs a call",
                        ratio=rate.over(rates[one])[0],
                        target="× one process",
                    )
                )
    title = f"Server processes on one port ({os.cpu_count()} cores, the client and Redis on the same)"
    return [*rows, Plot(name="workers", title=title, x="processes", y="calls a second", lines=lines)]
