-- The kits of an order: by which recipes our commits put them into it, so that a later fact that names one means the
-- same parts. "k" .. kit of `ord:<order>` (08_orders.lua).

do

local function same_recipe(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i][1] ~= b[i][1] or a[i][2] ~= b[i][2] then return false end
  end
  return true
end

local function add_kits(known, kits, flat)
  for _, one in ipairs(known) do
    if same_recipe(one[2], flat) then
      one[1] = one[1] + kits
      return
    end
  end
  known[#known + 1] = {kits, flat}
end

-- Our commit puts kits {{kit, kits, flat}, ...} into an order.
function Orders.remember_kits(ctx, txn, o, kits)
  for _, k in ipairs(kits) do
    local field = 'k' .. k[1]
    local raw = call('HGET', o.key, field)
    local known = raw and unpack_msg(raw) or {}
    add_kits(known, k[2], k[3])
    txn:hash(o.key, field, pack(known), raw)
  end
end

-- The kits of an order under all its names: {{kit, {{kits, flat recipe}, ...}}, ...}.
function Orders.kits(ctx, o)
  local by_kit, out = {}, {}
  for _, member in ipairs(Orders.members(ctx, o)) do
    for _, field in ipairs(call('HKEYS', member.key)) do
      if byte(field) == 107 then
        local known = by_kit[sub(field, 2)] or {}
        by_kit[sub(field, 2)] = known
        for _, one in ipairs(unpack_msg(call('HGET', member.key, field))) do add_kits(known, one[1], one[2]) end
      end
    end
  end
  for _, kit in ipairs(sorted_keys(by_kit)) do out[#out + 1] = {kit, by_kit[kit]} end
  return out
end

end
