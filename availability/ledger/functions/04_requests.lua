-- Request memory: request_id -> what was decided, at least 24 h of ledger clock (two generations are looked up).
-- Refusals are remembered like grants: a late twin of a refused request must not be granted.
-- Small hashes keep an id at some 60 bytes; the sweep deletes generations that are past (13_upkeep.lua).

local Requests = {}

local function key_of(ctx, generation, bucket)
  return ctx.base .. 'req:' .. int(generation) .. ':' .. bucket
end

-- req = {request_id, bucket, fingerprint, uuid_ms (0: not a UUIDv7), author, correlation_id}
-- Returns the remembered {fingerprint, code, version, ref, extra}, or nil; second result: a refusal code.
function Requests.find(ctx, req)
  local generation = floor(ctx.clock / DAY_MS)
  local found = call('HGET', key_of(ctx, generation, req[2]), req[1])
    or call('HGET', key_of(ctx, generation - 1, req[2]), req[1])
  if found then
    found = unpack_msg(found)
    if found[1] ~= req[3] then return nil, 'REQUEST_ID_REUSED' end
    return found
  end
  if req[4] > 0 and ctx.now - req[4] > DAY_MS then return nil, 'REQUEST_ID_TOO_OLD' end
  return nil
end

function Requests.remember(ctx, txn, req, code, version, ref, extra)
  local key = key_of(ctx, floor(ctx.clock / DAY_MS), req[2])
  txn:hash(key, req[1], pack({req[3], code, version, ref or '', extra}), false)
end

function Requests.head(req)
  return {request_id = req[1], author = req[5], correlation_id = req[6]}
end
