-- Policy changes: ledger events like all others, with author, reason and time.

local Policies = {}
local KIND_POLICY = 7

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

-- Each takes ctx, txn, its value, req, reason, body {reason, nodes, channels, overrides, cleared, stops}, auto_create
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
      local p, s = Positions.at(ctx, v[1], v[2])
      p.safety = v[3]
      Positions.touch(ctx, s, v[2])
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
  -- v = {channel ('' every), sku ('' every), blocked}
  sale_state = function(ctx, txn, v, req, reason, body, auto_create)
    if v[1] ~= '' and not Policy.channel(ctx, v[1], auto_create) then return 'UNKNOWN_CHANNEL', v[1] end
    stamp(ctx, v, req, reason)
    local value = v[3] and pack(v) or false
    if v[2] == '' then
      local key = ctx.base .. 'policy:stop'
      txn:hash(key, v[1], value, call('HGET', key, v[1]))
    else
      put_extra(ctx, txn, v[2], 'b' .. v[1], value)
    end
    body[6][1] = v
  end,
}

-- cmd = {req, what, value, reason, auto_create}; reply = {status, version, replayed, name, value as set | false}
function Policies.set(keys, args)
  local cmd = unpack_msg(args[2])
  local req = cmd[1]
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  local found, why = Requests.find(ctx, req)
  if why then return pack({why, '', false, '', false}) end
  if found then
    local now = cmd[2] == 'channel' and call('HGET', ctx.base .. 'policy:channel', cmd[3][1])
    return pack({found[1], found[2], true, found[3], now and unpack_msg(now) or false})
  end
  Holds.expire(ctx, 4)
  local txn = Txn.new()
  local body = {cmd[4], {}, {}, {}, {}, {}}
  local refused, name = writers[cmd[2]](ctx, txn, cmd[3], req, cmd[4], body, cmd[5])
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
  return pack({'OK', version, false, '', cmd[2] == 'channel' and body[3][1] or false})
end
