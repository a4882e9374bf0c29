-- Feeds: how long a source may be silent about a node. Heard is what the ledger's clock says at
--   * a delta of the source that names the node (as `node`) and is APPLIED, DUPLICATE or STALE, or
--   * a heartbeat of the source, for all its nodes.
-- PARKED and REJECTED deltas are not heard: the source lives, but what it says of the node does not count.
-- `policy:feed` pair(source, node) -> FeedState of record.py; `heard` pair(source, node) and "*" .. source -> ms.
-- `feed_due` has a time at or before each fresh feed's limit: only the sweep moves it on, so that being heard is one
-- write. A crossing is an event of its own, and a change of policy: 05_policy.lua keeps who is stale.

local Feeds = {}

do

local KIND_FEED = 10
local FEEDS_MAX, DUE_PER_SWEEP = 10000, 100
local INTERVAL, GRACE, STALE = 3, 4, 5

local function heard_of(ctx, source, node)
  local at = call('HMGET', ctx.base .. 'heard', pair(source, node), '*' .. source)
  return max(tonumber(at[1] or 0), tonumber(at[2] or 0))
end

local function limit_of(feed)
  return feed[INTERVAL] + feed[GRACE]
end

-- The watched feeds of a source by node, or nil.
function Feeds.of(ctx, source)
  return Policy.feeds(ctx).by_source[source]
end

-- Log that a feed crossed its limit. `due` is its score in `feed_due`, false where it has none.
local function cross(ctx, feed, stale, heard, due)
  local member, key = pair(feed[1], feed[2]), ctx.base .. 'policy:feed'
  local raw = call('HGET', key, member)
  local state = unpack_msg(raw)
  state[STALE] = stale
  local txn = Txn.new()
  txn:field(key, member, pack(state), raw)
  if not stale then
    txn:put('ZADD', ctx.base .. 'feed_due', heard + limit_of(state), member, due)
  elseif due then
    txn:put('ZREM', ctx.base .. 'feed_due', member, false, due)
  end
  ctx.policy_changed = true
  Log.emit(ctx, txn, KIND_FEED, NOBODY, {}, pack({feed[1], feed[2], stale, heard}))
end

-- Note that a source was heard about `nodes` (true: all). Returns those of its stale feeds that this makes fresh: log
-- them by `freshen` when the transaction is through. Until then a score of 0 says that the sweep must.
function Feeds.hear(ctx, txn, source, feeds, nodes)
  local key, fresh = ctx.base .. 'heard', {}
  if nodes == true then
    txn:hash(key, '*' .. source, int(ctx.clock), call('HGET', key, '*' .. source))
  end
  for _, node in ipairs(sorted_keys(feeds)) do
    if nodes == true or nodes[node] then
      if nodes ~= true then
        local field = pair(source, node)
        txn:hash(key, field, int(ctx.clock), call('HGET', key, field))
      end
      if feeds[node][STALE] then
        fresh[#fresh + 1] = feeds[node]
        txn:put('ZADD', ctx.base .. 'feed_due', 0, pair(source, node), false)
      end
    end
  end
  return fresh
end

function Feeds.freshen(ctx, fresh)
  for _, feed in ipairs(fresh) do cross(ctx, feed, false, ctx.clock, 0) end
end

-- Call stale what was silent for longer than its limit, once. With nothing due this is one look at a sorted set.
function Feeds.sweep(ctx, txn)
  local key = ctx.base .. 'feed_due'
  local due = call('ZRANGE', key, '-inf', '(' .. int(ctx.clock), 'BYSCORE', 'LIMIT', '0', DUE_PER_SWEEP, 'WITHSCORES')
  for i = 1, #due, 2 do
    local member, score = due[i], tonumber(due[i + 1])
    local raw = call('HGET', ctx.base .. 'policy:feed', member)
    local feed = raw and unpack_msg(raw) or {'', '', 0, 0, true}
    local heard = heard_of(ctx, feed[1], feed[2])
    local limit = heard + limit_of(feed)
    if limit >= ctx.clock then
      if feed[STALE] then cross(ctx, feed, false, heard, score) else txn:put('ZADD', key, limit, member, score) end
    elseif not feed[STALE] then
      cross(ctx, feed, true, heard, score)
    else
      txn:put('ZREM', key, member, false, score)
    end
  end
end

-- Watch a feed, or (interval 0) watch it no more. A feed that is new counts as heard now; one that is watched already
-- keeps its last sign, is stale no more where the new limit says so, and otherwise waits for the sweep.
-- Returns the state as far as a policy's stamp, or nil and a refusal.
function Feeds.set(ctx, txn, source, node, interval, grace)
  local key, due_key, member = ctx.base .. 'policy:feed', ctx.base .. 'feed_due', pair(source, node)
  local raw = call('HGET', key, member)
  local due = call('ZSCORE', due_key, member)
  due = due and tonumber(due)
  local heard_at = call('HGET', ctx.base .. 'heard', member)
  local state = {source, node, interval, grace, false}
  if interval == 0 then
    txn:hash(key, member, false, raw)
    txn:hash(ctx.base .. 'heard', member, false, heard_at)
    if due then txn:put('ZREM', due_key, member, false, due) end
    return state
  end
  if not raw and call('HLEN', key) >= FEEDS_MAX then return nil, 'TOO_MANY_FEEDS' end
  local heard = raw and heard_of(ctx, source, node) or ctx.clock
  state[STALE] = raw and unpack_msg(raw)[STALE] and heard + limit_of(state) < ctx.clock or false
  if not raw then txn:hash(ctx.base .. 'heard', member, int(heard), heard_at) end
  if not state[STALE] then txn:put('ZADD', due_key, heard + limit_of(state), member, due) end
  return state
end

-- Keep a feed's state, stamped.
function Feeds.put(ctx, txn, state)
  if state[INTERVAL] == 0 then return end
  local key, member = ctx.base .. 'policy:feed', pair(state[1], state[2])
  txn:hash(key, member, pack(state), call('HGET', key, member))
end

-- Every watched feed as FeedRow of ledger.py.
function Feeds.rows(ctx)
  local rows, out = call('HGETALL', ctx.base .. 'policy:feed'), {}
  for i = 1, #rows, 2 do
    local f = unpack_msg(rows[i + 1])
    out[#out + 1] = {f[1], f[2], heard_of(ctx, f[1], f[2]), f[INTERVAL], f[GRACE], f[STALE]}
  end
  return out
end

end
