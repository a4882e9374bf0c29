-- What follows from an order's facts: what it commits and waives at each node, written into positions.

do

local at = Orders.at
local HELD, WAIVED, COMMITTED, AUTO = at.HELD, at.WAIVED, at.COMMITTED, at.AUTO
local HINT, CONFIRMED, CHANNEL = at.HINT, at.CONFIRMED, at.CHANNEL

-- Where the source names no node: the channel of the order's first commit, else the channel named like its
-- source (of linked names: the first that has one), else every node. Returns places as Sourcing.look, never empty where
-- any node is declared.
local function auto_places(ctx, o, sku)
  local channel
  local members = Orders.members(ctx, o)
  for _, member in ipairs(members) do
    channel = channel or (member.meta[CHANNEL] ~= '' and Policy.channel(ctx, member.meta[CHANNEL], false))
  end
  for _, member in ipairs(members) do channel = channel or Policy.channel(ctx, member.meta[5], false) end
  channel = channel or Policy.everywhere(ctx)
  local s = Positions.read(ctx, sku, channel)
  local _, _, _, places = Sourcing.figures(channel, s)
  if #places == 0 then
    local first = channel.nodes[1] or (Policy.node_table(ctx)[1] or {})[1]
    if first then places = {first, 0} end
  end
  return places
end

local function waive(facts, covered, committed)
  local held = {}
  local total = 0
  for _, sources in pairs(facts[HELD]) do
    for _, src in ipairs(sources) do
      add_to(held, src[1], src[2])
      total = total + src[2]
    end
  end
  local left, waived = min(total, covered), {}
  local nodes = sorted_keys(held)
  for _, node in ipairs(nodes) do
    local take = min(left, held[node], committed[node] or 0)
    if take > 0 then waived[node], left = take, left - take end
  end
  for _, node in ipairs(nodes) do
    local take = min(left, held[node] - (waived[node] or 0))
    if take > 0 then
      add_to(waived, node, take)
      left = left - take
    end
  end
  return waived
end

local function move(ctx, sku, field, old, new, sign)
  if not next(old) and not next(new) then return end
  local nodes = {}
  for node in pairs(old) do nodes[node] = true end
  for node in pairs(new) do nodes[node] = true end
  for _, node in ipairs(sorted_keys(nodes)) do
    local change = (new[node] or 0) - (old[node] or 0)
    if change ~= 0 then
      local p, s = Positions.at(ctx, sku, node)
      p[field] = p[field] + sign * change
      Positions.touch(ctx, s, node)
    end
  end
end

local NOTHING = {}

local function tell_source(ctx, sku, source, was, is)
  for node, q in pairs(is) do
    local change = q - (was[node] or 0)
    if change ~= 0 then Log.effect(ctx, sku, node, source, change) end
  end
  for node, q in pairs(was) do
    if not is[node] then Log.effect(ctx, sku, node, source, -q) end
  end
end

-- What sources have confirmed changes: the log tells by how much, for who wants to know what it was before.
local function tell_confirmed(ctx, sku, facts, new)
  local old = facts[CONFIRMED] or NOTHING
  facts[CONFIRMED] = next(new) and new or nil
  for source, is in pairs(new) do tell_source(ctx, sku, source, old[source] or NOTHING, is) end
  for source, was in pairs(old) do
    if not new[source] then tell_source(ctx, sku, source, was, NOTHING) end
  end
end

-- Take back what a sku's facts commit and waive. Returns where the ledger had put units that no fact gives a node.
function Orders.take_back(ctx, o, sku)
  local facts = Orders.facts(o, sku)
  local auto = facts[AUTO]
  move(ctx, sku, 'committed', facts[COMMITTED], {}, 1)
  move(ctx, sku, 'reserved', facts[WAIVED], {}, -1)
  if facts[CONFIRMED] then tell_confirmed(ctx, sku, facts, {}) end
  facts[COMMITTED], facts[WAIVED], facts[AUTO] = {}, {}, {}
  o.touched[sku] = true
  return auto
end

-- Evaluate a sku's facts and move its positions accordingly. Returns the units that nothing free covered.
function Orders.settle(ctx, o, sku)
  local told, cancel, leader = Orders.told(ctx, o, sku)
  local facts = told
  o.touched[sku] = true
  if o.links then
    facts = Orders.facts(leader, sku)
    leader.touched[sku] = true
    leader.skus[sku].held = sorted_keys(told[HELD])
    for _, member in ipairs(Orders.members(ctx, o)) do member.dirty = true end -- they are closed together
  end
  local committed, confirmed, need = {}, {}, 0
  local groups = Orders.groups_of(told, cancel)
  for i = 1, #groups do need = need + Orders.confirm(groups[i], committed, confirmed) end
  if facts[CONFIRMED] or next(confirmed) then tell_confirmed(ctx, sku, facts, confirmed) end
  local hint = Orders.hint_of(told)
  local auto, have = {}, 0
  if hint ~= '' then
    if need > 0 then auto[1], have = {hint, need}, need end
  else
    for _, a in ipairs(facts[AUTO]) do
      local q = min(a[2], need - have)
      if q > 0 then
        auto[#auto + 1] = {a[1], q}
        have = have + q
      end
    end
  end
  for _, a in ipairs(auto) do add_to(committed, a[1], a[2]) end
  move(ctx, sku, 'committed', facts[COMMITTED], committed, 1)
  local waived = next(told[HELD]) and waive(told, Orders.covered(told, cancel, groups), committed) or {}
  move(ctx, sku, 'reserved', facts[WAIVED], waived, -1)
  local oversold = 0
  if need > have then
    local places = auto_places(ctx, o, sku)
    if #places > 0 then
      local sources
      sources, oversold = Sourcing.take(places, need - have)
      for _, src in ipairs(sources) do
        local last = auto[#auto]
        if last and last[1] == src[1] then last[2] = last[2] + src[2] else auto[#auto + 1] = {src[1], src[2]} end
        add_to(committed, src[1], src[2])
        local p, s = Positions.at(ctx, sku, src[1])
        p.committed = p.committed + src[2]
        Positions.touch(ctx, s, src[1])
      end
    end
  end
  facts[HINT] = hint
  facts[COMMITTED], facts[WAIVED], facts[AUTO] = committed, waived, auto
  return oversold
end

end
