-- What does not add up, and what was forgotten: a look that writes nothing.

do

local RESERVED, COMMITTED, HOLD_OVERDUE, ORDER_UNCONFIRMED, ORDER_STUCK, SOURCE_SILENT, QUARANTINED = 1, 2, 3, 4, 5, 6, 7
local ACTIVE = 1

-- What stands behind reserved and committed of a sku, by node.
local function promised(ctx, sku)
  local reserved, committed = {}, {}
  local rows = call('HGETALL', ctx.base .. 'use:' .. sku)
  for i = 1, #rows, 2 do
    local name, kind = sub(rows[i], 2), byte(rows[i])
    if kind == 104 then -- h
      local hold = Holds.load(ctx, name)
      if hold and hold[1] == ACTIVE then
        for _, line in ipairs(hold[11]) do
          if line[1] == sku then
            for _, src in ipairs(line[3]) do add_to(reserved, src[1], src[2]) end
          end
        end
      end
    else
      local value = unpack_msg(rows[i + 1])
      if kind == 111 then -- o
        for node, q in pairs(value) do add_to(committed, node, q) end
      else -- w
        for node, q in pairs(value[1]) do add_to(reserved, node, -q) end
      end
    end
  end
  return reserved, committed
end

local function look_at_sku(ctx, sku, out)
  local rows, reserved, committed = call('HGETALL', ctx.base .. 'pos:' .. sku), promised(ctx, sku)
  local by_reason = {}
  for i = 1, #rows, 2 do
    if byte(rows[i]) == 113 then -- q
      local sum = 0
      for _, q in pairs(unpack_msg(rows[i + 1])) do sum = sum + q end
      by_reason[sub(rows[i], 2)] = sum
    end
  end
  for i = 1, #rows, 2 do
    if byte(rows[i]) == 110 then -- n
      local node = sub(rows[i], 2)
      local _, quarantined, r, c = struct_unpack('<i8i8i8i8', rows[i + 1])
      local should_r, should_c, should_q = reserved[node] or 0, committed[node] or 0, by_reason[node] or 0
      if r ~= should_r then out[#out + 1] = {RESERVED, sku, node, '', r, should_r, 0} end
      if c ~= should_c then out[#out + 1] = {COMMITTED, sku, node, '', c, should_c, 0} end
      if quarantined ~= should_q then out[#out + 1] = {QUARANTINED, sku, node, '', quarantined, should_q, 0} end
      reserved[node], committed[node] = nil, nil
    end
  end
  -- Whoever counts on a position that is not there.
  for _, node in ipairs(sorted_keys(reserved)) do
    if reserved[node] ~= 0 then out[#out + 1] = {RESERVED, sku, node, '', 0, reserved[node], 0} end
  end
  for _, node in ipairs(sorted_keys(committed)) do
    if committed[node] ~= 0 then out[#out + 1] = {COMMITTED, sku, node, '', 0, committed[node], 0} end
  end
end

-- ARGV = index, count; reply = {head, next index (-1: none), {{kind, sku, node, '', is, should be, 0}, ...}}
function Reads.sums(keys, args)
  local ctx = clocks(keys)
  local index, count = tonumber(args[1]), tonumber(args[2])
  local skus, out = call('LRANGE', ctx.base .. 'skus', int(index), int(index + count - 1)), {}
  for _, sku in ipairs(skus) do look_at_sku(ctx, sku, out) end
  return pack({point_of(keys[1]), #skus < count and -1 or index + count, out})
end

local function units_of_hold(hold)
  local units = 0
  for _, line in ipairs(hold[11]) do
    for _, src in ipairs(line[3]) do units = units + src[2] end
  end
  return units
end

-- Units that an order holds, under all its names.
local function units_of_order(ctx, o)
  local units = 0
  for _, sku in ipairs(Orders.every_sku(ctx, o)) do
    local _, _, leader = Orders.told(ctx, o, sku)
    for _, q in pairs(Orders.facts(leader, sku)[4]) do units = units + q end
  end
  return units
end

local function order_of(ctx, name)
  local length, at = match(name, '^(%d+):()')
  return Orders.open(ctx, sub(name, at, at + length - 1), sub(name, at + length))
end

local function orders_since(ctx, out, kind, key, until_ms, q)
  local rows = call('ZRANGE', ctx.base .. key, '-inf', int(until_ms), 'BYSCORE', 'LIMIT', int(q[1]), int(q[2]), 'WITHSCORES')
  for i = 1, #rows, 2 do
    local of_order = {base = ctx.base, orders = {}}
    local o = order_of(of_order, rows[i])
    local units = o.raw and units_of_order(of_order, o) or 0
    -- What linked names hold stands once, under the first of them; each of them waits for a word by itself.
    local once = kind ~= ORDER_STUCK or (units > 0 and Orders.members(of_order, o)[1] == o)
    if units > 0 and once then out[#out + 1] = {kind, '', '', rows[i], units, 0, ctx.clock - tonumber(rows[i + 1])} end
  end
  return #rows / 2
end

-- ARGV[1] = packed {offset, count, overdue_ms, unconfirmed_ms, stuck_ms, silent_ms}
-- reply = {head, more, {{kind, '', '', name (a hold, an order, or source and stream), units, 0, age}, ...}}
function Reads.forgotten(keys, args)
  local ctx, q, out = clocks(keys), unpack_msg(args[1]), {}
  local due = call('ZRANGE', ctx.base .. 'due', '-inf', int(ctx.clock - q[3]), 'BYSCORE', 'LIMIT', int(q[1]), int(q[2]), 'WITHSCORES')
  for i = 1, #due, 2 do
    local hold = Holds.load(ctx, due[i])
    out[#out + 1] = {HOLD_OVERDUE, '', '', due[i], hold and units_of_hold(hold) or 0, 0, ctx.clock - tonumber(due[i + 1])}
  end
  local most = max(#due / 2, orders_since(ctx, out, ORDER_UNCONFIRMED, 'ord_unconfirmed', ctx.clock - q[4], q))
  most = max(most, orders_since(ctx, out, ORDER_STUCK, 'ord_last', ctx.clock - q[5], q))
  if q[1] == 0 then
    for _, source in ipairs(call('SMEMBERS', ctx.base .. 'sources')) do
      local heard, rows = 0, call('HGETALL', ctx.base .. 'src:' .. source)
      for i = 1, #rows, 2 do heard = max(heard, unpack_msg(rows[i + 1])[2]) end
      if ctx.clock - heard >= q[6] then out[#out + 1] = {SOURCE_SILENT, '', '', source, 0, 0, ctx.clock - heard} end
    end
  end
  return pack({point_of(keys[1]), most >= q[2], out})
end

end
