-- All or nothing. Redis rolls nothing back, so every mutation is collected here first, with what it replaces, and
-- then carried out; when one fails, those done are undone in reverse order and the failure is raised.
-- The log entry comes last: whatever is in the log has happened, and whatever failed is not in it.

local Txn = {}
Txn.__index = Txn

-- Its own array holds the commands, STRIDE values each: name, key, a, b (false: none), old; or the whole command as a
-- table, false, false, false, old. A table a command is what costs most in a short call, and so does letting this one
-- grow: one that is done with is kept for the next.
local STRIDE = 5
local SPARE_MAX = 100 * STRIDE
local spare = false

function Txn.new()
  local txn = spare or setmetatable({n = 0, hashes = false, order = false}, Txn)
  spare = false
  return txn
end

-- Queue a command. `old` is what it replaces: SET the value, ZADD and ZREM the score, HSET and HDEL the list of old
-- values; false or nil where there was nothing. Housekeeping that may be repeated (DEL, XTRIM, SADD) needs none.
function Txn:add(cmd, old)
  return self:put(cmd, false, false, false, old)
end

-- The same for a command of one or two arguments after its key; HSET's `old` is the one old value.
function Txn:put(name, key, a, b, old)
  local n = self.n
  self[n + 1], self[n + 2], self[n + 3], self[n + 4], self[n + 5] = name, key, a, b, old or false
  self.n = n + STRIDE
end

-- Set one hash field, where the call sets no other of that key; `old` as below.
function Txn:field(key, field, new, old)
  return self:put('HSET', key, field, new, old)
end

-- Set or delete (new == false) one hash field, where the call changes few of that key; `old` as below.
function Txn:change(key, field, new, old)
  if new == old then return end
  if new then self:put('HSET', key, field, new, old) else self:put('HDEL', key, field, false, old) end
end

-- Set a hash field (new == false deletes it); `old` is its value before, false where absent. Fields of one key
-- travel together.
function Txn:hash(key, field, new, old)
  if new == old then return end
  if not self.hashes then self.hashes, self.order = {}, {} end
  local h = self.hashes[key]
  if not h then
    h = {set = {'HSET', key}, set_olds = {}, del = {'HDEL', key}, del_olds = {}}
    self.hashes[key] = h
    self.order[#self.order + 1] = key
  end
  if new then
    local s = h.set
    s[#s + 1] = field
    s[#s + 1] = new
    h.set_olds[#h.set_olds + 1] = old
    if #s >= 900 then self:flush(key) end
  elseif old then
    h.del[#h.del + 1] = field
    h.del_olds[#h.del_olds + 1] = old
    if #h.del >= 450 then self:flush(key) end
  end
end

function Txn:flush(key)
  local h = self.hashes[key]
  if not h then return end
  self.hashes[key] = nil
  if #h.set > 2 then self:add(h.set, h.set_olds) end
  if #h.del > 2 then self:add(h.del, h.del_olds) end
end

local inverse = {
  HSET = function(cmd, olds)
    for i = 1, olds and #olds or 0 do
      local field = cmd[1 + 2 * i]
      if olds[i] then redis.pcall('HSET', cmd[2], field, olds[i]) else redis.pcall('HDEL', cmd[2], field) end
    end
  end,
  HDEL = function(cmd, olds)
    for i = 1, olds and #olds or 0 do redis.pcall('HSET', cmd[2], cmd[2 + i], olds[i]) end
  end,
  SET = function(cmd, old)
    if old then redis.pcall('SET', cmd[2], old) else redis.pcall('DEL', cmd[2]) end
  end,
  ZADD = function(cmd, old)
    if old then redis.pcall('ZADD', cmd[2], int(old), cmd[4]) else redis.pcall('ZREM', cmd[2], cmd[4]) end
  end,
  ZREM = function(cmd, old)
    if old then redis.pcall('ZADD', cmd[2], int(old), cmd[3]) end
  end,
  -- old: the bytes that stood there, and the length before
  SETRANGE = function(cmd, old)
    local key, length = cmd[2], old[2]
    if length == 0 then return redis.pcall('DEL', key) end
    if old[1] ~= '' then redis.pcall('SETRANGE', key, cmd[3], old[1]) end
    if length < tonumber(cmd[3]) + #cmd[4] then
      redis.pcall('SET', key, redis.call('GETRANGE', key, '0', int(length - 1)))
    end
  end,
  RPUSH = function(cmd) redis.pcall('RPOP', cmd[2]) end,
}

-- The command at place i as a table, and the old value or list of old values.
function Txn:command(i)
  if not self[i + 1] then return self[i], self[i + 4] end
  local cmd = {self[i], self[i + 1], self[i + 2], self[i + 3] or nil}
  if cmd[1] == 'HSET' or cmd[1] == 'HDEL' then return cmd, {self[i + 4]} end
  return cmd, self[i + 4]
end

function Txn:undo(i)
  local cmd, old = self:command(i)
  local undo = inverse[cmd[1]]
  if undo then undo(cmd, old) end
end

-- Carry out. `last` (the log entry) has no inverse and needs none.
function Txn:commit(last)
  local order = self.order
  for i = 1, order and #order or 0 do self:flush(order[i]) end
  if last then self:add(last) end
  for i = 1, self.n, STRIDE do
    local key, b, reply = self[i + 1], self[i + 3], nil
    if not key then
      reply = pcall_redis(unpack(self[i]))
    elseif b then
      reply = pcall_redis(self[i], key, self[i + 2], b)
    else
      reply = pcall_redis(self[i], key, self[i + 2])
    end
    if type(reply) == 'table' and reply.err then
      for j = i - STRIDE, 1, -STRIDE do self:undo(j) end
      local cmd = self:command(i)
      error({err = 'ERR availability: write failed and was undone: ' .. cmd[1] .. ': ' .. reply.err})
    end
  end
  if self.n <= SPARE_MAX then
    self.n, self.hashes, self.order = 0, false, false
    spare = self
  end
end
