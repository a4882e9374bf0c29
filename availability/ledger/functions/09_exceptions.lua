-- Exceptions: what a person must see. The ledger keeps them, so that every server tells the same and a restart forgets
-- neither when one was first seen nor who took it in hand. Servers look for them and report; all may report the same.
--
-- `exc`: id -> ExceptionState of record.py; "" -> point up to which resolved ones are forgotten
-- `exc_at`: id -> point of its last change      `exc_seen`: id -> clock at which it was last seen
-- `exc_open`: open id -> rank, the least severe and newest last      `exc_over`: resolved id -> clock when it is forgotten
-- `ord_unconfirmed`: order that only our own commits know -> clock of the first one
--
-- A point is a version as one number.

local Exceptions = {}

do

local KIND_EXCEPTION = 11
local OPEN, ACKNOWLEDGED, RESOLVED = 1, 2, 3
local E_SEVERITY, E_STATE, E_FIRST, E_LAST, E_CHANGED, E_BY, E_NOTE, E_VERSION = 3, 4, 13, 14, 15, 16, 17, 18
local RANK = 4398046511104 -- above every clock in milliseconds until 2109
local FORGOTTEN_PER_SWEEP = 100

local function point(epoch, seq)
  return epoch * 1099511627776 + seq
end

-- One call's view: what it has read, and what changes. `at` is the point that its changes get.
local function open(ctx)
  local base = ctx.base
  return {
    ctx = ctx, txn = Txn.new(), list = {}, touched = {}, seen = {}, opened = 0, ended = 0, evicted = 0, reopened = 0,
    key = base .. 'exc', at_key = base .. 'exc_at', seen_key = base .. 'exc_seen', open_key = base .. 'exc_open',
    over_key = base .. 'exc_over', at = point(ctx.epoch, ctx.seq + 1),
  }
end

local function score(key, id)
  local found = call('ZSCORE', key, id)
  return found and tonumber(found) or false
end

local function load(v, id)
  local raw = call('HGET', v.key, id)
  if not raw then return nil end
  return unpack_msg(raw), raw
end

local function rank(e)
  return (3 - e[E_SEVERITY]) * RANK + e[E_FIRST]
end

