"""Replay a year of real orders through the service and prove every balance.

Plays an orders file (the shape of the "Online Retail" data) as checkout, ERP and WMS clients would, several
at once, then recomputes all balances independently and compares: exit 0 only with "oversold 0" and "0
differences". Run from a checkout: ``python benchmarks/replay.py [--limit N]``. Parts: replay_plan.py decides
what is played, replay_play.py, replay_desk.py and replay_sender.py play it, replay_check.py proves it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `benchmarks` is not installed

from availability.v1 import common_pb2 as common
from availability.v1 import policy_pb2 as pol
from availability.v1 import policy_pb2_grpc as pol_grpc
from availability.v1 import stock_pb2 as stk
from availability.v1 import stock_pb2_grpc as stk_grpc
from benchmarks.replay_check import Evidence, Verdict, judge
from benchmarks.replay_desk import Desk
from benchmarks.replay_plan import NODES, OrdersUnreadable, Plan, make_plan, read_orders
from benchmarks.replay_play import Shopper
from benchmarks.replay_sender import Sender
from benchmarks.replay_words import (
    ATTEMPTS_MAX,
    CHANNEL_OPTIONS,
    ERP,
    ORDER_ALLOCATED,
    ORDER_CANCELLED,
    ORDER_CHANGED,
    RECEIPT,
    SHIPMENT,
    WMS,
    WRITE_OFF,
    ReplayFailed,
    Stop,
    ask,
    refused_call,
    request_id,
)

PROJECT_ROOT = Path(__file__).resolve().parent.parent
ORDERS_FILE = PROJECT_ROOT.parent / "shared" / "data" / "online_retail.parquet"
CLIENTS = 4
CLIENTS_MAX = 64
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
EXPIRY_TIMEOUT_S = 15.0
SHOWN_MAX = 20
PLAIN_LINE_EVERY_S = 10.0
REASON = "replay"


def main(arguments: list[str] | None = None) -> int:
    """Run the replay; 0 when everything was proved, 1 when not, 2 for what cannot be played."""
    options = parse(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        console.print(f"reading {options.orders.name} and planning, seed {options.seed}")
        plan = make_plan(read_orders(options.orders, options.limit), options.seed)
    except OrdersUnreadable as error:
        console.print(f"[red]{error}[/red]")
        return 2
    try:
        with service(options, console) as address:
            return run(plan, address, options.clients, console)
    except ReplayFailed as error:
        console.print("[red]failed[/red]:", str(error), markup=True)
    except grpc.RpcError as error:
        console.print("[red]failed[/red]:", refused_call(error))
    except KeyboardInterrupt:
        console.print("interrupted")
    return 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description="Replay an orders file and prove every balance.")
    parser.add_argument("--orders", type=Path, default=ORDERS_FILE, help="parquet file of orders")
    parser.add_argument("--limit", type=int, help="only the first so many orders")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"checkouts at once (default {CLIENTS})")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (default 1)")
    parser.add_argument("--target", help="host:port of a running service with an empty ledger")
    parser.add_argument("--data-dir", type=Path, help="for the service that is started; a temporary one else")
    parser.add_argument("--keep", action="store_true", help="leave the started service and its data")
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit < 1:
        parser.error("--limit is at least 1")
    if not 1 <= options.clients <= CLIENTS_MAX:
        parser.error(f"--clients is 1 to {CLIENTS_MAX}")
    return options


# --- the service ----------------------------------------------------------------------------------


@contextlib.contextmanager
def service(options: argparse.Namespace, console: Console) -> Iterator[str]:
    """Give the address of the service: the target's, or that of a child which is stopped afterwards."""
    if options.target:
        yield options.target
        return
    folder = options.data_dir or Path(tempfile.mkdtemp(prefix="replay-"))
    folder.mkdir(parents=True, exist_ok=True)
    ready, log = folder / "ready.json", folder / "serve.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "availability", "serve", "--embedded", "--no-auth"]
    command += ["--listen", "127.0.0.1:0", "--data-dir", str(folder), "--ready-file", str(ready)]
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=PROJECT_ROOT, start_new_session=options.keep
        )
    finished = False
    try:
        address = wait_ready(child, ready, log)
        yield address
        finished = True
    finally:
        if finished and options.keep:
            console.print(f"the service stays at {address}, pid {child.pid}, data in {folder}")
        else:
            stop(child)
            if not finished:
                console.print(f"the service's log is {log}")
            elif options.data_dir is None:
                shutil.rmtree(folder, ignore_errors=True)


