-- Deltas: one call applies up to 250 of one source, in order, one by one; what is applied is one version.
-- What shape alone can tell (types, ranges, text) was judged before; such a delta comes with its reason and only
-- consumes its number. What was told before is known to 11_streams.lua; what a delta does is in 11_deltas_stock.lua and
-- 11_deltas_orders.lua.

local Deltas = {}
local Streams = {} -- 11_streams.lua: what was told before

-- A delta as read: where the next one begins, then the fields of Cause (record.py).
Deltas.at = {
  STREAM = 2, SEQUENCE = 3, EVENT_ID = 4, TYPE = 5, SKU = 6, NODE = 7, TO_NODE = 8, QUANTITY = 9, STOCK_STATE = 10,
  O_SOURCE = 11, O_REF = 12, LINE = 13, BASIS = 14, SHIPPED_QUANTITY = 15, REFERENCE = 16, REASON = 17, DUE_US = 18,
  OCCURRED_US = 19,
  EXPECTED_KIND = 22, LINKED_SOURCE = 24, LINKED_REF = 25, -- nil where the source sent none
}
Deltas.types = {
  RECEIPT = 1, ADJUSTMENT = 2, SET_ON_HAND = 3, SHIPMENT = 4, QUARANTINE = 5, QUARANTINE_RELEASE = 6, WRITE_OFF = 7,
  RETURN_RECEIVED = 8, EXPECTED = 9, TRANSFER_OUT = 10, TRANSFER_IN = 11,
  ORDER_PLACED = 12, ORDER_CHANGED = 13, ORDER_ALLOCATED = 14, ORDER_CANCELLED = 15, LINK_ORDER = 16,
}
Deltas.results = {APPLIED = 1, DUPLICATE = 2, STALE = 3, REJECTED = 4, PARKED = 5}

do -- Lua has room for 200 names outside of blocks; these stay in here

local KIND_DELTAS = 6
local at, types, results = Deltas.at, Deltas.types, Deltas.results
local STREAM, SEQUENCE, EVENT_ID, TYPE, SKU = at.STREAM, at.SEQUENCE, at.EVENT_ID, at.TYPE, at.SKU
local NODE, TO_NODE, QUANTITY, O_SOURCE, O_REF = at.NODE, at.TO_NODE, at.QUANTITY, at.O_SOURCE, at.O_REF
local OCCURRED_US = at.OCCURRED_US
local APPLIED, REJECTED, PARKED = results.APPLIED, results.REJECTED, results.PARKED
local SHIPMENT, TRANSFER_OUT = types.SHIPMENT, types.TRANSFER_OUT
local LINK_ORDER, ORDER_CANCELLED = types.LINK_ORDER, types.ORDER_CANCELLED

-- When an absolute word was said, and by whom; without a time, when it came.
function Deltas.word_key(ctx, source, d)
  local occurred = d[OCCURRED_US] > 0 and d[OCCURRED_US] or ctx.clock * 1000
  return {occurred, source, d[STREAM], d[SEQUENCE], d[EVENT_ID]}
end

local function apply_known(ctx, txn, source, d)
  local type = d[TYPE]
  if Kits.is_kit(ctx, d[SKU], d[NODE]) then return REJECTED, 'KIT_SKU' end
  local of_order = type == SHIPMENT or type == TRANSFER_OUT or type == LINK_ORDER or Deltas.of_order[type]
  local order
  if of_order and d[O_REF] ~= '' then
    order = Orders.open(ctx, d[O_SOURCE], d[O_REF])
    if order.closed then return REJECTED, 'ORDER_CLOSED' end
  end
  local change = Deltas.of_stock[type]
  if change then
    local why = change(ctx, d, d[QUANTITY])
    if why then return REJECTED, why end
    if order then
      Deltas.ship(ctx, order, d)
      Exceptions.heard(ctx, txn, order)
    end
    Deltas.move_expected(ctx, source, d)
    return nil
  end
  local say = Deltas.of_counts[type]
  if say then return say(ctx, source, d) end
  if type == LINK_ORDER then return Deltas.link_order(ctx, txn, order, d, Deltas.word_key(ctx, source, d)) end
  if type ~= ORDER_CANCELLED and d[NODE] == '' and #Policy.node_table(ctx) == 0 then return REJECTED, 'UNKNOWN_NODE' end
  Exceptions.heard(ctx, txn, order)
  return Deltas.of_order[type](ctx, txn, order, d, Deltas.word_key(ctx, source, d))
end

