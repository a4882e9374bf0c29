-- What a source told before: the numbers of its streams, those that were rejected, and event ids.

local EVENT_GENERATION_MS = 15 * DAY_MS

-- Past generations of event ids that events within the window may stand in.
function Streams.generations(window_ms)
  return ceil(window_ms / EVENT_GENERATION_MS)
end

do

local KIND_STREAM = 9
local SEEN_WINDOW = 4096 -- numbers back from the mark for which a repeat's content is compared
local DUPLICATE, REJECTED, PARKED = Deltas.results.DUPLICATE, Deltas.results.REJECTED, Deltas.results.PARKED

-- `src:<source>`: stream -> {mark (0: none), seen_ms, parked_sequence, parked_ms, was reset, has rejected}
-- `seen:<stream>`: a ring of SEEN_WINDOW slots in one string: the fingerprint (12 bytes) and the number of the delta.
-- What one call accepts has numbers in a row, so it is one write, or two where the ring closes.
local SLOT, FINGERPRINT = 20, 12

-- Nil for one more than `most` (absent: any number): a stream is kept for ever, with a ring of numbers seen.
function Streams.of(ctx, source, name, most)
  ctx.streams = ctx.streams or {}
  local st = ctx.streams[name]
  if not st then
    local raw = call('HGET', ctx.base .. 'src:' .. source, name)
    if not raw and most then
      ctx.stream_count = ctx.stream_count or call('HLEN', ctx.base .. 'src:' .. source)
      if ctx.stream_count >= most then return nil end
      ctx.stream_count = ctx.stream_count + 1
    end
    st = {name = name, raw = raw, row = raw and unpack_msg(raw) or {0, 0, 0, 0}, first = 0, prints = {}}
    st.key = ctx.base .. 'seen:' .. pair(source, name)
    ctx.streams[name] = st
  end
  st.row[2] = ctx.clock
  st.dirty = true
  return st
end

