-- Orders: facts per order line, and the one pure function that says what a line commits at each node.
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

do -- Lua has room for 200 names outside of blocks; these stay in here

local OWN, WORD, WORD_KEY, SOURCED, ALLOCATED, SHIPPED, WORD_NODE = 2, 3, 4, 5, 6, 7, 8
local LINES, HELD, WAIVED, COMMITTED, AUTO, HINT, SKU_CANCEL, CONFIRMED = 1, 2, 3, 4, 5, 6, 7, 8
local CANCEL, CHANNEL, RESERVATIONS, LAST_FACT = 1, 2, 3, 4
local L_NAME, L_SOURCE, L_REF, L_ONE, L_KEY = 1, 2, 3, 4, 5
local RESERVATIONS_KEPT = 200
local NAMES_MAX = 16 -- ORDER_NAMES_MAX of domain/limits.py

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

local function name_before(a, b)
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
  if group then table.sort(group, name_before) end
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

local function skus_of(members)
  local skus = {}
  for _, o in ipairs(members) do
    for _, sku in ipairs(own_skus(o)) do skus[sku] = true end
  end
  return sorted_keys(skus)
end

-- Every sku that the order has facts of, under any of its names.
function Orders.every_sku(ctx, o)
  return skus_of(Orders.members(ctx, o))
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

local function add_to(t, node, q)
  t[node] = (t[node] or 0) + q
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

-- What the source says of a line's quantity, a cancelled order included; nil where it has not spoken.
local function word_of(l, cancel)
  if l[WORD_KEY] and (not cancel or Orders.key_less(cancel, l[WORD_KEY])) then return l[WORD] end
  if cancel then return 0 end
  return nil
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
local function groups_of(facts, cancel)
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
local function confirm(g, committed, confirmed)
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
  for _, g in ipairs(groups or groups_of(facts, cancel)) do
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
local function hint_of(facts)
  local latest
  for _, l in ipairs(facts[LINES]) do
    if l[WORD_KEY] and (not latest or Orders.key_less(latest[WORD_KEY], l[WORD_KEY])) then latest = l end
  end
  return latest and latest[WORD_NODE] or ''
end

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
  local groups = groups_of(told, cancel)
  for i = 1, #groups do need = need + confirm(groups[i], committed, confirmed) end
  if facts[CONFIRMED] or next(confirmed) then tell_confirmed(ctx, sku, facts, confirmed) end
  local hint = hint_of(told)
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

local function link_with(o, name)
  for i, l in ipairs(o.links or {}) do
    if l[L_NAME] == name then return l, i end
  end
end

local function set_link(o, other, one, key)
  local _, i = link_with(o, other.name)
  o.links = o.links or {}
  o.links[i or #o.links + 1] = {other.name, other.meta[5], other.meta[6], one, key}
  o.dirty, o.group = true, nil
end

-- Why two groups cannot become one order, or nil.
local function cannot_join(ours, theirs)
  if #ours + #theirs > NAMES_MAX then return 'TOO_MANY_NAMES' end
  for _, a in ipairs(ours) do
    for _, b in ipairs(theirs) do
      if a == b then return 'LINK_CYCLE' end
    end
  end
  for _, a in ipairs(ours) do
    for _, b in ipairs(theirs) do
      if a.meta[5] == b.meta[5] then return 'LINK_CONFLICT' end
    end
  end
  return nil
end

-- Groups became others: what they committed and waived is taken back, and each new one evaluated. Units that the ledger
-- put somewhere stay with the first name. Returns their skus and {{sku, units that nothing free covered}, ...}.
local function regroup(ctx, groups)
  local members, leaders, new = {}, {}, {}
  for _, group in ipairs(groups) do
    leaders[#leaders + 1] = group[1]
    for _, o in ipairs(group) do members[#members + 1] = o end
  end
  for _, o in ipairs(members) do o.group = nil end
  for _, o in ipairs(members) do
    if Orders.members(ctx, o)[1] == o then new[#new + 1] = o end
  end
  table.sort(leaders, name_before)
  table.sort(new, name_before)
  local skus, oversold = skus_of(members), {}
  for _, sku in ipairs(skus) do
    local auto = {}
    for _, o in ipairs(leaders) do
      local facts = Orders.facts(o, sku)
      move(ctx, sku, 'committed', facts[COMMITTED], {}, 1)
      move(ctx, sku, 'reserved', facts[WAIVED], {}, -1)
      for _, a in ipairs(facts[AUTO]) do auto[#auto + 1] = a end
      if facts[CONFIRMED] then tell_confirmed(ctx, sku, facts, {}) end
      facts[COMMITTED], facts[WAIVED], facts[AUTO] = {}, {}, {}
      o.touched[sku] = true
    end
    Orders.facts(new[1], sku)[AUTO] = auto
    for _, o in ipairs(new) do
      local units = Orders.settle(ctx, o, sku)
      if units > 0 then oversold[#oversold + 1] = {sku, units} end
    end
  end
  return skus, oversold
end

-- The latest word on whether two names are one order. Returns STALE or a reason to refuse it, or nil, the skus of both
-- and what settle returns for them (nothing of this where all stays as it was).
function Orders.link(ctx, a, b, one, key)
  local known = link_with(a, b.name)
  if known and not Orders.key_less(known[L_KEY], key) then return 'STALE' end
  local was = known and known[L_ONE] or false
  local ours, theirs = Orders.members(ctx, a), Orders.members(ctx, b)
  local why = one and not was and cannot_join(ours, theirs)
  if why then return why end
  set_link(a, b, one, key)
  set_link(b, a, one, key)
  if one == was then return nil, {}, {} end
  return nil, regroup(ctx, one and {ours, theirs} or {ours})
end

-- The latest cancel of a sku that was told under some names, the whole order's included; false where there is none.
function Orders.cancel_under(members, sku)
  local facts, whole = told_together(members, sku)
  return cancel_of(facts, whole)
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

-- The lines of a sku that want units still (all: every line), under all names of the order, as {line, ordered (-1: only allocations are
-- known), shipped, open, {{node, open there, confirmed there}, ...}}; and who keeps what follows from them.
function Orders.open_lines(ctx, o, sku, all)
  local told, cancel, leader = Orders.told(ctx, o, sku)
  local groups, auto, out = groups_of(told, cancel), {}, {}
  for i, a in ipairs(Orders.facts(leader, sku)[AUTO]) do auto[i] = {a[1], a[2]} end
  local together = #groups < #told[LINES]
  for i, g in ipairs(groups) do
    local committed, confirmed, there, shipped, open = {}, {}, {}, 0, 0
    local need = confirm(g, committed, confirmed)
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

-- How many members of a sorted set stand up to (score, name); members of one score stand in byte order.
function Orders.rank_after(key, score, name)
  if name == '' then return 0 end
  local rank = call('ZCOUNT', key, '-inf', '(' .. int(score))
  for _, one in ipairs(call('ZRANGE', key, int(score), int(score), 'BYSCORE')) do
    if not before(name, one) then rank = rank + 1 end
  end
  return rank
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
