-- The call's context: fence, clock, head of the log; and the one way to log.

local Log = {}

local function replication_id()
  local info = call('INFO', 'replication')
  local _, at = find(info, 'master_replid:', 1, true)
  return at and sub(info, at + 1, at + 40)
end

-- meta's field "head" is one packed row, read and written by every call: epoch, seq, clock_ms, redis_ms, due_ms, full,
-- chain, policy. clock is the ledger's own; redis is Redis TIME when it last moved; due is a time at or before the
-- first deadline (0: none); policy names the state of policy (05_policy.lua). Other fields: ledger_id, schema, replid.
local HEAD = '<i8i8i8i8i8Bc32c32'
local NO_CHAIN = '00000000000000000000000000000000'

-- The chain as readers know it: empty before the first record.
local function chain_text(chain)
  return chain ~= NO_CHAIN and chain or ''
end

local function head_of(ctx)
  return struct_pack(HEAD, ctx.epoch, ctx.seq, ctx.clock, ctx.now, ctx.due, ctx.full and 1 or 0, ctx.chain, ctx.policy)
end

-- By meta key: the head that this process left behind as a primary that had shaken hands, the replid it shook them
-- with, and when Redis was last asked who it is. While both stand nobody else has written, so within one millisecond it
-- is not asked again: that is a twentieth of a reserve.
local proven = {}

local function write_head(ctx, txn)
  local head, mine = head_of(ctx), proven[ctx.meta]
  txn:field(ctx.meta, 'head', head, ctx.head)
  ctx.head = head
  if mine then mine.head = head end
end

local function redis_time_ms()
  local t = call('TIME')
  return tonumber(t[1]) * 1000 + floor(tonumber(t[2]) / 1000)
end

-- The ledger's clock advances with Redis TIME by 0 to 2 s a call, never back.
local function context(meta_key, raw, now)
  local epoch, seq, clock, redis_ms, due, full, chain, policy = struct_unpack(HEAD, raw)
  -- 16 fields: Lua doubles a table at the next. What few calls need, they add.
  return {
    base = sub(meta_key, 1, -5), meta = meta_key, head = raw, now = now,
    epoch = epoch, seq = seq, clock = clock + max(0, min(2000, now - redis_ms)), due = due, full = full == 1,
    chain = chain, policy = policy, skus = {}, orders = {}, dirty = {}, next = false, requests = false,
  }
end

-- Open a mutating call. KEYS[1] is `<prefix>:{<shard>}:meta`; ARGV[1] the epoch that the caller knows.
-- Returns a context, or nil and a packed refusal: NOT_READY (no ledger here) or FENCED (another epoch, or a
-- primary that has not shaken hands: nothing may be written before it did).
function Log.open(keys, args)
  local m = call('HMGET', keys[1], 'head', 'replid')
  if not m[1] then return nil, pack({'NOT_READY'}) end
  local mine, now = proven[keys[1]], redis_time_ms()
  if not mine or mine.at ~= now or mine.head ~= m[1] or mine.replid ~= m[2] then
    if m[2] ~= replication_id() then return nil, pack({'FENCED'}) end
    proven[keys[1]] = {head = m[1], replid = m[2], at = now}
  end
  local ctx = context(keys[1], m[1], now)
  if ctx.epoch ~= tonumber(args[1]) then return nil, pack({'FENCED'}) end
  return ctx
end

function Log.version(ctx)
  return version_text(ctx.epoch, ctx.seq)
end

-- Commit a transaction without a log entry (a remembered refusal, a mark, the clock).
function Log.quiet(ctx, txn)
  write_head(ctx, txn)
  txn:commit()
end

-- Start of a msgpack array of n (below 16) values whose packed forms follow: parts packed once serve several arrays.
-- The other way, unpack_limit(raw, n, 1) gives what follows such a start, without a table: the next offset and n values.
local ARRAY = {
  '\145', '\146', '\147', '\148', '\149', '\150', '\151', '\152', '\153', '\154', '\155', '\156', '\157', '\158', '\159',
}

-- The version that emit will give.
function Log.next_version(ctx)
  if not ctx.next then ctx.next = version_text(ctx.epoch, ctx.seq + 1) end
  return ctx.next
end

-- What stands for a request where nobody asked: an expiry, a handshake.
local NOBODY = {'', 0, '', 0, '', ''}

-- What a change did that its cause does not say by itself, as Effect of record.py: units of on_hand (source '') or of
-- what a source has confirmed. The cause is the delta under way, -1 where it was none.
function Log.effect(ctx, sku, node, source, units)
  local effects = ctx.effects or {}
  ctx.effects = effects
  effects[#effects + 1] = {ctx.cause or -1, sku, node, source, units}
end

-- Commit a transaction as one version, of a request (04_requests.lua) or of NOBODY. `body` is packed; ring-fences that
-- Positions.flush wrote (ctx.fences) and effects come after it, where there are any. A change of
-- policy or nodes (ctx.policy_changed) stamps the chain into the head: it names what 05_policy.lua may keep between
-- calls.
function Log.emit(ctx, txn, kind, req, positions, body)
  local seq, id = ctx.seq + 1, Log.next_version(ctx)
  local fences, effects = ctx.fences, ctx.effects
  local raw = ARRAY[effects and 9 or fences and 8 or 7] .. pack(kind, ctx.clock, req[5], req[6], req[1], positions) .. body
  if fences or effects then
    raw, ctx.fences = raw .. pack(fences or {}), nil
  end
  if effects then
    raw, ctx.effects = raw .. pack(effects), nil
  end
  local chain = sub(sha1hex(chain_text(ctx.chain) .. id .. raw), 1, 32)
  ctx.seq, ctx.chain, ctx.next = seq, chain, false
  if ctx.policy_changed then ctx.policy = chain end
  write_head(ctx, txn)
  txn:commit({'XADD', ctx.base .. 'log', id, 'r', raw, 'c', chain})
end
