-- Names and flags. @VERSION@ is the library's own digest: servers of two releases can run beside each other.
-- allow-oom: what gives stock back or records facts must work when memory is full; reserving must not.

local function bind()
  pack, unpack_msg, unpack_limit = cmsgpack.pack, cmsgpack.unpack, cmsgpack.unpack_limit
  struct_pack, struct_unpack, concat = struct.pack, struct.unpack, table.concat
  sub, byte, find, match, format = string.sub, string.byte, string.find, string.match, string.format
  int_format = format('%d', 2^53) == '9007199254740992' and '%d' or '%.0f' -- %d is faster, where it has 64 bits
  floor, ceil, max, min, abs = math.floor, math.ceil, math.max, math.min, math.abs
  call, pcall_redis, sha1hex = redis.call, redis.pcall, redis.sha1hex
end

local function register(name, callback, flags)
  redis.register_function({
    function_name = 'availability_@VERSION@_' .. name,
    callback = function(keys, args)
      if not call then bind() end
      return callback(keys, args)
    end,
    flags = flags,
  })
end

register('reserve', Reservations.reserve, {})
register('extend', Reservations.extend, {'allow-oom'})
register('commit', Reservations.commit, {'allow-oom'})
register('release', Reservations.release, {'allow-oom'})
register('deltas', Deltas.apply, {})
register('facts', Deltas.apply, {'allow-oom'})
register('stream', Streams.change, {'allow-oom'})
register('policy', Policies.set, {})
register('report', Exceptions.report, {'allow-oom'})
register('acknowledge', Exceptions.acknowledge, {'allow-oom'})
register('snapshot_begin', Snapshots.begin, {'allow-oom'})
register('snapshot_chunk', Snapshots.chunk, {})
register('snapshot_end', Snapshots.finish, {'allow-oom'})
register('snapshot_close', Snapshots.close, {'allow-oom'})
register('create', Upkeep.create, {})
register('handshake', Upkeep.handshake, {'allow-oom'})
register('sweep', Upkeep.sweep, {'allow-oom'})
register('checkpoint', Upkeep.checkpoint, {'allow-oom'})
register('trim', Upkeep.trim, {'allow-oom'})
register('canary', Upkeep.canary, {'allow-oom'})
register('preview', Policies.preview, {'no-writes'})
register('head', Reads.head, {'no-writes'})
register('policies', Reads.policies, {'no-writes'})
register('page', Reads.page, {'no-writes'})
register('skus', Reads.skus, {'no-writes'})
register('reservation', Reads.reservation, {'no-writes'})
register('reservations', Reads.reservations, {'no-writes'})
register('order', Reads.order, {'no-writes'})
register('streams', Reads.streams, {'no-writes'})
register('behind', Reads.behind, {'no-writes'})
register('feeds', Reads.feeds, {'no-writes'})
register('exceptions', Reads.exceptions, {'no-writes'})
register('troubles', Reads.troubles, {'no-writes'})
register('snapshots', Reads.snapshots, {'no-writes'})
register('snapshot', Reads.snapshot, {'no-writes'})
register('chunk', Reads.chunk, {'no-writes'})
register('marks', Reads.marks, {'no-writes'})
register('stock', Reads.stock, {'no-writes'})
register('open_orders', Reads.open_orders, {'no-writes'})
register('sums', Reads.sums, {'no-writes'})
register('forgotten', Reads.forgotten, {'no-writes'})
