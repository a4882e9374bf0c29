-- The calls of a reservation's life. Each: request memory -> due holds -> read and decide -> write -> log once.

local Reservations = {}

do -- Lua has room for 200 names outside of blocks; these stay in here

local KIND_RESERVED, KIND_EXTENDED, KIND_COMMITTED, KIND_RELEASED = 1, 2, 3, 4
local DUE_PER_CALL = 4

-- reply = {status, version, replayed, order_cancelled, shortages, id ('' none), state, channel, order_source, order_ref,
-- create_ms, expire_ms, version of the hold, lines}, all packed at once but for the lines
local function answer(ctx, status, version, replayed, id, hold, shortages, cancelled, lines)
  if not hold then return ARRAY[6] .. pack(status, version, replayed, cancelled or false, shortages or {}, '') end
  return ARRAY[14] .. pack(status, version, replayed, cancelled or false, shortages or {}, Holds.view(ctx, id, hold))
    .. (lines or pack(hold[11]))
end

-- The first outcome again, with the reservation as it is now.
local function replay(ctx, found)
  local id, extra = found[3], found[4]
  local hold = id ~= '' and Holds.load(ctx, id) or nil
  local shortages = type(extra) == 'table' and extra or nil
  return answer(ctx, found[1], found[2], true, id, hold, shortages, extra == true)
end

-- Remember a refusal: nothing else is written.
local function refuse(ctx, req, status, id, hold, shortages)
  local txn = Txn.new()
  Requests.remember(ctx, txn, req, status, Log.version(ctx), id, shortages)
  Log.quiet(ctx, txn)
  return answer(ctx, status, Log.version(ctx), false, id, hold, shortages)
end

local function refusal(status)
  return pack({status, '', false, false, {}, ''})
end

-- Shared start. Returns ctx and nothing more to do, or a finished reply.
local function begin(keys, args, req, except)
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return nil, fenced end
  local found, why = Requests.find(ctx, req)
  if why then return nil, refusal(why) end
  if found then return nil, replay(ctx, found) end
  Holds.expire(ctx, DUE_PER_CALL, except)
  return ctx
end

-- What a request can still get of skus that several of its lines may want: sku -> {can, places}, less what was taken.
local function shelf_of(ctx, channel, node)
  local shelf = {}
  return function(sku)
    local one = shelf[sku]
    if not one then
      one = {Sourcing.grantable(ctx, channel, Positions.read(ctx, sku, channel), node)}
      shelf[sku] = one
    end
    return one
  end
end

-- Take units off the shelf, so that the next line finds what is left. Returns sources.
local function take_off(one, units)
  local sources, places = Sourcing.take(one[2], units), one[2]
  one[1] = one[1] - units
  for _, src in ipairs(sources) do
    for i = 1, #places, 2 do
      if places[i] == src[1] then places[i + 1] = places[i + 1] - (src[2] - src[3]) end
    end
  end
  return sources
end

local EXPLODED_LINES_MAX = 2000

