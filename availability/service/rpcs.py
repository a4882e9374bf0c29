"""Every RPC, the scope that it needs and how it fares under load. What is not in this table is not served.

The table is compared with the contract's descriptors before a server starts, so that a new RPC is denied
until somebody has decided both. The scopes are CONTRACT section 3's; who acts on the table is `grpc_pipeline`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor

from availability.service.admission import CallClass
from availability.service.auth import Scope
from availability.v1 import availability_pb2, exception_pb2, policy_pb2, reservation_pb2, stock_pb2

PACKAGE = "availability.v1"
CONTRACT_FILES: tuple[FileDescriptor, ...] = (
    availability_pb2.DESCRIPTOR,
    reservation_pb2.DESCRIPTOR,
    stock_pb2.DESCRIPTOR,
    policy_pb2.DESCRIPTOR,
    exception_pb2.DESCRIPTOR,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """One method: who may call it, when it is refused, and which handler answers."""

    service: str
    method: str
    scope: Scope
    call_class: CallClass
    client_streams: bool = False
    server_streams: bool = False

    @property
    def path(self) -> str:
        """Name on the wire, as in /availability.v1.StockService/GetOrder."""
        return f"/{PACKAGE}.{self.service}/{self.method}"

    @property
    def handler(self) -> str:
        """Name of the method of the service's handlers that answers."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.method).lower()

    @property
    def streams(self) -> bool:
        """Whether either side streams."""
        return self.client_streams or self.server_streams


def _rpcs(service: str, scope: Scope, **methods: CallClass) -> list[Rpc]:
    return [
        Rpc(service=service, method=method, scope=scope, call_class=call_class)
        for method, call_class in methods.items()
    ]


RPCS: tuple[Rpc, ...] = (
    *_rpcs(
        "AvailabilityService",
        Scope.READ,
        GetAvailability=CallClass.READ,
        BatchGetAvailability=CallClass.READ,
        CheckBasket=CallClass.READ,
        ExplainAvailability=CallClass.READ,
    ),
    Rpc(
        service="AvailabilityService",
        method="WatchAvailability",
        scope=Scope.READ,
        call_class=CallClass.READ,
        server_streams=True,
    ),
    *_rpcs(
        "ReservationService",
        Scope.RESERVE,
        CreateReservation=CallClass.RESERVE,
        ExtendReservation=CallClass.ORDER,
        CommitReservation=CallClass.ORDER,
        ReleaseReservation=CallClass.ORDER,
        GetReservation=CallClass.READ,
        ListReservations=CallClass.READ,
    ),
    *_rpcs(
        "StockService",
        Scope.INGEST,
        ApplyDeltas=CallClass.INGEST,
        GetOrder=CallClass.READ,
        ListStreams=CallClass.READ,
    ),
    Rpc(
        service="StockService",
        method="StreamDeltas",
        scope=Scope.INGEST,
        call_class=CallClass.INGEST,
        client_streams=True,
        server_streams=True,
    ),
    *_rpcs("StockService", Scope.ADMIN, SkipGap=CallClass.ADMIN, ResetStream=CallClass.ADMIN),
    *_rpcs(
        "StockService",
        Scope.INGEST,
        BeginSnapshot=CallClass.SNAPSHOT,
        EndSnapshot=CallClass.SNAPSHOT,
        CloseSnapshot=CallClass.SNAPSHOT,
        ListSnapshots=CallClass.SNAPSHOT,
        AuditLedger=CallClass.SNAPSHOT,
    ),
    Rpc(
        service="StockService",
        method="StreamSnapshot",
        scope=Scope.INGEST,
        call_class=CallClass.SNAPSHOT,
        client_streams=True,
        server_streams=True,
    ),
    *(
        Rpc(
            service="StockService",
            method=method,
            scope=Scope.INGEST,
            call_class=CallClass.SNAPSHOT,
            server_streams=True,
        )
        for method in ("ReadSnapshot", "ReadPositions", "ReadOrderLines")
    ),
    *_rpcs(
        "PolicyService",
        Scope.ADMIN,
        SetChannelPolicy=CallClass.ADMIN,
        SetSkuOverride=CallClass.ADMIN,
        ClearSkuOverride=CallClass.ADMIN,
        SetSafetyStock=CallClass.ADMIN,
        SetNode=CallClass.ADMIN,
        SetSaleState=CallClass.ADMIN,
        SetRingFence=CallClass.ADMIN,
        SetFeed=CallClass.ADMIN,
        SetKit=CallClass.ADMIN,
        GetPolicy=CallClass.ADMIN,
        ListPolicies=CallClass.ADMIN,
    ),
    *_rpcs("ExceptionService", Scope.READ, ListExceptions=CallClass.READ),
    *_rpcs("ExceptionService", Scope.ADMIN, AcknowledgeException=CallClass.ADMIN),
    *_rpcs("ExceptionService", Scope.INGEST, ReportExceptions=CallClass.INGEST),
    Rpc(
        service="ExceptionService",
        method="WatchExceptions",
        scope=Scope.READ,
        call_class=CallClass.READ,
        server_streams=True,
    ),
)


class TableMismatch(Exception):
    """The table and the contract disagree: a bug of this build, and no server starts with it."""


def contract_services(files: Iterable[FileDescriptor] = CONTRACT_FILES) -> dict[str, ServiceDescriptor]:
    """Return the contract's services by their short names."""
    return {name: service for file in files for name, service in file.services_by_name.items()}


def check_table(
    rpcs: Sequence[Rpc] = RPCS, files: Iterable[FileDescriptor] = CONTRACT_FILES
) -> dict[Rpc, MethodDescriptor]:
    """Return each RPC's descriptor; TableMismatch names each RPC that is missing, extra, double or unlike."""
    declared = {
        (name, method.name): method
        for name, service in contract_services(files).items()
        for method in service.methods
    }
    listed = [(rpc.service, rpc.method) for rpc in rpcs]
    problems = [
        f"{service}.{method} has no row: it is denied" for service, method in declared.keys() - set(listed)
    ]
    problems += [
        f"{service}.{method} is not in the contract" for service, method in set(listed) - declared.keys()
    ]
    problems += [f"{'.'.join(name)} has two rows" for name in set(listed) if listed.count(name) > 1]
    found: dict[Rpc, MethodDescriptor] = {}
    for rpc in rpcs:
        method = declared.get((rpc.service, rpc.method))
        if method is None:
            continue
        found[rpc] = method
        if (rpc.client_streams, rpc.server_streams) != (method.client_streaming, method.server_streaming):
            problems.append(f"{rpc.service}.{rpc.method} streams otherwise than its row says")
    if problems:
        raise TableMismatch("; ".join(sorted(problems)))
    return found
