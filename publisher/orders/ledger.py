"""What the orders of a shop ask of the ledger: take words, and say what it knows of an order. Calls block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from availability.client import Client, ClientError
from availability.domain.limits import BATCH_DELTAS_MAX
from availability.v1 import policy_pb2
from availability.v1 import stock_pb2 as pb
from publisher.orders.facts import Recipe, Recipes

_LOG = structlog.get_logger(__name__)

_ANY = 1_000_000_000
"""More kits than an order may want: one recipe for all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownOrder:
    """What the ledger knows of an order."""

    shipped: Mapping[tuple[str, str], Mapping[str, int]]
    """(line, sku) → node → units."""
    kits: Mapping[str, Recipes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A word that the ledger did not take."""

    order_ref: str
    sku: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The ledger's answer to words. ``version``: everything up to it holds them."""

    version: str
    refused: tuple[Refused, ...] = ()


class OrderLedger(Protocol):
    """The ledger as the poller needs it. Every method raises ClientError."""

    def tell(self, words: Sequence[pb.Delta]) -> Heard:
        """Send words, durably under the running profile."""
        ...

    def known(self, order_id: int) -> KnownOrder:
        """Return what is known of an order; nothing for an unknown one."""
        ...

    def kits(self) -> Mapping[str, Recipe]:
        """Return today's recipes by kit."""
        ...


class OrderClient:
    """The ledger behind a server. ``source`` names the shop's orders and must be one of the token's."""

    def __init__(self, client: Client, source: str) -> None:
        self._client = client
        self._source = source
        self._told = False

    def tell(self, words: Sequence[pb.Delta]) -> Heard:
        """Send words in batches as large as the service takes."""
        version, refused = "", list[Refused]()
        for at in range(0, len(words), BATCH_DELTAS_MAX):
            batch = words[at : at + BATCH_DELTAS_MAX]
            answer = self._client.apply_deltas(self._source, batch)
            version = answer.version
            refused += [
                Refused(
                    order_ref=batch[detail.index].order_ref,
                    sku=batch[detail.index].sku,
                    reason=detail.reason,
                )
                for detail in answer.details
                if detail.result == pb.DELTA_RESULT_REJECTED
            ]
        return Heard(version=version, refused=tuple(refused))

    def known(self, order_id: int) -> KnownOrder:
        """Ask GetOrder."""
        try:
            answer = self._client.get_order(self._source, str(order_id))
        except ClientError as error:
            if error.reason == "ORDER_NOT_FOUND":
                return KnownOrder(shipped={}, kits={})
            raise
        return known_order(answer)

    def kits(self) -> Mapping[str, Recipe]:
        """List the policies. A token without scope admin explodes nothing: words about kits are refused, KIT_SKU."""
        try:
            answer = self._client.call(self._client.policies.ListPolicies, policy_pb2.ListPoliciesRequest())
        except ClientError as error:
            if error.code != "PERMISSION_DENIED":
                raise
            if not self._told:
                self._told = True
                _LOG.warning("kits are not exploded: the token has no scope to list policies")
            return {}
        return {
            kit.kit_sku: tuple((part.sku, part.units) for part in kit.flattened)
            for kit in answer.kits
            if kit.flattened
        }


def known_order(answer: pb.GetOrderResponse) -> KnownOrder:
    """Read GetOrder's answer."""
    shipped = {
        (line.line, line.sku): {node.node: node.shipped for node in line.nodes if node.shipped}
        for line in answer.lines
    }
    made: dict[str, list[tuple[int, Recipe]]] = {}
    for kit in answer.kits:
        recipe = tuple((part.sku, part.units) for part in kit.components)
        made.setdefault(kit.kit_sku, []).append((kit.quantity, recipe))
    return KnownOrder(
        shipped={key: places for key, places in shipped.items() if places},
        kits={kit: tuple(recipes) for kit, recipes in made.items()},
    )


def recipes_of(
    skus: Iterable[str], today: Mapping[str, Recipe], made: Mapping[str, Recipes]
) -> dict[str, Recipes]:
    """Return the recipes of those skus that are kits: the order's own first, else today's."""
    return {sku: made.get(sku) or ((_ANY, today[sku]),) for sku in skus if sku in today or made.get(sku)}
