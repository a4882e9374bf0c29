"""What ingest asks of the ledger besides taking deltas: recipes of kits, and on_hand of a sku."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import structlog

from availability.client import Client, ClientError
from availability.v1 import policy_pb2, stock_pb2
from ingest.kits import Recipe

_LOG = structlog.get_logger(__name__)


class LedgerRecipes:
    """Recipes by the policies and the orders of a server."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._told = False

    def kits(self) -> Mapping[str, Recipe]:
        """Return today's recipes. A token that may not list policies (scope admin) explodes nothing: rows that name a
        kit become letters, KIT_SKU. Raises ClientError."""
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

    def of_order(self, order_source: str, order_ref: str) -> Mapping[str, Sequence[tuple[int, Recipe]]]:
        """Return an order's kits; nothing for an unknown order. Raises ClientError."""
        request = stock_pb2.GetOrderRequest(order_source=order_source, order_ref=order_ref)
        try:
            answer = self._client.call(self._client.stock.GetOrder, request)
        except ClientError as error:
            if error.reason == "ORDER_NOT_FOUND":
                return {}
            raise
        found: dict[str, list[tuple[int, Recipe]]] = {}
        for kit in answer.kits:
            recipe = tuple((part.sku, part.units) for part in kit.components)
            found.setdefault(kit.kit_sku, []).append((kit.quantity, recipe))
        return found


def on_hand_of(client: Client, channel: str) -> Callable[[str], Mapping[str, int]]:
    """Return what asks a sku's on_hand by node, at the nodes of a channel. Raises ClientError when asked."""
    return lambda sku: {node.node: node.on_hand for node in client.explain(channel, sku).terms.nodes}
