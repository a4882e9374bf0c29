-- Reads for reconciliation: the ledger's side of snapshots. None of them writes.

do

-- ARGV[1] = source or ''; reply = rows of `snap`
function Reads.snapshots(keys, args)
  local base, out = sub(keys[1], 1, -5), {}
  for _, raw in ipairs(call('HVALS', base .. 'snap')) do
    local row = unpack_msg(raw)
    if args[1] == '' or row[2] == args[1] then out[#out + 1] = row end
  end
  return pack(out)
end

-- ARGV = id; reply = {row | false}
function Reads.snapshot(keys, args)
  local raw = call('HGET', sub(keys[1], 1, -5) .. 'snap', args[1])
  return pack({raw and unpack_msg(raw) or false})
end

-- ARGV = id, number; reply = the chunk without its fingerprint, as its bytes are; empty where there is none
function Reads.chunk(keys, args)
  local kept = call('HGET', sub(keys[1], 1, -5) .. 'snap:' .. args[1], args[2])
  return kept and sub(kept, 13) or ''
end

-- ARGV = packed {{source, stream}, ...}; reply = {head, {{mark (-1: no such stream), last heard (clock)}, ...}}
function Reads.marks(keys, args)
  local base, out = sub(keys[1], 1, -5), {}
  for i, pair_of in ipairs(unpack_msg(args[1])) do
    local raw = call('HGET', base .. 'src:' .. pair_of[1], pair_of[2])
    local row = raw and unpack_msg(raw) or {-1, 0}
    out[i] = {row[1], row[2]}
  end
  return pack({point_of(keys[1]), out})
end

-- What sources have confirmed of a sku, by node: {node: {source: q}}.
local function confirmed_of(ctx, sku)
  local by_node = {}
  for _, field in ipairs(call('HKEYS', ctx.base .. 'use:' .. sku)) do
    if byte(field) == 111 then -- o
      for source, nodes in pairs(Orders.confirmed_by(ctx, sub(field, 2), sku) or {}) do
        for node, q in pairs(nodes) do
          local at = by_node[node] or {}
          by_node[node] = at
          at[source] = (at[source] or 0) + q
        end
      end
    end
  end
  return by_node
end

-- ARGV = index, count, '1' where confirmed is wanted. reply = length (4 bytes) of a packed
-- {head, next index (-1: none), skus in all, skus, {nodes of each sku, ...}, {{place, {reason: q}, {source: q}}, ...}}, that, and the
-- figures of each position as they are kept (32 bytes: on_hand, quarantined, reserved, committed). `place` counts
-- positions from 0, of those with reasons or confirmations: a whole page of small tables would block Redis twice as long.
function Reads.stock(keys, args)
  local ctx = {base = sub(keys[1], 1, -5)}
  local index, count, wanted = tonumber(args[1]), tonumber(args[2]), args[3] == '1'
  local skus = call('LRANGE', ctx.base .. 'skus', int(index), int(index + count - 1))
  local all_nodes, figures, extras, n = {}, {}, {}, 0
  for i, sku in ipairs(skus) do
    local rows = call('HGETALL', ctx.base .. 'pos:' .. sku)
    local nodes, reasons, first = {}, false, n
    for j = 1, #rows, 2 do
      local kind = byte(rows[j])
      if kind == 110 then -- n
        n = n + 1
        nodes[#nodes + 1], figures[n] = sub(rows[j], 2), sub(rows[j + 1], 1, 32)
      elseif kind == 113 then -- q
        reasons = reasons or {}
        reasons[sub(rows[j], 2)] = unpack_msg(rows[j + 1])
      end
    end
    all_nodes[i] = nodes
    local confirmed = wanted and confirmed_of(ctx, sku) or false
    if reasons or (confirmed and next(confirmed)) then
      for j, node in ipairs(nodes) do
        local by_reason, by_source = reasons and reasons[node] or {}, confirmed and confirmed[node] or {}
        if next(by_reason) or next(by_source) then extras[#extras + 1] = {first + j - 1, by_reason, by_source} end
      end
    end
  end
  local total = call('LLEN', ctx.base .. 'skus')
  local rest = pack({point_of(keys[1]), #skus < count and -1 or index + count, total, skus, all_nodes, extras})
  return struct_pack('<I4', #rest) .. rest .. concat(figures)
end

-- Orders with a fact, the oldest first. ARGV[1] = packed {score, name, count, since}: those after (score, name);
-- of orders with a fact at or after the clock `since` (0: never) also lines that want nothing any more.
-- reply = {head, clock, {score, name} of the last | false, {{source, ref, links {{source, ref}, ...}, channel, last fact (clock),
--   {{sku, Orders.open_lines}, ...}}, ...}}. An order that a fact touches meanwhile comes again, later.
function Reads.open_orders(keys, args)
  local clock = call('HGET', keys[1], 'head')
  local q, key = unpack_msg(args[1]), sub(keys[1], 1, -5) .. 'ord_last'
  local offset = rank_after(key, q[1], q[2])
  local rows, out, last = call('ZRANGE', key, int(offset), int(offset + q[3] - 1), 'WITHSCORES'), {}, false
  for i = 1, #rows, 2 do
    local length, at = match(rows[i], '^(%d+):()')
    local ctx = {base = sub(keys[1], 1, -5), orders = {}}
    local o = Orders.open(ctx, sub(rows[i], at, at + length - 1), sub(rows[i], at + length))
    last = {tonumber(rows[i + 1]), rows[i]}
    local members = o.raw and Orders.members(ctx, o)
    if members and members[1] == o then
      local skus, links, all = {}, {}, q[4] > 0 and o.meta[4] >= q[4]
      for _, sku in ipairs(Orders.every_sku(ctx, o)) do
        local lines = Orders.open_lines(ctx, o, sku, all)
        if #lines > 0 then skus[#skus + 1] = {sku, lines} end
      end
      for m = 2, #members do links[m - 1] = {members[m].meta[5], members[m].meta[6]} end
      if #skus > 0 then out[#out + 1] = {o.meta[5], o.meta[6], links, o.meta[2], o.meta[4], skus} end
    end
  end
  if #rows < 2 * q[3] then last = false end
  return pack({point_of(keys[1]), clock and context(keys[1], clock, redis_time_ms()).clock or 0, last, out})
end

end
