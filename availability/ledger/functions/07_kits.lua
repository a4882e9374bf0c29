-- Kits: sold under a code of their own, made of plain skus, and without a position anywhere.
--
-- `policy:kit`: kit -> KitState of record.py. `pos:<kit>` field "c" -> {flat, version}, flat {{plain sku, units}, ...} by
-- name. `in_kits:<sku>`: kit -> '1' for every kit that names the sku as a component of its own recipe.
-- Only a sku without positions can be a kit, so whoever has read a position of a sku need not ask.

local Kits = {}

do
local DEPTH_MAX = 8 -- kits in kits, the outermost counted
local FLAT_MAX = 100 -- plain skus of one kit
local PARENTS_MAX = 1000 -- kits that one change may have to flatten anew

-- The flat recipe where the sku is a kit, else nil. `s` of Positions.read: with a channel one command less.
function Kits.recipe(ctx, s)
  if s.known or not Policy.has_kits(ctx) then return nil end
  if s.kit == nil then
    local raw = call('HGET', s.key, 'c')
    s.kit = raw and unpack_msg(raw)[1] or false
  end
  return s.kit or nil
end

-- Whether a sku is a kit; `node` ('' none): one whose position will be read anyway.
function Kits.is_kit(ctx, sku, node)
  if sku == '' or not Policy.has_kits(ctx) then return false end
  if node ~= '' and Positions.at(ctx, sku, node).raw then return false end
  return Kits.recipe(ctx, Positions.read(ctx, sku)) ~= nil
end

-- One change's view of the recipes: those stored, and over them those that it makes.
local function graph_of(ctx)
  local key, graph = ctx.base .. 'policy:kit', {states = {}, raws = {}, heights = {}}
  function graph.state(sku)
    if graph.states[sku] == nil then
      local raw = call('HGET', key, sku)
      graph.raws[sku], graph.states[sku] = raw, raw and unpack_msg(raw) or false
    end
    return graph.states[sku]
  end
  return graph
end

-- Every kit that contains the sku, at any depth, as a set; nil where they are more than may be.
local function parents_of(ctx, sku)
  local found, count, queue = {}, 0, {sku}
  for i = 1, PARENTS_MAX + 1 do
    local one = queue[i]
    if not one then return found end
    for _, kit in ipairs(call('HKEYS', ctx.base .. 'in_kits:' .. one)) do
      if not found[kit] then
        found[kit], count = true, count + 1
        queue[#queue + 1] = kit
      end
    end
    if count > PARENTS_MAX then return nil end
  end
  return nil
end

-- How many kits stand in each other below and with this sku; 0 for a plain one.
local function height_of(graph, sku)
  local known = graph.heights[sku]
  if known then return known end
  local state, height = graph.state(sku), 0
  if state then
    for _, part in ipairs(state[2]) do height = max(height, height_of(graph, part[1])) end
    height = height + 1
  end
  graph.heights[sku] = height
  return height
end

-- Flatten a kit; those of its parts that `anew` names are flattened first. Returns its state, or nil and a refusal.
local function flatten(graph, kit, anew)
  local state, units = graph.state(kit), {}
  for _, part in ipairs(state[2]) do
    local inner, flat = graph.state(part[1]), nil
    if inner then
      if anew[part[1]] then
        local why, name
        inner, why, name = flatten(graph, part[1], anew)
        if not inner then return nil, why, name end
      end
      flat = inner[3]
    else
      flat = {{part[1], 1}}
    end
    for _, one in ipairs(flat) do
      local sum = (units[one[1]] or 0) + part[2] * one[2] -- below 2^53: 1e9 + 1e6 * 1e9 at most
      if sum > QUANTITY_MAX then return nil, 'KIT_TOO_LARGE', kit end
      units[one[1]] = sum
    end
  end
  local names = sorted_keys(units)
  if #names > FLAT_MAX then return nil, 'KIT_TOO_LARGE', kit end
  state[3] = {}
  for i, name in ipairs(names) do state[3][i] = {name, units[name]} end
  anew[kit] = nil
  return state
end

-- Set a kit's recipe {{sku, units}, ...}; none removes it. `stamped` completes a KitState of {kit, components, flat}.
-- Returns the changed states, the kit's own first, or nil, a refusal and the sku that it is about.
function Kits.set(ctx, txn, kit, components, stamped)
  local graph = graph_of(ctx)
  local before_state = graph.state(kit)
  local parents = parents_of(ctx, kit)
  if not parents then return nil, 'KIT_IN_TOO_MANY_KITS', kit end
  if components[1] and call('HGET', ctx.base .. 'pos:' .. kit, 'k') then return nil, 'KIT_HAS_STOCK', kit end
  for _, part in ipairs(components) do
    if part[1] == kit or parents[part[1]] then return nil, 'KIT_CYCLE', part[1] end
  end
  graph.states[kit] = components[1] and {kit, components, {}} or false
  local names, anew = sorted_keys(parents), {}
  for name in pairs(parents) do anew[name] = true end
  local changed = {}
  if components[1] then
    if height_of(graph, kit) > DEPTH_MAX then return nil, 'KIT_TOO_DEEP', kit end
    local _, why, name = flatten(graph, kit, anew)
    if why then return nil, why, name end
  end
  for _, name in ipairs(names) do
    graph.state(name)
    if height_of(graph, name) > DEPTH_MAX then return nil, 'KIT_TOO_DEEP', name end
  end
  for _, name in ipairs(names) do
    if anew[name] then
      local _, why, about = flatten(graph, name, anew)
      if why then return nil, why, about end
    end
  end
  local key = ctx.base .. 'policy:kit'
  local function put(name, state)
    local s = Positions.read(ctx, name)
    if state then Positions.list(ctx, txn, s) end
    txn:hash(key, name, state and pack(state), graph.raws[name])
    txn:hash(s.key, 'c', state and pack({state[3], state[4]}), call('HGET', s.key, 'c'))
  end
  local own = stamped(graph.states[kit] or {kit, {}, {}})
  changed[1] = own
  put(kit, components[1] and own or false)
  for _, name in ipairs(names) do
    local state = graph.states[name]
    changed[#changed + 1] = stamped({name, state[2], state[3]})
    put(name, changed[#changed])
  end
  local uses = {}
  for _, part in ipairs(before_state and before_state[2] or {}) do uses[part[1]] = false end
  for _, part in ipairs(components) do uses[part[1]] = '1' end
  for _, part in ipairs(sorted_keys(uses)) do
    local field = ctx.base .. 'in_kits:' .. part
    txn:hash(field, kit, uses[part], call('HGET', field, kit))
  end
  return changed
end

end
