-- Policy as the functions read it: channels, nodes, stops. Layouts are those of record.py.

local Policy = {}
local ONLINE, EXCLUDE = 1, 2
local NODES_MAX = 2000 -- an all_nodes channel reads one position of each in one command

-- Decoded policy, kept between calls under a name that no other content can have: the chain of the change that led
-- to it. Filled from committed state only, and left at the first change.
local CHANNELS_KEPT = 1000
local kept = {base = '', chain = '', channels = {}, count = 0}

local function keep_of(ctx)
  local base, chain = ctx.base, ctx.policy
  if chain == NO_CHAIN or ctx.policy_changed then return {channels = {}, count = 0} end
  if kept.chain ~= chain or kept.base ~= base or kept.count > CHANNELS_KEPT then
    kept = {base = base, chain = chain, channels = {}, count = 0}
  end
  return kept
end

-- Whether so many nodes (1) more may be declared.
function Policy.has_room(ctx, more)
  return #Policy.node_table(ctx) + (more or 1) <= NODES_MAX
end

-- Whether any kit is set: without one nobody has to look for a recipe.
function Policy.has_kits(ctx)
  if ctx.kits == nil then
    local keep = ctx.policy ~= NO_CHAIN and keep_of(ctx) or {kits = false}
    if keep.kits == nil then keep.kits = call('HLEN', ctx.base .. 'policy:kit') > 0 end
    ctx.kits = keep.kits
  end
  return ctx.kits
end

-- Every node as {name, state, safety_stock}, by name.
function Policy.node_table(ctx)
  if not ctx.node_table then
    local keep = keep_of(ctx)
    if not keep.node_table then
      local raw = call('HGET', ctx.base .. 'policy:node', '')
      keep.node_table_raw, keep.node_table, keep.nodes = raw, raw and unpack_msg(raw) or {}, {}
      for _, n in ipairs(keep.node_table) do keep.nodes[n[1]] = n end
    end
    ctx.node_table, ctx.nodes, ctx.node_table_raw = keep.node_table, keep.nodes, keep.node_table_raw
  end
  return ctx.node_table
end

-- Declare or replace a node. state is a NodeState array of record.py. Written by flush_nodes.
function Policy.put_node(ctx, txn, state)
  if not ctx.policy_changed then -- what is kept belongs to the state before
    ctx.policy_changed, ctx.node_table, kept = true, false, {base = '', chain = '', channels = {}, count = 0}
  end
  local nodes, name = Policy.node_table(ctx), state[1]
  local key, known = ctx.base .. 'policy:node', ctx.nodes[name]
  txn:hash(key, name, pack(state), known and call('HGET', key, name) or false)
  if known then
    known[2], known[3] = state[2], state[3]
  else
    local low, high = 1, #nodes + 1 -- where it belongs by name
    while low < high do
      local middle = floor((low + high) / 2)
      if before(nodes[middle][1], name) then low = middle + 1 else high = middle end
    end
    known = {name, state[2], state[3]}
    table.insert(nodes, low, known)
    ctx.nodes[name] = known
  end
  ctx.node_table_dirty = true
end

-- Write the table of nodes once, however many were declared.
function Policy.flush_nodes(ctx, txn)
  if ctx.node_table_dirty then
    txn:hash(ctx.base .. 'policy:node', '', pack(ctx.node_table), ctx.node_table_raw)
  end
end

-- Watched feeds: by_source {source: {node: FeedState}}, and stale {node: true} where any feed of the node is stale.
local NO_FEEDS = {by_source = {}, stale = {}}
function Policy.feeds(ctx)
  if ctx.policy == NO_CHAIN then return NO_FEEDS end
  local keep = keep_of(ctx)
  if not keep.feeds then
    local rows, feeds = call('HGETALL', ctx.base .. 'policy:feed'), {by_source = {}, stale = {}}
    for i = 1, #rows, 2 do
      local f = unpack_msg(rows[i + 1])
      local of = feeds.by_source[f[1]] or {}
      feeds.by_source[f[1]], of[f[2]] = of, f
      if f[5] then feeds.stale[f[2]] = true end
    end
    keep.feeds = feeds
  end
  return keep.feeds
end

local function from_state(ctx, p, blocked)
  local ch = {
    name = p[1], units = p[4], percent = p[5], oversell = p[6], blocked = blocked, nodes = {}, online = {}, safety = {},
    fields = {'k', 'b', 'b' .. p[1], 'v' .. p[1], 'f'}, -- what it reads of a sku: 06_positions.lua
  }
  if p[2] then
    for i, n in ipairs(Policy.node_table(ctx)) do
      ch.nodes[i], ch.online[i], ch.safety[i] = n[1], n[2] == ONLINE, n[3]
    end
  else
    local names = p[3]
    local found = #names > 0 and call('HMGET', ctx.base .. 'policy:node', unpack(names)) or {}
    for i, name in ipairs(names) do
      local n = found[i] and unpack_msg(found[i]) or {name, ONLINE, 0}
      ch.nodes[i], ch.online[i], ch.safety[i] = name, n[2] == ONLINE, n[3]
    end
  end
  for i, name in ipairs(ch.nodes) do ch.fields[5 + i] = 'n' .. name end
  if p[9] == EXCLUDE then -- a node is left out while any watched feed of it is stale
    local stale = Policy.feeds(ctx).stale
    for i, name in ipairs(ch.nodes) do ch.online[i] = ch.online[i] and not stale[name] end
  end
  return ch
end

-- The channel, or nil where it has no policy and none is made by itself.
function Policy.channel(ctx, name, auto_create)
  local keep = keep_of(ctx)
  local channel = keep.channels[name]
  if channel then return (channel.declared or auto_create) and channel or nil end
  local raw = call('HGET', ctx.base .. 'policy:channel', name)
  if not raw and not auto_create then return nil end
  local blocked = call('HGET', ctx.base .. 'policy:stop', name) and true or false
  channel = from_state(ctx, raw and unpack_msg(raw) or {name, true, {}, 0, -1, 0}, blocked)
  channel.declared = raw and true or false
  keep.channels[name], keep.count = channel, keep.count + 1
  return channel
end

-- Every online node by name, no buffer: where an order is sourced that no channel claims.
function Policy.everywhere(ctx)
  return from_state(ctx, {'', true, {}, 0, -1, 0}, false)
end
