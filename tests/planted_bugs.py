# ruff: noqa: E501 -- the table of bugs reads by rows
"""Plant known bugs, one at a time, and see that the tests catch each.

``python tests/planted_bugs.py [NAME …]`` copies the checkout, breaks one thing in the copy, runs the tests that should notice,
and prints which test did. Exit code 1 when a bug lived. Takes minutes; not collected by pytest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LUA = "availability/ledger/functions/"
TESTS = (
    "tests/test_formula.py",
    "tests/test_replica.py",
    "tests/test_replica_kits.py",
    "tests/test_replica_columns.py",
    "tests/test_replica_following.py",
    "tests/test_replica_watching.py",
    "tests/test_order_cancel.py",
    "tests/test_governance.py",
    "tests/test_bounds.py",
    "tests/test_fences.py",
    "tests/test_kits.py",
    "tests/test_order_links.py",
    "tests/test_state_machine.py",
    "tests/test_baskets.py",
    "tests/test_ingest_mapping.py",
    "tests/test_ingest_blocks.py",
    "tests/test_ingest_carrying.py",
    "tests/test_ingest_pipeline.py",
    "tests/test_supply.py",
    "tests/test_first_counts.py",
    "tests/test_contract_readings.py",
    "tests/test_snapshots.py",
    "tests/test_snapshot_points.py",
    "tests/test_audit.py",
    "tests/test_linearizability.py",
    "tests/test_orders_property.py",
    "tests/test_thresholds.py",
    "tests/test_storefront_replay.py",
    "tests/test_storefront_double.py",
    "tests/faults/test_fault_functions.py",
    "tests/faults",
)
MIRROR = (
    "tests/test_publisher_modes.py",
    "tests/test_publisher_guard.py",
    "tests/test_publisher_verify.py",
    "tests/test_publisher_mirror.py",
)
DOUBLE = ("tests/test_storefront_replay.py", "tests/test_storefront_double.py")
SHOP_ORDERS = (
    "tests/test_publisher_facts.py",
    "tests/test_publisher_orders.py",
    "tests/test_publisher_webhooks.py",
)
PUBLISHER = (
    "tests/test_publisher_coalescer.py",
    "tests/test_publisher_pace.py",
    "tests/test_publisher_catalogue.py",
    "tests/test_publisher_state.py",
    "tests/test_publisher_delivery.py",
)
OPERATION = (
    "tests/test_telemetry.py",
    "tests/test_trace.py",
    "tests/test_deploy.py",
    "tests/test_observability.py",
    "tests/test_reconcile_figures.py",
    "tests/test_flash_sale.py",
)
FAILOVER = ("tests/faults/test_fault_failover.py",)
SECONDS_MAX = 900


@dataclass(frozen=True, slots=True)
class Bug:
    """``old`` stands exactly once in ``file``; ``tests``: those that should notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = TESTS


RECONCILE = (
    "tests/test_reconcile_compare.py",
    "tests/test_reconcile_causes.py",
    "tests/test_reconcile_staging.py",
    "tests/test_reconcile_store.py",
    "tests/test_reconcile_runs.py",
    "tests/test_reconcile_replay.py",
)
HISTORY = ("tests/test_historian.py", "tests/test_past.py", "tests/test_history_proof.py")

