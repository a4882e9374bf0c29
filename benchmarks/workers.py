"""One server process and two on one port: reads and reserves through gRPC, over several connections.

The client is a process of its own and needs a core too: on a machine of two the rates say little, so the processor
time of all server processes for one call stands beside them.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import IN_FLIGHT, Meter, Row, Server, Size, in_turns, say, short
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


def run(size: Size) -> list[Row]:
    """Measure both methods with one process and with two."""
    rows = []
    with filled_service() as one, filled_service(workers=2) as two, client() as load:
        for name, path in (("GetAvailability", GET), ("CreateReservation", CREATE)):
            arms = {"one": SpreadArm(load, one, path, size), "two": SpreadArm(load, two, path, size)}
            rates = in_turns(size.blocks, dict(arms))
            ratio = rates["two"].over(rates["one"])
            say(
                f"  {name}: {short(rates['one'].median)}/s and {short(rates['two'].median)}/s, "
                f"{arms['one'].cpu_us:.0f} and {arms['two'].cpu_us:.0f} µs a call"
            )
            figure = f"{short(rates['two'].median)}/s ÷ {short(rates['one'].median)}/s"
            cost = f"{arms['two'].cpu_us:.0f} and {arms['one'].cpu_us:.0f} µs a call"
            rows.append(Row(measure=f"{name}, 2 workers ÷ 1", figure=f"{figure}; {cost}", ratio=ratio[0]))
    return rows
