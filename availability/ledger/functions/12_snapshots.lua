-- Snapshots: what a source announced, the rows that it streamed, and how long the log is kept for it.
--
-- `snap`: id -> {id, source, nodes, content, basis, absent, state, as_of {{source, stream, sequence}, ...},
--   begin_epoch, begin_seq, begin_ms (wall), end_epoch (0: open), end_seq, end_ms, rows, chunks, author, clock_ms of the last change}
-- `snap:<id>`: number of the chunk -> fingerprint (12 bytes), then the chunk as its sender's server packed it.
--
-- A mark is the version of the log's head. Nothing more is noted in the positions: every record tells the signed changes
-- and their causes, so what a position had at a mark, or at a number of a stream, is what it has now less what came
-- after (history/as_of.py). A change while a snapshot is open costs nothing, and both kinds of points are one rule.
-- The price is the log from the first mark on: trimming leaves it while a snapshot is open, up to the log's cap, for at
-- most KEEP_MS; whoever comes later finds a gap, and is told that the point is lost.

local Snapshots = {}

do

local OPEN, ENDED, CLOSED = 1, 2, 3
local ID, NODES, STATE, AS_OF, BEGIN_EPOCH, BEGIN_SEQ, END_EPOCH, END_SEQ, END_MS, ROWS, CHUNKS, CHANGED = 1, 3, 7, 8, 9, 10, 12,
  13, 14, 15, 16, 18
local OPEN_MAX, KEEP_MS = 100, DAY_MS
local FINGERPRINT = 12

local function rows_key(ctx, id)
  return ctx.base .. 'snap:' .. id
end

local function load(ctx, id)
  local raw = call('HGET', ctx.base .. 'snap', id)
  return raw and unpack_msg(raw) or false, raw
end

local function store(ctx, txn, row, raw)
  row[CHANGED] = ctx.clock
  txn:hash(ctx.base .. 'snap', row[ID], pack(row), raw)
end

local function reply(ctx, status, replayed, row)
  return pack({status, Log.version(ctx), replayed, row})
end

-- What a request was told before, as a reply; or nil.
local function before_of(ctx, req)
  local found, why = Requests.find(ctx, req)
  if why then return reply(ctx, why, false, false) end
  if not found then return nil end
  return reply(ctx, found[1], true, load(ctx, found[3]))
end

local function refuse(ctx, req, id, status, row)
  local txn = Txn.new()
  Requests.remember(ctx, txn, req, status, Log.version(ctx), id)
  Log.quiet(ctx, txn)
  return reply(ctx, status, false, row)
end

local function count_open(ctx)
  local rows, count = call('HVALS', ctx.base .. 'snap'), 0
  for _, raw in ipairs(rows) do
    if unpack_msg(raw)[STATE] ~= CLOSED then count = count + 1 end
  end
  return count
end

-- cmd = {req, id, source, nodes, content, basis, absent}; reply = {status, version, replayed, row | false}
function Snapshots.begin(keys, args)
  local cmd = unpack_msg(args[2])
  local req, id = cmd[1], cmd[2]
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  local before = before_of(ctx, req)
  if before then return before end
  if count_open(ctx) >= OPEN_MAX then return refuse(ctx, req, id, 'TOO_MANY_SNAPSHOTS', false) end
  Policy.node_table(ctx)
  for _, node in ipairs(cmd[4]) do
    if not ctx.nodes[node] then return refuse(ctx, req, id, 'UNKNOWN_NODE', false) end
  end
  local row = {
    id, cmd[3], cmd[4], cmd[5], cmd[6], cmd[7], OPEN, {}, ctx.epoch, ctx.seq, ctx.now, 0, 0, 0, 0, 0, req[5], ctx.clock,
  }
  local txn = Txn.new()
  store(ctx, txn, row, false)
  Requests.remember(ctx, txn, req, 'OK', Log.version(ctx), id)
  Log.quiet(ctx, txn)
  return reply(ctx, 'OK', false, row)
end

