-- Ring-fences: what other channels must leave for one, who takes from it, and what goes back to it.
-- A fence is a FenceState array of record.py; its generation is the version that set it. They stand together in the
-- sku's "f" (06_positions.lua).

do

local CHANNEL, LEFT, GENERATION = 1, 3, 4
local LINE_SKU, LINE_SOURCES, LINE_FENCED, LINE_GENERATION = 1, 3, 4, 5

local function find_of(s, channel_name)
  for _, fence in ipairs(Positions.fences(s)) do
    if fence[CHANNEL] == channel_name then return fence end
  end
  return nil
end

-- Units that the channel must leave for the fences of others; `places` are those of its N (07_sourcing.lua).
-- A fence is covered first by what is free where its channel sells and this one does not. Both sides mean N: a node
-- that is offline, excluded or stale can cover no fence, and is not shared by a channel that cannot sell from it. Where
-- the two share no node at all the term is 0: nothing that is sold here is missing there.
function Fences.against(ctx, channel, s, places)
  local others, lefts = {}, {}
  for _, fence in ipairs(Positions.fences(s)) do
    if fence[LEFT] > 0 and fence[CHANNEL] ~= channel.name then
      others[#others + 1] = Policy.channel(ctx, fence[CHANNEL], true)
      lefts[#others] = fence[LEFT]
    end
  end
  if #others == 0 then return 0 end
  Positions.read_others(s, others)
  local mine, fenced = {}, 0
  for i = 1, #places, 2 do mine[places[i]] = true end
  for k, other in ipairs(others) do
    local excluded, shared, left = s.excluded[other.name], false, lefts[k]
    for i, node in ipairs(other.nodes) do
      if other.online[i] and not excluded[node] then
        if mine[node] then
          shared = true
        else
          left = left - max(0, (Sourcing.net_of(s.nodes[node], other.safety[i])))
        end
      end
    end
    if shared then fenced = fenced + max(0, left) end
  end
  return fenced
end

-- A granted hold line takes from its channel's fence first, and notes how much.
function Fences.take(ctx, channel_name, line, units)
  local s = ctx.skus[line[LINE_SKU]]
  local fence = s.fence_raw and find_of(s, channel_name)
  if not fence or fence[LEFT] == 0 then return end
  if not units then
    units = 0
    for _, src in ipairs(line[LINE_SOURCES]) do units = units + src[2] end
  end
  local taken = min(units, fence[LEFT])
  if taken == 0 then return end
  fence[LEFT] = fence[LEFT] - taken
  line[LINE_FENCED], line[LINE_GENERATION] = taken, fence[GENERATION]
  Positions.touch_fence(ctx, s, fence)
end

-- What a line took goes back to its fence, where that is still of the same generation.
function Fences.give_back(ctx, channel_name, line)
  local taken = line[LINE_FENCED]
  if not taken or taken == 0 then return end
  local s = Positions.read(ctx, line[LINE_SKU])
  local fence = find_of(s, channel_name)
  if not fence or fence[GENERATION] ~= line[LINE_GENERATION] then return end
  fence[LEFT] = fence[LEFT] + taken
  Positions.touch_fence(ctx, s, fence)
end

-- Of a line that `stays` units are left of: note in its two parts which fenced units go and which stay. Those go last.
function Fences.split(line, gone, left, stays)
  local taken = line[LINE_FENCED]
  if not taken or taken == 0 then return end
  local keeps = min(taken, stays)
  if keeps > 0 then left[LINE_FENCED], left[LINE_GENERATION] = keeps, line[LINE_GENERATION] end
  if keeps < taken then gone[LINE_FENCED], gone[LINE_GENERATION] = taken - keeps, line[LINE_GENERATION] end
end

end