-- The same as decide, where a line names a kit: lines are served in order, kits whole, each from what those before it
-- left. Third result: the kits {{kit, kits, flat recipe}, ...}. Nil where the parts are too many.
local function decide_kits(ctx, channel, lines, node)
  local granted, shortages, kits, parts_count = {}, {}, {}, 0
  local on_shelf = shelf_of(ctx, channel, node)
  for i = 1, #lines do
    local name, wanted = lines[i][1], lines[i][2]
    local s = Positions.read(ctx, name, channel)
    local recipe = Kits.recipe(ctx, s)
    local parts, can = recipe or {{name, 1}}, nil
    parts_count = parts_count + #parts
    if parts_count > EXPLODED_LINES_MAX then return nil end
    for _, part in ipairs(parts) do
      local whole = floor(on_shelf(part[1])[1] / part[2])
      can = can and min(can, whole) or whole
    end
    if recipe and s.blocked then can = 0 end
    local take = min(wanted, can)
    if take < wanted then shortages[#shortages + 1] = {i - 1, can} end
    if take > 0 then
      for _, part in ipairs(parts) do
        granted[#granted + 1] = {part[1], recipe and name or '', take_off(on_shelf(part[1]), take * part[2])}
      end
      if recipe then kits[#kits + 1] = {name, take, recipe} end
    end
  end
  return granted, shortages, kits[1] and kits
end

-- Decide lines {{sku, quantity}, ...} (distinct skus) against the channel. Returns granted hold lines, shortages
-- {{line index from 0, sellable}, ...}, and the kits where there are any.
local function decide(ctx, channel, lines, node)
  local granted, shortages = {}, {}
  for i = 1, #lines do
    local line = lines[i]
    local s = Positions.read(ctx, line[1], channel)
    if not s.known and Kits.recipe(ctx, s) then return decide_kits(ctx, channel, lines, node) end
    local can, places = Sourcing.grantable(ctx, channel, s, node)
    local take = min(line[2], can)
    if take < line[2] then shortages[#shortages + 1] = {i - 1, can} end
    if take > 0 then
      local sources = Sourcing.take(places, take)
      granted[#granted + 1] = {line[1], '', sources}
    end
  end
  return granted, shortages
end

-- cmd = {req, reservation_id, channel, lines, hold_ms, order_source, order_ref, partial, node ('' none), auto_create}
function Reservations.reserve(keys, args)
  local _, req, id, channel_name, wanted, hold_ms, order_source, order_ref, partial, node, auto_create =
    unpack_limit(args[2], 10, 1)
  local ctx, done = begin(keys, args, req)
  if not ctx then return done end
  if ctx.full then return refusal('LOG_FULL') end
  local channel = Policy.channel(ctx, channel_name, auto_create)
  if not channel then return refuse(ctx, req, 'UNKNOWN_CHANNEL') end
  if node == '' then
    node = nil
  else
    local there = false
    for _, name in ipairs(channel.nodes) do there = there or name == node end
    if not there then return refuse(ctx, req, 'UNKNOWN_NODE') end
  end
  local granted, shortages, kits = decide(ctx, channel, wanted, node)
  if not granted then return refuse(ctx, req, 'TOO_MANY_LINES') end
  if #shortages > 0 and (not partial or #granted == 0) then
    return refuse(ctx, req, 'INSUFFICIENT_STOCK', '', nil, shortages)
  end
  local status = #shortages > 0 and 'PARTIAL' or 'RESERVED'
  local txn, version = Txn.new(), Log.next_version(ctx)
  local due = ctx.clock + hold_ms
  local hold = {ACTIVE, channel_name, order_source, order_ref, ctx.clock, due, version, 0, ctx.now, false, granted, node or '', kits}
  local order = Holds.order_of(ctx, hold)
  if order and order.closed then return refuse(ctx, req, 'ORDER_CLOSED') end
  local by_sku = Holds.by_sku(hold, granted)
  for i = 1, #by_sku do
    local line = by_sku[i]
    Holds.move(ctx, txn, id, line[1], NO_SOURCES, line[3], order)
    Holds.take_fenced(ctx, channel_name, line)
    if order then Orders.settle(ctx, order, line[1]) end
  end
  if order then
    Orders.remember_reservation(ctx, order, id)
    Orders.flush(ctx, txn)
  end
  local lines = pack(granted)
  Holds.store(ctx, txn, id, hold, nil, lines)
  Holds.set_due(ctx, txn, id, due)
  Requests.remember(ctx, txn, req, status, version, id, #shortages > 0 and shortages or nil)
  Log.emit(ctx, txn, KIND_RESERVED, req, Positions.flush(ctx, txn),
    ARRAY[kits and 7 or 6] .. pack(id, channel_name, order_source, order_ref, due) .. lines .. (kits and pack(kits) or ''))
  return answer(ctx, status, version, false, id, hold, shortages, false, lines)
end

local function not_active(hold)
  return hold[STATE] == EXPIRED and 'RESERVATION_EXPIRED' or 'RESERVATION_NOT_ACTIVE'
end

-- cmd = {req, reservation_id, hold_ms}
function Reservations.extend(keys, args)
  local cmd = unpack_msg(args[2])
  local req, id = cmd[1], cmd[2]
  local ctx, done = begin(keys, args, req, id)
  if not ctx then return done end
  local hold, raw = Holds.load(ctx, id)
  if not hold then return refuse(ctx, req, 'RESERVATION_NOT_FOUND') end
  if hold[STATE] ~= ACTIVE then return refuse(ctx, req, not_active(hold), id, hold) end
  local txn, version = Txn.new(), Log.next_version(ctx)
  local due_before = hold[DUE_MS]
  hold[DUE_MS], hold[VERSION] = ctx.clock + cmd[3], version
  Holds.store(ctx, txn, id, hold, raw)
  Holds.set_due(ctx, txn, id, hold[DUE_MS], due_before)
  Requests.remember(ctx, txn, req, 'EXTENDED', version, id)
  Log.emit(ctx, txn, KIND_EXTENDED, req, {}, ARRAY[2] .. pack(id, hold[DUE_MS]))
  return answer(ctx, 'EXTENDED', version, false, id, hold)
end

local function units_of(sources)
  local units = 0
  for i = 1, #sources do units = units + sources[i][2] end
  return units
end

-- An expired hold is committed: reserve its units anew (of kits by the recipe that it remembers), less what the order's
-- facts count already. Returns the lines to commit, or nil where they are not there any more.
local function anew(ctx, hold, order)
  local channel = Policy.channel(ctx, hold[H_CHANNEL], true)
  local on_shelf = shelf_of(ctx, channel, hold[12] ~= '' and hold[12] or nil)
  local grants = {}
  for _, line in ipairs(Holds.by_sku(hold, hold[H_LINES])) do
    local units = units_of(line[3])
    local covered, said = Orders.covered(Orders.told(ctx, order, line[1]))
    if not said and covered < units then
      grants[line[1]] = units - covered
      if grants[line[1]] > on_shelf(line[1])[1] then return nil end
    end
  end
  local lines = {}
  for i, line in ipairs(hold[H_LINES]) do
    local granted = grants[line[1]]
    if granted then
      local units = units_of(line[3])
      lines[i] = {line[1], line[2], take_off(on_shelf(line[1]), units)}
      Fences.take(ctx, hold[H_CHANNEL], lines[i], min(granted, units)) -- units that are covered take nothing of a fence
      grants[line[1]] = max(0, granted - units)
    else
      lines[i] = {line[1], line[2], line[3]} -- nothing is granted: nothing is fenced
    end
  end
  return lines
end

-- cmd = {req, reservation_id, order_source, order_ref} ('' : the hold's own, else the channel)
function Reservations.commit(keys, args)
  local _, req, id, order_source, order_ref = unpack_limit(args[2], 4, 1)
  local ctx, done = begin(keys, args, req, id)
  if not ctx then return done end
  local hold, raw = Holds.load(ctx, id)
  if not hold then return refuse(ctx, req, 'RESERVATION_NOT_FOUND') end
  local ref = order_ref ~= '' and order_ref or hold[ORDER_REF]
  local source = order_source ~= '' and order_source or (hold[ORDER_SOURCE] ~= '' and hold[ORDER_SOURCE] or hold[H_CHANNEL])
  if ref == '' then return refuse(ctx, req, 'ORDER_REF_REQUIRED', id, hold) end
  local state = hold[STATE]
  if state == COMMITTED_STATE and hold[ORDER_SOURCE] == source and hold[ORDER_REF] == ref then
    local txn = Txn.new()
    Requests.remember(ctx, txn, req, 'COMMITTED', hold[VERSION], id, hold[CANCELLED] or nil)
    Log.quiet(ctx, txn)
    return answer(ctx, 'COMMITTED', hold[VERSION], true, id, hold, nil, hold[CANCELLED])
  end
  local order = Orders.open(ctx, source, ref)
  if state == RELEASED and hold[ORDER_SOURCE] == source and hold[ORDER_REF] == ref and Orders.is_cancelled(ctx, order) then
    -- The cancel let go of it before the commit came: the same answer as the other way round, and nothing is held.
    local txn = Txn.new()
    Requests.remember(ctx, txn, req, 'COMMITTED', Log.version(ctx), id, true)
    Log.quiet(ctx, txn)
    return answer(ctx, 'COMMITTED', Log.version(ctx), false, id, hold, nil, true)
  end
  if state ~= ACTIVE and state ~= EXPIRED then return refuse(ctx, req, not_active(hold), id, hold) end
  if order.closed then return refuse(ctx, req, 'ORDER_CLOSED', id, hold) end
  local lines = hold[H_LINES]
  if state == EXPIRED then
    lines = anew(ctx, hold, order)
    if not lines then return refuse(ctx, req, 'RESERVATION_EXPIRED', id, hold) end
  end
  local txn, version = Txn.new(), Log.next_version(ctx)
  local carried = state == ACTIVE and Holds.order_of(ctx, hold) or nil
  local touched = {}
  for _, line in ipairs(Holds.by_sku(hold, lines)) do
    if state == ACTIVE then Holds.move(ctx, txn, id, line[1], line[3], NO_SOURCES, carried) end
    local facts = Orders.facts(order, line[1])
    local l = Orders.line(facts, '')
    for _, src in ipairs(line[3]) do
      l[2] = l[2] + src[2]
      l[5][src[1]] = (l[5][src[1]] or 0) + src[2]
    end
    touched[line[1]] = true
  end
  if order.meta[2] == '' then order.meta[2] = hold[H_CHANNEL] end
  local cancelled = Orders.is_cancelled(ctx, order)
  for _, sku in ipairs(sorted_keys(touched)) do
    if carried and carried ~= order then Orders.settle(ctx, carried, sku) end
    Orders.settle(ctx, order, sku)
  end
  Exceptions.await_word(ctx, txn, order)
  Orders.remember_reservation(ctx, order, id)
  if hold[H_KITS] then Orders.remember_kits(ctx, txn, order, hold[H_KITS]) end
  if state == EXPIRED then
    txn:put('ZREM', ctx.base .. 'ended:' .. EXPIRED, id, false, hold[END_MS])
    Holds.archive(ctx, txn, id, hold, COMMITTED_STATE)
  else
    Holds.finish(ctx, txn, id, hold, COMMITTED_STATE)
  end
  hold[ORDER_SOURCE], hold[ORDER_REF], hold[VERSION], hold[H_LINES], hold[CANCELLED] = source, ref, version, lines, cancelled
  Orders.flush(ctx, txn)
  local lines_raw = pack(lines)
  Holds.store(ctx, txn, id, hold, raw, lines_raw)
  Requests.remember(ctx, txn, req, 'COMMITTED', version, id, cancelled or nil)
  Log.emit(ctx, txn, KIND_COMMITTED, req, Positions.flush(ctx, txn),
    ARRAY[hold[H_KITS] and 7 or 6] .. pack(id, hold[H_CHANNEL], source, ref) .. lines_raw .. pack(state == EXPIRED)
      .. (hold[H_KITS] and pack(hold[H_KITS]) or ''))
  return answer(ctx, 'COMMITTED', version, false, id, hold, nil, cancelled, lines_raw)
end

-- What to take out of each line of a hold, by place, where {sku: units} are released: of a kit whole ones, of a sku only
-- what was asked for by itself. Nil where the hold has too few. Second result: what is left of the kits, false: none.
function Reservations.wanted_of(hold, units)
  local wanted, kits = {}, false
  for _, k in ipairs(hold[H_KITS] or NO_SOURCES) do
    local back = units[k[1]] or 0
    if back > k[2] then return nil end
    units[k[1]] = nil
    local each = {}
    for _, part in ipairs(k[3]) do each[part[1]] = part[2] end
    for i, line in ipairs(hold[H_LINES]) do
      if line[2] == k[1] then wanted[i] = back * each[line[1]] end
    end
    if back < k[2] then
      kits = kits or {}
      kits[#kits + 1] = {k[1], k[2] - back, k[3]}
    end
  end
  for i, line in ipairs(hold[H_LINES]) do
    if line[2] == '' then
      wanted[i] = units[line[1]] or 0
      if wanted[i] > units_of(line[3]) then return nil end
      units[line[1]] = nil
    end
  end
  if next(units) then return nil end
  return wanted, kits
end

-- Take units out of hold lines, by place. Returns lines taken, lines left.
function Reservations.split(lines, wanted)
  local taken, left = {}, {}
  for i, line in ipairs(lines) do
    local gone, stays = Sourcing.give_back(line[3], wanted[i])
    local gone_line, left_line = {line[1], line[2], gone}, {line[1], line[2], stays}
    Fences.split(line, gone_line, left_line, units_of(stays))
    if #gone > 0 then taken[#taken + 1] = gone_line end
    if #stays > 0 then left[#left + 1] = left_line end
  end
  return taken, left
end

-- Give back part of an active hold: units by place of its lines, and what is left of its kits. The caller logs. Returns
-- the released body for the record.
function Reservations.give_back(ctx, txn, id, hold, raw, wanted, kits)
  local taken, left = Reservations.split(hold[H_LINES], wanted)
  if #left == 0 then
    Holds.end_all(ctx, txn, id, hold, raw, RELEASED)
    return {id, true, taken}
  end
  local stays = {}
  for _, line in ipairs(Holds.by_sku(hold, left)) do stays[line[1]] = line[3] end
  local order = Holds.order_of(ctx, hold)
  for _, line in ipairs(Holds.by_sku(hold, hold[H_LINES])) do
    Holds.move(ctx, txn, id, line[1], line[3], stays[line[1]] or NO_SOURCES, order)
    if order then Orders.settle(ctx, order, line[1]) end
  end
  for _, line in ipairs(taken) do Fences.give_back(ctx, hold[H_CHANNEL], line) end
  hold[H_LINES], hold[VERSION], hold[H_KITS] = left, Log.next_version(ctx), kits or nil
  Holds.store(ctx, txn, id, hold, raw)
  return {id, false, taken}
end

-- Give back every unit of a sku, those in kits too: its order does not want it any more. A kit without a part left is
-- gone. Returns the released body, or nil where the hold has none.
function Reservations.drop(ctx, txn, id, hold, raw, sku)
  local wanted, kits, any, alive = {}, false, false, {}
  for i, line in ipairs(hold[H_LINES]) do
    wanted[i] = line[1] == sku and units_of(line[3]) or 0
    if wanted[i] > 0 then any = true else alive[line[2]] = true end
  end
  if not any then return nil end
  for _, k in ipairs(hold[H_KITS] or NO_SOURCES) do
    if alive[k[1]] then
      kits = kits or {}
      kits[#kits + 1] = k
    end
  end
  return Reservations.give_back(ctx, txn, id, hold, raw, wanted, kits)
end

-- cmd = {req, reservation_id, lines {{sku, quantity}, ...} (empty: everything), reason ('': the buyer gave up)}
function Reservations.release(keys, args)
  local cmd = unpack_msg(args[2])
  local req, id = cmd[1], cmd[2]
  local ctx, done = begin(keys, args, req, id)
  if not ctx then return done end
  local hold, raw = Holds.load(ctx, id)
  if not hold then return refuse(ctx, req, 'RESERVATION_NOT_FOUND') end
  if hold[STATE] ~= ACTIVE then return refuse(ctx, req, not_active(hold), id, hold) end
  local txn, version = Txn.new(), Log.next_version(ctx)
  local body
  if #cmd[3] == 0 then
    body = {id, true, Holds.end_all(ctx, txn, id, hold, raw, RELEASED)}
  else
    local units = {}
    for _, line in ipairs(cmd[3]) do units[line[1]] = (units[line[1]] or 0) + line[2] end
    local by_place, kits = Reservations.wanted_of(hold, units)
    if not by_place then return refuse(ctx, req, 'LINE_EXCEEDS_HOLD', id, hold) end
    body = Reservations.give_back(ctx, txn, id, hold, raw, by_place, kits)
  end
  if (cmd[4] or '') ~= '' then body[4] = cmd[4] end
  Orders.flush(ctx, txn)
  Requests.remember(ctx, txn, req, 'RELEASED', version, id)
  Log.emit(ctx, txn, KIND_RELEASED, req, Positions.flush(ctx, txn), pack(body))
  return answer(ctx, 'RELEASED', version, false, id, hold)
end

end
