"""`policy show` and `list`: what operators have decided, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from availability.cli.options import (
    DEFAULT_TARGET,
    AsJson,
    Target,
    TlsCa,
    TokenFile,
    connect,
)
from availability.cli.output import console, print_json, table, word
from availability.cli.policy import ChannelName

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from availability.client import Client
    from availability.v1 import common_pb2 as common
    from availability.v1 import policy_pb2 as pol


def show(
    channel: ChannelName,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Show a channel's policy and its overrides."""
    with connect(target, token_file, tls_ca) as client:
        pages = _pages(client, channel)
    if as_json:
        print_json(pages)
        return
    from rich.markup import escape

    from availability.v1 import common_pb2 as common

    screen = console()
    screen.print(_channels([pages[0].policy]))
    screen.print(f"sale state: {word(common.SaleState, pages[0].sale_state)}")
    overrides = [entry for page in pages for entry in page.overrides]
    if not overrides:
        return
    rows = table("sku", "buffer", "oversell_limit", "publish_limit", "excluded nodes", "by", "because")
    for entry in overrides:
        differs = entry.override
        rows.add_row(
            escape(entry.sku),
            _buffer_words(differs.buffer) if differs.HasField("buffer") else "",
            str(differs.oversell_limit) if differs.HasField("oversell_limit") else "",
            str(differs.publish_limit) if differs.HasField("publish_limit") else "",
            escape(", ".join(differs.excluded_nodes)),
            escape(entry.author),
            escape(entry.reason),
        )
    screen.print("\n[bold]overrides[/]")
    screen.print(rows)


def list_all(
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """List all that is set: channels, nodes, stops, kits, ring-fences, feeds, safety stocks."""
    from availability.v1 import policy_pb2 as pol

    with connect(target, token_file, tls_ca) as client:
        answer = client.call(client.policies.ListPolicies, pol.ListPoliciesRequest())
    if as_json:
        print_json(answer)
        return
    from rich.markup import escape

    from availability.v1 import common_pb2 as common

    screen = console()
    screen.print(_channels(answer.policies))
    nodes = table("node", "state", "safety_stock", "by", "because", right=("safety_stock",))
    for node in answer.nodes:
        nodes.add_row(
            escape(node.node),
            word(common.NodeState, node.state),
            str(node.safety_stock),
            escape(node.author),
            escape(node.reason),
        )
    screen.print("")
    screen.print(nodes)
    for columns, lines in _others(answer):
        if lines:
            rows = table(*columns, right=("units", "left"))
            for line in lines:
                rows.add_row(*map(escape, line))
            screen.print("")
            screen.print(rows)


def _others(answer: pol.ListPoliciesResponse) -> Iterator[tuple[Sequence[str], list[Sequence[str]]]]:
    """Yield the columns and the lines of every table that may well be empty."""
    stamp = ("by", "because")
    yield (
        ("stopped sku", "in channel", "until", *stamp),
        [
            (
                stop.sku or "all",
                stop.channel or "all",
                f"{stop.until.ToDatetime():%Y-%m-%d %H:%M:%S} UTC" if stop.HasField("until") else "",
                stop.author,
                stop.reason,
            )
            for stop in answer.stops
        ],
    )
    yield (
        ("kit", "made of", *stamp),
        [
            (
                kit.kit_sku,
                ", ".join(f"{part.units} × {part.sku}" for part in kit.components),
                kit.author,
                kit.reason,
            )
            for kit in answer.kits
        ],
    )
    yield (
        ("ring-fence of", "sku", "left", *stamp),
        [
            (fence.channel, fence.sku, str(fence.units), fence.author, fence.reason)
            for fence in answer.ring_fences
        ],
    )
    yield (
        ("feed of", "node", "every", "grace", "state", *stamp),
        [
            (
                feed.source,
                feed.node,
                f"{feed.expected_interval.ToMilliseconds() / 1000:g} s",
                f"{feed.grace.ToMilliseconds() / 1000:g} s",
                "STALE" if feed.stale else "fresh",
                feed.author,
                feed.reason,
            )
            for feed in answer.feeds
        ],
    )
    yield (
        ("safety stock of", "at", "units"),
        [(stock.sku, stock.node, str(stock.quantity)) for stock in answer.safety_stocks],
    )


def _pages(client: Client, channel: str) -> list[pol.GetPolicyResponse]:
    from availability.v1 import policy_pb2 as pol

    pages: list[pol.GetPolicyResponse] = []
    page_token = ""
    while not pages or page_token:
        request = pol.GetPolicyRequest(channel=channel, page_token=page_token)
        pages.append(client.call(client.policies.GetPolicy, request))
        page_token = pages[-1].next_page_token
    return pages


def _channels(policies: Sequence[pol.ChannelPolicy]) -> Any:  # Any: rich's table, which is loaded late
    from rich.markup import escape

    rows = table("channel", "nodes", "buffer", "oversell_limit", "low stock", "version", "by", "because")
    for policy in policies:
        rows.add_row(
            escape(policy.channel),
            "all, by name" if policy.all_nodes else escape(", ".join(policy.nodes)),
            _buffer_words(policy.buffer),
            str(policy.oversell_limit),
            str(policy.low_stock_threshold),
            policy.version,
            escape(policy.author),
            escape(policy.reason),
        )
    return rows


def _buffer_words(buffer: common.Buffer) -> str:
    return f"{buffer.percent} %" if buffer.WhichOneof("value") == "percent" else f"{buffer.units} units"
