-- Orders as they are kept: facts per order line under the name that they were told by, and who is one order with whom.
-- What the facts say is in 08_orders_facts.lua, what follows from them for positions in 08_orders_settle.lua.
--
-- `ord:<order>` is a hash: "m" -> {cancel_key | false, channel, reservations, last_fact_ms, source, ref},
-- "s" .. sku -> facts = {lines, holds, waived, committed, auto, hint, cancel, confirmed (absent: none)}:
--   lines      {{line, own, word (-1: none), word_key | false, sourced {node: q}, allocated {node: {q, key}}, shipped {node: q},
--              node that the word names}, ...}
--   holds      {reservation: {{node, q}, ...}} of active holds that carry the order
--   waived     {node: q} of these holds that do not count, because the order's own facts count them already
--   committed  {node: q} as it stands in the positions
--   auto       {{node, q}, ...} where the ledger sourced what no fact gives a node
--   cancel     key of the word that cancelled all lines of the sku, or false
--   hint       node named by the latest word, or '': what no other fact gives a node then sits there
--   confirmed  {source: {node: q}} of committed: what allocations of these sources say
-- "k" .. kit -> {{kits, flat recipe}, ...} of our commits, one for each recipe that the kit had: what a later fact that
-- names the kit means.
-- "l" -> links {{name, source, ref, whether they are one order, key of that word}, ...} with other names, kept at both.
-- "z" -> '1' for a closed order whose facts are gone: later facts are refused.
--
-- Names that are linked, directly or through others, are one order: a group. Every fact stays with the name it was told
-- under, so that a link can be taken back; what a group commits is worked out from all its facts together (`told`), and
-- waived, committed, auto, hint and confirmed stand with its first name (by source, then ref).

local Orders = {}

-- Places in what is kept; the other files on orders take those that they need by name.
Orders.at = {
  OWN = 2, WORD = 3, WORD_KEY = 4, SOURCED = 5, ALLOCATED = 6, SHIPPED = 7, WORD_NODE = 8, -- of a line
  LINES = 1, HELD = 2, WAIVED = 3, COMMITTED = 4, AUTO = 5, HINT = 6, SKU_CANCEL = 7, CONFIRMED = 8, -- of a sku's facts
  CANCEL = 1, CHANNEL = 2, RESERVATIONS = 3, LAST_FACT = 4, -- of an order
  L_NAME = 1, L_SOURCE = 2, L_REF = 3, L_ONE = 4, L_KEY = 5, -- of a link
}

do -- Lua has room for 200 names outside of blocks; these stay in here

local at = Orders.at
local LINES, HELD, WAIVED, COMMITTED, OWN = at.LINES, at.HELD, at.WAIVED, at.COMMITTED, at.OWN
local RESERVATIONS, LAST_FACT = at.RESERVATIONS, at.LAST_FACT
local L_NAME, L_SOURCE, L_REF, L_ONE = at.L_NAME, at.L_SOURCE, at.L_REF, at.L_ONE
local RESERVATIONS_KEPT = 200

function Orders.open(ctx, source, ref)
  local name = pair(source, ref)
  local o = ctx.orders[name]
  if not o then
    local key = ctx.base .. 'ord:' .. name
    local found = call('HMGET', key, 'm', 'z', 'l')
    o = {
      name = name, key = key, raw = found[1], closed = found[2] and true or false, skus = {}, touched = {},
      meta = found[1] and unpack_msg(found[1]) or {false, '', {}, 0, source, ref},
      links = found[3] and unpack_msg(found[3]) or false, links_raw = found[3],
    }
    o.last_fact_before = o.raw and o.meta[LAST_FACT] or false
    ctx.orders[name] = o
  end
  return o
end

-- Which of two names of an order stands first: by source, then ref.
function Orders.name_before(a, b)
  if a.meta[5] ~= b.meta[5] then return before(a.meta[5], b.meta[5]) end
  return before(a.meta[6], b.meta[6])
end

