-- What deltas tell of orders: words about lines, cancels with the holds that they release, links, and shipments.

do

local at, types, results = Deltas.at, Deltas.types, Deltas.results
local SKU, NODE, QUANTITY, LINE = at.SKU, at.NODE, at.QUANTITY, at.LINE
local BASIS, SHIPPED_QUANTITY, LINKED_SOURCE, LINKED_REF = at.BASIS, at.SHIPPED_QUANTITY, at.LINKED_SOURCE, at.LINKED_REF
local STALE, REJECTED = results.STALE, results.REJECTED
local ORDER_PLACED, ORDER_CHANGED = types.ORDER_PLACED, types.ORDER_CHANGED
local ORDER_ALLOCATED, ORDER_CANCELLED = types.ORDER_ALLOCATED, types.ORDER_CANCELLED
local OPEN_BASIS = 2

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

-- Each returns nothing, or STALE.
Deltas.of_order = {
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
function Deltas.link_order(ctx, txn, order, d, key)
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

-- What left for an order is a fact of its line.
function Deltas.ship(ctx, order, d)
  local l = Orders.line(Orders.facts(order, d[SKU]), d[LINE])
  l[7][d[NODE]] = (l[7][d[NODE]] or 0) + d[QUANTITY]
  settle(ctx, order, d[SKU])
end

end
