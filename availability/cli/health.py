"""`health`: what a server says of itself, for containers and for people."""

from __future__ import annotations

from typing import Annotated

import typer

from availability.cli.errors import EXIT_UNREACHABLE, CommandError
from availability.cli.options import DEFAULT_TARGET, Target, TlsCa

TIMEOUT_S = 5.0


def health(
    service: Annotated[
        str,
        typer.Option("--service", help="As availability.v1.AvailabilityService; empty: all; or liveness."),
    ] = "",
    target: Target = DEFAULT_TARGET,
    tls_ca: TlsCa = None,
) -> None:
    """Ask a server's health. Exit code 4 unless it serves."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # it ships no types

    channel = (
        grpc.insecure_channel(target)
        if tls_ca is None
        else grpc.secure_channel(target, grpc.ssl_channel_credentials(tls_ca.read_bytes()))
    )
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S
            )
        except grpc.RpcError as error:
            raise CommandError(
                "NOT_SERVING", f"{target}: {error.code().name}: {error.details()}", EXIT_UNREACHABLE
            ) from None
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise CommandError("NOT_SERVING", f"{target}: {status}", EXIT_UNREACHABLE)
    print(status)
