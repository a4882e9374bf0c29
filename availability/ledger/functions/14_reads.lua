-- Reads: what replicas, operators and order desks ask of the ledger itself. None of them writes.

local Reads = {}

local function head_of(meta_key)
  local m = call('HMGET', meta_key, 'ledger_id', 'epoch', 'seq', 'chain', 'clock')
  if not m[1] then return {'', 0, 0, '', 0} end
  return {m[1], tonumber(m[2]), tonumber(m[3]), m[4], tonumber(m[5])}
end

function Reads.head(keys)
  return pack(head_of(keys[1]))
end

local function values_of(key)
  local rows, out = call('HGETALL', key), {}
  for i = 1, #rows, 2 do
    if rows[i] ~= '' then out[#out + 1] = unpack_msg(rows[i + 1]) end
  end
  return out
end

-- reply = PolicyState of reader.py
function Reads.policies(keys)
  local base = sub(keys[1], 1, -5)
  return pack({head_of(keys[1]), values_of(base .. 'policy:node'), values_of(base .. 'policy:channel'),
    values_of(base .. 'policy:stop')})
end

local function sku_state(base, sku)
  local rows = call('HGETALL', base .. 'pos:' .. sku)
  local positions, overrides, stops = {}, {}, {}
  for i = 1, #rows, 2 do
    local kind, value = byte(rows[i]), rows[i + 1]
    if kind == 110 then -- n
      local a, b, c, d, e = struct_unpack('<i8i8i8i8i8', value)
      positions[#positions + 1] = {sub(rows[i], 2), a, b, c, d, e}
    elseif kind == 118 then -- v
      overrides[#overrides + 1] = unpack_msg(value)
    elseif kind == 98 then -- b
      stops[#stops + 1] = unpack_msg(value)
    end
  end
  return {sku, positions, overrides, stops}
end

-- ARGV = index, count; reply = Page of reader.py
function Reads.page(keys, args)
  local base = sub(keys[1], 1, -5)
  local index, count = tonumber(args[1]), tonumber(args[2])
  local skus = call('LRANGE', base .. 'skus', int(index), int(index + count - 1))
  local out = {}
  for i, sku in ipairs(skus) do out[i] = sku_state(base, sku) end
  return pack({head_of(keys[1]), #skus < count and -1 or index + count, out})
end

-- ARGV[1] = packed names; reply = Page of reader.py
function Reads.skus(keys, args)
  local base, out = sub(keys[1], 1, -5), {}
  for i, sku in ipairs(unpack_msg(args[1])) do out[i] = sku_state(base, sku) end
  return pack({head_of(keys[1]), -1, out})
end

local function clocks(keys)
  local m = call('HMGET', keys[1], 'clock', 'redis')
  local t = call('TIME')
  local now = tonumber(t[1]) * 1000 + floor(tonumber(t[2]) / 1000)
  return {base = sub(keys[1], 1, -5), now = now,
    clock = tonumber(m[1] or 0) + max(0, min(2000, now - tonumber(m[2] or now)))}
end

-- ARGV[1] = id; reply = reservation view or false
function Reads.reservation(keys, args)
  local ctx = clocks(keys)
  local hold = Holds.load(ctx, args[1])
  return pack({hold and Holds.view(ctx, args[1], hold) or false})
end

-- ARGV[1] = packed {state (0: by order), order_source, order_ref, score, id, count}: those after (score, id).
-- reply = {views, scores}
function Reads.reservations(keys, args)
  local ctx = clocks(keys)
  local q = unpack_msg(args[1])
  local views, scores = {}, {}
  if q[1] == 0 then
    local raw = call('HGET', ctx.base .. 'ord:' .. pair(q[2], q[3]), 'm')
    local ids = raw and unpack_msg(raw)[3] or {}
    for i = q[4] + 1, min(#ids, q[4] + q[6]) do
      local hold = Holds.load(ctx, ids[i])
      if hold then
        views[#views + 1] = Holds.view(ctx, ids[i], hold)
        scores[#scores + 1] = i
      end
    end
    if q[4] + q[6] < #ids and #scores > 0 then scores[#scores + 1] = q[4] + q[6] end
    return pack({views, scores})
  end
  local key = ctx.base .. (q[1] == 1 and 'due' or 'ended:' .. q[1])
  local rows = call('ZRANGE', key, int(q[4]), '+inf', 'BYSCORE', 'LIMIT', '0', int(q[6] + 1), 'WITHSCORES')
  local i, skip = 1, 0
  -- Equal scores come in byte order of the id: skip those up to the last one given.
  while i <= #rows and tonumber(rows[i + 1]) == q[4] and q[5] ~= '' and not before(q[5], rows[i]) do
    i, skip = i + 2, skip + 1
    if i > #rows and skip > q[6] then
      rows = call('ZRANGE', key, int(q[4]), '+inf', 'BYSCORE', 'LIMIT', int(skip), int(q[6] + 1), 'WITHSCORES')
      i, skip = 1, skip
    end
  end
  while i <= #rows and #views < q[6] do
    local hold = Holds.load(ctx, rows[i])
    if hold then
      views[#views + 1] = Holds.view(ctx, rows[i], hold)
      scores[#scores + 1] = tonumber(rows[i + 1])
    end
    i = i + 2
  end
  return pack({views, scores})
end

-- ARGV = source, ref; reply = {head, meta | false, {{sku, facts}, ...}}
function Reads.order(keys, args)
  local base = sub(keys[1], 1, -5)
  local rows = call('HGETALL', base .. 'ord:' .. pair(args[1], args[2]))
  local meta, skus = false, {}
  for i = 1, #rows, 2 do
    if rows[i] == 'm' then
      meta = unpack_msg(rows[i + 1])
    elseif byte(rows[i]) == 115 then
      skus[#skus + 1] = {sub(rows[i], 2), unpack_msg(rows[i + 1])}
    end
  end
  return pack({head_of(keys[1]), meta, skus})
end

local function streams_of(base, source)
  local rows, out = call('HGETALL', base .. 'src:' .. source), {}
  for i = 1, #rows, 2 do
    local row = unpack_msg(rows[i + 1])
    out[#out + 1] = {source, rows[i], row[1], row[2], row[3], row[4]}
  end
  return out
end

-- ARGV[1] = source; reply = {clock, {{source, stream, mark, seen_ms, parked_sequence, parked_ms}, ...}}
function Reads.streams(keys, args)
  local ctx = clocks(keys)
  return pack({ctx.clock, streams_of(ctx.base, args[1])})
end

-- Who stands behind a sku's figures. ARGV[1] = sku.
-- reply = {head, clock, {{node, {reason: q}}, ...}, {{reservation, {{node, q}, ...}}, ...}, {{order name, {node: q}}, ...}, streams}
function Reads.behind(keys, args)
  local ctx = clocks(keys)
  local base, sku = ctx.base, args[1]
  local reasons, holds, orders, streams = {}, {}, {}, {}
  local rows = call('HGETALL', base .. 'pos:' .. sku)
  for i = 1, #rows, 2 do
    if byte(rows[i]) == 113 then reasons[#reasons + 1] = {sub(rows[i], 2), unpack_msg(rows[i + 1])} end
  end
  rows = call('HGETALL', base .. 'use:' .. sku)
  for i = 1, #rows, 2 do
    local name, value = sub(rows[i], 2), unpack_msg(rows[i + 1])
    if byte(rows[i]) == 104 then holds[#holds + 1] = {name, value} else orders[#orders + 1] = {name, value} end
  end
  for _, source in ipairs(call('SMEMBERS', base .. 'sources')) do
    for _, row in ipairs(streams_of(base, source)) do streams[#streams + 1] = row end
  end
  return pack({head_of(keys[1]), ctx.clock, reasons, holds, orders, streams})
end
