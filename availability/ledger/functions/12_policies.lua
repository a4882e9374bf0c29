-- Policy changes: ledger events like all others, with author, reason and time.

local Policies = {}

do -- Lua has room for 200 names outside of blocks; these stay in here

local KIND_POLICY = 7
local FENCES_MAX = 100 -- of one sku: a grant reads the nodes of all of them

local function stamp(ctx, state, req, reason)
  local n = #state
  state[n + 1], state[n + 2], state[n + 3], state[n + 4] = Log.next_version(ctx), req[5], reason, ctx.clock
  return state
end

-- Nodes that a policy names and nobody has declared: declared here with auto_create, else a refusal.
local function need_nodes(ctx, txn, names, auto_create, author, body)
  Policy.node_table(ctx)
  for _, name in ipairs(names) do
    if not ctx.nodes[name] then
      if not auto_create or not Policy.has_room(ctx) then return 'UNKNOWN_NODE', name end
      local state = {name, 1, 0, Log.next_version(ctx), author, 'declared by a policy', ctx.clock}
      Policy.put_node(ctx, txn, state)
      body[2][#body[2] + 1] = state
    end
  end
  return nil
end

local function put_extra(ctx, txn, sku, field, value)
  local s = Positions.read(ctx, sku)
  if value then Positions.list(ctx, txn, s) end
  txn:hash(s.key, field, value, call('HGET', s.key, field))
end

-- Which version set last what a write of this kind sets; nil where nothing is set. Each takes ctx and the write's value.
-- `at` counts where the version stands in what is stored: the layouts are those of record.py.
local function stored(key, field, at)
  local raw = call('HGET', key, field)
  return raw and unpack_msg(raw)[at] or nil
end

local function of_override(ctx, v)
  return stored(ctx.base .. 'pos:' .. v[2], 'v' .. v[1], 8)
end

local version_of = {
  channel = function(ctx, v) return stored(ctx.base .. 'policy:channel', v[1], 11) end,
  override = of_override,
  clear_override = of_override,
  safety_stock = function(ctx, v)
    if v[1] == '' then return stored(ctx.base .. 'policy:node', v[2], 4) end
    return stored(ctx.base .. 'pos:' .. v[1], 's' .. v[2], 1)
  end,
  node = function(ctx, v) return stored(ctx.base .. 'policy:node', v[1], 4) end,
  sale_state = function(ctx, v)
    if v[2] == '' then return stored(ctx.base .. 'policy:stop', v[1], 4) end
    return stored(ctx.base .. 'pos:' .. v[2], 'b' .. v[1], 4)
  end,
  -- v = {kit_sku, …}
  kit = function(ctx, v) return stored(ctx.base .. 'policy:kit', v[1], 4) end,
  -- v = {channel, sku, …}; the rows are those of FenceState
  fence = function(ctx, v)
    local raw = call('HGET', ctx.base .. 'pos:' .. v[2], 'f')
    for _, fence in ipairs(raw and unpack_msg(raw) or {}) do
      if fence[1] == v[1] then return fence[4] end
    end
    return nil
  end,
  -- v = {source, node, …}
  feed = function(ctx, v) return stored(ctx.base .. 'policy:feed', pair(v[1], v[2]), 6) end,
}

-- Stops that end by themselves: `stop_due`, the pair of channel and sku at its ledger clock (nil: it does not).
local function set_stop_due(ctx, txn, channel, sku, until_ms)
  local key, name = ctx.base .. 'stop_due', pair(channel, sku)
  local old = tonumber(call('ZSCORE', key, name) or '') or false
  if until_ms then
    txn:put('ZADD', key, until_ms, name, old)
  elseif old then
    txn:put('ZREM', key, name, false, old)
  end
end

-- Write a stop, or (not blocked) take it away. state is a StopState array of record.py.
local function put_stop(ctx, txn, state, body)
  local channel, sku, value = state[1], state[2], state[3] and pack(state) or false
  if sku == '' then
    local key = ctx.base .. 'policy:stop'
    txn:hash(key, channel, value, call('HGET', key, channel))
  else
    put_extra(ctx, txn, sku, 'b' .. channel, value)
  end
  set_stop_due(ctx, txn, channel, sku, state[3] and state[8] > 0 and state[8] or nil)
  body[6][1] = state
end

-- Each takes ctx, txn, its value, req, reason, body {reason, nodes, channels, overrides, cleared, stops, kits, fences,
-- feeds}, auto_create
-- and returns nil, or a refusal and the name that it is about.
local writers = {
  channel = function(ctx, txn, v, req, reason, body, auto_create)
    local why, name = need_nodes(ctx, txn, v[3], auto_create, req[5], body)
    if why then return why, name end
    local key = ctx.base .. 'policy:channel'
    local old = call('HGET', key, v[1])
    stamp(ctx, v, req, reason)
    txn:hash(key, v[1], pack(v), old)
    body[3][1] = v
  end,
  override = function(ctx, txn, v, req, reason, body, auto_create)
    if not Policy.channel(ctx, v[1], auto_create) then return 'UNKNOWN_CHANNEL', v[1] end
    local why, name = need_nodes(ctx, txn, v[7], auto_create, req[5], body)
    if why then return why, name end
    stamp(ctx, v, req, reason)
    put_extra(ctx, txn, v[2], 'v' .. v[1], pack(v))
    body[4][1] = v
  end,
  clear_override = function(ctx, txn, v, req, reason, body, auto_create)
    if not Policy.channel(ctx, v[1], auto_create) then return 'UNKNOWN_CHANNEL', v[1] end
    put_extra(ctx, txn, v[2], 'v' .. v[1], false)
    body[5][1] = {v[1], v[2]}
  end,
  -- v = {sku, node, quantity (-1: back to the node's default)}
  safety_stock = function(ctx, txn, v, req, reason, body, auto_create)
    local why, name = need_nodes(ctx, txn, {v[2]}, auto_create, req[5], body)
    if why then return why, name end
    if v[1] == '' then
      local state = {v[2], ctx.nodes[v[2]][2], max(0, v[3])}
      stamp(ctx, state, req, reason)
      Policy.put_node(ctx, txn, state)
      body[2] = {state}
    else
      if Kits.is_kit(ctx, v[1], v[2]) then return 'KIT_SKU', v[1] end
      local p, s = Positions.at(ctx, v[1], v[2])
      p.safety = v[3]
      Positions.touch(ctx, s, v[2])
      local value = v[3] >= 0 and pack(stamp(ctx, {}, req, reason)) or false
      txn:hash(s.key, 's' .. v[2], value, call('HGET', s.key, 's' .. v[2]))
    end
  end,
  -- v = {node, state}
  node = function(ctx, txn, v, req, reason, body)
    Policy.node_table(ctx)
    local known = ctx.nodes[v[1]]
    if not known and not Policy.has_room(ctx) then return 'TOO_MANY_NODES', v[1] end
    local state = stamp(ctx, {v[1], v[2], known and known[3] or 0}, req, reason)
    Policy.put_node(ctx, txn, state)
    body[2][1] = state
  end,
  -- v = {kit, components {{sku, units}, ...}}
  kit = function(ctx, txn, v, req, reason, body)
    local changed, why, name = Kits.set(ctx, txn, v[1], v[2], function(state) return stamp(ctx, state, req, reason) end)
    if not changed then return why, name end
    body[7] = changed
  end,
  -- v = {channel ('' every), sku ('' every), blocked, until (milliseconds since 1970; 0: somebody ends it)}
  sale_state = function(ctx, txn, v, req, reason, body, auto_create)
    if v[1] ~= '' and not Policy.channel(ctx, v[1], auto_create) then return 'UNKNOWN_CHANNEL', v[1] end
    local until_time, until_ms = v[4] or 0, 0
    if until_time > 0 then
      if until_time <= ctx.now then return 'UNTIL_IN_PAST', '' end
      until_ms = ctx.clock + until_time - ctx.now
    end
    local state = stamp(ctx, {v[1], v[2], v[3]}, req, reason)
    state[8], state[9] = until_ms, until_time
    put_stop(ctx, txn, state, body)
  end,
  -- v = {channel, sku, units (0: no fence)}
  fence = function(ctx, txn, v, req, reason, body, auto_create)
    local channel = Policy.channel(ctx, v[1], auto_create)
    if not channel then return 'UNKNOWN_CHANNEL', v[1] end
    local s = Positions.read(ctx, v[2], channel)
    if Kits.recipe(ctx, s) then return 'KIT_SKU', v[2] end
    local pool = Sourcing.figures(channel, s)
    if v[3] > max(0, pool) then return 'FENCE_OVER_POOL', int(pool) end
    local rows = {}
    for _, fence in ipairs(Positions.fences(s)) do
      if fence[1] ~= v[1] then rows[#rows + 1] = fence end
    end
    stamp(ctx, v, req, reason)
    if v[3] > 0 then
      if #rows >= FENCES_MAX then return 'TOO_MANY_FENCES', v[2] end
      rows[#rows + 1] = v
      table.sort(rows, function(a, b) return before(a[1], b[1]) end)
    end
    txn:change(s.key, 'f', rows[1] and pack(rows) or false, s.fence_raw or false)
    body[8][1] = v
  end,
  -- v = {source, node, interval_ms (0: watched no more), grace_ms}
  feed = function(ctx, txn, v, req, reason, body, auto_create)
    if v[3] > 0 then
      local why, name = need_nodes(ctx, txn, {v[2]}, auto_create, req[5], body)
      if why then return why, name end
    end
    local state, refused = Feeds.set(ctx, txn, v[1], v[2], v[3], v[4])
    if refused then return refused, v[2] end
    Feeds.put(ctx, txn, stamp(ctx, state, req, reason))
    body[9][1] = state
  end,
}

-- Refuse, or collect in txn and body. cmd as below. Returns a refusal and what it is about.
local function decide(ctx, txn, cmd, body)
  local etag = cmd[6] or ''
  if etag ~= '' then
    local current = version_of[cmd[2]](ctx, cmd[3]) or '-'
    if current ~= etag then return 'ETAG_MISMATCH', current end
  end
  return writers[cmd[2]](ctx, txn, cmd[3], cmd[1], cmd[4], body, cmd[5])
end

-- cmd = {req, what, value, reason, auto_create, etag ('' not asked)}; reply = {status, version, replayed, name, channel as
-- set | false, kit as set | false}
function Policies.set(keys, args)
  local cmd = unpack_msg(args[2])
  local req = cmd[1]
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  local found, why = Requests.find(ctx, req)
  if why then return pack({why, '', false, '', false}) end
  if found then
    local now = cmd[2] == 'channel' and call('HGET', ctx.base .. 'policy:channel', cmd[3][1])
    local kit = cmd[2] == 'kit' and call('HGET', ctx.base .. 'policy:kit', cmd[3][1])
    return pack({found[1], found[2], true, found[3], now and unpack_msg(now) or false, kit and unpack_msg(kit) or false})
  end
  Holds.expire(ctx, 4)
  local txn = Txn.new()
  local body = {cmd[4], {}, {}, {}, {}, {}, {}, {}, {}}
  local refused, name = decide(ctx, txn, cmd, body)
  local version = Log.next_version(ctx)
  if refused then
    txn = Txn.new()
    Requests.remember(ctx, txn, req, refused, Log.version(ctx), name)
    Log.quiet(ctx, txn)
    return pack({refused, Log.version(ctx), false, name, false})
  end
  ctx.policy_changed = true
  Policy.flush_nodes(ctx, txn)
  Requests.remember(ctx, txn, req, 'OK', version)
  Log.emit(ctx, txn, KIND_POLICY, req, Positions.flush(ctx, txn), pack(body))
  return pack({'OK', version, false, '', cmd[2] == 'channel' and body[3][1] or false, cmd[2] == 'kit' and body[7][1] or false})
end

-- What a write would do, from the same code; nothing is written (99_register.lua lets Redis see to that).
-- cmd as above; reply = {status, version of the head, name, body, positions}
function Policies.preview(keys, args)
  local head = call('HGET', keys[1], 'head')
  if not head then return pack({'NOT_READY', '', '', {'', {}, {}, {}, {}, {}}, {}}) end
  local cmd, ctx, txn = unpack_msg(args[1]), context(keys[1], head, redis_time_ms()), Txn.new()
  local body = {cmd[4], {}, {}, {}, {}, {}, {}, {}, {}}
  local refused, name = decide(ctx, txn, cmd, body)
  return pack({refused or 'OK', Log.version(ctx), name or '', body, Positions.flush(ctx, txn)})
end

local BY_ITSELF = {'', 0, '', 0, 'ledger', ''} -- in the place of a request

-- End stops whose time has come, at most `limit`, each as its own version. Returns how many.
function Policies.end_stops(ctx, limit)
  local due = call('ZRANGE', ctx.base .. 'stop_due', '-inf', int(ctx.clock), 'BYSCORE', 'LIMIT', '0', int(limit))
  for _, name in ipairs(due) do
    local length, at = match(name, '^(%d+):()')
    local channel, sku = sub(name, at, at + length - 1), sub(name, at + length)
    local txn, body = Txn.new(), {'until reached', {}, {}, {}, {}, {}}
    local state = stamp(ctx, {channel, sku, false}, BY_ITSELF, 'until reached')
    state[8], state[9] = 0, 0
    put_stop(ctx, txn, state, body)
    ctx.policy_changed = true
    Log.emit(ctx, txn, KIND_POLICY, BY_ITSELF, Positions.flush(ctx, txn), pack(body))
  end
  return #due
end

end
