-- Reads: what replicas, operators and order desks ask of the ledger itself. None of them writes.

local Reads = {}

local function point_of(meta_key)
  local m = call('HMGET', meta_key, 'ledger_id', 'head')
  if not m[1] then return {'', 0, 0, '', 0} end
  local epoch, seq, clock, _, _, _, chain = struct_unpack(HEAD, m[2])
  return {m[1], epoch, seq, chain_text(chain), clock}
end

function Reads.head(keys)
  return pack(point_of(keys[1]))
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
  return pack({point_of(keys[1]), values_of(base .. 'policy:node'), values_of(base .. 'policy:channel'),
    values_of(base .. 'policy:stop'), values_of(base .. 'policy:kit'), values_of(base .. 'policy:feed')})
end

local function sku_state(base, sku)
  local rows = call('HGETALL', base .. 'pos:' .. sku)
  local positions, overrides, stops, fences = {}, {}, {}, {}
  for i = 1, #rows, 2 do
    local kind, value = byte(rows[i]), rows[i + 1]
    if kind == 110 then -- n
      local a, b, c, d, e = struct_unpack('<i8i8i8i8i8', value)
      positions[#positions + 1] = {sub(rows[i], 2), a, b, c, d, e}
    elseif kind == 118 then -- v
      overrides[#overrides + 1] = unpack_msg(value)
    elseif kind == 98 then -- b
      stops[#stops + 1] = unpack_msg(value)
    elseif kind == 102 then -- f
      fences = unpack_msg(value)
    end
  end
  return {sku, positions, overrides, stops, fences}
end

-- ARGV = index, count; reply = Page of reader.py
function Reads.page(keys, args)
  local base = sub(keys[1], 1, -5)
  local index, count = tonumber(args[1]), tonumber(args[2])
  local skus = call('LRANGE', base .. 'skus', int(index), int(index + count - 1))
  local out = {}
  for i, sku in ipairs(skus) do out[i] = sku_state(base, sku) end
  return pack({point_of(keys[1]), #skus < count and -1 or index + count, out})
end

-- ARGV[1] = packed names; reply = Page of reader.py
function Reads.skus(keys, args)
  local base, out = sub(keys[1], 1, -5), {}
  for i, sku in ipairs(unpack_msg(args[1])) do out[i] = sku_state(base, sku) end
  return pack({point_of(keys[1]), -1, out})
end

local function clocks(keys)
  local head = call('HGET', keys[1], 'head')
  if not head then error({err = 'ERR availability: no ledger here'}) end
  return context(keys[1], head, redis_time_ms())
end

local function seen(ctx, id, hold)
  local view = {Holds.view(ctx, id, hold)}
  view[9] = hold[11]
  return view
end

-- ARGV[1] = id; reply = {reservation view or false}
function Reads.reservation(keys, args)
  local ctx = clocks(keys)
  local hold = Holds.load(ctx, args[1])
  if not hold then return pack({false}) end
  return pack({seen(ctx, args[1], hold)})
end

-- Reservations of an order; without a source those of every order of this name, by source.
local function reservations_of(ctx, source, ref)
  local sources, ids = {source}, {}
  if source == '' then
    sources = call('HKEYS', ctx.base .. 'order_sources')
    table.sort(sources, before)
  end
  for _, name in ipairs(sources) do
    local raw = call('HGET', ctx.base .. 'ord:' .. pair(name, ref), 'm')
    for _, id in ipairs(raw and unpack_msg(raw)[3] or {}) do ids[#ids + 1] = id end
  end
  return ids
end

-- ARGV[1] = packed {state (0: by order), order_source ('': any), order_ref, score, id, count}: those after (score, id).
-- reply = {views, scores}
function Reads.reservations(keys, args)
  local ctx = clocks(keys)
  local q = unpack_msg(args[1])
  local views, scores = {}, {}
  local function show(id, score)
    local hold = Holds.load(ctx, id)
    if hold then
      views[#views + 1] = seen(ctx, id, hold)
      scores[#scores + 1] = score
    end
  end
  if q[1] == 0 then
    local ids = reservations_of(ctx, q[2], q[3])
    for i = q[4] + 1, #ids do
      if #views < q[6] then show(ids[i], i) end
    end
    return pack({views, scores})
  end
  local key = ctx.base .. (q[1] == 1 and 'due' or 'ended:' .. q[1])
  -- Equal scores come in byte order of the id: leave out those up to the last one given.
  local offset = q[5] ~= '' and call('ZCOUNT', key, '-inf', '(' .. int(q[4])) or 0
  if q[5] ~= '' then
    local same = call('ZRANGE', key, int(q[4]), int(q[4]), 'BYSCORE')
    for _, id in ipairs(same) do
      if not before(q[5], id) then offset = offset + 1 end
    end
  end
  local rows = call('ZRANGE', key, int(offset), int(offset + q[6] - 1), 'WITHSCORES')
  for i = 1, #rows, 2 do show(rows[i], tonumber(rows[i + 1])) end
  return pack({views, scores})
end

-- ARGV = source, ref; reply = {head, meta | false, {{sku, facts}, ...}, {{kit, {{kits, flat recipe}, ...}}, ...},
-- {{source, ref}, ...} of its other names}: all that was told under any of them.
function Reads.order(keys, args)
  local ctx = {base = sub(keys[1], 1, -5), orders = {}}
  local o = Orders.open(ctx, args[1], args[2])
  local head = point_of(keys[1])
  if not o.raw then return pack({head, false, {}, {}, {}}) end
  local skus, links, meta = {}, {}, o.meta
  for _, sku in ipairs(Orders.every_sku(ctx, o)) do
    local told, _, leader = Orders.told(ctx, o, sku)
    local facts = Orders.facts(leader, sku)
    skus[#skus + 1] = {sku, {told[1], told[2], facts[3], facts[4], facts[5], facts[6], told[7]}}
  end
  for _, member in ipairs(Orders.members(ctx, o)) do
    if member ~= o then
      links[#links + 1] = {member.meta[5], member.meta[6]}
      meta[1] = Orders.later_key(meta[1], member.meta[1])
    end
  end
  return pack({head, meta, skus, Orders.kits(ctx, o), links})
end

local function streams_of(base, source)
  local rows, out = call('HGETALL', base .. 'src:' .. source), {}
  for i = 1, #rows, 2 do
    local row = unpack_msg(rows[i + 1])
    out[#out + 1] = {source, rows[i], row[1], row[2], row[3], row[4], row[5] or 0}
  end
  return out
end

-- ARGV[1] = source; reply = {clock, {{source, stream, mark, seen_ms, parked_sequence, parked_ms, was reset}, ...}}
function Reads.streams(keys, args)
  local ctx = clocks(keys)
  return pack({ctx.clock, streams_of(ctx.base, args[1])})
end

-- Who stands behind a sku's figures. ARGV[1] = sku.
-- reply = {head, clock, {{node, {reason: q}}, ...}, {{reservation, {{node, q}, ...}}, ...}, {{order name, {node: q}}, ...},
--   {{order name, {{node: q}, reservations}}, ...} of holds that count less, streams, expected, feeds}
function Reads.behind(keys, args)
  local ctx = clocks(keys)
  local base, sku = ctx.base, args[1]
  local reasons, holds, orders, waived, streams = {}, {}, {}, {}, {}
  local rows = call('HGETALL', base .. 'pos:' .. sku)
  for i = 1, #rows, 2 do
    if byte(rows[i]) == 113 then reasons[#reasons + 1] = {sub(rows[i], 2), unpack_msg(rows[i + 1])} end
  end
  rows = call('HGETALL', base .. 'use:' .. sku)
  for i = 1, #rows, 2 do
    local name, kind = sub(rows[i], 2), byte(rows[i])
    if kind == 104 then
      local sources = {}
      for _, line in ipairs(Holds.load(ctx, name)[11]) do
        if line[1] == sku then
          for _, src in ipairs(line[3]) do sources[#sources + 1] = {src[1], src[2]} end
        end
      end
      holds[#holds + 1] = {name, sources}
    else
      local list = kind == 111 and orders or waived
      list[#list + 1] = {name, unpack_msg(rows[i + 1])}
    end
  end
  for _, source in ipairs(call('SMEMBERS', base .. 'sources')) do
    for _, row in ipairs(streams_of(base, source)) do streams[#streams + 1] = row end
  end
  return pack({point_of(keys[1]), ctx.clock, reasons, holds, orders, waived, streams, Supply.rows(base, sku), Feeds.rows(ctx)})
end

-- reply = {clock, FeedRow of ledger.py of each watched feed}
function Reads.feeds(keys)
  local ctx = clocks(keys)
  return pack({ctx.clock, Feeds.rows(ctx)})
end
