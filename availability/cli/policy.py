"""`policy …`: what operators decide about channels, nodes, skus and positions."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from availability.cli.errors import usage
from availability.cli.options import (
    DEFAULT_TARGET,
    AsJson,
    Target,
    TlsCa,
    TokenFile,
    connect,
    parse_duration_s,
)
from availability.cli.output import print_json

if TYPE_CHECKING:
    from availability.v1 import common_pb2 as common

app = typer.Typer(
    help="Decide how channels sell. Each change is an event with its reason.", no_args_is_help=True
)

ChannelName = Annotated[str, typer.Argument(metavar="CHANNEL", help="Channel.")]
Sku = Annotated[str, typer.Argument(metavar="SKU", help="Sellable unit code.")]
Node = Annotated[str, typer.Argument(metavar="NODE", help="Node code.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept with the change.")]
BufferText = Annotated[
    str | None,
    typer.Option("--buffer", metavar="UNITS|PERCENT%", help="What must stay in the pool: 5 or 10%."),
]
Limit = Annotated[int | None, typer.Option("--oversell-limit", help="Units it may grant beyond its share.")]
PublishLimit = Annotated[
    int | None, typer.Option("--publish-limit", help="Highest number shown to shoppers.")
]


class OnlineState(StrEnum):
    """States of a node."""

    ONLINE = "online"
    OFFLINE = "offline"


class Sale(StrEnum):
    """Whether something may be sold."""

    SELLABLE = "sellable"
    BLOCKED = "blocked"


class Silence(StrEnum):
    """What a silent feed does to its node's stock."""

    KEEP = "keep"
    EXCLUDE = "exclude"


