-- Making a ledger, the handshake after a failover, the sweep, checkpoints and trimming.

local Upkeep = {}
local KIND_EPOCH = 8
local BUCKETS, BUCKETS_PER_SWEEP = 65536, 500
local FORGET_PER_CALL = 100

-- A new ledger, unless there is one. cmd = {ledger_id, schema}; reply = {status, ledger_id, schema}
function Upkeep.create(keys, args)
  local cmd = unpack_msg(args[2])
  local m = call('HMGET', keys[1], 'ledger_id', 'schema')
  if m[1] then return pack({'EXISTS', m[1], tonumber(m[2])}) end
  local now = redis_time_ms()
  local head = head_of({epoch = 1, seq = 0, clock = now, now = now, due = 0, full = false, chain = NO_CHAIN, policy = NO_CHAIN})
  local txn = Txn.new()
  txn:add({'HSET', keys[1], 'ledger_id', cmd[1], 'schema', tostring(cmd[2]), 'replid', replication_id(), 'head', head})
  txn:commit()
  return pack({'CREATED', cmd[1], cmd[2]})
end

-- The primary changed (or restarted): log where the old epoch ended and start the next. Idempotent: a second
-- caller finds it done. cmd = {ledger_id}; reply = {status, epoch, old_epoch, last_seq, last_chain}
function Upkeep.handshake(keys, args)
  local cmd = unpack_msg(args[2])
  local m = call('HMGET', keys[1], 'ledger_id', 'head', 'replid')
  if not m[2] then return pack({'NOT_READY', 0, 0, 0, ''}) end
  if m[1] ~= cmd[1] then return pack({'OTHER_LEDGER', 0, 0, 0, m[1]}) end
  local replid, ctx = replication_id(), context(keys[1], m[2], redis_time_ms())
  if m[3] == replid then return pack({'OK', ctx.epoch, 0, 0, ''}) end
  local old_epoch, last_seq, last_chain = ctx.epoch, ctx.seq, chain_text(ctx.chain)
  ctx.epoch, ctx.seq = old_epoch + 1, 0
  local txn = Txn.new()
  txn:hash(keys[1], 'replid', replid, m[3])
  Log.emit(ctx, txn, KIND_EPOCH, NOBODY, {}, pack({old_epoch, last_seq, last_chain}))
  return pack({'OK', ctx.epoch, old_epoch, last_seq, last_chain})
end

local function forget_ended(ctx, txn, retention_ms)
  local count = 0
  for state = 2, 4 do
    local key = ctx.base .. 'ended:' .. state
    local old = call('ZRANGE', key, '-inf', int(ctx.clock - retention_ms), 'BYSCORE', 'LIMIT', '0', FORGET_PER_CALL)
    for _, id in ipairs(old) do
      txn:add({'DEL', ctx.base .. 'res:' .. id})
      txn:add({'ZREM', key, id})
    end
    count = count + #old
  end
  return count
end

