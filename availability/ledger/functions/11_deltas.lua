-- Deltas: one call applies up to 250 of one source, in order, one by one; what is applied is one version.
-- What shape alone can tell (types, ranges, text) was judged before; such a delta comes with its reason and only
-- consumes its number.

local Deltas = {}
local EVENT_GENERATION_MS = 15 * DAY_MS

-- Past generations of event ids that events within the window may stand in.
function Deltas.generations(window_ms)
  return ceil(window_ms / EVENT_GENERATION_MS)
end

do -- Lua has room for 200 names outside of blocks; these stay in here

local KIND_DELTAS, KIND_STREAM = 6, 9
local SEEN_WINDOW = 4096 -- numbers back from the mark for which a repeat's content is compared
-- A delta as read: where the next one begins, then the fields of Cause (record.py).
local STREAM, SEQUENCE, EVENT_ID, TYPE, SKU, NODE, TO_NODE, QUANTITY, STOCK_STATE, O_SOURCE, O_REF, LINE, BASIS, SHIPPED_QUANTITY,
  REFERENCE, REASON, DUE_US, OCCURRED_US = 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19
local EXPECTED_KIND, LINKED_SOURCE, LINKED_REF = 22, 24, 25 -- nil where the source sent none
local APPLIED, DUPLICATE, STALE, REJECTED, PARKED = 1, 2, 3, 4, 5
local QUARANTINED_STATE = 2
local SET_ON_HAND, EXPECTED, TRANSFER_OUT, TRANSFER_IN = 3, 9, 10, 11
local RECEIPT, ADJUSTMENT, SHIPMENT, QUARANTINE, QUARANTINE_RELEASE, WRITE_OFF, RETURN_RECEIVED = 1, 2, 4, 5, 6, 7, 8
local ORDER_PLACED, ORDER_CHANGED, ORDER_ALLOCATED, ORDER_CANCELLED, LINK_ORDER = 12, 13, 14, 15, 16
local OPEN_BASIS = 2

-- Streams ------------------------------------------------------------------------------------------------------

-- `src:<source>`: stream -> {mark (0: none), seen_ms, parked_sequence, parked_ms, was reset, has rejected}
-- `seen:<stream>`: a ring of SEEN_WINDOW slots in one string: the fingerprint (12 bytes) and the number of the delta.
-- What one call accepts has numbers in a row, so it is one write, or two where the ring closes.
local SLOT, FINGERPRINT = 20, 12
-- Nil for one more than `most` (absent: any number): a stream is kept for ever, with a ring of numbers seen.
local function stream_of(ctx, source, name, most)
  ctx.streams = ctx.streams or {}
  local st = ctx.streams[name]
  if not st then
    local raw = call('HGET', ctx.base .. 'src:' .. source, name)
    if not raw and most then
      ctx.stream_count = ctx.stream_count or call('HLEN', ctx.base .. 'src:' .. source)
      if ctx.stream_count >= most then return nil end
      ctx.stream_count = ctx.stream_count + 1
    end
    st = {name = name, raw = raw, row = raw and unpack_msg(raw) or {0, 0, 0, 0}, first = 0, prints = {}}
    st.key = ctx.base .. 'seen:' .. pair(source, name)
    ctx.streams[name] = st
  end
  st.row[2] = ctx.clock
  st.dirty = true
  return st
end

