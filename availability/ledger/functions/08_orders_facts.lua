-- What the facts of an order say: whose word is the latest, what is cancelled, and the one pure function that says what a
-- line commits at each node. Nothing here writes into positions (08_orders_settle.lua does).

do

local at = Orders.at
local OWN, WORD, WORD_KEY, SOURCED, ALLOCATED = at.OWN, at.WORD, at.WORD_KEY, at.SOURCED, at.ALLOCATED
local SHIPPED, WORD_NODE = at.SHIPPED, at.WORD_NODE
local LINES, HELD, SKU_CANCEL, CANCEL = at.LINES, at.HELD, at.SKU_CANCEL, at.CANCEL

-- Keys of absolute facts {occurred_us, source, stream, sequence (0: none), event_id}: which word is later?
function Orders.key_less(a, b)
  if a[1] ~= b[1] then return a[1] < b[1] end
  for i = 2, 3 do
    if a[i] ~= b[i] then return before(a[i], b[i]) end
  end
  if (a[4] > 0) ~= (b[4] > 0) then return a[4] > 0 end
  if a[4] ~= b[4] then return a[4] < b[4] end
  return before(a[5], b[5])
end

-- The later of two keys; false where there is none.
local function later_key(a, b)
  if not a or (b and Orders.key_less(a, b)) then return b end
  return a
end
Orders.later_key = later_key

-- The later of two cancels; false where there is none.
local function cancel_of(facts, order_cancel)
  return later_key(facts[SKU_CANCEL], order_cancel)
end