-- An order's name and those that are linked with it.
local function names_of(ctx, name)
  local names, seen, i = {name}, {[name] = true}, 1
  while names[i] do
    local raw = call('HGET', ctx.base .. 'ord:' .. names[i], 'l')
    for _, l in ipairs(raw and unpack_msg(raw) or {}) do
      if l[4] and not seen[l[1]] then
        seen[l[1]] = true
        names[#names + 1] = l[1]
      end
    end
    i = i + 1
  end
  return names
end

local function is_open(ctx, name)
  local fields = call('HGETALL', ctx.base .. 'ord:' .. name)
  for i = 1, #fields, 2 do
    if byte(fields[i]) == 115 then
      local facts = unpack_msg(fields[i + 1])
      if next(facts[4]) ~= nil or next(facts[2]) ~= nil then return true end
    end
  end
  return false
end

-- Orders without a fact for so long, and with nothing committed or held, leave a mark that they are closed. Linked names
-- have their last fact at one time, and close together. An open one stays where it is: only a fact can end it, and that
-- moves it to the end, so each order is looked at once a fact. meta's field is the last one looked at, {score, name}.
local function close_orders(ctx, txn, retention_ms, closed_s)
  local key = ctx.base .. 'ord_last'
  local raw = call('HGET', ctx.meta, 'closed_to')
  local place = raw and unpack_msg(raw) or {0, ''}
  local rank = rank_after(key, place[1], place[2])
  local rows = call('ZRANGE', key, int(rank), int(rank + FORGET_PER_CALL - 1), 'WITHSCORES')
  local done, count = {}, 0
  for i = 1, #rows, 2 do
    local name, score = rows[i], tonumber(rows[i + 1])
    if score > ctx.clock - retention_ms then break end
    count, place = count + 1, {score, name}
    if not done[name] then
      local names, open = names_of(ctx, name), false
      for _, one in ipairs(names) do open = open or is_open(ctx, one) end
      for _, one in ipairs(names) do
        done[one] = true
        if not open then
          local order = ctx.base .. 'ord:' .. one
          txn:add({'DEL', order})
          txn:add({'HSET', order, 'z', '1'})
          txn:add({'EXPIRE', order, int(closed_s)})
          local last = call('ZSCORE', key, one)
          if last then txn:put('ZREM', key, one, false, tonumber(last)) end
        end
      end
    end
  end
  if count > 0 then txn:hash(ctx.meta, 'closed_to', pack(place), raw) end
  return count
end

-- Delete past generations of request and event ids, some buckets a sweep. meta's field is "<generation>:<bucket>", the
-- next to delete.
local function forget_ids(ctx, txn, kind, field, past)
  local raw = call('HGET', ctx.meta, field)
  local generation, bucket = match(raw or '', '^(%d+):(%d+)$')
  generation, bucket = tonumber(generation or past + 1), tonumber(bucket or 0)
  if raw and generation > past then return end
  if generation <= past then
    local keys = {'DEL'}
    for b = bucket, min(BUCKETS, bucket + BUCKETS_PER_SWEEP) - 1 do
      keys[#keys + 1] = ctx.base .. kind .. int(generation) .. ':' .. b
    end
    txn:add(keys)
    bucket = bucket + BUCKETS_PER_SWEEP
    if bucket >= BUCKETS then generation, bucket = generation + 1, 0 end
  end
  txn:hash(ctx.meta, field, int(generation) .. ':' .. bucket, raw)
end

-- Housekeeping that every server calls: advances the clock, ends due holds, forgets what is past its time.
-- cmd = {due_limit, ended_retention_ms, order_retention_ms, closed_order_s, event_window_ms};
-- reply = {status, version, expired, forgotten, clock}
function Upkeep.sweep(keys, args)
  local cmd = unpack_msg(args[2])
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  local expired = Holds.expire(ctx, cmd[1])
  Policies.end_stops(ctx, cmd[1])
  local txn = Txn.new()
  Feeds.sweep(ctx, txn)
  local forgotten = forget_ended(ctx, txn, cmd[2]) + close_orders(ctx, txn, cmd[3], cmd[4])
  forgotten = forgotten + Exceptions.sweep(ctx, txn) + Supply.forget(ctx, txn, cmd[3])
  forget_ids(ctx, txn, 'req:', 'past_requests', floor(ctx.clock / DAY_MS) - 2)
  local past = Streams.generations(cmd[5] or 30 * DAY_MS) + 1
  forget_ids(ctx, txn, 'evt:', 'past_events', floor(ctx.clock / EVENT_GENERATION_MS) - past)
  Log.quiet(ctx, txn)
  return pack({'OK', Log.version(ctx), expired, forgotten, ctx.clock})
end

-- `ck`: consumer -> {epoch, seq, required, clock_ms}. cmd = {consumer, epoch, seq, required, remove}
function Upkeep.checkpoint(keys, args)
  local cmd = unpack_msg(args[2])
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  local key = ctx.base .. 'ck'
  local txn = Txn.new()
  local value = not cmd[5] and pack({cmd[2], cmd[3], cmd[4], ctx.clock}) or false
  txn:hash(key, cmd[1], value, call('HGET', key, cmd[1]))
  Log.quiet(ctx, txn)
  return pack({'OK', Log.version(ctx)})
end

-- Trim the log: `kept` records stay without consumers; with checkpoints only what all have read goes, but others
-- than the required ones are passed once they hold back more than `kept`, and forgotten after 24 h of silence.
-- When a required one holds back `cap` records, new reservations are refused until it has caught up.
-- A quarter of `kept` stays though all have read it: a snapshot by numbers needs what came after them. An open snapshot
-- holds the log from its first mark on, up to `cap`.
-- cmd = {kept, cap}; reply = {status, length, full}
function Upkeep.trim(keys, args)
  local cmd = unpack_msg(args[2])
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  local log, ck = ctx.base .. 'log', ctx.base .. 'ck'
  local kept, cap = cmd[1], cmd[2]
  local txn = Txn.new()
  local rows = call('HGETALL', ck)
  local held, optional -- the oldest points, as {epoch, seq}
  local function older(a, b)
    if not b or a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) then return a end
    return b
  end
  for i = 1, #rows, 2 do
    local row = unpack_msg(rows[i + 1])
    if row[3] then
      held = older(row, held)
    elseif ctx.clock - row[4] > DAY_MS then
      txn:hash(ck, rows[i], false, rows[i + 1])
    else
      optional = older(row, optional)
    end
  end
  local length = call('XLEN', log)
  local from = held
  if optional and length <= kept then from = older(optional, held) end
  if from then
    local tail = floor(kept / 4)
    if ctx.seq > tail then from = older({ctx.epoch, ctx.seq - tail}, from) elseif length <= kept then from = {0, 0} end
  end
  local snapped = Snapshots.held(ctx, txn)
  local holds = snapped and length < cap
  local trimming = Txn.new() -- goes first: what is left after it says whether the log is full
  if from then
    if holds then from = older(snapped, from) end
    trimming:add({'XTRIM', log, 'MINID', '~', version_text(from[1], from[2] + 1)})
  elseif length > kept and not holds then
    trimming:add({'XTRIM', log, 'MAXLEN', '~', int(kept)})
  end
  trimming:commit()
  length = call('XLEN', log)
  local full = held and length >= cap or false
  ctx.full = full
  Log.quiet(ctx, txn)
  return pack({'OK', length, full})
end

-- Every kind of write that the functions use, on keys of its own: finds a missing permission before it costs stock.
function Upkeep.canary(keys, args)
  local base = sub(keys[1], 1, -5) .. 'canary:'
  local txn = Txn.new()
  txn:add({'HSET', base .. 'h', 'a', '1'})
  txn:add({'HDEL', base .. 'h', 'a'})
  txn:add({'SET', base .. 's', '1'})
  txn:add({'SETRANGE', base .. 's', '0', '1'}, {'1', 1})
  txn:add({'EXPIRE', base .. 's', '60'})
  txn:add({'ZADD', base .. 'z', '1', 'a'})
  txn:add({'ZREM', base .. 'z', 'a'})
  txn:add({'RPUSH', base .. 'l', 'a'})
  txn:add({'RPOP', base .. 'l'})
  txn:add({'SADD', base .. 'm', 'a'})
  txn:add({'XADD', base .. 'x', '1-1', 'r', 'a'})
  txn:add({'XTRIM', base .. 'x', 'MAXLEN', '~', '1'})
  txn:add({'DEL', base .. 's', base .. 'm'})
  txn:add({'UNLINK', base .. 'x'})
  txn:commit()
  return pack({'OK', replication_id() or ''})
end