local function write_slots(txn, key, slot, values)
  local at, new = slot * SLOT, concat(values)
  local old = call('GETRANGE', key, at, at + #new - 1)
  local length = #old == #new and at + #new or call('STRLEN', key)
  txn:add({'SETRANGE', key, at, new}, {old, length})
end

local function write_ring(txn, st)
  local slot, values = st.first % SEEN_WINDOW, {}
  for i, print in ipairs(st.prints) do
    if slot + #values == SEEN_WINDOW then
      write_slots(txn, st.key, slot, values)
      slot, values = 0, {}
    end
    values[#values + 1] = print .. struct_pack('<i8', st.first + i - 1)
  end
  write_slots(txn, st.key, slot, values)
end

-- The fingerprint of the delta with a number up to the mark, or nil where it is not remembered any more.
local function print_of(st, sequence)
  if st.first > 0 and sequence >= st.first then return st.prints[sequence - st.first + 1] end
  local at = sequence % SEEN_WINDOW * SLOT
  local slot = call('GETRANGE', st.key, at, at + SLOT - 1)
  if #slot < SLOT or struct_unpack('<i8', slot, FINGERPRINT + 1) ~= sequence then return nil end
  return sub(slot, 1, FINGERPRINT)
end

-- `rej:<stream>`: the latest rejected numbers, each with its fingerprint and reason; only of a stream that has some. Who
-- sent one and never saw the answer is told the reason again when it comes as a DUPLICATE: else its dead letter is lost.
local REJECTED_KEPT = 100000 -- domain/limits.py holds what ingest has on its way below it

local function rejected_key(ctx, source, name)
  return ctx.base .. 'rej:' .. pair(source, name)
end

local function note_rejected(ctx, source, st, sequence, fingerprint, reason)
  if not st.rejected then st.rejected = {} end
  if st.rejected[fingerprint] then return end
  st.rejected[fingerprint] = reason
  st.rejected[#st.rejected + 1] = {sequence, fingerprint .. reason}
  st.row[5], st.row[6] = st.row[5] or 0, 1
end

-- Why the delta of a number up to the mark was rejected, or nil.
local function rejected_for(ctx, source, st, sequence, fingerprint)
  if not st.row[6] then return nil end
  local now = st.rejected and st.rejected[fingerprint]
  if now then return now end
  for _, kept in ipairs(call('ZRANGE', rejected_key(ctx, source, st.name), int(sequence), int(sequence), 'BYSCORE')) do
    if sub(kept, 1, FINGERPRINT) == fingerprint then return sub(kept, FINGERPRINT + 1) end
  end
  return nil
end

local function write_rejected(ctx, txn, source, st)
  local key, new = rejected_key(ctx, source, st.name), 0
  for _, row in ipairs(st.rejected) do
    local score = call('ZSCORE', key, row[2])
    if not score then
      new = new + 1
      txn:put('ZADD', key, int(row[1]), row[2], false)
    end
  end
  local excess = new > 0 and call('ZCARD', key) + new - REJECTED_KEPT or 0
  if excess <= 0 then return end
  local rows = call('ZRANGE', key, '0', int(excess - 1), 'WITHSCORES')
  for i = 1, #rows, 2 do txn:put('ZREM', key, rows[i], false, tonumber(rows[i + 1])) end
end

local function flush_streams(ctx, txn, source)
  local any = false
  for _, name in ipairs(sorted_keys(ctx.streams or {})) do
    local st = ctx.streams[name]
    if st.dirty then
      any = true
      txn:hash(ctx.base .. 'src:' .. source, name, pack(st.row), st.raw)
      if st.first > 0 then write_ring(txn, st) end
      if st.rejected then write_rejected(ctx, txn, source, st) end
    end
  end
  return any
end

-- What the number says. Returns DUPLICATE (with the reason where it was rejected), PARKED (with the expected number), REJECTED CONFLICT, or nil: it is next.
local function judge_sequence(ctx, source, st, sequence, fingerprint)
  local row = st.row
  local mark = row[1]
  if mark == 0 or sequence == mark + 1 then
    row[1], row[5] = sequence, row[6] and 0
    if row[3] <= sequence then row[3], row[4] = 0, 0 end
    if st.first == 0 then st.first = sequence end
    st.prints[#st.prints + 1] = fingerprint
    return nil
  end
  if sequence <= mark then
    local known = print_of(st, sequence)
    if known and known ~= fingerprint then return REJECTED, 'CONFLICT' end
    return DUPLICATE, rejected_for(ctx, source, st, sequence, fingerprint)
  end
  if row[3] == 0 then row[4] = ctx.clock end
  row[3] = max(row[3], sequence)
  return PARKED, nil, mark + 1
end

-- Event ids: remembered by generations of 15 days, as many of which are looked up as the window reaches into.
local function event_key(ctx, generation, bucket)
  return ctx.base .. 'evt:' .. int(generation) .. ':' .. bucket
end

local function judge_event(ctx, source, event_id, bucket, fingerprint, occurred_us, window_ms)
  local field = pair(source, event_id)
  ctx.events = ctx.events or {}
  local found = ctx.events[field]
  if not found then
    local generation = floor(ctx.clock / EVENT_GENERATION_MS)
    for back = 0, Deltas.generations(window_ms) do
      found = found or call('HGET', event_key(ctx, generation - back, bucket), field)
    end
  else
    found = found[2]
  end
  if found then
    if found ~= fingerprint then return REJECTED, 'CONFLICT' end
    return DUPLICATE
  end
  if occurred_us > 0 and ctx.clock - floor(occurred_us / 1000) > window_ms then return REJECTED, 'EVENT_TOO_OLD' end
  return nil
end

local function flush_events(ctx, txn)
  local generation = floor(ctx.clock / EVENT_GENERATION_MS)
  for field, entry in pairs(ctx.events or {}) do
    local key = event_key(ctx, generation, entry[1])
    txn:hash(key, field, entry[2], false)
  end
end

-- Stock --------------------------------------------------------------------------------------------------------

local function out_of_range(p, on_hand, quarantined)
  return abs(p.on_hand + on_hand) > BALANCE_ABS_MAX or abs(p.quarantined + quarantined) > BALANCE_ABS_MAX
end

local function move_stock(ctx, d, on_hand, quarantined, reason)
  local p, s = Positions.at(ctx, d[SKU], d[NODE])
  local latest, mark
  local told = on_hand
  if on_hand ~= 0 then on_hand, latest, mark = Counts.weigh(ctx, ctx.source, p, s, d, on_hand) end
  if out_of_range(p, on_hand, quarantined) then return 'BALANCE_OUT_OF_RANGE' end
  if on_hand ~= told then Log.effect(ctx, d[SKU], d[NODE], '', on_hand) end
  if on_hand ~= 0 then Counts.note(ctx, ctx.source, p, s, d, on_hand, latest, mark) end
  p.on_hand = p.on_hand + on_hand
  if quarantined ~= 0 then
    local r = Positions.reasons(ctx, s, d[NODE])
    local left = (r.by[reason] or 0) + quarantined
    r.by[reason] = left ~= 0 and left or nil
    r.dirty = true
    p.quarantined = p.quarantined + quarantined
  end
  Positions.touch(ctx, s, d[NODE])
  return nil
end

local stock = {
  [RECEIPT] = function(ctx, d, q) return move_stock(ctx, d, q, d[REASON] ~= '' and q or 0, d[REASON]) end,
  [ADJUSTMENT] = function(ctx, d, q)
    return move_stock(ctx, d, q, d[STOCK_STATE] == QUARANTINED_STATE and q or 0, d[REASON])
  end,
  [SHIPMENT] = function(ctx, d, q) return move_stock(ctx, d, -q, 0) end,
  [QUARANTINE] = function(ctx, d, q) return move_stock(ctx, d, 0, q, d[REASON]) end,
  [QUARANTINE_RELEASE] = function(ctx, d, q) return move_stock(ctx, d, 0, -q, d[REASON]) end,
  [WRITE_OFF] = function(ctx, d, q) return move_stock(ctx, d, -q, -q, d[REASON]) end,
  [RETURN_RECEIVED] = function(ctx, d, q) return move_stock(ctx, d, q, q, 'return') end,
  [TRANSFER_OUT] = function(ctx, d, q) return move_stock(ctx, d, -q, 0) end,
  [TRANSFER_IN] = function(ctx, d, q) return move_stock(ctx, d, q, 0) end,
}

local function word_key(ctx, source, d)
  local occurred = d[OCCURRED_US] > 0 and d[OCCURRED_US] or ctx.clock * 1000
  return {occurred, source, d[STREAM], d[SEQUENCE], d[EVENT_ID]}
end

-- What a stock delta does to expected supply: node, kind, reference and units by type.
local expected_by = {
  [RECEIPT] = function(d) return d[NODE], Supply.PURCHASE, d[REFERENCE], -d[QUANTITY] end,
  [RETURN_RECEIVED] = function(d)
    return d[NODE], Supply.RETURN, d[REFERENCE] ~= '' and d[REFERENCE] or d[O_REF], -d[QUANTITY]
  end,
  [TRANSFER_OUT] = function(d) return d[TO_NODE], Supply.TRANSFER, d[REFERENCE], d[QUANTITY] end,
  [TRANSFER_IN] = function(d) return d[NODE], Supply.TRANSFER, d[REFERENCE], -d[QUANTITY] end,
}

local function move_expected(ctx, source, d)
  local node, kind, reference, quantity = expected_by[d[TYPE]](d)
  if reference == '' and kind ~= Supply.TRANSFER then return end
  local due_us = quantity > 0 and d[DUE_US] or 0
  local line = d[TYPE] == TRANSFER_OUT and d[O_REF] ~= '' and '' or d[LINE] -- then it is the order's line
  Supply.move(ctx, d[SKU], node, kind, reference, line, quantity, word_key(ctx, source, d), due_us)
end

local facts_of_stock = {
  [EXPECTED] = function(ctx, source, d)
    local kind = d[EXPECTED_KIND] or 0
    if kind == 0 then kind = Supply.PURCHASE end
    local reference = d[REFERENCE]
    if reference == '' and kind == Supply.RETURN then reference = d[O_REF] end
    local key = word_key(ctx, source, d)
    if Supply.say(ctx, d[SKU], d[NODE], kind, reference, d[LINE], d[QUANTITY], key, d[DUE_US]) then return STALE end
    return nil
  end,
  [SET_ON_HAND] = function(ctx, source, d)
    local p, s = Positions.at(ctx, d[SKU], d[NODE])
    local was = p.on_hand
    local stale, reason = Counts.set(ctx, source, p, s, d)
    if reason then return REJECTED, reason end
    if stale then return STALE end
    Log.effect(ctx, d[SKU], d[NODE], '', p.on_hand - was)
    Positions.touch(ctx, s, d[NODE])
    return nil
  end,
}

-- Orders -------------------------------------------------------------------------------------------------------

local function settle(ctx, order, sku)
  local units = Orders.settle(ctx, order, sku)
  if units > 0 then ctx.oversold[#ctx.oversold + 1] = {sku, units} end
end

-- Holds that carry one name of an order are released, wholly or their units of one sku.
local function release_holds_of(ctx, txn, order, sku)
  for _, id in ipairs(order.meta[3]) do
    local hold, raw
    if ctx.holds[id] == nil then
      hold, raw = Holds.load(ctx, id)
    else
      hold, raw = ctx.holds[id][1], ctx.holds[id][2]
    end
    if hold and hold[1] == 1 and Holds.order_of(ctx, hold) == order then
      local body
      if not sku then
        body = {id, true, Holds.end_all(ctx, txn, id, hold, raw, 3)}
      else
        body = Reservations.drop(ctx, txn, id, hold, raw, sku)
      end
      if body then
        ctx.holds[id] = {hold, pack(hold)}
        ctx.released[#ctx.released + 1] = body
      end
    end
  end
end

-- A whole order or one of its skus is cancelled: holds that carry any of its names are released.
local function release_holds(ctx, txn, order, sku)
  for _, member in ipairs(Orders.members(ctx, order)) do release_holds_of(ctx, txn, member, sku) end
end

-- What was cancelled under some names is cancelled for holds that carry the names that are now linked with them.
local function release_cancelled(ctx, txn, cancelled, carried, skus)
  for _, sku in ipairs(skus) do
    local theirs, ours = Orders.cancel_under(cancelled, sku), Orders.cancel_under(carried, sku)
    if theirs and not (ours and Orders.key_less(theirs, ours)) and Orders.cancels_sku(ctx, carried[1], sku) then
      for _, order in ipairs(carried) do release_holds_of(ctx, txn, order, sku) end
    end
  end
end

local function say_quantity(ctx, txn, order, d, key, quantity)
  local facts = Orders.facts(order, d[SKU])
  local l = Orders.line(facts, d[LINE])
  if l[4] and not Orders.key_less(l[4], key) then return STALE end
  l[3], l[4], l[8] = quantity, key, d[NODE]
  settle(ctx, order, d[SKU])
  return nil
end

local order_types = {
  [ORDER_PLACED] = function(ctx, txn, order, d, key) return say_quantity(ctx, txn, order, d, key, d[QUANTITY]) end,
  [ORDER_CHANGED] = function(ctx, txn, order, d, key) return say_quantity(ctx, txn, order, d, key, d[QUANTITY]) end,
  [ORDER_ALLOCATED] = function(ctx, txn, order, d, key)
    local l = Orders.line(Orders.facts(order, d[SKU]), d[LINE])
    local latest = l[6][d[NODE]]
    if latest and not Orders.key_less(latest[2], key) then return STALE end
    l[6][d[NODE]] = {d[QUANTITY] + (d[BASIS] == OPEN_BASIS and d[SHIPPED_QUANTITY] or 0), key}
    settle(ctx, order, d[SKU])
    return nil
  end,
  [ORDER_CANCELLED] = function(ctx, txn, order, d, key)
    if d[SKU] ~= '' then
      local stale
      if d[LINE] ~= '' then
        stale = say_quantity(ctx, txn, order, d, key, 0)
      else
        stale = Orders.cancel_sku(ctx, order, d[SKU], key)
        settle(ctx, order, d[SKU])
      end
      if stale then return STALE end
      release_holds(ctx, txn, order, d[SKU])
      return nil
    end
    if order.meta[1] and not Orders.key_less(order.meta[1], key) then return STALE end
    order.meta[1] = key
    order.dirty = true
    release_holds(ctx, txn, order, nil)
    for _, sku in ipairs(Orders.every_sku(ctx, order)) do settle(ctx, order, sku) end
    return nil
  end,
}

-- Two names are one order from now on, or two again.
local function link_order(ctx, txn, order, d, key)
  local other = Orders.open(ctx, d[LINKED_SOURCE], d[LINKED_REF])
  if other.closed then return REJECTED, 'ORDER_CLOSED' end
  local ours, theirs = Orders.members(ctx, order), Orders.members(ctx, other)
  local one = d[QUANTITY] == 1
  local why, skus, oversold = Orders.link(ctx, order, other, one, key)
  if why == 'STALE' then return STALE end
  if why then return REJECTED, why end
  for _, units in ipairs(oversold) do ctx.oversold[#ctx.oversold + 1] = units end
  Exceptions.linked(ctx, txn, order)
  Exceptions.linked(ctx, txn, other)
  if one then
    release_cancelled(ctx, txn, ours, theirs, skus)
    release_cancelled(ctx, txn, theirs, ours, skus)
  end
  return nil
end

local function ship(ctx, order, d)
  local l = Orders.line(Orders.facts(order, d[SKU]), d[LINE])
  l[7][d[NODE]] = (l[7][d[NODE]] or 0) + d[QUANTITY]
  settle(ctx, order, d[SKU])
end

local function apply_known(ctx, txn, source, d)
  local type = d[TYPE]
  if Kits.is_kit(ctx, d[SKU], d[NODE]) then return REJECTED, 'KIT_SKU' end
  local of_order = type == SHIPMENT or type == TRANSFER_OUT or type == LINK_ORDER or order_types[type]
  local order
  if of_order and d[O_REF] ~= '' then
    order = Orders.open(ctx, d[O_SOURCE], d[O_REF])
    if order.closed then return REJECTED, 'ORDER_CLOSED' end
  end
  local change = stock[type]
  if change then
    local why = change(ctx, d, d[QUANTITY])
    if why then return REJECTED, why end
    if order then
      ship(ctx, order, d)
      Exceptions.heard(ctx, txn, order)
    end
    if expected_by[type] then move_expected(ctx, source, d) end
    return nil
  end
  if facts_of_stock[type] then return facts_of_stock[type](ctx, source, d) end
  if type == LINK_ORDER then return link_order(ctx, txn, order, d, word_key(ctx, source, d)) end
  if type ~= ORDER_CANCELLED and d[NODE] == '' and #Policy.node_table(ctx) == 0 then return REJECTED, 'UNKNOWN_NODE' end
  Exceptions.heard(ctx, txn, order)
  return order_types[type](ctx, txn, order, d, word_key(ctx, source, d))
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
  if heard == true then stream_of(ctx, source, '') end
  for i = 1, #deltas do
    local d = deltas[i]
    local result, reason, expected
    local named = d[SEQUENCE] > 0 or d[EVENT_ID] ~= ''
    local st = named and stream_of(ctx, source, d[STREAM], streams_max)
    if not st then
      if named then result, reason = REJECTED, 'TOO_MANY_STREAMS' end
    elseif d[SEQUENCE] > 0 then
      result, reason, expected = judge_sequence(ctx, source, st, d[SEQUENCE], prints[i])
    else
      result, reason = judge_event(ctx, source, d[EVENT_ID], buckets[i], prints[i], d[OCCURRED_US], window_ms)
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
      note_rejected(ctx, source, st, d[SEQUENCE], prints[i], reason)
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
  flush_streams(ctx, txn, source)
  txn:add({'SADD', ctx.base .. 'sources', source})
  flush_events(ctx, txn)
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

-- An operator gives up missing numbers, or forgets a stream's mark.
-- cmd = {req, source, stream, action (SKIP_GAP | RESET), next_sequence, reason}
-- reply = {status, version, replayed, row | false, clock}
function Deltas.stream(keys, args)
  local cmd = unpack_msg(args[2])
  local req = cmd[1]
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  local found, why = Requests.find(ctx, req)
  if why then return pack({why, '', false, false, 0}) end
  local key = ctx.base .. 'src:' .. cmd[2]
  local raw = call('HGET', key, cmd[3])
  if found then return pack({found[1], found[2], true, raw and unpack_msg(raw) or false, ctx.clock}) end
  local row = raw and unpack_msg(raw)
  local refused = not raw and 'STREAM_NOT_FOUND' or (cmd[4] == 'SKIP_GAP' and cmd[5] <= row[1] and 'SEQUENCE_SETTLED')
  if refused then
    local quiet = Txn.new()
    Requests.remember(ctx, quiet, req, refused, Log.version(ctx))
    Log.quiet(ctx, quiet)
    return pack({refused, Log.version(ctx), false, row, ctx.clock})
  end
  if cmd[4] == 'SKIP_GAP' then
    row[1] = cmd[5] - 1
    if row[3] <= cmd[5] then row[3], row[4] = 0, 0 end -- nothing is missing before what was seen
  else
    row[1], row[3], row[4], row[5] = 0, 0, 0, 1 -- 1: was reset
  end
  local txn, version = Txn.new(), Log.next_version(ctx)
  if cmd[4] == 'RESET' and row[6] then -- its numbers mean others from now on
    row[6] = nil
    txn:add({'DEL', rejected_key(ctx, cmd[2], cmd[3])})
  end
  txn:hash(key, cmd[3], pack(row), raw)
  Requests.remember(ctx, txn, req, 'OK', version)
  Log.emit(ctx, txn, KIND_STREAM, req, {}, pack({cmd[2], cmd[3], cmd[4], row[1], cmd[6]}))
  return pack({'OK', version, false, row, ctx.clock})
end

end
