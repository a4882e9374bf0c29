"""Reads driven by h2load, a client in C, and checked against the server's own counters.

h2load counts every HTTP 200 as a success, and gRPC tells its errors in the trailers of a 200: so the rate is taken
from it, and how many calls were answered OK from the server's metrics. Where h2load is not installed (Debian:
nghttp2-client), one row says so.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
import urllib.request
from pathlib import Path

from availability.v1 import availability_pb2 as av
from benchmarks.common import CHANNEL, Found, Row, Server, Size, say, short, sku
from benchmarks.reads import GET, filled_service

CONNECTIONS, STREAMS = 4, 16
CALLS_PER_S = 2_500
TIMEOUT_S = 120
_RATE = re.compile(r"finished in [\d.]+\w+, ([\d.]+) req/s")


def answered_ok(server: Server) -> float:
    """Ask the server how many GetAvailability it answered with OK."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    counted = [line for line in lines if line.startswith("availability_rpc_requests_total{")]
    return sum(
        float(line.rpartition(" ")[2])
        for line in counted
        if "GetAvailability" in line and 'code="OK"' in line
    )


def run(size: Size) -> list[Found]:
    """Drive GetAvailability of one sku over a few connections."""
    program = shutil.which("h2load")
    if program is None:
        return [Row(measure="reads by h2load", figure="h2load is not installed")]
    with filled_service() as server, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        request = av.GetAvailabilityRequest(channel=CHANNEL, sku=sku(7)).SerializeToString()
        body = Path(folder) / "request"
        body.write_bytes(
            struct.pack(">BI", 0, len(request)) + request
        )  # gRPC's frame: not compressed, length
        calls = max(2_000, int(CALLS_PER_S * size.block_s * size.blocks))
        command = [
            program,
            *("-n", str(calls), "-c", str(CONNECTIONS), "-m", str(STREAMS), "-t", "1", "-d", str(body)),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
            *("-H", f"authorization: Bearer {server.token}", f"http://{server.grpc}{GET}"),
        ]
        before = answered_ok(server)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        counted = answered_ok(server) - before
    rate = _RATE.search(done.stdout)
    if done.returncode or rate is None:
        raise RuntimeError(f"h2load failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    say(
        f"  h2load {short(float(rate[1]))}/s; {counted:,.0f} of {calls:,} answered OK by the server's counters"
    )
    return [
        Row(
            measure=f"GetAvailability by h2load, {CONNECTIONS} connections × {STREAMS}",
            figure=f"{short(float(rate[1]))}/s",
        ),
        Row(
            measure="  answered OK, by the server's own counters",
            figure=f"{counted:,.0f} of {calls:,}",
            ratio=counted / calls,
            target="= 1",
            met=counted == calls,
        ),
    ]
