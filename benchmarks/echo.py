"""A server of trivial handlers on the service's own pool and options: what a transport alone can do.

Echo gives the request's bytes back. Columns decodes a batch request and answers packed columns that it has ready.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc

from availability.config import LimitSettings
from availability.service.grpc_adapter import ServerOptions, _channel_options
from availability.service.pool import LendingPool
from availability.v1 import availability_pb2 as av

ECHO = "/bench.Echo/Echo"
ECHO_LIKE_OURS = "/bench.Echo/EchoLikeOurs"
COLUMNS = "/bench.Echo/Columns"
COLUMNS_LENGTH = 1_000


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ready-file", type=Path, required=True)
    ready_file: Path = parser.parse_args().ready_file
    sys.setswitchinterval(0.001)  # as the service does
    limits = LimitSettings()
    server = grpc.server(
        LendingPool(running=limits.threads_running, threads_max=limits.threads_max),  # type: ignore[arg-type]  # any Executor does
        maximum_concurrent_rpcs=limits.calls_max,
        options=_channel_options(ServerOptions(address="127.0.0.1:0")),
    )
    server.add_registered_method_handlers(
        "bench.Echo",
        {
            "Echo": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
            "EchoLikeOurs": grpc.stream_unary_rpc_method_handler(_echo_like_ours),
            "Columns": grpc.unary_unary_rpc_method_handler(_columns),
        },
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    draft = ready_file.with_suffix(".tmp")
    draft.write_text(json.dumps({"grpc": f"127.0.0.1:{port}", "pid": os.getpid()}))
    draft.replace(ready_file)
    stop.wait()
    server.stop(0).wait()


def _echo_like_ours(requests: Iterator[bytes], _: grpc.ServicerContext) -> bytes:
    """The service registers unary calls as if the client streamed."""
    return next(requests)


_sellables = [1_000_000 + number for number in range(COLUMNS_LENGTH)]
_states = [1] * COLUMNS_LENGTH


def _columns(request: bytes, _: grpc.ServicerContext) -> bytes:
    av.BatchGetAvailabilityRequest.FromString(request)
    return av.BatchGetAvailabilityResponse(sellable_quantities=_sellables, states=_states).SerializeToString()  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
