-- What every other file uses: shorthands, byte order, keys.
-- One library; the files are joined in the order of their names. Rules: no globals, no rollback to rely on
-- (see 02_txn.lua), every number an integer below 2^53, text compared byte by byte (`<` would follow the locale).

-- Redis gives these only while a function runs, so 99_register.lua binds them at the first call.
local call, pcall_redis, sha1hex
local pack, unpack_msg, unpack_limit, struct_pack, struct_unpack
local concat
local sub, byte, find, match, format, int_format
local floor, ceil, max, min, abs

local DAY_MS = 86400000
local BALANCE_ABS_MAX = 100000000000
local QUANTITY_MAX = 1000000000

-- a < b, byte by byte.
local function before(a, b)
  if a == b then return false end
  for i = 1, min(#a, #b) do
    local x, y = byte(a, i), byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- The keys of a table of text keys, in byte order.
local function sorted_keys(t)
  local names = {}
  for name in pairs(t) do names[#names + 1] = name end
  if names[2] then table.sort(names, before) end
  return names
end

local function add_to(totals, key, units)
  totals[key] = (totals[key] or 0) + units
end

-- Two ids as one, so that no pair can be mistaken for another.
local function pair(a, b)
  return #a .. ':' .. a .. b
end

local function int(n)
  return format(int_format, n)
end

-- How many members of a sorted set stand up to (score, name); members of one score stand in byte order.
local function rank_after(key, score, name)
  if name == '' then return 0 end
  local rank = call('ZCOUNT', key, '-inf', '(' .. int(score))
  for _, one in ipairs(call('ZRANGE', key, int(score), int(score), 'BYSCORE')) do
    if not before(name, one) then rank = rank + 1 end
  end
  return rank
end

-- Text of numbers that hardly change, kept between calls: printing a number costs as much as reading a key.
local printed = {}
local function int_kept(slot, n)
  local p = printed[slot]
  if not p or p[1] ~= n then
    p = {n, int(n)}
    printed[slot] = p
  end
  return p[2]
end

local function version_text(epoch, seq)
  return int_kept('epoch', epoch) .. '-' .. int(seq)
end