def wait_ready(child: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    """Wait for the ready file. Raises ReplayFailed with the end of the service's log."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            return str(json.loads(ready.read_text())["grpc"])
        time.sleep(0.05)
    said = log.read_text(errors="replace").strip().splitlines()[-5:]
    raise ReplayFailed("the service did not start: " + " | ".join(said))


def stop(child: subprocess.Popen[bytes]) -> None:
    """End the child, gracefully first."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


# --- the run --------------------------------------------------------------------------------------


def run(plan: Plan, address: str, clients: int, console: Console) -> int:
    """Set policies, play, prove, report."""
    counts: Counter[str] = Counter()
    stopping = Stop()
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        refuse_used_ledger(channel, counts)
        set_policies(plan, channel, counts)
        erp = Sender(channel, ERP, plan, stopping, repeats=False)
        wms = Sender(channel, WMS, plan, stopping, repeats=True)
        desk = Desk(plan, erp, wms, stopping)
        shoppers = [Shopper(f"shopper-{i}", address, plan, desk, stopping) for i in range(clients)]
        began = time.monotonic()
        erp.start()
        wms.start()
        for shopper in shoppers:
            shopper.start()
        follow(plan, desk, erp, wms, shoppers, stopping, console)
        erp.close()
        wms.close()
        played_s = time.monotonic() - began
        for shopper in shoppers:
            shopper.see_expiry(time.monotonic() + EXPIRY_TIMEOUT_S)
            shopper.close()
        stop_sales(plan, channel, counts)
        console.print("played; recomputing and comparing")
        verdict = judge(
            Evidence(
                plan=plan,
                erp=erp.told,
                wms=wms.told,
                answers=[answer for shopper in shoppers for answer in shopper.answers],
                refused=[refused for shopper in shoppers for refused in shopper.refused],
            ),
            channel,
        )
    for told in [desk.counts, erp.counts, wms.counts, *(shopper.counts for shopper in shoppers)]:
        counts.update(told)
    report(plan, desk, erp, wms, counts, played_s, console)
    return conclude(plan, verdict, counts, console)


def refuse_used_ledger(channel: grpc.Channel, counts: Counter[str]) -> None:
    """Raise ReplayFailed where these sources have spoken before: nothing could be compared."""
    stub = stk_grpc.StockServiceStub(channel)
    for source in (ERP, WMS):
        if ask(stub.ListStreams, stk.ListStreamsRequest(source=source), counts).streams:
            raise ReplayFailed(f"the ledger has heard of {source!r} before; a replay needs an empty one")


def set_policies(plan: Plan, channel: grpc.Channel, counts: Counter[str]) -> None:
    """Declare nodes, channels and what differs by sku."""
    stub = pol_grpc.PolicyServiceStub(channel)
    for node in NODES:
        ask(
            stub.SetNode,
            pol.SetNodeRequest(
                request_id=request_id(), reason=REASON, node=node, state=common.NODE_STATE_ONLINE
            ),
            counts,
        )
    levels = [("", node, units) for node, units in plan.node_safety_stock.items()]
    levels += [(plan.skus[sku], node, units) for (sku, node), units in plan.safety_stock.items()]
    for sku, node_number, units in levels:
        ask(
            stub.SetSafetyStock,
            pol.SetSafetyStockRequest(
                request_id=request_id(), reason=REASON, sku=sku, node=NODES[node_number], quantity=units
            ),
            counts,
        )
    for rule in plan.rules:
        policy = pol.ChannelPolicy(
            channel=rule.channel,
            nodes=[] if rule.all_nodes else [NODES[node] for node in rule.nodes],
            all_nodes=rule.all_nodes,
            oversell_limit=rule.oversell_limit,
            low_stock_threshold=5,
        )
        if rule.buffer_percent:
            policy.buffer.percent = rule.buffer_percent
        elif rule.buffer_units:
            policy.buffer.units = rule.buffer_units
        ask(
            stub.SetChannelPolicy,
            pol.SetChannelPolicyRequest(request_id=request_id(), reason=REASON, policy=policy),
            counts,
        )
    for differs in plan.sku_rules:
        override = pol.SkuOverride(
            oversell_limit=differs.oversell_limit,
            excluded_nodes=[NODES[node] for node in differs.excluded_nodes],
        )
        if differs.buffer_units is not None:
            override.buffer.units = differs.buffer_units
        ask(
            stub.SetSkuOverride,
            pol.SetSkuOverrideRequest(
                request_id=request_id(),
                reason=REASON,
                channel=plan.rules[differs.channel].channel,
                sku=plan.skus[differs.sku],
                override=override,
            ),
            counts,
        )


def stop_sales(plan: Plan, channel: grpc.Channel, counts: Counter[str]) -> None:
    """Stop some skus of a channel, so that the comparison sees stops too."""
    stub = pol_grpc.PolicyServiceStub(channel)
    for channel_number, sku in plan.blocked:
        ask(
            stub.SetSaleState,
            pol.SetSaleStateRequest(
                request_id=request_id(),
                reason=REASON,
                channel=plan.rules[channel_number].channel,
                sku=plan.skus[sku],
                state=common.SALE_STATE_BLOCKED,
            ),
            counts,
        )


def follow(
    plan: Plan,
    desk: Desk,
    erp: Sender,
    wms: Sender,
    shoppers: list[Shopper],
    stopping: Stop,
    console: Console,
) -> None:
    """Show progress until all shoppers are done: a bar on a terminal, a line now and then elsewhere."""
    bar = Progress(
        TextColumn("orders"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[deltas]:,} deltas"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    began = said = time.monotonic()
    with bar:
        task = bar.add_task("orders", total=len(plan.orders), deltas=0)
        waiting = list(shoppers)
        while waiting:
            waiting = [shopper for shopper in waiting if not shopper.join(0.25 / len(waiting))]
            stopping.check()
            deltas = erp.acked + wms.acked
            bar.update(task, completed=desk.orders_taken, deltas=deltas)
            now = time.monotonic()
            if not console.is_terminal and now - said > PLAIN_LINE_EVERY_S:
                said = now
                orders = f"{desk.orders_taken:,} of {len(plan.orders):,} orders"
                console.print(f"{now - began:5.0f} s: {orders}, {deltas:,} deltas")


# --- the report -----------------------------------------------------------------------------------


def report(
    plan: Plan, desk: Desk, erp: Sender, wms: Sender, counts: Counter[str], played_s: float, console: Console
) -> None:
    """Print what was played."""
    kinds: Counter[int] = Counter()
    for told in (*erp.told, *wms.told):
        kinds.update(fact.type for fact in told.facts)
    deltas = erp.acked + wms.acked
    shorts = 100 * counts["lines short"] / max(1, plan.lines_total)
    for line in (
        f"orders {counts['orders']:,} of {plan.lines_total:,} lines over {len(plan.skus):,} skus and "
        f"{len(plan.rules) - 1} channels; {counts['orders that got nothing']:,} got nothing, "
        f"{desk.open_orders():,} not yet shipped whole",
        f"lines that found too little {shorts:.2f} % ({counts['lines short']:,})",
        f"reservations {counts['reservations']:,} of {counts['reservations asked']:,} asked, "
        f"commits {counts['commits']:,}, extended {counts['extended']:,}; carts released "
        f"{counts['carts released'] + counts['carts trimmed']:,}, expired {counts['carts expired']:,}, "
        f"left {counts['carts left']:,}",
        f"cancellations: {counts['whole orders cancelled']:,} whole orders, lines "
        f"{counts['C lines cancelled']:,} cancelled and {counts['C lines lowered']:,} lowered, "
        f"{counts['returns']:,} returns ({counts['C lines without an order']:,} without an order), "
        f"{counts['C lines never granted']:,} never granted",
        f"write-offs {kinds[WRITE_OFF]:,} (damages {counts['damages']:,}), losses {counts['losses']:,}; "
        f"lines allocated elsewhere {counts['lines allocated elsewhere']:,}, shipped from elsewhere "
        f"{counts['lines shipped from elsewhere']:,}",
        f"deltas {deltas:,}: receipts {kinds[RECEIPT]:,}, allocations {kinds[ORDER_ALLOCATED]:,}, "
        f"shipments {kinds[SHIPMENT]:,}, changes {kinds[ORDER_CHANGED]:,}, "
        f"cancels {kinds[ORDER_CANCELLED]:,}",
        f"sent twice: {counts['repeated']:,} deltas, {counts['duplicates']:,} answered DUPLICATE; "
        f"{counts['repeated requests']:,} requests, all replayed; retries {counts['retries']:,} "
        f"(at most {ATTEMPTS_MAX} each), reconnects {counts['reconnects']:,}",
        f"wall {played_s:.1f} s, {counts['orders'] / played_s:,.0f} orders/s, "
        f"{deltas / played_s:,.0f} deltas/s",
    ):
        console.print(line)


def conclude(plan: Plan, verdict: Verdict, counts: Counter[str], console: Console) -> int:
    """Print the verdict; 0 only when nothing is wrong."""
    twice = counts["repeated"] - counts["duplicates"]
    complaints = [
        (len(verdict.oversold), "grants not covered", verdict.oversold),
        (len(verdict.misjudged), "shortages with a wrong number", verdict.misjudged),
        (len(verdict.differences), "differences", verdict.differences),
        (twice, "repeated deltas not answered DUPLICATE", []),
    ]
    for number, what, sentences in complaints:
        if number:
            console.print(f"{number:,} {what}, the first:")
        for sentence in sentences[:SHOWN_MAX]:
            console.print("  " + sentence, markup=False)
    console.print(
        f"compared {verdict.balances:,} balances and {verdict.sellables:,} sellables; "
        f"{verdict.grants:,} grants and {verdict.refusals:,} shortages checked at their versions"
    )
    differences = f"{verdict.skus_different:,} differences over {len(plan.skus):,} skus"
    console.print(f"oversold {len(verdict.oversold)}, {differences}")
    return 1 if any(number for number, _, _ in complaints) else 0


if __name__ == "__main__":
    sys.exit(main())
