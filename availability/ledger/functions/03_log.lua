-- The call's context: fence, clock, head of the log; and the one way to log.

local Log = {}

local function replication_id()
  return match(call('INFO', 'replication'), 'master_replid:(%x+)')
end

-- Open a mutating call. KEYS[1] is `<prefix>:{<shard>}:meta`; ARGV[1] the epoch that the caller knows.
-- Returns a context, or nil and a packed refusal: NOT_READY (no ledger here) or FENCED (another epoch, or a
-- primary that has not shaken hands: nothing may be written before it did).
function Log.open(keys, args)
  local meta_key = keys[1]
  local m = call('HMGET', meta_key, 'epoch', 'seq', 'chain', 'clock', 'redis', 'replid', 'full')
  if not m[1] then return nil, pack({'NOT_READY'}) end
  if m[1] ~= args[1] or m[6] ~= replication_id() then return nil, pack({'FENCED', tonumber(m[1])}) end
  local t = call('TIME')
  local now = tonumber(t[1]) * 1000 + floor(tonumber(t[2]) / 1000)
  local clock = tonumber(m[4])
  local ctx = {
    base = sub(meta_key, 1, -5), meta = meta_key,
    epoch = tonumber(m[1]), seq = tonumber(m[2]), chain = m[3],
    clock_before = m[4], redis_before = m[5], full = m[7] == '1',
    now = now, clock = clock + max(0, min(2000, now - tonumber(m[5]))),
    seq_text = m[2], skus = {}, orders = {}, dirty = {},
  }
  return ctx
end

function Log.version(ctx)
  return version_text(ctx.epoch, ctx.seq)
end

local function write_clock(ctx, txn)
  txn:hash(ctx.meta, 'clock', int(ctx.clock), ctx.clock_before)
  txn:hash(ctx.meta, 'redis', int(ctx.now), ctx.redis_before)
  ctx.clock_before, ctx.redis_before = int(ctx.clock), int(ctx.now)
end

-- Commit a transaction without a log entry (a remembered refusal, a mark, the clock).
function Log.quiet(ctx, txn)
  write_clock(ctx, txn)
  txn:commit()
end

-- Commit a transaction as one version.
function Log.emit(ctx, txn, kind, head, positions, body)
  local seq = ctx.seq + 1
  local id = version_text(ctx.epoch, seq)
  local raw = pack({kind, ctx.clock, head.author or '', head.correlation_id or '', head.request_id or '', positions, body})
  local chain = sub(sha1hex(ctx.chain .. id .. raw), 1, 32)
  txn:hash(ctx.meta, 'seq', int(seq), ctx.seq_text)
  txn:hash(ctx.meta, 'chain', chain, ctx.chain)
  write_clock(ctx, txn)
  txn:commit({'XADD', ctx.base .. 'log', id, 'r', raw, 'c', chain})
  ctx.seq, ctx.seq_text, ctx.chain = seq, int(seq), chain
end

-- The version that emit will give.
function Log.next_version(ctx)
  return version_text(ctx.epoch, ctx.seq + 1)
end
