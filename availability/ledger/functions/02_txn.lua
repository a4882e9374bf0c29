-- All or nothing. Redis rolls nothing back, so every mutation is collected here first, with what it replaces, and
-- then carried out; when one fails, those done are undone in reverse order and the failure is raised.
-- The log entry comes last: whatever is in the log has happened, and whatever failed is not in it.

local Txn = {}
Txn.__index = Txn

function Txn.new()
  return setmetatable({cmds = {}, olds = {}, n = 0, hashes = false, order = false}, Txn)
end

-- Queue a command. `old` is what it replaces: SET the value, ZADD and ZREM the score, HSET and HDEL the list of old
-- values; false or nil where there was nothing. Housekeeping that may be repeated (DEL, XTRIM, SADD) needs none.
function Txn:add(cmd, old)
  local n = self.n + 1
  self.n = n
  self.cmds[n] = cmd
  self.olds[n] = old or false
end

-- Set one hash field, where the call sets no other of that key; `old` as below.
function Txn:field(key, field, new, old)
  self:add({'HSET', key, field, new}, {old})
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
  RPUSH = function(cmd) redis.pcall('RPOP', cmd[2]) end,
}

-- Carry out. `last` (the log entry) has no inverse and needs none.
function Txn:commit(last)
  local order = self.order
  for i = 1, order and #order or 0 do self:flush(order[i]) end
  if last then self:add(last) end
  local cmds = self.cmds
  for i = 1, self.n do
    local reply = pcall_redis(unpack(cmds[i]))
    if type(reply) == 'table' and reply.err then
      for j = i - 1, 1, -1 do
        local undo = inverse[cmds[j][1]]
        if undo then undo(cmds[j], self.olds[j]) end
      end
      error({err = 'ERR availability: write failed and was undone: ' .. cmds[i][1] .. ': ' .. reply.err})
    end
  end
end
