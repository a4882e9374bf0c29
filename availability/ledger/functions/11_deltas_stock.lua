-- What deltas do to a position's stock, and to what is expected: changes, and counts and announcements, which are absolute.

do

local at, types, results = Deltas.at, Deltas.types, Deltas.results
local TYPE, SKU, NODE, TO_NODE, QUANTITY, STOCK_STATE = at.TYPE, at.SKU, at.NODE, at.TO_NODE, at.QUANTITY, at.STOCK_STATE
local O_REF, LINE, REFERENCE, REASON = at.O_REF, at.LINE, at.REFERENCE, at.REASON
local DUE_US, EXPECTED_KIND = at.DUE_US, at.EXPECTED_KIND
local STALE, REJECTED = results.STALE, results.REJECTED
local RECEIPT, ADJUSTMENT, SHIPMENT, WRITE_OFF = types.RECEIPT, types.ADJUSTMENT, types.SHIPMENT, types.WRITE_OFF
local QUARANTINE, QUARANTINE_RELEASE, RETURN_RECEIVED = types.QUARANTINE, types.QUARANTINE_RELEASE, types.RETURN_RECEIVED
local TRANSFER_OUT, TRANSFER_IN, SET_ON_HAND, EXPECTED = types.TRANSFER_OUT, types.TRANSFER_IN, types.SET_ON_HAND, types.EXPECTED
local QUARANTINED_STATE = 2

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

-- Each returns why it cannot be, or nil.
Deltas.of_stock = {
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

-- What a stock delta does to expected supply: node, kind, reference and units by type.
local expected_by = {
  [RECEIPT] = function(d) return d[NODE], Supply.PURCHASE, d[REFERENCE], -d[QUANTITY] end,
  [RETURN_RECEIVED] = function(d)
    return d[NODE], Supply.RETURN, d[REFERENCE] ~= '' and d[REFERENCE] or d[O_REF], -d[QUANTITY]
  end,
  [TRANSFER_OUT] = function(d) return d[TO_NODE], Supply.TRANSFER, d[REFERENCE], d[QUANTITY] end,
  [TRANSFER_IN] = function(d) return d[NODE], Supply.TRANSFER, d[REFERENCE], -d[QUANTITY] end,
}

function Deltas.move_expected(ctx, source, d)
  local by = expected_by[d[TYPE]]
  if not by then return end
  local node, kind, reference, quantity = by(d)
  if reference == '' and kind ~= Supply.TRANSFER then return end
  local due_us = quantity > 0 and d[DUE_US] or 0
  local line = d[TYPE] == TRANSFER_OUT and d[O_REF] ~= '' and '' or d[LINE] -- then it is the order's line
  Supply.move(ctx, d[SKU], node, kind, reference, line, quantity, Deltas.word_key(ctx, source, d), due_us)
end

-- Each returns nothing, or STALE, or REJECTED and why.
Deltas.of_counts = {
  [EXPECTED] = function(ctx, source, d)
    local kind = d[EXPECTED_KIND] or 0
    if kind == 0 then kind = Supply.PURCHASE end
    local reference = d[REFERENCE]
    if reference == '' and kind == Supply.RETURN then reference = d[O_REF] end
    local key = Deltas.word_key(ctx, source, d)
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

end