-- cmd = {id, number, fingerprint, rows of the chunk, chunk, rows_max}; reply as of begin
function Snapshots.chunk(keys, args)
  local cmd = unpack_msg(args[2])
  local id, number = cmd[1], cmd[2]
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  local row, raw = load(ctx, id)
  if not row then return reply(ctx, 'SNAPSHOT_NOT_FOUND', false, false) end
  if row[STATE] ~= OPEN then return reply(ctx, 'SNAPSHOT_NOT_OPEN', false, row) end
  local key, field = rows_key(ctx, id), int(number)
  local kept = call('HGET', key, field)
  if kept then
    local same = sub(kept, 1, FINGERPRINT) == cmd[3]
    return reply(ctx, same and 'OK' or 'CHUNK_CONFLICT', same, row)
  end
  if number ~= row[CHUNKS] + 1 then return reply(ctx, 'CHUNK_GAP', false, row) end
  if row[ROWS] + cmd[4] > cmd[6] then return reply(ctx, 'TOO_MANY_ROWS', false, row) end
  row[ROWS], row[CHUNKS] = row[ROWS] + cmd[4], number
  local txn = Txn.new()
  txn:field(key, field, cmd[3] .. cmd[5], false)
  store(ctx, txn, row, raw)
  Log.quiet(ctx, txn)
  return reply(ctx, 'OK', false, row)
end

-- cmd = {req, id, as_of, rows that must be there (-1: whatever is)}; reply as of begin
function Snapshots.finish(keys, args)
  local cmd = unpack_msg(args[2])
  local req, id = cmd[1], cmd[2]
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  local before = before_of(ctx, req)
  if before then return before end
  local row, raw = load(ctx, id)
  if not row then return refuse(ctx, req, id, 'SNAPSHOT_NOT_FOUND', false) end
  if row[STATE] ~= OPEN then return refuse(ctx, req, id, 'SNAPSHOT_NOT_OPEN', row) end
  if cmd[4] >= 0 and cmd[4] ~= row[ROWS] then return refuse(ctx, req, id, 'SNAPSHOT_INCOMPLETE', row) end
  row[STATE], row[AS_OF], row[END_EPOCH], row[END_SEQ], row[END_MS] = ENDED, cmd[3], ctx.epoch, ctx.seq, ctx.now
  local txn = Txn.new()
  store(ctx, txn, row, raw)
  Requests.remember(ctx, txn, req, 'OK', Log.version(ctx), id)
  Log.quiet(ctx, txn)
  return reply(ctx, 'OK', false, row)
end

-- cmd = {req, id}; reply as of begin
function Snapshots.close(keys, args)
  local cmd = unpack_msg(args[2])
  local req, id = cmd[1], cmd[2]
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  local before = before_of(ctx, req)
  if before then return before end
  local row, raw = load(ctx, id)
  if not row then return refuse(ctx, req, id, 'SNAPSHOT_NOT_FOUND', false) end
  local txn = Txn.new()
  if row[STATE] ~= CLOSED then -- its rows go with the next trimming: a failure after that could not be undone
    row[STATE] = CLOSED
    store(ctx, txn, row, raw)
  end
  Requests.remember(ctx, txn, req, 'OK', Log.version(ctx), id)
  Log.quiet(ctx, txn)
  return reply(ctx, 'OK', false, row)
end

-- The oldest first mark for which the log is to be kept, as {epoch, seq}, or nil. Forgets what is past its time.
function Snapshots.held(ctx, txn)
  local key, oldest = ctx.base .. 'snap', nil
  local rows = call('HGETALL', key)
  for i = 1, #rows, 2 do
    local row = unpack_msg(rows[i + 1])
    if ctx.clock - row[CHANGED] > KEEP_MS then
      txn:hash(key, rows[i], false, rows[i + 1])
      txn:add({'UNLINK', rows_key(ctx, rows[i])})
    elseif row[STATE] == CLOSED and row[CHUNKS] > 0 then
      row[CHUNKS] = 0
      txn:hash(key, rows[i], pack(row), rows[i + 1])
      txn:add({'UNLINK', rows_key(ctx, rows[i])})
    elseif row[STATE] ~= CLOSED then
      local epoch, seq = row[BEGIN_EPOCH], row[BEGIN_SEQ]
      if not oldest or epoch < oldest[1] or (epoch == oldest[1] and seq < oldest[2]) then oldest = {epoch, seq} end
    end
  end
  return oldest
end

end
