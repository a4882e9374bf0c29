"""The listener for scrapes: /metrics of one process, from a thread of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, start_http_server


def start_metrics_listener(listen: str, registry: CollectorRegistry) -> Callable[[], None] | None:
    """Serve /metrics on `host:port` from a thread and return what stops it; None where `listen` is "".

    One process, one listener: worker processes on a shared port need a metrics port each.
    """
    if not listen:
        return None
    host, _, port = listen.rpartition(":")
    server, thread = start_http_server(int(port), addr=host.strip("[]") or "127.0.0.1", registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