-- Write what an exception is now; `old` is its packed state before, `changed` when what was seen changed, if not now.
local function put(v, e, old, at_before, changed)
  local id = e[1]
  e[E_CHANGED], e[E_VERSION] = changed or v.ctx.clock, Log.next_version(v.ctx)
  v.txn:hash(v.key, id, pack(e), old or false)
  v.txn:put('ZADD', v.at_key, v.at, id, at_before)
  v.list[#v.list + 1] = e
  v.touched[id] = true
end

local function forget(v, id, raw, over)
  v.txn:hash(v.key, id, false, raw)
  v.txn:put('ZREM', v.at_key, id, false, score(v.at_key, id))
  v.txn:put('ZREM', v.seen_key, id, false, score(v.seen_key, id))
  v.txn:put('ZREM', v.over_key, id, false, over)
end

local function raise_floor(v, at)
  if at <= (v.floor or 0) then return end
  if not v.floor then
    v.floor_raw = call('HGET', v.key, '')
    v.floor = v.floor_raw and tonumber(v.floor_raw) or 0
  end
  v.floor = max(v.floor, at)
end

local function write_floor(v)
  if v.floor then v.txn:hash(v.key, '', int(v.floor), v.floor_raw) end
end

local function resolve(v, e, raw, at, keep_ms)
  local id = e[1]
  v.txn:put('ZREM', v.open_key, id, false, score(v.open_key, id))
  v.txn:put('ZADD', v.over_key, v.ctx.clock + keep_ms, id)
  e[E_STATE], e[E_LAST] = RESOLVED, v.seen[id] or score(v.seen_key, id) or e[E_LAST]
  v.ended = v.ended + 1
  put(v, e, raw, at)
end

-- Whether there is room for one more. Where all places are taken, the least severe, newest one makes room for a more
-- severe one.
local function has_room(v, severity, open_max, keep_ms)
  if not v.count then v.count = call('ZCARD', v.open_key) end
  if v.count + v.opened - v.ended < open_max then return true end
  local last
  repeat -- what this call has settled already stays as it is
    last = call('ZRANGE', v.open_key, int(-1 - v.evicted), int(-1 - v.evicted))[1]
    if not last then return false end
    if v.touched[last] then v.evicted = v.evicted + 1 end
  until not v.touched[last]
  local e, raw = load(v, last)
  if e[E_SEVERITY] >= severity then return false end
  e[6] = 'left out for more severe ones: ' .. e[6]
  v.evicted = v.evicted + 1
  resolve(v, e, raw, score(v.at_key, last), keep_ms)
  return true
end

local function same(e, s)
  return e[E_SEVERITY] == s[3] and e[5] == s[4] and e[6] == s[5] and e[11] == s[10] and pack(e[12]) == pack(s[11])
end

-- One thing seen: s = {id, category, severity, owner, message, sku, node, source, stream, quantity, at_risk}.
-- Returns false where there is no room for it.
local function sight(v, s, known_to, limits)
  local id, ctx = s[1], v.ctx
  if v.touched[id] then return true end
  local e, raw = load(v, id)
  local at = score(v.at_key, id)
  if at and at > known_to then return true end -- seen before its last change
  local seen = score(v.seen_key, id)
  if e and e[E_STATE] ~= RESOLVED then
    local new = not same(e, s) and (ctx.clock - e[E_CHANGED] >= limits[1] or e[E_SEVERITY] ~= s[3])
    if new or ctx.clock - (seen or 0) >= limits[4] then
      v.txn:put('ZADD', v.seen_key, ctx.clock, id, seen)
      v.seen[id] = ctx.clock
    end
    if new then
      if e[E_SEVERITY] ~= s[3] then
        local before_rank = rank(e)
        e[E_SEVERITY] = s[3]
        v.txn:put('ZADD', v.open_key, rank(e), id, before_rank)
      end
      e[5], e[6], e[11], e[12], e[E_LAST] = s[4], s[5], s[10], s[11], ctx.clock
      put(v, e, raw, at)
    end
    return true
  end
  if not has_room(v, s[3], limits[3], limits[2]) then return false end
  local new = {
    id, s[2], s[3], OPEN, s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], ctx.clock, ctx.clock, ctx.clock, '', '', '',
  }
  if e then
    v.txn:put('ZREM', v.over_key, id, false, score(v.over_key, id))
    v.reopened = v.reopened + 1
  end
  v.txn:put('ZADD', v.open_key, rank(new), id, false)
  v.txn:put('ZADD', v.seen_key, ctx.clock, id, seen)
  v.opened = v.opened + 1
  put(v, new, raw, at)
  return true
end

-- Resolved ones have room of their own; the oldest go first.
local function bound_resolved(v, limit)
  if v.ended == 0 then return end
  local excess = call('ZCARD', v.over_key) + v.ended - v.reopened - limit
  if excess <= 0 then return end
  local rows = call('ZRANGE', v.over_key, '0', int(excess + v.reopened - 1), 'WITHSCORES')
  for i = 1, #rows, 2 do
    local id = rows[i]
    if not v.touched[id] and excess > 0 then
      excess = excess - 1
      raise_floor(v, score(v.at_key, id))
      forget(v, id, call('HGET', v.key, id), tonumber(rows[i + 1]))
    end
  end
  write_floor(v)
end

-- What a server or another program sees and does not see any more. cmd = {author, epoch, seq (epoch 0: now): the version at
-- which it looked, sightings, gone {id, ...}, limits {change_ms, keep_ms, open_max, seen_ms}};
-- reply = {status, version, opened, resolved, left out}
function Exceptions.report(keys, args)
  local cmd = unpack_msg(args[2])
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  local v, limits, left_out = open(ctx), cmd[6], 0
  local known_to = cmd[2] > 0 and point(cmd[2], cmd[3]) or point(ctx.epoch, ctx.seq)
  for _, id in ipairs(cmd[5]) do
    local e, raw = load(v, id)
    local at = score(v.at_key, id)
    if e and e[E_STATE] ~= RESOLVED and at <= known_to and not v.touched[id] then resolve(v, e, raw, at, limits[2]) end
  end
  for _, s in ipairs(cmd[4]) do
    if not sight(v, s, known_to, limits) then left_out = left_out + 1 end
  end
  bound_resolved(v, limits[3])
  if #v.list == 0 then
    Log.quiet(ctx, v.txn)
    return pack({'OK', Log.version(ctx), 0, 0, left_out})
  end
  local version = Log.next_version(ctx)
  Log.emit(ctx, v.txn, KIND_EXCEPTION, {'', 0, '', 0, cmd[1], ''}, {}, pack({v.list}))
  return pack({'OK', version, v.opened, v.ended, left_out})
end

