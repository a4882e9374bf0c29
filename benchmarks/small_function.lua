#!lua name=bench_small
-- The least that a reserve can be (DESIGN's "small function"): request memory, one hold, its deadline, one log entry.
-- No epoch, no chain, no policy, no undo. Beside it the real function is measured.
-- ARGV: request bucket, request id, reservation id, sku, node, quantity, deadline
local function reserve(keys, args)
  local base = keys[1]
  local requests = base .. 'req:' .. args[1]
  local seen = redis.call('HGET', requests, args[2])
  if seen then return seen end
  local position = base .. 'pos:' .. args[4]
  local found = redis.call('HMGET', position, args[5] .. ':on_hand', args[5] .. ':reserved')
  local on_hand, reserved, quantity = tonumber(found[1] or 0), tonumber(found[2] or 0), tonumber(args[6])
  if on_hand - reserved < quantity then return 'INSUFFICIENT_STOCK' end
  redis.call('HSET', position, args[5] .. ':reserved', reserved + quantity)
  redis.call('SET', base .. 'res:' .. args[3], cmsgpack.pack({args[4], args[5], quantity, args[7]}))
  redis.call('ZADD', base .. 'due', args[7], args[3])
  redis.call('HSET', requests, args[2], args[3])
  redis.call('XADD', base .. 'log', '*', 'r', cmsgpack.pack({args[3], args[4], args[5], quantity, args[7]}))
  return 'RESERVED'
end

local function fill(keys, args)
  redis.call('HSET', keys[1] .. 'pos:' .. args[1], args[2] .. ':on_hand', args[3], args[2] .. ':reserved', 0)
  return 'OK'
end

redis.register_function('bench_small_reserve', reserve)
redis.register_function('bench_small_fill', fill)
