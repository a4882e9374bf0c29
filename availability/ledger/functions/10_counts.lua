-- SET_ON_HAND: what a source counted at one position at a point, and how changes and counts meet in any order.
-- on_hand = the latest count + the changes that happened after its point, whenever either of them arrives. Before the
-- point is: in the count's own stream, a smaller number; else, a time of occurrence up to the count's. What names no
-- time happens when it arrives. A change before the point that comes late moves quarantine, orders and expected
-- supply, but on_hand no more: the count has seen it.
--
-- A position carries, after its five figures, the time of the latest change and a mark of the one stream that all of
-- its changes came from (0: several, or events; -1: it was counted, and has a memory): a first count is exact where
-- nothing can have happened after its point, or the log still has what did (10_counts_recall.lua). From then on "t" .. node of pos:<sku> remembers
--   {count, key, mark, reach_us, reach_mark, {{occurred_us, mark, sequence, change}, ...}}
-- the latest count and the changes after it, CHANGES_KEPT of them; reach: what was dropped. Where a count's point lies
-- before something dropped, or before an unremembered change of a first count: POINT_TOO_OLD, nothing changed.

do

local CHANGES_KEPT = 32
local STREAM, SEQUENCE, EVENT_ID, SKU, QUANTITY, OCCURRED_US = 2, 3, 4, 6, 9, 19
local COUNT, KEY, MARK, REACH_US, REACH_MARK, CHANGES = 1, 2, 3, 4, 5, 6
local TAIL, TAIL_AT, WITH_MEMORY = '<i8i8', 41, -1

function Counts.mark(source, stream)
  return tonumber(sub(sha1hex(pair(source, stream)), 1, 12), 16)
end

-- What stands for a source's stream; 0 for events, which have no order of their own.
local function mark_of(ctx, source, d)
  if d[SEQUENCE] == 0 then return 0 end
  local marks = ctx.stream_marks or {}
  ctx.stream_marks = marks
  local mark = marks[d[STREAM]]
  if not mark then
    mark = Counts.mark(source, d[STREAM])
    marks[d[STREAM]] = mark
  end
  return mark
end

-- When it happened; the time of receipt where the source named none. That is Redis TIME here: after a night without
-- servers the ledger's clock lags for a while behind what sources say.
local function time_of(ctx, d)
  return d[OCCURRED_US] > 0 and d[OCCURRED_US] or max(ctx.clock, ctx.now) * 1000
end

local function tail_of(ctx, p)
  local tail = ctx.tails and ctx.tails[p]
  if tail then return tail[1], tail[2] end
  if p.raw and #p.raw >= TAIL_AT + 15 then return struct_unpack(TAIL, p.raw, TAIL_AT) end
  return nil
end

local function set_tail(ctx, p, latest_us, mark)
  local tails = ctx.tails
  if not tails then
    tails = {}
    ctx.tails = tails
  end
  local tail = tails[p]
  if tail then tail[1], tail[2] = latest_us, mark else tails[p] = {latest_us, mark} end
end

-- What follows a position's five figures.
function Counts.tail(ctx, p)
  local tail = ctx.tails and ctx.tails[p]
  if tail then return struct_pack(TAIL, tail[1], tail[2]) end
  return p.raw and sub(p.raw, TAIL_AT) or ''
end

local function memory_of(s, node)
  local memories = s.memories or {}
  s.memories = memories
  local m = memories[node]
  if not m then
    local raw = call('HGET', s.key, 't' .. node)
    m = {raw = raw, now = raw and unpack_msg(raw) or false, dirty = false}
    memories[node] = m
  end
  return m
end

local function happened_before(us, mark, sequence, m)
  if mark > 0 and mark == m[MARK] then return sequence < m[KEY][4] end
  return us > 0 and us <= m[KEY][1] -- 0: no time, it happens now
end

