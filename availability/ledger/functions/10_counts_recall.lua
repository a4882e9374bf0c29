-- A first count that is older than a change: what the log still says of the position, so that what happened after the
-- point stays on top. Only a position that was never counted asks, at most once a call, and the look back has an end: a
-- ledger that has written more than this since a day before the point answers POINT_TOO_OLD, as for what it never knew.

do

local RECORDS_MAX, BYTES_MAX, PAGE = 512, 262144, 64
-- A source's clock may be ahead by so much: an event that happened after the point came no earlier than this before it.
local AHEAD_MS = DAY_MS
local KIND_DELTAS = 6
local STREAM, SEQUENCE, TYPE, SKU, NODE, QUANTITY, OCCURRED_US = 1, 2, 4, 5, 6, 8, 18
-- RECEIPT, ADJUSTMENT, SHIPMENT, WRITE_OFF, RETURN_RECEIVED, TRANSFER_OUT, TRANSFER_IN
local SIGN = {[1] = 1, [2] = 1, [4] = -1, [7] = -1, [8] = 1, [10] = -1, [11] = 1}

-- The log's last records, newest first: {clock_ms, source, causes}, those that are no deltas left out. `whole`: the log
-- was read to its first record; `oldest_ms`: the ledger's clock at the oldest one read.
local function look_back(ctx)
  if ctx.looked_back then return ctx.looked_back end
  local found = {whole = ctx.seq == 0, oldest_ms = ctx.clock}
  local before_id, count, bytes = '+', 0, 0
  while count < RECORDS_MAX and bytes < BYTES_MAX and not found.whole do
    local rows = call('XREVRANGE', ctx.base .. 'log', before_id, '-', 'COUNT', int(PAGE))
    for _, row in ipairs(rows) do
      local record = unpack_msg(row[2][2])
      count, bytes, before_id, found.oldest_ms = count + 1, bytes + #row[2][2], '(' .. row[1], record[2]
      if record[1] == KIND_DELTAS then found[#found + 1] = {record[2], record[7][1], record[7][2]} end
      found.whole = sub(row[1], -2) == '-1'
    end
    if #rows < PAGE then break end
  end
  ctx.looked_back = found
  return found
end

local function collect(out, source, causes, sku, node, received_us)
  for _, c in ipairs(causes) do
    local sign = SIGN[c[TYPE]]
    if sign and c[SKU] == sku and c[NODE] == node then
      local mark = c[SEQUENCE] > 0 and Counts.mark(source, c[STREAM]) or 0
      out[#out + 1] = {c[OCCURRED_US] > 0 and c[OCCURRED_US] or received_us, mark, c[SEQUENCE], sign * c[QUANTITY]}
    end
  end
end

-- The changes of on_hand of a position that was never counted, as 10_counts.lua remembers them: all that can have
-- happened after the point. Nil where the log does not reach so far.
function Counts.recall(ctx, source, p, sku, point_us)
  local log, changes = look_back(ctx), {}
  local lag_ms = max(0, ctx.now - ctx.clock) -- the ledger's clock stands while no server runs: it lags, ever more
  local needed_ms = floor(point_us / 1000) - AHEAD_MS - lag_ms
  if not log.whole and log.oldest_ms >= needed_ms then return nil end
  local own = {}
  for i, raw in ipairs(ctx.causes) do own[i] = unpack_msg(raw) end
  collect(changes, source, own, sku, p.node, ctx.now * 1000)
  for _, record in ipairs(log) do collect(changes, record[2], record[3], sku, p.node, (record[1] + lag_ms) * 1000) end
  return changes
end

end