local function write_slots(txn, key, slot, values)
  local at, new = slot * SLOT, concat(values)
  local old = call('GETRANGE', key, at, at + #new - 1)
  local length = #old == #new and at + #new or call('STRLEN', key)
  txn:add({'SETRANGE', key, at, new}, {old, length})
end

local function write_ring(txn, st)
  local slot, values = st.first % SEEN_WINDOW, {}
  for i, print in ipairs(st.prints) do
    if slot + #values == SEEN_WINDOW then
      write_slots(txn, st.key, slot, values)
      slot, values = 0, {}
    end
    values[#values + 1] = print .. struct_pack('<i8', st.first + i - 1)
  end
  write_slots(txn, st.key, slot, values)
end

-- The fingerprint of the delta with a number up to the mark, or nil where it is not remembered any more.
local function print_of(st, sequence)
  if st.first > 0 and sequence >= st.first then return st.prints[sequence - st.first + 1] end
  local at = sequence % SEEN_WINDOW * SLOT
  local slot = call('GETRANGE', st.key, at, at + SLOT - 1)
  if #slot < SLOT or struct_unpack('<i8', slot, FINGERPRINT + 1) ~= sequence then return nil end
  return sub(slot, 1, FINGERPRINT)
end

-- `rej:<stream>`: the latest rejected numbers, each with its fingerprint and reason; only of a stream that has some. Who
-- sent one and never saw the answer is told the reason again when it comes as a DUPLICATE: else its dead letter is lost.
local REJECTED_KEPT = 100000 -- domain/limits.py holds what ingest has on its way below it

local function rejected_key(ctx, source, name)
  return ctx.base .. 'rej:' .. pair(source, name)
end

function Streams.note_rejected(ctx, source, st, sequence, fingerprint, reason)
  if not st.rejected then st.rejected = {} end
  if st.rejected[fingerprint] then return end
  st.rejected[fingerprint] = reason
  st.rejected[#st.rejected + 1] = {sequence, fingerprint .. reason}
  st.row[5], st.row[6] = st.row[5] or 0, 1
end

-- Why the delta of a number up to the mark was rejected, or nil.
local function rejected_for(ctx, source, st, sequence, fingerprint)
  if not st.row[6] then return nil end
  local now = st.rejected and st.rejected[fingerprint]
  if now then return now end
  for _, kept in ipairs(call('ZRANGE', rejected_key(ctx, source, st.name), int(sequence), int(sequence), 'BYSCORE')) do
    if sub(kept, 1, FINGERPRINT) == fingerprint then return sub(kept, FINGERPRINT + 1) end
  end
  return nil
end

local function write_rejected(ctx, txn, source, st)
  local key, new = rejected_key(ctx, source, st.name), 0
  for _, row in ipairs(st.rejected) do
    local score = call('ZSCORE', key, row[2])
    if not score then
      new = new + 1
      txn:put('ZADD', key, int(row[1]), row[2], false)
    end
  end
  local excess = new > 0 and call('ZCARD', key) + new - REJECTED_KEPT or 0
  if excess <= 0 then return end
  local rows = call('ZRANGE', key, '0', int(excess - 1), 'WITHSCORES')
  for i = 1, #rows, 2 do txn:put('ZREM', key, rows[i], false, tonumber(rows[i + 1])) end
end

function Streams.flush(ctx, txn, source)
  local any = false
  for _, name in ipairs(sorted_keys(ctx.streams or {})) do
    local st = ctx.streams[name]
    if st.dirty then
      any = true
      txn:hash(ctx.base .. 'src:' .. source, name, pack(st.row), st.raw)
      if st.first > 0 then write_ring(txn, st) end
      if st.rejected then write_rejected(ctx, txn, source, st) end
    end
  end
  return any
end

-- What the number says. Returns DUPLICATE (with the reason where it was rejected), PARKED (with the expected number),
-- REJECTED CONFLICT, or nil: it is next.
function Streams.judge_number(ctx, source, st, sequence, fingerprint)
  local row = st.row
  local mark = row[1]
  if mark == 0 or sequence == mark + 1 then
    row[1], row[5] = sequence, row[6] and 0
    if row[3] <= sequence then row[3], row[4] = 0, 0 end
    if st.first == 0 then st.first = sequence end
    st.prints[#st.prints + 1] = fingerprint
    return nil
  end
  if sequence <= mark then
    local known = print_of(st, sequence)
    if known and known ~= fingerprint then return REJECTED, 'CONFLICT' end
    return DUPLICATE, rejected_for(ctx, source, st, sequence, fingerprint)
  end
  if row[3] == 0 then row[4] = ctx.clock end
  row[3] = max(row[3], sequence)
  return PARKED, nil, mark + 1
end

-- Event ids: remembered by generations of 15 days, as many of which are looked up as the window reaches into.
local function event_key(ctx, generation, bucket)
  return ctx.base .. 'evt:' .. int(generation) .. ':' .. bucket
end

function Streams.judge_event(ctx, source, event_id, bucket, fingerprint, occurred_us, window_ms)
  local field = pair(source, event_id)
  ctx.events = ctx.events or {}
  local found = ctx.events[field]
  if not found then
    local generation = floor(ctx.clock / EVENT_GENERATION_MS)
    for back = 0, Streams.generations(window_ms) do
      found = found or call('HGET', event_key(ctx, generation - back, bucket), field)
    end
  else
    found = found[2]
  end
  if found then
    if found ~= fingerprint then return REJECTED, 'CONFLICT' end
    return DUPLICATE
  end
  if occurred_us > 0 and ctx.clock - floor(occurred_us / 1000) > window_ms then return REJECTED, 'EVENT_TOO_OLD' end
  return nil
end

function Streams.flush_events(ctx, txn)
  local generation = floor(ctx.clock / EVENT_GENERATION_MS)
  for field, entry in pairs(ctx.events or {}) do
    local key = event_key(ctx, generation, entry[1])
    txn:hash(key, field, entry[2], false)
  end
end

-- An operator gives up missing numbers, or forgets a stream's mark.
-- cmd = {req, source, stream, action (SKIP_GAP | RESET), next_sequence, reason}
-- reply = {status, version, replayed, row | false, clock}
function Streams.change(keys, args)
  local cmd = unpack_msg(args[2])
  local req = cmd[1]
  local ctx, fenced = Log.open(keys, args)
  if not ctx then return fenced end
  local found, why = Requests.find(ctx, req)
  if why then return pack({why, '', false, false, 0}) end
  local key = ctx.base .. 'src:' .. cmd[2]
  local raw = call('HGET', key, cmd[3])
  if found then return pack({found[1], found[2], true, raw and unpack_msg(raw) or false, ctx.clock}) end
  local row = raw and unpack_msg(raw)
  local refused = not raw and 'STREAM_NOT_FOUND' or (cmd[4] == 'SKIP_GAP' and cmd[5] <= row[1] and 'SEQUENCE_SETTLED')
  if refused then
    local quiet = Txn.new()
    Requests.remember(ctx, quiet, req, refused, Log.version(ctx))
    Log.quiet(ctx, quiet)
    return pack({refused, Log.version(ctx), false, row, ctx.clock})
  end
  if cmd[4] == 'SKIP_GAP' then
    row[1] = cmd[5] - 1
    if row[3] <= cmd[5] then row[3], row[4] = 0, 0 end -- nothing is missing before what was seen
  else
    row[1], row[3], row[4], row[5] = 0, 0, 0, 1 -- 1: was reset
  end
  local txn, version = Txn.new(), Log.next_version(ctx)
  if cmd[4] == 'RESET' and row[6] then -- its numbers mean others from now on
    row[6] = nil
    txn:add({'DEL', rejected_key(ctx, cmd[2], cmd[3])})
  end
  txn:hash(key, cmd[3], pack(row), raw)
  Requests.remember(ctx, txn, req, 'OK', version)
  Log.emit(ctx, txn, KIND_STREAM, req, {}, pack({cmd[2], cmd[3], cmd[4], row[1], cmd[6]}))
  return pack({'OK', version, false, row, ctx.clock})
end

end
