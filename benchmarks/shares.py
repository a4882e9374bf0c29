"""Where the time goes: shares of transport, Python and Redis for a read, a reserve and a delta.

Transport is what an empty echo costs the server (for deltas: nothing to compare with, so it is in Python's share).
Python is the rest of the server's processor time, its replica and its commit queue included. Redis is the
processor time of Redis's main thread.
"""

from __future__ import annotations

from benchmarks.arms import Arm
from benchmarks.common import Row, Size, echo_server, in_turns, main_thread_s, say
from benchmarks.deltas import Stream
from benchmarks.echo import ECHO
from benchmarks.load import client
from benchmarks.reads import GET, filled_service, get_requests
from benchmarks.reserves import create_arm


def run(size: Size) -> list[Row]:
    """Measure each beside an echo."""
    with filled_service() as server, echo_server() as echo, client() as load:
        reads, empty = get_requests(), [b""] * 64
        arms = {
            "echo": Arm(load, echo, ECHO, size, lambda: empty),
            "read": Arm(load, server, GET, size, lambda: reads),
            "reserve": create_arm(load, server, size),
        }
        redis_us = {"echo": 0.0, "read": 0.0, "reserve": 0.0}
        for name, arm in arms.items():
            before = main_thread_s(server.redis_pid)
            in_turns(min(3, size.blocks), {name: arm})
            redis_us[name] = (main_thread_s(server.redis_pid) - before) / arm.calls * 1e6
        deltas = Stream(load, server, size.deltas, 1_000)
        deltas()
    transport = arms["echo"].cpu_us
    say("  processor time of the server's side, µs")
    rows = [
        _row(name, transport, arms[name].cpu_us - transport, redis_us[name]) for name in ("read", "reserve")
    ]
    _, server_us, delta_redis_us = deltas.costs_us
    return [*rows, _row("delta", 0.0, server_us, delta_redis_us)]


def _row(name: str, transport: float, python: float, redis: float) -> Row:
    python = max(0.0, python)
    whole = transport + python + redis
    shares = ", ".join(
        f"{what} {part:.0f} µs ({part / whole:.0%})"
        for what, part in (("transport", transport), ("Python", python), ("Redis", redis))
        if part
    )
    say(f"  {name}: {shares}")
    raw = {"transport_us": transport, "python_us": python, "redis_us": redis}
    return Row(measure=f"where a {name}'s time goes", figure=shares, raw=raw)