-- The part of a change of on_hand that counts: all of it, or 0 where the latest count has seen it. Then the position's
-- latest time and mark, for note.
function Counts.weigh(ctx, source, p, s, d, change)
  local latest, tail_mark = tail_of(ctx, p)
  if tail_mark ~= WITH_MEMORY then return change, latest, tail_mark end
  local m = memory_of(s, p.node).now
  if happened_before(d[OCCURRED_US], mark_of(ctx, source, d), d[SEQUENCE], m) then change = 0 end
  return change, latest, tail_mark
end

local function drop_oldest(m)
  local changes, oldest = m[CHANGES], 1
  for i = 2, #changes do
    if changes[i][1] < changes[oldest][1] then oldest = i end
  end
  local c = table.remove(changes, oldest)
  m[REACH_MARK] = (m[REACH_US] == 0 or m[REACH_MARK] == c[2]) and c[2] or 0
  m[REACH_US] = max(m[REACH_US], c[1])
end

-- Remember a change of on_hand that counts.
function Counts.note(ctx, source, p, s, d, change, latest, tail_mark)
  local us, mark = time_of(ctx, d), mark_of(ctx, source, d)
  if not latest then return set_tail(ctx, p, us, mark) end
  if tail_mark == WITH_MEMORY then
    local memory = memory_of(s, p.node)
    local changes = memory.now[CHANGES]
    changes[#changes + 1] = {us, mark, d[SEQUENCE], change}
    if #changes > CHANGES_KEPT then drop_oldest(memory.now) end
    memory.dirty = true
  else
    set_tail(ctx, p, max(latest, us), tail_mark == mark and mark or 0)
  end
end

-- Whether nothing of what is not remembered one by one can have happened after the point.
local function reaches(us, mark, latest_us, latest_mark)
  return (mark > 0 and latest_mark == mark) or latest_us <= us
end

-- Changes that happened after a new count stay on top of it. Returns on_hand with them.
local function take_later(new, changes, on_hand)
  local kept = new[CHANGES]
  for _, c in ipairs(changes) do
    if not happened_before(c[1], c[2], c[3], new) then
      kept[#kept + 1], on_hand = c, on_hand + c[4]
      if #kept > CHANGES_KEPT then drop_oldest(new) end
    end
  end
  return on_hand
end

-- Take a count. Returns nil, true where a later one is known, or false and a reason.
function Counts.set(ctx, source, p, s, d)
  local us, mark = time_of(ctx, d), mark_of(ctx, source, d)
  local key = {us, source, d[STREAM], d[SEQUENCE], d[EVENT_ID]}
  local latest, tail_mark = tail_of(ctx, p)
  local memory = memory_of(s, p.node)
  local known = memory.now
  local new = {d[QUANTITY], key, mark, 0, 0, {}}
  local on_hand = d[QUANTITY]
  if not known then
    if latest and not reaches(us, mark, latest, tail_mark) then
      local changes = Counts.recall(ctx, source, p, d[SKU], us)
      if not changes then return false, 'POINT_TOO_OLD' end
      on_hand = take_later(new, changes, on_hand)
    end
  else
    if not Orders.key_less(known[KEY], key) then return true end
    if known[REACH_US] > 0 and not reaches(us, mark, known[REACH_US], known[REACH_MARK]) then
      return false, 'POINT_TOO_OLD'
    end
    on_hand = take_later(new, known[CHANGES], on_hand)
  end
  if abs(on_hand) > BALANCE_ABS_MAX then return false, 'BALANCE_OUT_OF_RANGE' end
  memory.now, memory.dirty = new, true
  set_tail(ctx, p, latest or us, WITH_MEMORY)
  p.on_hand = on_hand
  return nil
end

function Counts.flush(ctx, txn)
  for _, s in pairs(ctx.skus) do
    for node, m in pairs(s.memories or {}) do
      if m.dirty then txn:hash(s.key, 't' .. node, pack(m.now), m.raw) end
    end
  end
end

end
