-- Expected supply: announced and not here yet. It is shown, never sold.
-- `exp:<sku>` is a hash of cells, one per (node, kind, reference, line):
--   {node, kind, reference, line, word (-1: none), word_key | false, due_us, due_key | false, moves {{key, q}, ...},
--    folded, folded_key | false, last_ms}
-- The word is the latest EXPECTED; moves are what came in (-) or was sent on its way (+), with the same kind of key.
-- Expected is the word + the moves after it, never shown below 0: the same in whatever order they arrive. Moves before
-- the word have no say. MOVES_KEPT are kept one by one; older ones are folded, and count as after every word that is
-- older than the latest of them.
-- `exp_last` has pair(sku, cell) at the ledger clock of its last fact: cells at 0 are forgotten like closed orders.

local Supply = {}

do

local PURCHASE, TRANSFER, RETURN = 1, 2, 3
local KIND_NAMES = {'PURCHASE', 'TRANSFER', 'RETURN'}
local MOVES_KEPT, FORGET_PER_CALL = 64, 100
local NODE, KIND, REFERENCE, LINE, WORD, WORD_KEY, DUE, DUE_KEY, MOVES, FOLDED, FOLDED_KEY, LAST = 1, 2, 3, 4, 5, 6, 7, 8, 9,
  10, 11, 12
Supply.PURCHASE, Supply.TRANSFER, Supply.RETURN = PURCHASE, TRANSFER, RETURN

local function cell_of(ctx, sku, node, kind, reference, line)
  local cells = ctx.expected or {}
  ctx.expected = cells
  local field = pair(node, kind .. pair(reference, line))
  local name = pair(sku, field)
  local cell = cells[name]
  if not cell then
    local key = ctx.base .. 'exp:' .. sku
    local raw = call('HGET', key, field)
    local now = raw and unpack_msg(raw) or {node, kind, reference, line, -1, false, 0, false, {}, 0, false, 0}
    cell = {key = key, field = field, raw = raw, now = now, last = raw and now[LAST] or false, dirty = false}
    cells[name] = cell
  end
  return cell
end

local function value_of(now)
  local value = max(0, now[WORD]) + now[FOLDED]
  for _, m in ipairs(now[MOVES]) do value = value + m[2] end
  return value
end

local function say_due(now, key, due_us)
  if not now[DUE_KEY] or Orders.key_less(now[DUE_KEY], key) then now[DUE], now[DUE_KEY] = due_us, key end
end

-- EXPECTED: a cell's latest word. Returns true where a later one is known.
function Supply.say(ctx, sku, node, kind, reference, line, quantity, key, due_us)
  local cell = cell_of(ctx, sku, node, kind, reference, line)
  local now = cell.now
  if now[WORD_KEY] and not Orders.key_less(now[WORD_KEY], key) then return true end
  now[WORD], now[WORD_KEY] = quantity, key
  say_due(now, key, due_us)
  local kept = {}
  for _, m in ipairs(now[MOVES]) do
    if Orders.key_less(key, m[1]) then kept[#kept + 1] = m end
  end
  now[MOVES] = kept
  if now[FOLDED_KEY] and Orders.key_less(now[FOLDED_KEY], key) then now[FOLDED], now[FOLDED_KEY] = 0, false end
  cell.dirty = true
  return false
end

local function fold_oldest(now)
  local moves, oldest = now[MOVES], 1
  for i = 2, #moves do
    if Orders.key_less(moves[i][1], moves[oldest][1]) then oldest = i end
  end
  local m = table.remove(moves, oldest)
  now[FOLDED] = now[FOLDED] + m[2]
  if not now[FOLDED_KEY] or Orders.key_less(now[FOLDED_KEY], m[1]) then now[FOLDED_KEY] = m[1] end
end

-- Units that came in (negative) or were sent (positive).
function Supply.move(ctx, sku, node, kind, reference, line, quantity, key, due_us)
  local cell = cell_of(ctx, sku, node, kind, reference, line)
  local now = cell.now
  cell.dirty = true
  if due_us > 0 then say_due(now, key, due_us) end
  if now[WORD_KEY] and Orders.key_less(key, now[WORD_KEY]) then return end
  now[MOVES][#now[MOVES] + 1] = {key, quantity}
  if #now[MOVES] > MOVES_KEPT then fold_oldest(now) end
end

function Supply.flush(ctx, txn)
  local cells = ctx.expected or {}
  for _, name in ipairs(sorted_keys(cells)) do
    local cell = cells[name]
    if cell.dirty then
      cell.now[LAST] = ctx.clock
      txn:hash(cell.key, cell.field, pack(cell.now), cell.raw)
      txn:put('ZADD', ctx.base .. 'exp_last', ctx.clock, name, cell.last)
    end
  end
end

-- What is expected of a sku, as ExpectedRow of ledger.py.
function Supply.rows(base, sku)
  local rows, out = call('HGETALL', base .. 'exp:' .. sku), {}
  for i = 1, #rows, 2 do
    local now = unpack_msg(rows[i + 1])
    local value = value_of(now)
    if value > 0 then
      out[#out + 1] = {now[NODE], KIND_NAMES[now[KIND]], now[REFERENCE], now[LINE], value, now[DUE]}
    end
  end
  return out
end

-- Cells without a fact for so long are forgotten, unless something is still expected of them: those are looked at again
-- after as long. Returns how many were looked at.
function Supply.forget(ctx, txn, retention_ms)
  local last = ctx.base .. 'exp_last'
  local old = call('ZRANGE', last, '-inf', int(ctx.clock - retention_ms), 'BYSCORE', 'LIMIT', '0', FORGET_PER_CALL)
  for _, name in ipairs(old) do
    local length, at = match(name, '^(%d+):()')
    local key, field = ctx.base .. 'exp:' .. sub(name, at, at + length - 1), sub(name, at + length)
    local raw = call('HGET', key, field)
    local now = raw and unpack_msg(raw)
    if now and value_of(now) > 0 then
      local score = now[LAST]
      now[LAST] = ctx.clock
      txn:hash(key, field, pack(now), raw)
      txn:put('ZADD', last, ctx.clock, name, score)
    else
      if raw then txn:hash(key, field, false, raw) end
      txn:put('ZREM', last, name, false, now and now[LAST] or 0)
    end
  end
  return #old
end

end
