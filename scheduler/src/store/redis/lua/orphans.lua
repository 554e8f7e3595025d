-- KEYS: leases, silence, claims, lanes, due
-- ARGV: lease
-- Returns for each lane how many claims nobody has that may be taken now.
local all, known, counts, lanes = redis.call('HGETALL', KEYS[3]), {}, {}, {}
for i = 1, #all, 2 do
  local owner = string.match(all[i + 1], '^(%S*) ')
  if known[owner] == nil then known[owner] = alive(owner) ~= nil end
  if not known[owner] and tonumber(redis.call('ZSCORE', KEYS[5], all[i]) or 0) <= now then
    local lane = redis.call('HGET', KEYS[4], all[i]) or ''
    if not counts[lane] then lanes[#lanes + 1] = lane end
    counts[lane] = (counts[lane] or 0) + 1
  end
end
local answer = {}
for _, lane in ipairs(lanes) do answer[#answer + 1] = { lane, counts[lane] } end
return answer