local function declare(ctx, txn, source, node, declared)
  local state = {node, 1, 0, Log.next_version(ctx), source, 'declared by its first delta', ctx.clock}
  Policy.put_node(ctx, txn, state)
  declared[#declared + 1] = state
end

-- Apply one delta that is new, and declare its nodes with it. Returns nil, or STALE, or REJECTED and its reason; then
-- nothing is changed.
local function apply(ctx, txn, source, d, auto_create, declared)
  local node, to_node = d[NODE], d[TYPE] == TRANSFER_OUT and d[TO_NODE] or ''
  if not ctx.nodes then Policy.node_table(ctx) end
  local new, new_to = node ~= '' and not ctx.nodes[node], to_node ~= '' and not ctx.nodes[to_node]
  if not new and not new_to then return apply_known(ctx, txn, source, d) end
  if not auto_create then return REJECTED, 'UNKNOWN_NODE' end
  if not Policy.has_room(ctx, new and new_to and 2 or 1) then return REJECTED, 'TOO_MANY_NODES' end
  local result, reason = apply_known(ctx, txn, source, d)
  if not result then
    if new then declare(ctx, txn, source, node, declared) end
    if new_to then declare(ctx, txn, source, to_node, declared) end
  end
  return result, reason
end

-- Read the call piece by piece: causes go into the log as the bytes that came, and one table a delta is what reading
-- costs least. Lists by place: fingerprints, buckets, reasons to reject, deltas, where the bytes of each cause begin.
local function read_call(raw)
  local at, source = unpack_limit(raw, 1, 1)
  local count = byte(raw, at + 1) - 0x90
  at = at + 1
  if count > 15 then -- array 16: two bytes of length follow
    count = byte(raw, at + 1) * 256 + byte(raw, at + 2)
    at = at + 2
  end
  local prints, buckets, reasons, deltas, starts = {}, {}, {}, {}, {}
  for i = 1, count do
    local start
    start, prints[i], buckets[i], reasons[i] = unpack_limit(raw, 3, at + 1)
    local d = {unpack_limit(raw, byte(raw, start + 3), start + 3)} -- Cause has more than 15 fields: array 16
    starts[i], deltas[i], at = start, d, d[1]
  end
  local _, auto_create, window_ms, streams_max = unpack_limit(raw, 3, at)
  return source, auto_create, window_ms, prints, buckets, reasons, deltas, starts, streams_max
end

local function emit(ctx, txn, source, causes, declared, positions)
  local marks = {}
  for _, name in ipairs(sorted_keys(ctx.streams or {})) do marks[#marks + 1] = {name, ctx.streams[name].row[1]} end
  Log.emit(ctx, txn, KIND_DELTAS, NOBODY, positions,
    ARRAY[6] .. pack(source) .. struct_pack('>BI2', 0xdc, #causes) .. concat(causes)
      .. pack(marks, declared, ctx.released, ctx.oversold))
end

-- cmd = {source, deltas {{fingerprint, bucket, reject_reason, cause}, ...}, auto_create, event_window_ms, streams_max}
-- reply = {status, version, results, details {{index, result, reason, expected}, ...}}
function Deltas.apply(keys, args)
  local raw = args[2]
  local source, auto_create, window_ms, prints, buckets, reasons, deltas, starts, streams_max = read_call(raw)
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  Holds.expire(ctx, 4)
  local txn = Txn.new()
  local results, details, causes, declared = {}, {}, {}, {}
  ctx.oversold, ctx.released, ctx.holds, ctx.source, ctx.causes = {}, {}, {}, source, causes
  local feeds = Feeds.of(ctx, source)
  local heard = #deltas == 0 or {} -- the nodes, or true: a heartbeat
  if heard == true then Streams.of(ctx, source, '') end
  for i = 1, #deltas do
    local d = deltas[i]
    local result, reason, expected
    local named = d[SEQUENCE] > 0 or d[EVENT_ID] ~= ''
    local st = named and Streams.of(ctx, source, d[STREAM], streams_max)
    if not st then
      if named then result, reason = REJECTED, 'TOO_MANY_STREAMS' end
    elseif d[SEQUENCE] > 0 then
      result, reason, expected = Streams.judge_number(ctx, source, st, d[SEQUENCE], prints[i])
    else
      result, reason = Streams.judge_event(ctx, source, d[EVENT_ID], buckets[i], prints[i], d[OCCURRED_US], window_ms)
    end
    if not result and reasons[i] ~= '' then result, reason = REJECTED, reasons[i] end
    if not result then
      ctx.cause = #causes
      result, reason = apply(ctx, txn, source, d, auto_create, declared)
      if result ~= REJECTED and d[EVENT_ID] ~= '' and d[SEQUENCE] == 0 then
        ctx.events = ctx.events or {}
        ctx.events[pair(source, d[EVENT_ID])] = {buckets[i], prints[i]}
      end
    end
    if result == REJECTED and st and d[SEQUENCE] > 0 then
      Streams.note_rejected(ctx, source, st, d[SEQUENCE], prints[i], reason)
    end
    if result then
      details[#details + 1] = {i - 1, result, reason or '', expected or 0}
    else
      result = APPLIED
      causes[#causes + 1] = sub(raw, starts[i] + 1, d[1])
    end
    if feeds and result ~= REJECTED and result ~= PARKED then heard[d[NODE]] = true end
    results[i] = result
  end
  local fresh = feeds and Feeds.hear(ctx, txn, source, feeds, heard)
  Streams.flush(ctx, txn, source)
  txn:add({'SADD', ctx.base .. 'sources', source})
  Streams.flush_events(ctx, txn)
  Policy.flush_nodes(ctx, txn)
  Orders.flush(ctx, txn)
  Positions.flush_reasons(ctx, txn)
  Counts.flush(ctx, txn)
  Supply.flush(ctx, txn)
  local positions = Positions.flush(ctx, txn)
  if #causes == 0 and #declared == 0 and #positions == 0 then -- whatever moves is in the log
    Log.quiet(ctx, txn)
  else
    emit(ctx, txn, source, causes, declared, positions)
  end
  if fresh then Feeds.freshen(ctx, fresh) end
  return pack({'OK', Log.version(ctx), results, details})
end

end
