-- Counted anew each time, from the attempts of live owners: a count that is kept would drift with each crash.
-- KEYS: leases, silence, begun
-- ARGV: lease
local counts, tenants, known = {}, {}, {}
local all = redis.call('HGETALL', KEYS[3])
for i = 1, #all, 2 do
  local owner = string.match(all[i + 1], '^(%S*) ')
  if known[owner] == nil then known[owner] = alive(owner) ~= nil end
  if known[owner] then
    local tenant = string.match(all[i], '^[^/]*')
    if not counts[tenant] then tenants[#tenants + 1] = tenant end
    counts[tenant] = (counts[tenant] or 0) + 1
  end
end
local answer = {}
for _, tenant in ipairs(tenants) do answer[#answer + 1] = { tenant, counts[tenant] } end
return answer
