-- The formula (CONTRACT section 2) and where a grant's units come from. The same formula stands in
-- domain/formula.py for arrays; a property test holds both equal to a third, plain one.

local Sourcing = {}
local Fences = {} -- 07_sourcing_fences.lua

local function net_of(p, default_safety)
  local safety = p.safety >= 0 and p.safety or default_safety
  local give = max(0, p.on_hand - max(0, p.quarantined) - safety)
  return give - p.reserved - p.committed, give
end
Sourcing.net_of = net_of

-- The channel's figures of a sku; `only` limits it to one node: as if the channel had only that one.
-- Returns pool, buffer, oversell limit and the places {node, free, node, free, ...} of N in sourcing order.
function Sourcing.figures(channel, s, only)
  local override = s.override
  local excluded
  local units, percent, oversell = channel.units, channel.percent, channel.oversell
  if override then
    if override[3] >= 0 or override[4] >= 0 then units, percent = override[3], override[4] end
    if override[5] >= 0 then oversell = override[5] end
    excluded = {}
    for _, node in ipairs(override[7]) do excluded[node] = true end
  end
  local pool, gives, places, count = 0, 0, {}, 0
  local nodes, online, safety = channel.nodes, channel.online, channel.safety
  for i = 1, #nodes do
    local node = nodes[i]
    if not only or node == only then
      local net, give = net_of(s.nodes[node], safety[i])
      if online[i] and not (excluded and excluded[node]) then
        pool, gives = pool + net, gives + give
        places[count + 1], places[count + 2] = node, net > 0 and net or 0
        count = count + 2
      else
        pool = pool + min(0, net)
      end
    end
  end
  return pool, percent >= 0 and ceil(percent * gives / 100) or units, oversell, places
end

-- What the channel can sell of a sku. Returns sellable and the places of N, as above.
function Sourcing.look(ctx, channel, s, only)
  local pool, buffer, oversell, places = Sourcing.figures(channel, s, only)
  if s.blocked or not s.known then return 0, places end
  local fenced = s.fence_raw and Fences.against(ctx, channel, s, places) or 0
  return max(0, pool - buffer - fenced + oversell), places
end

-- What a request may get of a sku: with a node, as if the channel had only that one, and never more than the
-- channel's sellable; nothing where no node counts.
function Sourcing.grantable(ctx, channel, s, node)
  local sellable, places = Sourcing.look(ctx, channel, s)
  if node then
    local alone
    alone, places = Sourcing.look(ctx, channel, s, node)
    sellable = min(sellable, alone)
  end
  if #places == 0 then return 0, places end
  return sellable, places
end

-- Put units at places in order, each up to its free units, the rest at the first. Returns {{node, quantity,
-- oversold}, ...} and the oversold units.
function Sourcing.take(places, units)
  local sources, left = {}, units
  for i = 1, #places, 2 do
    if left == 0 then break end
    local take = min(left, places[i + 1])
    if take > 0 then
      sources[#sources + 1] = {places[i], take, 0}
      left = left - take
    end
  end
  if left > 0 then
    local first = places[1]
    if sources[1] and sources[1][1] == first then
      sources[1][2], sources[1][3] = sources[1][2] + left, left
    else
      table.insert(sources, 1, {first, left, left})
    end
  end
  return sources, left
end

-- Take units back out of sources: oversold ones first, then in reverse order of sourcing. Returns what was taken
-- and what is left.
function Sourcing.give_back(sources, units)
  local taken, left, rest = {}, {}, units
  for i, src in ipairs(sources) do
    local take = min(rest, src[3])
    taken[i], left[i] = {src[1], take, take}, {src[1], src[2] - take, src[3] - take}
    rest = rest - take
  end
  for i = #sources, 1, -1 do
    local take = min(rest, left[i][2])
    taken[i][2], left[i][2] = taken[i][2] + take, left[i][2] - take
    rest = rest - take
  end
  local taken_some, left_some = {}, {}
  for i = 1, #sources do
    if taken[i][2] > 0 then taken_some[#taken_some + 1] = taken[i] end
    if left[i][2] > 0 then left_some[#left_some + 1] = left[i] end
  end
  return taken_some, left_some
end