-- The orders that are one with this one, itself included, by name; false where it is alone.
function Orders.group(ctx, o)
  if not o.links then return false end
  if o.group ~= nil then return o.group end
  local members, seen, i = {o}, {[o.name] = true}, 1
  while members[i] do
    for _, l in ipairs(members[i].links or {}) do
      if l[L_ONE] and not seen[l[L_NAME]] then
        seen[l[L_NAME]] = true
        members[#members + 1] = Orders.open(ctx, l[L_SOURCE], l[L_REF])
      end
    end
    i = i + 1
  end
  local group = members[2] and members or false
  if group then table.sort(group, Orders.name_before) end
  for _, member in ipairs(members) do member.group = group end
  return group
end

function Orders.members(ctx, o)
  return Orders.group(ctx, o) or {o}
end

-- What `use:<sku>` says of holds that count less than they hold: {waived {node: q}, reservations}. `held`: the
-- reservations of a group.
function Orders.waived_raw(facts, held)
  if not next(facts[WAIVED]) then return false end
  return pack({facts[WAIVED], held or sorted_keys(facts[HELD])})
end

function Orders.facts(o, sku)
  local f = o.skus[sku]
  if not f then
    local raw = o.raw and call('HGET', o.key, 's' .. sku) -- "m" comes with the first sku
    if raw then
      local facts = unpack_msg(raw)
      f = {raw = raw, facts = facts, waived_raw = Orders.waived_raw(facts),
        committed_raw = next(facts[COMMITTED]) and pack(facts[COMMITTED]) or false}
    else
      f = {raw = false, facts = {{}, {}, {}, {}, {}, '', false}, waived_raw = false, committed_raw = false}
    end
    o.skus[sku] = f
  end
  return f.facts
end

local function own_skus(o)
  local skus = {}
  for _, field in ipairs(call('HKEYS', o.key)) do
    if byte(field) == 115 then skus[#skus + 1] = sub(field, 2) end
  end
  for sku in pairs(o.skus) do
    if not o.skus[sku].raw then skus[#skus + 1] = sku end
  end
  return skus
end

-- Every sku that orders have facts of.
function Orders.skus_of(members)
  local skus = {}
  for _, o in ipairs(members) do
    for _, sku in ipairs(own_skus(o)) do skus[sku] = true end
  end
  return sorted_keys(skus)
end

-- Every sku that the order has facts of, under any of its names.
function Orders.every_sku(ctx, o)
  return Orders.skus_of(Orders.members(ctx, o))
end

function Orders.line(facts, name)
  for _, l in ipairs(facts[LINES]) do
    if l[1] == name then return l end
  end
  local l = {name, 0, -1, false, {}, {}, {}, ''}
  facts[LINES][#facts[LINES] + 1] = l
  return l
end

-- Whether our own commits put anything into the order under this name.
function Orders.has_commits(o)
  for _, sku in ipairs(own_skus(o)) do
    for _, l in ipairs(Orders.facts(o, sku)[LINES]) do
      if l[OWN] > 0 then return true end
    end
  end
  return false
end

function Orders.remember_reservation(ctx, o, id)
  local list = o.meta[RESERVATIONS]
  for _, known in ipairs(list) do
    if known == id then return end
  end
  list[#list + 1] = id
  o.dirty = true
  if #list <= RESERVATIONS_KEPT then return end
  for i, known in ipairs(list) do -- the oldest that has ended: a cancel must find the active ones
    local raw = call('GET', ctx.base .. 'res:' .. known)
    if known ~= id and not (raw and unpack_msg(raw)[1] == 1) then
      table.remove(list, i)
      return
    end
  end
end

function Orders.flush(ctx, txn)
  for _, o in pairs(ctx.orders) do
    for sku in pairs(o.touched) do
      local f = o.skus[sku]
      local raw, use_key = pack(f.facts), Positions.use_key(ctx, sku)
      txn:hash(o.key, 's' .. sku, raw, f.raw)
      local committed_raw = next(f.facts[COMMITTED]) and pack(f.facts[COMMITTED]) or false
      txn:change(use_key, 'o' .. o.name, committed_raw, f.committed_raw)
      local waived_raw = Orders.waived_raw(f.facts, f.held)
      if o.links then f.waived_raw = call('HGET', use_key, 'w' .. o.name) end -- it names holds of other names too
      txn:change(use_key, 'w' .. o.name, waived_raw, f.waived_raw)
      f.raw, f.committed_raw, f.waived_raw = raw, committed_raw, waived_raw
      o.dirty = true
    end
    o.touched = {}
    if o.dirty then
      o.dirty = false
      o.meta[LAST_FACT] = ctx.clock
      local raw = pack(o.meta)
      if not o.raw and not call('HGET', ctx.base .. 'order_sources', o.meta[5]) then
        txn:hash(ctx.base .. 'order_sources', o.meta[5], '1', false)
      end
      txn:hash(o.key, 'm', raw, o.raw)
      if o.links then
        local links_raw = pack(o.links)
        txn:hash(o.key, 'l', links_raw, o.links_raw)
        o.links_raw = links_raw
      end
      txn:put('ZADD', ctx.base .. 'ord_last', ctx.clock, o.name, o.last_fact_before)
      o.raw, o.last_fact_before = raw, ctx.clock
    end
  end
end

end
