-- All or nothing. Redis rolls nothing back, so every mutation is collected here first, with the inverse of each
-- command, and then carried out; when one fails, those done are undone in reverse order and the failure is raised.
-- The log entry comes last: whatever is in the log has happened, and whatever failed is not in it.

local Txn = {}
Txn.__index = Txn

function Txn.new()
  return setmetatable({cmds = {}, undos = {}, n = 0, hashes = {}}, Txn)
end

function Txn:add(cmd, undo)
  local n = self.n + 1
  self.n = n
  self.cmds[n] = cmd
  self.undos[n] = undo or false
end

-- Set a hash field (new == false deletes it); `old` is its value before, false where absent. Fields of one key
-- travel together.
function Txn:hash(key, field, new, old)
  if new == old then return end
  local h = self.hashes[key]
  if not h then
    h = {set = {'HSET', key}, del = {'HDEL', key}, set_undo = {}, del_undo = {'HSET', key}}
    self.hashes[key] = h
  end
  if new then
    local s = h.set
    s[#s + 1] = field
    s[#s + 1] = new
    local u = h.set_undo
    u[#u + 1] = field
    u[#u + 1] = old
    if #s >= 900 then self:flush(key) end
  elseif old then
    h.del[#h.del + 1] = field
    h.del_undo[#h.del_undo + 1] = field
    h.del_undo[#h.del_undo + 1] = old
    if #h.del >= 450 then self:flush(key) end
  end
end

function Txn:flush(key)
  local h = self.hashes[key]
  self.hashes[key] = nil
  if #h.set > 2 then
    local restore, remove = {'HSET', key}, {'HDEL', key}
    for i = 1, #h.set_undo, 2 do
      local field, old = h.set_undo[i], h.set_undo[i + 1]
      if old then
        restore[#restore + 1] = field
        restore[#restore + 1] = old
      else
        remove[#remove + 1] = field
      end
    end
    local undo = {}
    if #restore > 2 then undo[1] = restore end
    if #remove > 2 then undo[#undo + 1] = remove end
    self:add(h.set, undo)
  end
  if #h.del > 2 then self:add(h.del, {h.del_undo}) end
end

-- Carry out. `last` (the log entry) has no inverse and needs none.
function Txn:commit(last)
  for _, key in ipairs(sorted_keys(self.hashes)) do self:flush(key) end
  if last then self:add(last) end
  local cmds = self.cmds
  for i = 1, self.n do
    local reply = pcall_redis(unpack(cmds[i]))
    if type(reply) == 'table' and reply.err then
      for j = i - 1, 1, -1 do
        local undo = self.undos[j]
        if undo then
          for k = 1, #undo do
            redis.pcall(unpack(undo[k]))
          end
        end
      end
      error({err = 'ERR availability: write failed and was undone: ' .. cmds[i][1] .. ': ' .. reply.err})
    end
  end
end
