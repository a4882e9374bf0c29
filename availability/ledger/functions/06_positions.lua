-- Positions: one hash per sku, a packed value per node ("n" .. node), and the sku's small extras:
--   "k" it has a position · "i" it is in the list of skus · "b" .. channel a stop ("b" alone: every channel)
--   "v" .. channel an override · "s" .. node who set a safety stock of its own {version, author, reason, clock}
--   "c" a kit's recipe (07_kits.lua) · "q" .. node quarantined by reason · "f" every channel's ring-fence (FenceState rows of record.py).
-- Beside it `use:<sku>` names who stands behind reserved and committed: "h" .. reservation, "o" .. order,
-- and "w" .. order what its own facts count already of the holds that carry it.
-- Everything read is kept in ctx.skus for the call; changes are flushed once.

local Positions = {}
local Counts = {} -- 10_counts.lua: what follows the five figures
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
  if found[5] and not s.fence_raw then s.fence_raw = found[5] end
  local names, nodes = channel.nodes, s.nodes
  for i = 1, #names do
    local node = names[i]
    if not nodes[node] then nodes[node] = decode(node, found[5 + i]) end
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

-- The sku's ring-fences as FenceState rows, by channel; kept for the call. `fence_raw` is nil where no grant has read
-- the sku, or where there are none.
function Positions.fences(s)
  if not s.fences then
    if s.fence_raw == nil then s.fence_raw = call('HGET', s.key, 'f') end
    s.fences = s.fence_raw and unpack_msg(s.fence_raw) or {}
  end
  return s.fences
end

-- Note that a fence changes; what is left is already in it.
function Positions.touch_fence(ctx, s, fence)
  local touched = ctx.fenced or {}
  ctx.fenced = touched
  if not touched[fence] then
    touched[fence] = s
    touched[#touched + 1] = fence
  end
end

-- What other channels than those read so far need of a sku: their override's exclusions and their nodes, one HMGET.
-- Kept for the call in s.nodes and s.excluded {channel: {node: true}}.
function Positions.read_others(s, channels)
  local fields, wanted, nodes = {}, {}, s.nodes
  s.excluded = s.excluded or {}
  for _, channel in ipairs(channels) do
    if not s.excluded[channel.name] then
      fields[#fields + 1] = 'v' .. channel.name
      for _, node in ipairs(channel.nodes) do
        if not nodes[node] and not wanted[node] then
          wanted[node] = true
          fields[#fields + 1] = 'n' .. node
        end
      end
    end
  end
  if #fields == 0 then return end
  local found = call('HMGET', s.key, unpack(fields))
  for i, field in ipairs(fields) do
    local name = sub(field, 2)
    if byte(field) == 110 then -- n
      nodes[name] = decode(name, found[i])
    else
      local excluded = {}
      for _, node in ipairs(found[i] and unpack_msg(found[i])[7] or {}) do excluded[node] = true end
      s.excluded[name] = excluded
    end
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

-- Write the fences that changed, and leave FenceLeft rows for the record.
local function flush_fences(ctx, txn)
  local touched, left = ctx.fenced, {}
  for i, fence in ipairs(touched) do
    local s = touched[fence]
    left[i] = {fence[1], fence[2], fence[3], fence[4]}
    local raw = pack(s.fences)
    txn:change(s.key, 'f', raw, s.fence_raw)
    s.fence_raw = raw
  end
  ctx.fences, ctx.fenced = left, nil
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
    local raw = struct_pack(LAYOUT, a, b, c, d, safety) .. Counts.tail(ctx, p)
    if p.raw and s.changed == 1 then -- the common case needs no gathering of fields
      txn:field(s.key, 'n' .. node, raw, p.raw)
    else
      txn:hash(s.key, 'n' .. node, raw, p.raw)
    end
    changes[i] = {s.sku, node, a, b, c, d, safety, a - a0, b - b0, c - c0, d - d0}
    p.raw, p.of = raw, false
  end
  ctx.dirty = {}
  if ctx.fenced then flush_fences(ctx, txn) end
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

-- Reasons that a person must see, however they are written. `quar:<kind>`: (sku, node) -> units, above 0, so that
-- nobody has to look through the positions.
local SEEN_KINDS = {short_pick = 'short_pick', damage = 'damage', damaged = 'damage'}

local function units_by_kind(by)
  local units = {}
  for reason, quantity in pairs(by) do
    local kind = SEEN_KINDS[string.gsub(string.lower(reason), '[ -]', '_')]
    if kind then units[kind] = (units[kind] or 0) + quantity end
  end
  return units
end

local function flush_kinds(ctx, txn, s, node, r)
  local new, old = units_by_kind(r.by), units_by_kind(r.raw and unpack_msg(r.raw) or {})
  for _, kind in ipairs({'short_pick', 'damage'}) do
    if new[kind] or old[kind] then
      local key, name, units = ctx.base .. 'quar:' .. kind, pair(s.sku, node), new[kind] or 0
      local score = call('ZSCORE', key, name)
      if units > 0 then
        txn:put('ZADD', key, units, name, score and tonumber(score))
      elseif score then
        txn:put('ZREM', key, name, false, tonumber(score))
      end
    end
  end
end

function Positions.flush_reasons(ctx, txn)
  for _, s in pairs(ctx.skus) do
    if s.reasons then
      for node, r in pairs(s.reasons) do
        if r.dirty then
          flush_kinds(ctx, txn, s, node, r)
          txn:hash(s.key, 'q' .. node, next(r.by) and pack(r.by) or false, r.raw)
        end
      end
    end
  end
end

function Positions.use_key(ctx, sku)
  return ctx.base .. 'use:' .. sku
end
