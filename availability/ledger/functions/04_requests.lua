-- Request memory: request_id -> what was decided, at least 24 h of ledger clock (two generations are looked up).
-- Refusals are remembered like grants: a late twin of a refused request must not be granted.
-- Small hashes keep an id at some 60 bytes; the sweep deletes generations that are past (13_upkeep.lua).

local Requests = {}

-- `bucket` is text: it is printed once a call.
local function key_of(ctx, generation, bucket)
  return ctx.base .. 'req:' .. int_kept(generation % 2, generation) .. ':' .. bucket
end

-- What is kept of a request: fingerprint (12 bytes), then status, version, what it was about, and packed extras, one a
-- line. None of the three can hold a line break.
local function kept_of(fingerprint, status, version, ref, extra)
  return fingerprint .. status .. '\n' .. version .. '\n' .. ref .. '\n' .. (extra ~= nil and pack(extra) or '')
end

-- req = {request_id, bucket, fingerprint, uuid_ms (0: not a UUIDv7), author, correlation_id}
-- Returns what is remembered {status, version, ref, extra}, or nil; second result: a refusal code.
function Requests.find(ctx, req)
  local generation, bucket = floor(ctx.clock / DAY_MS), int(req[2])
  ctx.requests = key_of(ctx, generation, bucket)
  local kept = call('HGET', ctx.requests, req[1]) or call('HGET', key_of(ctx, generation - 1, bucket), req[1])
  if kept then
    if sub(kept, 1, 12) ~= req[3] then return nil, 'REQUEST_ID_REUSED' end
    local status, version, ref, at = match(kept, '^([^\n]*)\n([^\n]*)\n([^\n]*)\n()', 13)
    return {status, version, ref, at <= #kept and unpack_msg(sub(kept, at)) or nil}
  end
  if req[4] > 0 and ctx.now - req[4] > DAY_MS then return nil, 'REQUEST_ID_TOO_OLD' end
  return nil
end

-- After find, which says where.
function Requests.remember(ctx, txn, req, status, version, ref, extra)
  txn:field(ctx.requests, req[1], kept_of(req[3], status, version, ref or '', extra), false)
end
