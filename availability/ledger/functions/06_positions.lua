-- Positions: one hash per sku, a packed value per node ("n" .. node), and the sku's small extras:
--   "k" it has a position · "i" it is in the list of skus · "b" .. channel a stop ("b" alone: every channel)
--   "v" .. channel an override · "q" .. node quarantined by reason · later: "f" .. channel what is left of a fence.
-- Beside it `use:<sku>` names who stands behind reserved and committed: "h" .. reservation, "o" .. order,
-- and "w" .. order what its own facts count already of the holds that carry it.
-- Everything read is kept in ctx.skus for the call; changes are flushed once.

local Positions = {}
local LAYOUT = '<i8i8i8i8i8'

-- A position with its figures as they were at the last write (0), and its packed value (false: there is none).
local function decode(raw)
  local a, b, c, d, e = 0, 0, 0, 0, -1
  if raw then a, b, c, d, e = struct_unpack(LAYOUT, raw) end
  return {on_hand = a, quarantined = b, reserved = c, committed = d, safety = e, raw = raw, dirty = false,
    on_hand0 = a, quarantined0 = b, reserved0 = c, committed0 = d}
end

local function written(p)
  p.on_hand0, p.quarantined0, p.reserved0, p.committed0 = p.on_hand, p.quarantined, p.reserved, p.committed
end

-- The sku as one channel sees it: extras and the channel's positions, one HMGET.
function Positions.read(ctx, sku, channel)
  local s = ctx.skus[sku]
  if not s then
    s = {sku = sku, key = ctx.base .. 'pos:' .. sku, nodes = {}, views = {}, known = false, listed = nil, reasons = false}
    ctx.skus[sku] = s
  end
  if not channel or s.views[channel.name] then return s end
  local names = channel.nodes
  local args = {'HMGET', s.key, 'k', 'b', 'b' .. channel.name, 'v' .. channel.name}
  for i = 1, #names do args[4 + 2 + i] = 'n' .. names[i] end
  local found = call(unpack(args))
  s.known = s.known or (found[1] and true or false)
  s.views[channel.name] = {
    blocked = channel.blocked or (found[2] or found[3]) and true or false,
    override = found[4] and unpack_msg(found[4]) or nil,
  }
  for i = 1, #names do
    if not s.nodes[names[i]] then s.nodes[names[i]] = decode(found[4 + i]) end
  end
  return s
end

-- One position, whether a channel has read it or not.
function Positions.at(ctx, sku, node)
  local s = ctx.skus[sku] or Positions.read(ctx, sku)
  local p = s.nodes[node]
  if not p then
    p = decode(call('HGET', s.key, 'n' .. node))
    s.nodes[node] = p
  end
  return p, s
end

-- Note that a position changes; the new figures are already in it.
function Positions.touch(ctx, s, node)
  local p = s.nodes[node]
  if not p.dirty then
    p.dirty = true
    ctx.dirty[#ctx.dirty + 1] = {s, node, p}
  end
end

-- Put a sku into the list of skus, once.
function Positions.list(ctx, txn, s)
  if s.listed == nil then s.listed = call('HGET', s.key, 'i') and true or false end
  if not s.listed then
    s.listed = true
    txn:hash(s.key, 'i', '1', false)
    txn:add({'RPUSH', ctx.base .. 'skus', s.sku})
  end
end

-- Write what changed; returns the record's positions.
function Positions.flush(ctx, txn)
  local changes = {}
  local alone = #ctx.dirty == 1 and ctx.dirty[1][3].raw -- the common case needs no gathering of fields
  for i, entry in ipairs(ctx.dirty) do
    local s, node, p = entry[1], entry[2], entry[3]
    if not p.raw then
      Positions.list(ctx, txn, s)
      if not s.known then
        if not s.known_checked then
          s.known = call('HGET', s.key, 'k') and true or false
          s.known_checked = true
        end
        if not s.known then
          s.known = true
          txn:hash(s.key, 'k', '1', false)
        end
      end
    end
    local raw = struct_pack(LAYOUT, p.on_hand, p.quarantined, p.reserved, p.committed, p.safety)
    if alone then
      txn:field(s.key, 'n' .. node, raw, p.raw)
    else
      txn:hash(s.key, 'n' .. node, raw, p.raw)
    end
    changes[i] = {
      s.sku, node, p.on_hand, p.quarantined, p.reserved, p.committed, p.safety,
      p.on_hand - p.on_hand0, p.quarantined - p.quarantined0, p.reserved - p.reserved0, p.committed - p.committed0,
    }
    p.raw, p.dirty = raw, false
    written(p)
  end
  ctx.dirty = {}
  return changes
end

-- Quarantined by reason of one position, kept for the call.
function Positions.reasons(ctx, s, node)
  if not s.reasons then s.reasons = {} end
  local r = s.reasons[node]
  if not r then
    local raw = call('HGET', s.key, 'q' .. node)
    r = {raw = raw, by = raw and unpack_msg(raw) or {}}
    s.reasons[node] = r
  end
  return r
end

function Positions.flush_reasons(ctx, txn)
  for _, s in pairs(ctx.skus) do
    if s.reasons then
      for node, r in pairs(s.reasons) do
        if r.dirty then
          txn:hash(s.key, 'q' .. node, next(r.by) and pack(r.by) or false, r.raw)
        end
      end
    end
  end
end

function Positions.use_key(ctx, sku)
  return ctx.base .. 'use:' .. sku
end
