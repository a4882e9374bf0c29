-- Names that are one order: the word on that, and what follows when names are joined or parted.

do

local at = Orders.at
local L_NAME, L_ONE, L_KEY, AUTO = at.L_NAME, at.L_ONE, at.L_KEY, at.AUTO
local NAMES_MAX = 16 -- ORDER_NAMES_MAX of domain/limits.py

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
  table.sort(leaders, Orders.name_before)
  table.sort(new, Orders.name_before)
  local skus, oversold = Orders.skus_of(members), {}
  for _, sku in ipairs(skus) do
    local auto = {}
    for _, o in ipairs(leaders) do
      for _, a in ipairs(Orders.take_back(ctx, o, sku)) do auto[#auto + 1] = a end
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

end
