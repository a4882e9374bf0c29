-- Positions: one hash per sku, a packed value per node ("n" .. node), and the sku's small extras:
--   "k" it has a position · "i" it is in the list of skus · "b" .. channel a stop ("b" alone: every channel)
--   "s" .. node who set a safety stock of its own {version, author, reason, clock} · "v" .. channel an override · "q" .. node quarantined by reason · later: "f" .. channel what is left of a fence.
-- Beside it `use:<sku>` names who stands behind reserved and committed: "h" .. reservation, "o" .. order,
-- and "w" .. order what its own facts count already of the holds that carry it.
-- Everything read is kept in ctx.skus for the call; changes are flushed once.

local Positions = {}
local LAYOUT = '<i8i8i8i8i8'

-- A position: its figures, its packed value as last written (false: there is none), and the sku `of` which it waits
-- to be written (false: unchanged). 8 fields: Lua doubles a table at the next.
local function decode(node, raw)
  local a, b, c, d, e = 0, 0, 0, 0, -1
  if raw then a, b, c, d, e = struct_unpack(LAYOUT, raw) end
  return {on_hand = a, quarantined = b, reserved = c, committed = d, safety = e, raw = raw, node = node, of = false}
end

-- The sku as one channel sees it: extras and the channel's positions, one HMGET. Look at it (07_sourcing.lua) before
-- the next channel is read.
function Positions.read(ctx, sku, channel)
  local s = ctx.skus[sku]
  if not s then
    s = {
      sku = sku, key = ctx.base .. 'pos:' .. sku, nodes = {}, known = false, channel = false, blocked = false, changed = 0,
    }
    ctx.skus[sku] = s
  end
  if not channel or s.channel == channel.name then return s end
  local found = call('HMGET', s.key, unpack(channel.fields))
  s.known = s.known or (found[1] and true or false)
  s.channel = channel.name
  s.blocked = channel.blocked or (found[2] or found[3]) and true or false
  s.override = found[4] and unpack_msg(found[4]) or nil
  local names, nodes = channel.nodes, s.nodes
  for i = 1, #names do
    local node = names[i]
    if not nodes[node] then nodes[node] = decode(node, found[4 + i]) end
  end
  return s
end

-- One position, whether a channel has read it or not.
function Positions.at(ctx, sku, node)
  local s = ctx.skus[sku] or Positions.read(ctx, sku)
  local p = s.nodes[node]
  if not p then
    p = decode(node, call('HGET', s.key, 'n' .. node))
    s.nodes[node] = p
  end
  return p, s
end

-- Note that a position changes; the new figures are already in it.
function Positions.touch(ctx, s, node)
  local p = s.nodes[node]
  if not p.of then
    p.of = s
    s.changed = s.changed + 1
    ctx.dirty[#ctx.dirty + 1] = p
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
  local dirty = ctx.dirty
  for i = 1, #dirty do
    local p = dirty[i]
    local s, node = p.of, p.node
    local a0, b0, c0, d0 = 0, 0, 0, 0
    if p.raw then
      a0, b0, c0, d0 = struct_unpack(LAYOUT, p.raw)
    else
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
    local a, b, c, d, safety = p.on_hand, p.quarantined, p.reserved, p.committed, p.safety
    local raw = struct_pack(LAYOUT, a, b, c, d, safety)
    if p.raw and s.changed == 1 then -- the common case needs no gathering of fields
      txn:field(s.key, 'n' .. node, raw, p.raw)
    else
      txn:hash(s.key, 'n' .. node, raw, p.raw)
    end
    changes[i] = {s.sku, node, a, b, c, d, safety, a - a0, b - b0, c - c0, d - d0}
    p.raw, p.of = raw, false
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