@app.command("set-channel")
def set_channel(
    channel: ChannelName,
    reason: Reason,
    nodes: Annotated[str, typer.Option("--nodes", metavar="A,B,…", help="Nodes in sourcing order.")] = "",
    node: Annotated[
        list[str] | None, typer.Option("--node", help="The same, one a time, for any name.")
    ] = None,
    all_nodes: Annotated[bool, typer.Option("--all-nodes", help="Every node, by name.")] = False,
    buffer: BufferText = None,
    oversell_limit: Limit = None,
    low_stock: Annotated[int, typer.Option("--low-stock", help="LOW_STOCK at or below it.")] = 0,
    publish_limit: PublishLimit = None,
    staleness: Annotated[
        Silence, typer.Option("--staleness", help="What a silent feed does to its node: keep or exclude.")
    ] = Silence.KEEP,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Declare a channel, or replace its policy as a whole."""
    from availability.v1 import policy_pb2 as pol

    named = [one.strip() for one in nodes.split(",") if one.strip()] + (node or [])
    if bool(named) == all_nodes:
        raise usage("name --nodes, or --all-nodes")
    policy = pol.ChannelPolicy(
        channel=channel,
        nodes=named,
        all_nodes=all_nodes,
        buffer=_buffer(buffer),
        oversell_limit=oversell_limit or 0,
        low_stock_threshold=low_stock,
        publish_limit=publish_limit,
        staleness=pol.STALENESS_EXCLUDE if staleness is Silence.EXCLUDE else pol.STALENESS_KEEP,
    )
    request = pol.SetChannelPolicyRequest(policy=policy, reason=reason)
    with connect(target, token_file, tls_ca) as client:
        _done(client.call(client.policies.SetChannelPolicy, request), as_json)


@app.command("override")
def override(
    channel: ChannelName,
    sku: Sku,
    reason: Reason,
    buffer: BufferText = None,
    oversell_limit: Limit = None,
    publish_limit: PublishLimit = None,
    exclude_node: Annotated[
        list[str] | None, typer.Option("--exclude-node", help="A node that does not serve it; repeatable.")
    ] = None,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Set what differs for one sku of a channel; what is not named stays the channel's."""
    from availability.v1 import policy_pb2 as pol

    differs = pol.SkuOverride(
        buffer=_buffer(buffer),
        oversell_limit=oversell_limit,
        publish_limit=publish_limit,
        excluded_nodes=exclude_node or [],
    )
    request = pol.SetSkuOverrideRequest(channel=channel, sku=sku, override=differs, reason=reason)
    with connect(target, token_file, tls_ca) as client:
        _done(client.call(client.policies.SetSkuOverride, request), as_json)


@app.command("clear-override")
def clear_override(
    channel: ChannelName,
    sku: Sku,
    reason: Reason,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Let a sku follow its channel again."""
    from availability.v1 import policy_pb2 as pol

    request = pol.ClearSkuOverrideRequest(channel=channel, sku=sku, reason=reason)
    with connect(target, token_file, tls_ca) as client:
        _done(client.call(client.policies.ClearSkuOverride, request), as_json)


@app.command("safety-stock")
def safety_stock(
    node: Node,
    reason: Reason,
    quantity: Annotated[
        int | None, typer.Option("--quantity", "-q", help="Units never sold; without it: the node's default.")
    ] = None,
    sku: Annotated[str, typer.Option("--sku", help="One sku; without it: the node's default.")] = "",
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Keep units of a position, or of every position of a node, from being sold."""
    from availability.v1 import policy_pb2 as pol

    if quantity is None and not sku:
        raise usage("name --quantity, or the --sku that goes back to the node's default")
    request = pol.SetSafetyStockRequest(node=node, sku=sku, quantity=quantity, reason=reason)
    with connect(target, token_file, tls_ca) as client:
        _done(client.call(client.policies.SetSafetyStock, request), as_json)


@app.command("node")
def set_node(
    node: Node,
    state: Annotated[OnlineState, typer.Argument(help="Whether it takes part in selling.")],
    reason: Reason,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Declare a node, or take it offline and back."""
    from availability.v1 import common_pb2 as common
    from availability.v1 import policy_pb2 as pol

    wire = common.NODE_STATE_ONLINE if state is OnlineState.ONLINE else common.NODE_STATE_OFFLINE
    request = pol.SetNodeRequest(node=node, state=wire, reason=reason)
    with connect(target, token_file, tls_ca) as client:
        _done(client.call(client.policies.SetNode, request), as_json)


@app.command("sale-state")
def sale_state(
    state: Annotated[Sale, typer.Argument(help="Whether it may be sold.")],
    reason: Reason,
    channel: Annotated[str, typer.Option("--channel", "-c", help="One channel; all where none.")] = "",
    sku: Annotated[str, typer.Option("--sku", help="One sku; all of the channel where none.")] = "",
    until: Annotated[str, typer.Option("--for", metavar="DURATION", help="A stop ends by itself: 2h.")] = "",
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Stop the sale of a sku, of a channel, or of a sku in one channel; or allow it again."""
    from availability.v1 import common_pb2 as common
    from availability.v1 import policy_pb2 as pol

    if not channel and not sku:
        raise usage("name --channel, --sku, or both")
    wire = common.SALE_STATE_SELLABLE if state is Sale.SELLABLE else common.SALE_STATE_BLOCKED
    request = pol.SetSaleStateRequest(channel=channel, sku=sku, state=wire, reason=reason)
    if until:
        request.until.GetCurrentTime()
        request.until.FromMilliseconds(request.until.ToMilliseconds() + round(parse_duration_s(until) * 1000))
    with connect(target, token_file, tls_ca) as client:
        _done(client.call(client.policies.SetSaleState, request), as_json)


@app.command("fence")
def fence(
    channel: ChannelName,
    sku: Sku,
    units: Annotated[
        int, typer.Argument(metavar="UNITS", help="Units left for it from now on; 0: no fence.")
    ],
    reason: Reason,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Keep units of a sku for one channel; others sell what is left of the nodes that they share with it."""
    from availability.v1 import policy_pb2 as pol

    request = pol.SetRingFenceRequest(channel=channel, sku=sku, units=units, reason=reason)
    with connect(target, token_file, tls_ca) as client:
        _done(client.call(client.policies.SetRingFence, request), as_json)


@app.command("feed")
def set_feed(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Reporting system.")],
    node: Node,
    reason: Reason,
    every: Annotated[
        str, typer.Option("--every", metavar="DURATION", help="Longest regular silence: 15m.")
    ] = "",
    grace: Annotated[
        str, typer.Option("--grace", metavar="DURATION", help="Patience on top of it: 5m.")
    ] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Watch it no more.")] = False,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Watch how long a source is silent about a node: channels with --staleness exclude then leave it out."""
    from availability.v1 import policy_pb2 as pol

    if bool(every) == remove or (grace and remove):
        raise usage("name --every, or --remove")
    request = pol.SetFeedRequest(source=source, node=node, reason=reason)
    if every:
        request.expected_interval.FromMilliseconds(round(parse_duration_s(every) * 1000))
    if grace:
        request.grace.FromMilliseconds(round(parse_duration_s(grace) * 1000))
    with connect(target, token_file, tls_ca) as client:
        _done(client.call(client.policies.SetFeed, request), as_json)


@app.command("kit")
def set_kit(
    kit: Annotated[str, typer.Argument(metavar="KIT", help="The kit's own code.")],
    reason: Reason,
    component: Annotated[
        list[str] | None,
        typer.Option("--component", metavar="SKU=UNITS", help="A part and its units in one kit; repeatable."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="The code is no kit any more.")] = False,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Say what a kit is made of. What is reserved or ordered keeps the recipe that it was made with."""
    from availability.v1 import policy_pb2 as pol

    if bool(component) == remove:
        raise usage("name each --component, or --remove")
    request = pol.SetKitRequest(kit_sku=kit, reason=reason)
    for text in component or []:
        sku, _, units = text.rpartition("=")
        if not sku or re.fullmatch(r"\d{1,10}", units, re.ASCII) is None:
            raise usage(f"{text!r} is no component: use SKU=UNITS")
        request.components.add(sku=sku, units=int(units))
    with connect(target, token_file, tls_ca) as client:
        _done(client.call(client.policies.SetKit, request), as_json)


def _buffer(text: str | None) -> common.Buffer | None:
    from availability.v1 import common_pb2 as common

    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,10})\s*(%?)", text.strip())
    if found is None:
        raise usage(f"{text!r} is no buffer: use units (5) or a percentage (10%)")
    number = int(found[1])
    return common.Buffer(percent=number) if found[2] else common.Buffer(units=number)


def _done(answer: Any, as_json: bool) -> None:  # Any: each policy request has its own response
    if as_json:
        print_json(answer)
    else:
        print(f"{'DONE BEFORE' if answer.replayed else 'DONE'}: version {answer.version}")