-- Facts told under several names, as if all had been told under one: sums add up, of absolute words the latest counts.
local function told_together(members, sku)
  local lines, by_name, held, cancel, whole = {}, {}, {}, false, false
  for _, o in ipairs(members) do
    local facts = Orders.facts(o, sku)
    for _, l in ipairs(facts[LINES]) do
      local all = by_name[l[1]]
      if not all then
        all = {l[1], 0, -1, false, {}, {}, {}, ''}
        by_name[l[1]], lines[#lines + 1] = all, all
      end
      all[OWN] = all[OWN] + l[OWN]
      if l[WORD_KEY] and later_key(all[WORD_KEY], l[WORD_KEY]) == l[WORD_KEY] then
        all[WORD], all[WORD_KEY], all[WORD_NODE] = l[WORD], l[WORD_KEY], l[WORD_NODE]
      end
      for node, q in pairs(l[SOURCED]) do add_to(all[SOURCED], node, q) end
      for node, q in pairs(l[SHIPPED]) do add_to(all[SHIPPED], node, q) end
      for node, a in pairs(l[ALLOCATED]) do
        local other = all[ALLOCATED][node]
        if not other or Orders.key_less(other[2], a[2]) then all[ALLOCATED][node] = a end
      end
    end
    for id, sources in pairs(facts[HELD]) do held[id] = sources end
    cancel, whole = later_key(cancel, facts[SKU_CANCEL]), later_key(whole, o.meta[CANCEL])
  end
  return {lines, held, {}, {}, {}, '', cancel}, whole
end

-- What was told of a sku under all names of the order, the key of the order's cancel, and the order that keeps what
-- follows from it.
function Orders.told(ctx, o, sku)
  local group = o.links and Orders.group(ctx, o)
  if not group then return Orders.facts(o, sku), o.meta[CANCEL], o end
  local facts, cancel = told_together(group, sku)
  return facts, cancel, group[1]
end

-- A source cancels all lines of a sku. Returns true where something later was said already of each, under whatever name
-- of the order; it is kept even then, for another line may come with an older word.
function Orders.cancel_sku(ctx, o, sku, key)
  local facts = Orders.facts(o, sku)
  if facts[SKU_CANCEL] and not Orders.key_less(facts[SKU_CANCEL], key) then return true end
  facts[SKU_CANCEL] = key
  local lines = Orders.told(ctx, o, sku)[LINES]
  local later = #lines > 0
  for _, l in ipairs(lines) do
    later = later and l[WORD_KEY] and not Orders.key_less(l[WORD_KEY], key) or false
  end
  return later
end

-- The latest cancel of a sku that was told under some names, the whole order's included; false where there is none.
function Orders.cancel_under(members, sku)
  local facts, whole = told_together(members, sku)
  return cancel_of(facts, whole)
end

-- What the source says of a line's quantity, a cancelled order included; nil where it has not spoken.
local function word_of(l, cancel)
  if l[WORD_KEY] and (not cancel or Orders.key_less(cancel, l[WORD_KEY])) then return l[WORD] end
  if cancel then return 0 end
  return nil
end

-- Whether a cancel is the last that was said of each line of a sku.
function Orders.cancels_sku(ctx, o, sku)
  local facts, whole = Orders.told(ctx, o, sku)
  local cancel = cancel_of(facts, whole)
  for _, l in ipairs(facts[LINES]) do
    if word_of(l, cancel) ~= 0 then return false end
  end
  return cancel and true or false
end

-- Whether the whole order is cancelled and nothing of it was ordered again since.
function Orders.is_cancelled(ctx, o)
  local cancel = o.meta[CANCEL]
  for _, member in ipairs(o.links and Orders.group(ctx, o) or {}) do cancel = later_key(cancel, member.meta[CANCEL]) end
  if not cancel then return false end
  for _, sku in ipairs(Orders.every_sku(ctx, o)) do
    local facts = Orders.told(ctx, o, sku)
    for _, l in ipairs(facts[LINES]) do
      if (word_of(l, cancel_of(facts, cancel)) or 0) > 0 then return false end
    end
  end
  return true
end

-- A group of one line: it reads what the line keeps. `by`: who allocated at a node.
local function group_of(l, cancel)
  local allocated, by = l[ALLOCATED], nil
  if next(allocated) then
    allocated, by = {}, {}
    for node, a in pairs(l[ALLOCATED]) do allocated[node], by[node] = a[1], a[2][2] end
  end
  return {
    own = l[OWN], word = word_of(l, cancel), sourced = l[SOURCED], allocated = allocated, shipped = l[SHIPPED], by = by,
  }
end

-- Lines that are judged together: all of a sku where any fact came without a line, else each by itself.
function Orders.groups_of(facts, cancel)
  cancel = cancel_of(facts, cancel)
  local lines, groups, together = facts[LINES], {}, false
  for i = 1, #lines do
    if lines[i][1] == '' then together = true end
  end
  if not together or not lines[2] then
    for i = 1, #lines do groups[i] = group_of(lines[i], cancel) end
    return groups
  end
  local g, latest = {own = 0, sourced = {}, allocated = {}, shipped = {}, by = {}}, {}
  for _, l in ipairs(lines) do
    g.own = g.own + l[OWN]
    local word = word_of(l, cancel)
    if word then g.word = (g.word or 0) + word end
    for node, q in pairs(l[SOURCED]) do add_to(g.sourced, node, q) end
    for node, a in pairs(l[ALLOCATED]) do
      add_to(g.allocated, node, a[1])
      if later_key(latest[node] or false, a[2]) == a[2] then latest[node], g.by[node] = a[2], a[2][2] end
    end
    for node, q in pairs(l[SHIPPED]) do add_to(g.shipped, node, q) end
  end
  groups[1] = g
  return groups
end

-- One group: what it commits where facts name a node (added to `committed`; to `confirmed` by who allocated it), and the
-- units no fact gives a node.
function Orders.confirm(g, committed, confirmed)
  local shipped, allocated, excess = 0, 0, 0
  if not next(g.allocated) and not next(g.sourced) then -- no fact names a node: nothing to weigh
    for _, q in pairs(g.shipped) do shipped = shipped + q end
    return max(0, (g.word or g.own) - shipped)
  end
  for node, q in pairs(g.shipped) do
    shipped = shipped + q
    excess = excess + max(0, q - (g.allocated[node] or 0))
  end
  local places = sorted_keys(g.allocated)
  local c = {}
  for _, node in ipairs(places) do
    allocated = allocated + g.allocated[node]
    c[node] = max(0, g.allocated[node] - (g.shipped[node] or 0))
  end
  local quantity = g.word or (g.own > 0 and g.own) or allocated
  local left = max(0, quantity - shipped)
  for _, node in ipairs(places) do
    local lower = min(c[node], excess)
    c[node], excess = c[node] - lower, excess - lower
  end
  for _, node in ipairs(places) do
    c[node] = min(c[node], left)
    left = left - c[node]
    if c[node] > 0 then
      add_to(committed, node, c[node])
      local of_source = confirmed[g.by[node]] or {}
      confirmed[g.by[node]] = of_source
      add_to(of_source, node, c[node])
    end
  end
  if left == 0 then return 0 end
  local order = {}
  local sourced = sorted_keys(g.sourced)
  for _, node in ipairs(sourced) do
    if not g.allocated[node] then order[#order + 1] = node end
  end
  for _, node in ipairs(sourced) do
    if g.allocated[node] then order[#order + 1] = node end
  end
  for _, node in ipairs(order) do
    local take = min(left, max(0, g.sourced[node] - max(0, g.shipped[node] or 0) - (c[node] or 0)))
    if take > 0 then add_to(committed, node, take) end
    left = left - take
  end
  if left > 0 and order[1] then
    add_to(committed, order[1], left)
    left = 0
  end
  return left
end

-- Units of the order's holds that its own facts count already: the source's quantity (or the allocations), less
-- what our own commits explain. Second result: the source has said a quantity, so that a commit adds nothing.
-- `groups`: those of the facts, where the caller has them.
function Orders.covered(facts, cancel, groups)
  local wanted, own, spoken, said = 0, 0, false, cancel_of(facts, cancel) and #facts[LINES] == 0 or false
  for _, g in ipairs(groups or Orders.groups_of(facts, cancel)) do
    own = own + g.own
    if g.word then
      wanted, spoken, said = wanted + g.word, true, true
    else
      local nodes = {}
      for node in pairs(g.allocated) do nodes[node] = true end
      if next(nodes) then
        spoken = true
        for node in pairs(g.shipped) do nodes[node] = true end
      end
      for node in pairs(nodes) do
        wanted = wanted + max(g.allocated[node] or 0, g.shipped[node] or 0)
      end
    end
  end
  return spoken and max(0, wanted - own) or 0, said
end

-- The node that the latest word names.
function Orders.hint_of(facts)
  local latest
  for _, l in ipairs(facts[LINES]) do
    if l[WORD_KEY] and (not latest or Orders.key_less(latest[WORD_KEY], l[WORD_KEY])) then latest = l end
  end
  return latest and latest[WORD_NODE] or ''
end

end
