-- Reads of exceptions, and of what the ledger itself can tell is wrong. None of them writes.

do

local READ_MAX = 500

-- Exceptions that changed after a point, at most 500 and those of the last one's version; and when open ones were last
-- seen. ARGV[1] = packed {epoch, seq, seen_since}; reply = {head, floor, states, {id, clock, ...}, more}
function Reads.exceptions(keys, args)
  local base, q = sub(keys[1], 1, -5), unpack_msg(args[1])
  local at_key, key = base .. 'exc_at', base .. 'exc'
  local after = Exceptions.point(q[1], q[2])
  local rows = call('ZRANGE', at_key, '(' .. int(after), '+inf', 'BYSCORE', 'LIMIT', '0', int(READ_MAX), 'WITHSCORES')
  local ids, known = {}, {}
  for i = 1, #rows, 2 do
    ids[#ids + 1] = rows[i]
    known[rows[i]] = true
  end
  local more = #ids == READ_MAX
  if more then -- one version is told as a whole
    for _, id in ipairs(call('ZRANGE', at_key, rows[#rows], rows[#rows], 'BYSCORE')) do
      if not known[id] then ids[#ids + 1] = id end
    end
  end
  local states = {}
  for i = 1, #ids do states[i] = unpack_msg(call('HGET', key, ids[i])) end
  local seen = call('ZRANGE', base .. 'exc_seen', int(q[3]), '+inf', 'BYSCORE', 'WITHSCORES')
  for i = 2, #seen, 2 do seen[i] = tonumber(seen[i]) end
  local floor_raw = call('HGET', key, '')
  local clock = clocks(keys).clock
  return pack({point_of(keys[1]), clock, floor_raw and tonumber(floor_raw) or 0, states, seen, more})
end

-- Positions with at least so many units in quarantine, the most first; 0: none.
local function quarantined(base, kind, least, count)
  local found = {}
  if least == 0 then return found end
  local key = base .. 'quar:' .. kind
  local rows = call('ZRANGE', key, '+inf', int(least), 'BYSCORE', 'REV', 'LIMIT', '0', int(count), 'WITHSCORES')
  for i = 1, #rows, 2 do found[#found + 1] = {rows[i], tonumber(rows[i + 1])} end
  return found
end

-- ARGV[1] = packed {parked_ms, unconfirmed_ms, count, short_pick_units, damage_units};
-- reply = {head, clock, stale feeds, parked streams, orders, short picks, damages}: the last two {{(sku, node), units}, ...}
function Reads.troubles(keys, args)
  local ctx, q = clocks(keys), unpack_msg(args[1])
  local feeds, parked, orders = {}, {}, {}
  local rows = call('HGETALL', ctx.base .. 'policy:feed')
  for i = 1, #rows, 2 do
    local feed = unpack_msg(rows[i + 1])
    if feed[5] then feeds[#feeds + 1] = {feed[1], feed[2]} end
  end
  for _, source in ipairs(call('SMEMBERS', ctx.base .. 'sources')) do
    for _, row in ipairs(streams_of(ctx.base, source)) do
      if row[5] > 0 and ctx.clock - row[6] >= q[1] then parked[#parked + 1] = row end
    end
  end
  if q[2] > 0 then
    local due = int(ctx.clock - q[2])
    rows = call('ZRANGE', ctx.base .. 'ord_unconfirmed', '-inf', due, 'BYSCORE', 'LIMIT', '0', int(q[3]), 'WITHSCORES')
    for i = 1, #rows, 2 do orders[#orders + 1] = {rows[i], tonumber(rows[i + 1])} end
  end
  local short, damaged = quarantined(ctx.base, 'short_pick', q[4], q[3]), quarantined(ctx.base, 'damage', q[5], q[3])
  return pack({point_of(keys[1]), ctx.clock, feeds, parked, orders, short, damaged})
end

end