BUGS = (
    Bug("safety stock is sold", LUA + "07_sourcing.lua", "max(0, p.quarantined) - safety)", "max(0, p.quarantined))"),
    Bug("percent buffer rounds down", LUA + "07_sourcing.lua", "ceil(percent * gives / 100)", "floor(percent * gives / 100)"),
    Bug("promises of an offline node are forgotten", LUA + "07_sourcing.lua", "pool = pool + min(0, net)", "pool = pool"),
    Bug("one unit more than sellable is granted", LUA + "10_reservations.lua", "min(line[2], can)", "min(line[2], can + 1)"),
    Bug("equal skus of a basket are not added up", "availability/service/requests.py", "totals[sku] = total", "totals[sku] = quantity"),
    Bug("a reused request id is taken for a repeat", LUA + "04_requests.lua", "if sub(kept, 1, 12) ~= req[3] then", "if false then"),
    Bug("a cell that equals another is taken for it", "ingest/mapping.py", "(type(cell) is int and cell > 1)", "isinstance(cell, int)"),
    Bug("rows of a file have no names of their own", "ingest/mapping.py", "delta.event_id = event_id", "delta.event_id = event_id.partition(':')[0]"),
    Bug("a file is settled to its end whatever was accepted", "ingest/settling.py", "batch.rows.position(accepted) - 1 if parked else batch.last", "batch.last"),
    Bug("a primary is known by its head alone", LUA + "03_log.lua", " or mine.replid ~= m[2]", "", ("tests/faults/test_fault_redis.py",)),
    Bug("a free place of a bucket is taken for a name", "availability/replica/name_table.py", "~np.arange(size, dtype=np.int64)", "np.zeros(size, np.int64)", ("tests/test_name_table.py",)),
    Bug("names of a full bucket are lost", "availability/replica/name_table.py", "    buckets.crowded.update(", "    dict[int, int]().update(", ("tests/test_name_table.py",)),
    Bug("a gap in a stream is swallowed", LUA + "11_streams.lua", "sequence == mark + 1", "sequence > mark"),
    Bug("an older word overwrites a later one", LUA + "11_deltas_orders.lua", "if l[4] and not Orders.key_less(l[4], key) then", "if false then"),
    Bug("a cancel leaves the order's holds", LUA + "11_deltas_orders.lua", "    release_holds(ctx, txn, order, nil)\n", ""),
    Bug("of linked names the first one's allocation counts, not the latest", LUA + "08_orders_facts.lua", "if not other or Orders.key_less(other[2], a[2]) then", "if not other then"),
    Bug("an OPEN allocation is taken for a cumulative one", LUA + "11_deltas_orders.lua", "d[QUANTITY] + (d[BASIS] == OPEN_BASIS and d[SHIPPED_QUANTITY] or 0)", "d[QUANTITY]"),
    Bug("a link leaves holds of what the other name cancelled", LUA + "11_deltas_orders.lua", "    release_cancelled(ctx, txn, theirs, ours, skus)\n", ""),
    Bug("a release gives back in sourcing order", LUA + "07_sourcing.lua", "for i = #sources, 1, -1 do", "for i = 1, #sources do"),
    Bug("units go back to a newer fence", LUA + "07_sourcing_fences.lua", "if not fence or fence[GENERATION] ~= line[LINE_GENERATION] then", "if not fence then"),
    Bug("a fence bites who shares no node with it", LUA + "07_sourcing_fences.lua", "if shared then", "if true then"),
    Bug("fenced units go back first", LUA + "07_sourcing_fences.lua", "min(taken, stays)", "max(0, taken - stays)"),
    Bug("a kit does not see what its part took", LUA + "10_reservations.lua", "one[1] = one[1] - units", "one[1] = one[1]"),
    Bug("a release of kits gives one unit of each part", LUA + "10_reservations.lua", "wanted[i] = back * each[line[1]]", "wanted[i] = back"),
    Bug("numpy: percent buffer rounds down", "availability/domain/formula.py", "-(-percent * sums(np.where(counted, gives, 0), offsets) // 100)", "percent * sums(np.where(counted, gives, 0), offsets) // 100"),
    Bug("an etag is not compared", LUA + "12_policies.lua", "if current ~= etag then", "if false then"),
    Bug("a stop never ends by itself", LUA + "13_upkeep.lua", "  Policies.end_stops(ctx, cmd[1])\n", ""),
    Bug("a token's bounds are not asked for", "availability/service/grpc_unary.py", "                refuse_outside(principal.bounds, principal.id, self.rpc.method, request, self._channel_of)", "                pass"),
    Bug("numpy: a fence bites channels without a common node", "availability/domain/formula.py", "np.where(shared, np.maximum(fence_left - elsewhere, 0), 0)", "np.maximum(fence_left - elsewhere, 0)"),
    Bug("numpy: a kit takes the most of its parts", "availability/domain/formula.py", "np.minimum.reduceat(shares, starts)", "np.maximum.reduceat(shares, starts)"),
    Bug("a kit is not republished when a part moves", "availability/replica/kits.py", "np.unique(np.concatenate((own, self.using[rows])))", "own"),
    Bug("a basket's kits are not added up", "availability/replica/replica.py", "total[part] += quantity * units", "total[part] = quantity * units"),
    Bug("a first count forgets that the ledger's clock stood", LUA + "10_counts_recall.lua", "- AHEAD_MS - lag_ms", "- AHEAD_MS"),
    Bug("a first count takes one source's stream for another's", LUA + "10_counts_recall.lua", "Counts.mark(source, c[STREAM])", "Counts.mark('', c[STREAM])"),
    Bug("a commit after its order's cancel is refused", LUA + "10_reservations.lua", "if state == RELEASED and hold[ORDER_SOURCE] == source", "if false and hold[ORDER_SOURCE] == source"),
    Bug("a late change counts on top of a count that has seen it", LUA + "10_counts.lua", "return us > 0 and us <= m[KEY][1]", "return false"),
    Bug("a receipt before its announcement is forgotten", LUA + "10_supply.lua", "if now[WORD_KEY] and Orders.key_less(key, now[WORD_KEY]) then return end", "if not now[WORD_KEY] and quantity < 0 then return end"),
    Bug("a stale feed's node goes on selling where it is excluded", LUA + "05_policy.lua", "ch.online[i] and not stale[name]", "ch.online[i]"),
    Bug("a report that looked too early reopens what is over", LUA + "09_exceptions.lua", "if at and at > known_to then return true end", "if false then return true end"),
    Bug("the rows of a block are found one batch off", "ingest/batches.py", "_Run(block.first + first, first,", "_Run(block.first, 0,", ("tests/test_ingest_blocks.py",)),
    Bug("equal cells of two types are one in a block", "ingest/block_mapping.py", "if not block.plain and not all(", "if False and not all(", ("tests/test_ingest_blocks.py",)),
    Bug("a block's stream is that of its first row", "ingest/block_mapping.py", "if len({*streams}) == 1:", "if streams:", ("tests/test_ingest_blocks.py",)),
    Bug("lines with too many cells pass beside lines with too few", "ingest/formats/csv_text.py", 'if {*map(methodcaller("count", delimiter), lines)} != {width - 1}', "if text.count(delimiter) != len(lines) * (width - 1)", ("tests/test_ingest_blocks.py",)),
    Bug("an object that goes on in the next line is two rows", "ingest/formats/json_lines.py", "if len(found) == lines else None", "if found else None", ("tests/test_ingest_blocks.py",)),
    Bug("sources are carried one after the other", "ingest/carrying.py", "threading.Semaphore(SOURCES_AT_ONCE)", "threading.Semaphore(1)", ("tests/test_ingest_carrying.py",)),
    Bug("a stream that was reset looks open", LUA + "14_reads.lua", "row[4], row[5] or 0}", "row[4], 0}", ("tests/test_ingest_operations.py",)),
    Bug("a refusal that nobody noted is a duplicate without a reason", "ingest/settling.py", "if detail.result == _REJECTED or detail.result == _DUPLICATE:", "if detail.result == _REJECTED:"),
    Bug("a rejected number is not remembered", LUA + "11_deltas.lua", "if result == REJECTED and st and d[SEQUENCE] > 0 then", "if false then"),
    Bug("released short picks stay in the list", LUA + "06_positions.lua", "elseif score then", "elseif false then"),
    Bug("a letter in one category hides that another is over", "ingest/alarms.py", "if one not in found)", "if not found)"),
    Bug("numpy: back in stock at the threshold", "availability/domain/thresholds.py", "(sellables > back)", "(sellables > threshold)"),
    Bug("an undo forgets new fields", LUA + "02_txn.lua", "else redis.pcall('HDEL', cmd[2], field) end", "end"),
    Bug("a snapshot's numbers are exclusive", "availability/history/as_of.py", "AFTER if number > named else BEFORE", "AFTER if number >= named else BEFORE"),
    Bug("the log does not say what a count made of a change", LUA + "11_deltas_stock.lua", "if on_hand ~= told then Log.effect", "if false then Log.effect"),
    Bug("the log does not say what a source has confirmed", LUA + "08_orders_settle.lua", "if change ~= 0 then Log.effect(ctx, sku, node, source, change) end", "if change < 0 then Log.effect(ctx, sku, node, source, change) end"),
    Bug("corrections count as later than the point", "availability/history/as_of.py", "if source == CORRECTION_SOURCE:", "if not source:"),
    Bug("a change between the marks is settled", "availability/history/as_of.py", "self.version > end else UNKNOWN", "self.version > end else AFTER"),
    Bug("a word that a later one hid is settled", "availability/history/as_of.py", "                    mixed.add(index)", "                    pass"),
    Bug("an open snapshot does not hold the log", LUA + "13_upkeep.lua", "local holds = snapped and length < cap", "local holds = false"),
    Bug("a gap in the log is passed over", "availability/history/as_of.py", "version.seq == before.seq + 1", "version.seq > before.seq"),
    Bug("marks around a failover are compared", "availability/service/snapshot_reads.py", "row.begin.epoch != row.end.epoch", "row.begin > row.end"),
    Bug("other rows pass under a chunk's number", LUA + "12_snapshots.lua", "same and 'OK' or 'CHUNK_CONFLICT'", "'OK'"),
    Bug("the audit counts holds that their orders count", LUA + "14_reads_audit.lua", "add_to(reserved, node, -q)", "add_to(reserved, node, 0)"),
    Bug("the double gives a failed order's units back", "publisher/testing/order_state.py", '("cancelled", "pending")', '("cancelled", "pending", "failed")', DOUBLE),
    Bug("the double lets null empty a product in a batch", "publisher/testing/product_writes.py", 'if change.get("stock_quantity") is not None:', 'if "stock_quantity" in change:', DOUBLE),
    Bug("the double lets a webhook live for ever", "publisher/testing/webhook_state.py", "FAILURES_MAX = 6", "FAILURES_MAX = 600", DOUBLE),
    Bug("the double stores what a locked row cannot take", "publisher/testing/products.py", "locked.seconds)\n        return", "locked.seconds)", DOUBLE),
    Bug("a held order has nothing to free", "availability/audit.py", " + _held(client, known)", "", ("tests/test_audit.py",)),
    Bug("the zero guard is content too soon", "publisher/golive.py", "len(self._foreseen) < sure", "len(self._foreseen) <= sure", ("tests/test_publisher_guard.py",)),
    Bug("an echo is not compared", "publisher/woocommerce/stock.py", "if shown.quantity != write.quantity:", "if False:", PUBLISHER),
    Bug("an unmanaged product counts as written", "publisher/woocommerce/stock.py", "if shown.managed is not Managed.OWN:", "if False:", PUBLISHER),
    Bug("after an unknown outcome the old number counts", "publisher/coalescer.py", "            self._acked.pop(taken.sku, None)\n            entry.read_first = True", "            entry.read_first = True", PUBLISHER),
    Bug("what sells out waits its turn", "publisher/coalescer.py", "return Lane.OUT_OF_STOCK if acked is None or acked > 0 else Lane.OTHER", "return Lane.OTHER", PUBLISHER),
    Bug("Retry-After is not kept", "publisher/pace.py", "now + max(pause_s, retry_after_s)", "now + pause_s", PUBLISHER),
    Bug("a half-open breaker lets all calls pass", "publisher/pace.py", "return 1 if self.breaker is not Breaker.CLOSED else int(self._concurrency)", "return int(self._concurrency)", PUBLISHER),
    Bug("a publisher writes to a shop that it has lost", "publisher/state.py", "if connection.execute(statements.HOLD, bound).rowcount != 1:", "if connection.execute(statements.HOLD, bound).rowcount > 9:", PUBLISHER),
    Bug("a number heard while another is written is forgotten", "publisher/statements.py", "pending=sa.or_(_PENDING, _skus.wanted != _ACKED),", "pending=_PENDING,", PUBLISHER),
    Bug("variations go to the parent that they had", "publisher/delivery.py", " or job.target.parent_id\n", "\n", PUBLISHER),
    Bug("an outage makes dead letters", "publisher/outcomes.py", "counts = self._failed_at.get(taken.sku, -1) < self._successes", "counts = True", PUBLISHER),
    Bug("a torn status stays", "publisher/outcomes.py", "if shown is None or not shown.torn:", "if True:", PUBLISHER),
    Bug("an item's error is taken for the truth", "publisher/outcomes.py", "elif result.outcome is Outcome.UNKNOWN and taken.attempts == 0:", "elif False:", PUBLISHER),
    Bug("two skus share a parent's number", "publisher/catalogue.py", "        if not others:", "        if True:", PUBLISHER),
    Bug("nobody looks a second time at what was unsure", "publisher/outcomes.py", "            for one in taken:\n                self._doubt(one)", "            pass", PUBLISHER),
    Bug("a failed order gives its units back", "publisher/orders/facts.py", "return min(was or 0, cell.quantity - cell.lowered)", "return 0", SHOP_ORDERS),
    Bug("a vanished order gives its units back", "publisher/orders/facts.py", "    return was or 0\n", "    return 0\n", SHOP_ORDERS),
    Bug("a refunded unit comes back when the order fails", "publisher/orders/facts.py", "return min(cell.reduced or 0, cell.quantity - cell.lowered)", "return cell.reduced or 0", SHOP_ORDERS),
    Bug("a pending order is subtracted by us too", "publisher/orders/facts.py", "    if status == PENDING:\n        return 0", "    if status == PENDING:\n        return cell.quantity if cell is not None else 0", SHOP_ORDERS),
    Bug("two states of one second keep no order", "publisher/orders/facts.py", "max(order.modified_us, told.occurred_us + 1, now_us - rules.age_max_us)", "order.modified_us", SHOP_ORDERS),
    Bug("refunded units that were shipped go back on sale", "publisher/orders/facts.py", "cell.lowered = min(cell.refunded, here)", "cell.lowered = cell.refunded", SHOP_ORDERS),
    Bug("a removed line stays ordered", "publisher/orders/facts.py", "sorted(set(before) | set(wanted))", "sorted(set(wanted))", SHOP_ORDERS),
    Bug("a kit is exploded by today's recipe", "publisher/orders/facts.py", "used = {**{kit: recipes for kit, recipes in (kits or {}).items() if kit not in known}, **known}", "used = {**known, **(kits or {})}", SHOP_ORDERS),
    Bug("an older reading overtakes a newer one", "publisher/orders/facts.py", "order.modified_us < told.modified_us <= now_us + AHEAD_US:", "order.modified_us < 0:", SHOP_ORDERS),
    Bug("words are struck out before the ack", "publisher/orders/poller.py", "heard = await asyncio.to_thread(self._ledger.tell, words)", "await asyncio.to_thread(self._book.sent, entries, {})\n        heard = await asyncio.to_thread(self._ledger.tell, words)", SHOP_ORDERS),
    Bug("a poll begins where the last one ended", "publisher/orders/poller.py", "place.modified_us - self._poll_rules.overlap_s * SECOND_US", "place.modified_us + SECOND_US", SHOP_ORDERS),
    Bug("a later hint is struck out with an earlier one", "publisher/orders/book.py", "                        table.c.number == hint.number,\n", "", SHOP_ORDERS),
    Bug("another shop's emptiness cancels our orders", "publisher/orders/poller.py", "if len(deleted) > VANISHED_MAX:", "if False:", SHOP_ORDERS),
    Bug("any signature opens the door", "publisher/orders/receiver.py", "if not hmac.compare_digest(told.encode(\"utf-8\", \"replace\"), expected.encode()):", "if not told:", SHOP_ORDERS),
    Bug("whatever comes as a form is a ping", "publisher/orders/receiver.py", "return len(fields) == 1 and fields[0][0] == \"webhook_id\" and fields[0][1].isdigit()", "return True", SHOP_ORDERS),
    Bug("our own echoes wake the poller", "publisher/orders/receiver.py", 'if not topic.startswith("order."):', "if not topic:", SHOP_ORDERS),
    Bug("a disabled webhook is left to its fate", "publisher/orders/webhooks.py", 'one.status == "disabled"]', "False]", SHOP_ORDERS),
    Bug("Mirror writes over a sale", "publisher/modes.py", "if mode is Mode.MIRROR and (look.shown is None or look.shown != look.explained):", "if False:", MIRROR),
    Bug("Mirror compares with what was sent last", "publisher/modes.py", "if look.shown == look.desired and not look.torn:", "if look.desired in (look.shown, look.explained) and not look.torn:", MIRROR),
    Bug("Mirror writes the number of before the fold", "publisher/numbers.py", "number = desired.get(one.sku, one.desired)", "number = one.desired", MIRROR),
    Bug("a number that comes back while another is written is lost", "publisher/coalescer.py", "(entry.quantity == taken.quantity and not heard)", "entry.quantity == taken.quantity", PUBLISHER),
    Bug("zeros that can be foreseen are let go", "publisher/golive.py", "self._foreseen = self._selling.intersection(self.waiting())", "self._foreseen = set()", MIRROR),
    Bug("a stop-sale waits for an operator", "publisher/golive.py", "if quantity > 0 or stop_sale or not available:", "if quantity > 0 or not available:", MIRROR),
    Bug("a sale of a moment ago counts as a difference", "publisher/rolling.py", "now + self._doubt_s", "now", ("tests/test_publisher_rolling.py",)),
    Bug("verify tells what is on its way as changed", "publisher/verify.py", "if kept.pending or kept.asked or kept.sending is not None:", "if False:", MIRROR),
    Bug("a replay counts as another reservation", "availability/service/reservation_handlers.py", "        if reply.replayed:\n            self._outcomes.replayed()\n        else:\n", "        if True:\n", OPERATION),
    Bug("waiting calls are told by nobody", "availability/app.py", "    telemetry.watch_pool(lambda: pool.queued, lambda: pool.blocked)\n", "", OPERATION),
    Bug("an event without an id keeps the one of before", "availability/replica/state.py", "            self.correlations.pop(sku, None)\n", "            pass\n", OPERATION),
    Bug("correlation ids are kept without end", "availability/replica/state.py", "while len(self.correlations) > CORRELATIONS_MAX:", "while False:", OPERATION),
    Bug("a write to a shop begins a trace of its own", "publisher/traces.py", "Trace.of_correlation(found[0], self._new_span())", "Trace.of_correlation(self._new_span(), self._new_span())", OPERATION),
    Bug("a scrape fails with the database", "availability/telemetry/asked.py", "        except Exception:", "        except KeyError:", OPERATION),
    Bug("an alert waits for a metric that is not there", "deploy/prometheus/alerts.yaml", "expr: availability_replica_age_seconds > 2", "expr: availability_replica_lag_seconds > 2", OPERATION),
    Bug("a unit starts what does not exist", "deploy/systemd/availability-publisher.service", "publish run --token-file", "publisher run --token-file", OPERATION),
    Bug("a probe asks for a service that nobody knows", "deploy/kubernetes/server.yaml", "service: liveness", "service: live", OPERATION),
    Bug("a server that is no primary is asked again", "availability/ledger/primary.py", "            self._elsewhere = True  #", "            self._elsewhere = False  #", FAILOVER),
    Bug("a Sentinel's word is enough", "availability/ledger/primary.py", 'if role not in (b"master", "master"):', 'if role == "":', FAILOVER),
    Bug("a slot on the move ends the call", "availability/ledger/connection.py", "if any(words in text for words in _SLOT_ON_THE_MOVE):", "if any(words == text for words in _SLOT_ON_THE_MOVE):", FAILOVER),
    Bug("a setting of Redis is misspelt", "deploy/redis/valkey-ha.conf", "min-replicas-to-write 1", "min-replica-to-write 1", OPERATION),
    Bug("the image runs as root", "deploy/Dockerfile", "USER 10001:10001\n", "", OPERATION),
    Bug("units sold twice are not added up", "benchmarks/sale_audit.py", "max(0, units - received.get(sku, 0))", "max(0, received.get(sku, 0) - units)", OPERATION),
    Bug("an older run counts as well", "availability/history/reconcile_figures.py", ".where(numbered.c.place == 1)", ".where(numbered.c.place >= 1)", OPERATION),
    Bug('a doubled row of a known position passes', 'ingest/reconcile/compare.py', 'elif rows - differing["on_hand"].null_count() != positions - differing["said"].null_count():', 'elif rows < 0:', RECONCILE),
    Bug('what is unsettled is corrected', 'ingest/reconcile/explaining.py', '    elif not row["settled"]:', '    elif False:', RECONCILE),
    Bug('a row that cannot be read means nothing is there', 'ingest/reconcile/explaining.py', 'elif situation.rows_refused and (row["absent"] or', 'elif False and (row["absent"] or', RECONCILE),
    Bug('what has arrived is corrected as well', 'ingest/reconcile/desk.py', 'approved = self._store.approve(run.run_id, author, reason, self._now(), arrived)', 'approved = self._store.approve(run.run_id, author, reason, self._now(), [])', RECONCILE),
    Bug('a late delta is corrected', 'ingest/reconcile/causes.py', 'if move.version > context.point and move.effect and 0 < move.occurred_us <= context.point_us:', 'if False:', RECONCILE),
    Bug("a correction has the variance's own sign", 'ingest/reconcile/corrections.py', 'pb.DELTA_TYPE_ADJUSTMENT, -variance, cause', 'pb.DELTA_TYPE_ADJUSTMENT, variance, cause', RECONCILE),
    Bug("units outside the snapshot's nodes are cancelled", 'ingest/reconcile/corrections.py', 'quantity=one.shipped + one.elsewhere + one.said', 'quantity=one.shipped + one.said', RECONCILE),
    Bug('a waiting run stays when a newer one looked', 'ingest/reconcile/store.py', 'wanted = (table.c.snapshot == newer.snapshot, table.c.state == HELD,', 'wanted = (table.c.snapshot == newer.snapshot, table.c.state == "",', RECONCILE),
    Bug('a refused file takes a waiting run away', 'ingest/reconcile/store.py', 'if values.get("state") != REFUSED:', 'if True:', RECONCILE),
    Bug('a column that nobody needs is not read', 'ingest/reconcile/columns.py', '            pl.all_horizontal(pl.col(name).is_null() for name in cells).alias("empty"),\n', '', RECONCILE),
    Bug('a file that changes is read on', 'ingest/reconcile/staging.py', '        if left.height != uncertain:', '        if False:', RECONCILE),
    Bug('absent rows count as nothing where they are to be ignored', 'ingest/reconcile/compare.py', '    if rules.absent == "IGNORE":\n        rows = rows.filter(pl.col("said").is_not_null())', '    if False:\n        rows = rows.filter(pl.col("said").is_not_null())', RECONCILE),
    Bug('an older file is compared', 'ingest/reconcile/guard.py', '    if file.newer_run:', '    if False:', RECONCILE),
    Bug('a unit that is no whole number is rounded', 'ingest/reconcile/columns.py', 'if factor == int(factor) and factor <= FACTOR_MAX', 'if factor <= FACTOR_MAX', RECONCILE),
    Bug('two doubles are one', 'ingest/reconcile/causes.py', 'first = seen.setdefault(content, move)', 'first = seen.get(content, move)', RECONCILE),
    Bug("two historians write the same records", "availability/history/journal.py", "        if moved.rowcount != 1:", "        if False:", HISTORY),
    Bug("the place is not moved with its rows", "availability/history/journal.py", "            self._move(connection, at, after)\n", "", HISTORY),
    Bug("a fork leaves the changes of lost records", "availability/history/journal.py", "for table in (*BY_DAY, policies):", "for table in (BY_DAY[0], policies):", HISTORY),
    Bug("a ledger that went back has its unread records trimmed", "availability/history/historian.py", "self._checkpoints.note(START)", "self._checkpoints.note(place.version)", HISTORY),
    Bug("what was left of a fence is that of an older fence", "availability/history/past.py", "since > version and left.generation == fence.version", "since > 0", HISTORY),
    Bug("policies from before a gap count after it", "availability/history/latest.py", ", policies.c.version >= at.floor)", ")", HISTORY),
    Bug("a figure is set by whatever touched the position last", "availability/history/latest.py", "\"reserved\": \" AND p.reserved_change != 0\"", "\"reserved\": \"\"", HISTORY),
    Bug("a gap that was merged is merged again", "availability/history/retention.py", " and row.version > before]", "]", HISTORY),
    Bug("any seal holds", "availability/history/seal.py", "return hmac.compare_digest(seal.encode(), self.seal(what, fields).encode())", "return True", HISTORY),
    Bug("columns are not held against the records' bytes", "availability/history/prove.py", "            if _plain(made.journal[-1]) != _plain(row):", "            if False:", HISTORY),
    Bug("a late cancel is judged by the name that it was told under", LUA + "08_orders_facts.lua", "local lines = Orders.told(ctx, o, sku)[LINES]", "local lines = facts[LINES]", ("tests/faults/test_fault_open_orders.py",)),
    Bug("an old order leaves the list though it is open", LUA + "13_upkeep.lua", "        if not open then\n          local order", "        txn:add({'ZREM', key, one})\n        if not open then\n          local order", ("tests/faults/test_fault_open_orders.py",)),
    Bug("event ids are looked up for thirty days, whatever the window", LUA + "11_streams.lua", "for back = 0, Streams.generations(window_ms) do", "for back = 0, 2 do", ("tests/faults/test_fault_clock.py",)),
    Bug("event ids are forgotten after thirty days, whatever the window", LUA + "13_upkeep.lua", "Streams.generations(cmd[5] or 30 * DAY_MS) + 1", "3", ("tests/faults/test_fault_clock.py",)),
    Bug("streams of a source have no end", LUA + "11_streams.lua", "if ctx.stream_count >= most then return nil end", "", ("tests/faults/test_fault_input.py",)),
    Bug("what a machine has seen becomes whatever Redis holds", "availability/ledger/last_seen.py", "noted.ledger_id != seen.ledger_id or", "False or", ("tests/test_last_seen.py",)),
    Bug("polling goes on from a date that lies ahead", "publisher/orders/poller.py", "latest_us = min(latest_us, int(self._now() * SECOND_US))", "pass", SHOP_ORDERS),
    Bug("a reading is older than a date that lies ahead", "publisher/orders/facts.py", " <= now_us + AHEAD_US:", ":", SHOP_ORDERS),
    Bug("a letter that was replayed stays closed for every event", "ingest/letters.py", "sa.case((anew, WAITING), else_=own.state)", "own.state", ("tests/test_ingest_letters.py",)),
    Bug("a conflict that was replayed waits again", "ingest/letters.py", "                statement.excluded.category != Category.CONFLICT.value,\n", "", ("tests/test_ingest_letters.py",)),
    Bug("half a write stays in the spool", "ingest/sources/webhook.py", "            os.ftruncate(self._file, kept)\n", "", ("tests/test_ingest_webhook.py",)),
    Bug("a file that cannot be read ends the round", "ingest/sources/drop_folder.py", "                if path.exists():\n", "                if path.exists():\n                    raise\n", ("tests/test_ingest_pipeline.py",)),
    Bug("open calls are not counted", "availability/service/grpc_early.py", "        return _Call(args[2])", "        return _Call(type(args[2])())", ("tests/test_grpc_early.py",)),
    Bug("a call that ended stays in the list of the silent", "availability/service/grpc_unary.py", "        method.heard(self.context)\n", "", ("tests/test_grpc_early.py",)),
    Bug("a child draws its parent's reservation ids", "availability/service/reservation_ids.py", "os.register_at_fork(after_in_child=_drawn.clear)", "os.register_at_fork(after_in_child=_drawn.copy)", ("tests/test_reservation_ids.py",)),
    Bug("no page is asked for ahead", "availability/replica/bootstrap.py", "                coming = ahead.submit(self._reader.page, page.next_index, count)\n                yield page\n", "                yield page\n                coming = ahead.submit(self._reader.page, page.next_index, count)\n", ("tests/test_replica_following.py",)),
    Bug("an edited token file is its editor's alone", "availability/service/auth.py", "                    _give(descriptor, before.st_uid, before.st_gid)\n", "                    pass\n", ("tests/test_auth.py",)),
    Bug("an edited token file takes its group's right", "availability/service/auth.py", "                os.fchmod(descriptor, _kept_mode(before.st_mode))\n", "", ("tests/test_auth.py",)),
    Bug("a shop's counts begin when something happens", "publisher/assembly.py", "    around.metrics.known(channel, TOPICS)\n", "", ("tests/test_publisher_figures.py",)),
    Bug("a source's counts begin when something happens", "ingest/figures.py", "        metrics.known(source)\n", "", ("tests/test_telemetry.py",)),
    Bug("a door is opened for no source", "deploy/sources/erp.toml", "\n[webhook]\n", "\n[[samples]]\n", ("tests/test_deploy.py",)),
    Bug("compose mounts the token file itself", "deploy/compose.yaml", "      - server-1:/var/lib/availability\n      - ./secrets/tokens:", "      - server-1:/var/lib/availability\n      - ./secrets/tokens.json:", ("tests/test_deploy.py",)),
    Bug("one replica is thought enough to go on", "availability/ledger/preflight.py", "attached <= int(least)", "attached < int(least)", ("tests/test_deploy.py",)),
    Bug("a call that a stopping server cancels is given up", "availability/client.py", 'if failure.code == failure.reason == "CANCELLED" and', "if False and", ("tests/test_client.py",)),
)  # fmt: skip


def _broken_copy(bug: Bug, folder: Path) -> None:
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in filter(None, names):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    path = folder / bug.file
    text = path.read_text(encoding="utf-8")
    if text.count(bug.old) != 1:
        raise SystemExit(
            f"{bug.name}: {bug.old!r} stands {text.count(bug.old)} times in {bug.file}, not once"
        )
    path.write_text(text.replace(bug.old, bug.new), encoding="utf-8")


def _caught_by(folder: Path, tests: tuple[str, ...]) -> str:
    """Return the test that failed, or ''."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=unshrunk",
        *tests,
    ]
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )
    if ended.returncode == 0:
        return ""
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)
    return found[1] if found else f"exit code {ended.returncode}: {ended.stdout[-200:]}"


def main(names: list[str]) -> int:
    """Plant the named bugs, or all."""
    lived = 0
    for bug in BUGS:
        if names and not any(name in bug.name for name in names):
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            _broken_copy(bug, Path(folder))
            test = _caught_by(Path(folder), bug.tests)
        lived += not test
        print(f"{time.monotonic() - began:5.0f} s  {bug.name}: {test or 'LIVED'}", flush=True)
    return 1 if lived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
