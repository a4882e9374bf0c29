-- What is asked of an order: what is still to ship, and what a source has confirmed. Nothing here writes.

do

local at = Orders.at
local LINES, AUTO, CONFIRMED = at.LINES, at.AUTO, at.CONFIRMED

-- The lines of a sku that want units still (all: every line), under all names of the order: {{line, ordered (-1: only
-- allocations are known), shipped, open, {{node, open there, confirmed there}, ...}}, ...}.
function Orders.open_lines(ctx, o, sku, all)
  local told, cancel, leader = Orders.told(ctx, o, sku)
  local groups, auto, out = Orders.groups_of(told, cancel), {}, {}
  for i, a in ipairs(Orders.facts(leader, sku)[AUTO]) do auto[i] = {a[1], a[2]} end
  local together = #groups < #told[LINES]
  for i, g in ipairs(groups) do
    local committed, confirmed, there, shipped, open = {}, {}, {}, 0, 0
    local need = Orders.confirm(g, committed, confirmed)
    for _, a in ipairs(auto) do -- what no fact gives a node, in the order of the lines
      local take = min(a[2], need)
      if take > 0 then add_to(committed, a[1], take) end
      a[2], need = a[2] - take, need - take
    end
    for _, q in pairs(g.shipped) do shipped = shipped + q end
    for _, of_source in pairs(confirmed) do
      for node, q in pairs(of_source) do add_to(there, node, q) end
    end
    local nodes = {}
    for _, node in ipairs(sorted_keys(committed)) do
      open = open + committed[node]
      nodes[#nodes + 1] = {node, committed[node], there[node] or 0}
    end
    if open + need > 0 or all then
      local ordered = g.word or (g.own > 0 and g.own) or -1
      out[#out + 1] = {together and '' or told[LINES][i][1], ordered, shipped, open + need, nodes}
    end
  end
  return out
end

-- What a source has confirmed of a sku in an order, by node; nil where it has not.
function Orders.confirmed_by(ctx, name, sku)
  local raw = call('HGET', ctx.base .. 'ord:' .. name, 's' .. sku)
  return raw and unpack_msg(raw)[CONFIRMED] or nil
end

end