-- Somebody takes an exception in hand. cmd = {req, id, note}; reply = {status, version, replayed, state | false}
function Exceptions.acknowledge(keys, args)
  local cmd = unpack_msg(args[2])
  local req, id = cmd[1], cmd[2]
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  local found, why = Requests.find(ctx, req)
  if why then return pack({why, '', false, false}) end
  local v = open(ctx)
  local e, raw = load(v, id)
  if found then return pack({found[1], found[2], true, e or false}) end
  if not e or e[E_STATE] == RESOLVED then
    local status = e and 'EXCEPTION_RESOLVED' or 'EXCEPTION_NOT_FOUND'
    Requests.remember(ctx, v.txn, req, status, Log.version(ctx), id)
    Log.quiet(ctx, v.txn)
    return pack({status, Log.version(ctx), false, e or false})
  end
  local version = Log.next_version(ctx)
  e[E_STATE], e[E_BY], e[E_NOTE] = ACKNOWLEDGED, req[5], cmd[3]
  e[E_LAST] = score(v.seen_key, id) or e[E_LAST]
  put(v, e, raw, score(v.at_key, id), e[E_CHANGED])
  Requests.remember(ctx, v.txn, req, 'OK', version, id)
  Log.emit(ctx, v.txn, KIND_EXCEPTION, req, {}, pack({v.list}))
  return pack({'OK', version, false, e})
end

-- Of the sweep: resolved exceptions whose time is over.
function Exceptions.sweep(ctx, txn)
  local v = open(ctx)
  local rows = call('ZRANGE', v.over_key, '-inf', int(ctx.clock), 'BYSCORE', 'LIMIT', '0', int(FORGOTTEN_PER_SWEEP), 'WITHSCORES')
  if #rows == 0 then return 0 end
  v.txn = txn
  for i = 1, #rows, 2 do
    local id = rows[i]
    raise_floor(v, score(v.at_key, id))
    forget(v, id, call('HGET', v.key, id), tonumber(rows[i + 1]))
  end
  write_floor(v)
  return #rows / 2
end

-- Orders that only we know -------------------------------------------------------------------------------------

local function is_known(facts)
  for _, l in ipairs(facts[1]) do
    if l[4] or next(l[6]) or next(l[7]) then return true end
  end
  return facts[7] and true or false
end

-- Since when an order waits for a word, or false; read once a call.
local function waits(ctx, o)
  if o.waits == nil then o.waits = score(ctx.base .. 'ord_unconfirmed', o.name) end
  return o.waits
end

local function set_waits(ctx, txn, o, since)
  local key, before_since = ctx.base .. 'ord_unconfirmed', waits(ctx, o)
  if since and not before_since then
    txn:put('ZADD', key, since, o.name, false)
  elseif before_since and not since then
    txn:put('ZREM', key, o.name, false, before_since)
  end
  o.waits = since
end

-- Whether anybody but our own commits has spoken of the order, under any of its names.
local function is_spoken_of(ctx, o)
  for _, sku in ipairs(Orders.every_sku(ctx, o)) do
    local told, cancel = Orders.told(ctx, o, sku)
    if cancel or is_known(told) then return true end
  end
  return false
end

-- A commit: unless the order's source, or whoever serves it, has spoken of the order already.
function Exceptions.await_word(ctx, txn, o)
  if o.meta[1] or (o.raw and (waits(ctx, o) or is_spoken_of(ctx, o))) then return end
  if not o.raw then o.waits = false end
  set_waits(ctx, txn, o, ctx.clock)
end

-- A word, an allocation, a shipment or a cancel came. Orders that no reservation carries are not asked about.
function Exceptions.heard(ctx, txn, o)
  if not o.links then
    if #o.meta[3] > 0 then set_waits(ctx, txn, o, false) end
    return
  end
  for _, member in ipairs(Orders.members(ctx, o)) do
    if #member.meta[3] > 0 then set_waits(ctx, txn, member, false) end
  end
end

-- Names became one order, or two again: it was spoken of under any of them, or each name that our commits know waits.
function Exceptions.linked(ctx, txn, o)
  local known = is_spoken_of(ctx, o)
  for _, member in ipairs(Orders.members(ctx, o)) do
    if known then
      set_waits(ctx, txn, member, false)
    elseif not waits(ctx, member) and Orders.has_commits(member) then
      set_waits(ctx, txn, member, ctx.clock)
    end
  end
end

-- What every reader of exceptions shares.
Exceptions.point = point

end
