"""Two hundred shoppers and one unit."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from tests.conftest import Names
from tests.linearizability import adjust
from tests.model import Policy
from tests.wire import TIMEOUT_S, Service, granted, refusal_of, reserve_request

SHOPPERS = 200
CONNECTIONS = 8
ROUNDS = 30
ROUNDS_FULL = 1_000
ATTEMPTS_MAX = 50


@pytest.mark.timeout(3_600)
def test_the_last_unit_is_granted_once(
    client: Service, connect: Callable[[], Service], names: Names, full: bool
) -> None:
    """200 clients ask at once for a unit of which there is one: one grant, 199 refusals, each round."""
    node, channel = names.node(), names.channel()
    client.set_node(node, online=True)
    client.set_channel(channel, Policy(nodes=(node,)))
    services = [connect() for _ in range(CONNECTIONS)]
    for number in range(ROUNDS_FULL if full else ROUNDS):
        sku = names.sku(number)
        assert client.apply_delta(adjust(names.id("wms"), f"one {number}", sku, node, 1))[0] == "APPLIED"
        outcomes = ask_at_once(services, names, channel, sku)
        assert len(outcomes) == SHOPPERS
        assert outcomes.count("RESERVED") == 1, f"round {number}"
        assert outcomes.count("INSUFFICIENT_STOCK") == SHOPPERS - 1
        assert client.sellables(channel, [sku], strong=True) == [(0, "OUT_OF_STOCK")]


def ask_at_once(services: list[Service], names: Names, channel: str, sku: str) -> list[str]:
    """Send a request per shopper without waiting; what was shed goes out again, with the same id."""
    waiting = [f"{names.id(sku)}-{number}"[-64:] for number in range(SHOPPERS)]
    outcomes = []
    for _ in range(ATTEMPTS_MAX):
        calls = [
            services[place % CONNECTIONS].reservations.CreateReservation.future(
                reserve_request(request_id, channel, [(sku, 1)]), timeout=TIMEOUT_S
            )
            for place, request_id in enumerate(waiting)
        ]
        shed = []
        for request_id, call in zip(waiting, calls, strict=True):
            try:
                outcomes.append(granted(call.result()).outcome)
            except grpc.RpcError as error:
                if refusal_of(error).reason != "OVERLOADED":
                    raise
                shed.append(request_id)
        waiting = shed
        if not waiting:
            break
    return outcomes
