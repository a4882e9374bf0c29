-- Holds: the stored reservation and what its life does to positions.
--
-- `res:<id>` is {state, channel, order_source, order_ref, create_ms, due_ms, version, end_ms, created (wall ms),
-- order_cancelled, lines, node asked for or '', kits (absent: none)}, lines {{sku, kit_sku, {{node, quantity, oversold}, ...},
-- fenced (absent: 0), generation}, ...}, kits {{kit, kits, flat recipe}, ...} as held. A part of a kit and the same sku asked for by itself are two lines.
-- Active ones have no TTL: only a ledger event ends them. Deadlines stand in `due`, ended ones in `ended:<state>` until they are forgotten.

local Holds = {}
local ACTIVE, COMMITTED_STATE, RELEASED, EXPIRED = 1, 2, 3, 4
local STATE, H_CHANNEL, ORDER_SOURCE, ORDER_REF, CREATED_MS, DUE_MS, VERSION, END_MS, CREATED_WALL, CANCELLED, H_LINES, H_KITS =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13
local KIND_EXPIRED = 5

function Holds.load(ctx, id)
  local raw = call('GET', ctx.base .. 'res:' .. id)
  if not raw then return nil end
  return unpack_msg(raw), raw
end

-- Store a hold. `lines` is packed, where the caller has it so.
function Holds.store(ctx, txn, id, hold, old_raw, lines)
  local raw = pack(unpack(hold, 1, 10)) .. (lines or pack(hold[H_LINES])) .. pack(hold[12])
  raw = hold[H_KITS] and ARRAY[13] .. raw .. pack(hold[H_KITS]) or ARRAY[12] .. raw
  txn:put('SET', ctx.base .. 'res:' .. id, raw, false, old_raw)
end

-- What a caller sees of it, but for its lines: with the two clocks that turn its deadline into a time.
function Holds.view(ctx, id, hold)
  return id, hold[STATE], hold[H_CHANNEL], hold[ORDER_SOURCE], hold[ORDER_REF], hold[CREATED_WALL],
    ctx.now + hold[DUE_MS] - ctx.clock, hold[VERSION]
end

-- Give a hold its deadline.
function Holds.set_due(ctx, txn, id, due_ms, old_ms)
  txn:put('ZADD', ctx.base .. 'due', due_ms, id, old_ms)
  if ctx.due == 0 or due_ms < ctx.due then ctx.due = due_ms end
end

local NO_SOURCES = {} -- of a line that was not held before, or is not any more

local function strip(sources)
  local plain = {}
  for i, src in ipairs(sources) do plain[i] = {src[1], src[2]} end
  return plain
end

-- The lines with those of one sku as one, which names its `parts`; without kits there is one a sku already.
function Holds.by_sku(hold, lines)
  if not hold[H_KITS] then return lines end
  local merged, at = {}, {}
  for _, line in ipairs(lines) do
    local one = at[line[1]]
    if not one then
      one = {line[1], '', {}, parts = {}}
      at[line[1]], merged[#merged + 1] = one, one
    end
    for _, src in ipairs(line[3]) do one[3][#one[3] + 1] = src end
    one.parts[#one.parts + 1] = line
  end
  return merged
end

-- The line, or each of its parts, takes from its channel's fence first.
function Holds.take_fenced(ctx, channel_name, line)
  if not line.parts then return Fences.take(ctx, channel_name, line) end
  for _, part in ipairs(line.parts) do Fences.take(ctx, channel_name, part) end
end

-- What the line, or each of its parts, took of a fence goes back to it.
function Holds.return_fenced(ctx, channel_name, line)
  if not line.parts then return Fences.give_back(ctx, channel_name, line) end
  for _, part in ipairs(line.parts) do Fences.give_back(ctx, channel_name, part) end
end

-- All units of one sku in a hold change from `old` to `new` sources (either may be empty): positions, index and order facts.
function Holds.move(ctx, txn, id, sku, old, new, order)
  for i = 1, #old do
    local src = old[i]
    local p, s = Positions.at(ctx, sku, src[1])
    p.reserved = p.reserved - src[2]
    Positions.touch(ctx, s, src[1])
  end
  for i = 1, #new do
    local src = new[i]
    local p, s = Positions.at(ctx, sku, src[1])
    p.reserved = p.reserved + src[2]
    Positions.touch(ctx, s, src[1])
  end
  if #old == 0 then
    txn:field(Positions.use_key(ctx, sku), 'h' .. id, '1', false)
  elseif #new == 0 then
    txn:put('HDEL', Positions.use_key(ctx, sku), 'h' .. id, false, '1')
  end
  if order then
    local facts = Orders.facts(order, sku)
    facts[2][id] = #new > 0 and strip(new) or nil
    order.touched[sku] = true
  end
end

function Holds.order_of(ctx, hold)
  if hold[ORDER_REF] == '' then return nil end
  return Orders.open(ctx, hold[ORDER_SOURCE], hold[ORDER_REF])
end

-- Take an active hold's deadline away and put it among the ended ones.
function Holds.finish(ctx, txn, id, hold, state)
  txn:put('ZREM', ctx.base .. 'due', id, false, hold[DUE_MS])
  Holds.archive(ctx, txn, id, hold, state)
end

function Holds.archive(ctx, txn, id, hold, state)
  txn:put('ZADD', ctx.base .. 'ended:' .. state, ctx.clock, id)
  hold[STATE], hold[END_MS] = state, ctx.clock
end

-- Give back all units of an active hold and end it. The caller logs. Returns its lines.
function Holds.end_all(ctx, txn, id, hold, raw, state)
  local order = Holds.order_of(ctx, hold)
  for _, line in ipairs(Holds.by_sku(hold, hold[H_LINES])) do
    Holds.move(ctx, txn, id, line[1], line[3], NO_SOURCES, order)
    Holds.return_fenced(ctx, hold[H_CHANNEL], line)
    if order then Orders.settle(ctx, order, line[1]) end
  end
  Holds.finish(ctx, txn, id, hold, state)
  hold[VERSION] = Log.next_version(ctx)
  Holds.store(ctx, txn, id, hold, raw)
  return hold[H_LINES]
end

-- End due holds, at most `limit`, each as its own version. `except`: a hold whose commit or extend arrived before
-- this event wins. Returns how many ended.
function Holds.expire(ctx, limit, except)
  if ctx.due == 0 or ctx.clock < ctx.due then return 0 end
  local due_key = ctx.base .. 'due'
  local due = call('ZRANGE', due_key, '-inf', int(ctx.clock), 'BYSCORE', 'LIMIT', '0', tostring(limit))
  local ended = 0
  for _, id in ipairs(due) do
    if id ~= except then
      local hold, raw = Holds.load(ctx, id)
      if not hold then error({err = 'ERR availability: a deadline without its reservation: ' .. id}) end
      local txn = Txn.new()
      local lines = Holds.end_all(ctx, txn, id, hold, raw, EXPIRED)
      Orders.flush(ctx, txn)
      Log.emit(ctx, txn, KIND_EXPIRED, NOBODY, Positions.flush(ctx, txn), ARRAY[2] .. pack(id, lines))
      ended = ended + 1
    end
  end
  if #due < limit then
    local first = call('ZRANGE', due_key, '0', '0', 'WITHSCORES')
    ctx.due = first[2] and tonumber(first[2]) or 0 -- written with whatever this call writes
  end
  return ended
end
