-- Hands over claims whose owners are gone. Asked again with the same token, it answers the same.
-- KEYS: leases, silence, claims, records, lanes, due
-- ARGV: lease, instance, token, how many at most, lane
local instance, token, most, lane, taken = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], {}
local all, known = redis.call('HGETALL', KEYS[3]), {}
for i = 1, #all, 2 do
  if #taken == most then break end
  local name = all[i]
  local owner, epoch, holder = string.match(all[i + 1], '^(%S*) (%d+) (%S*)$')
  if known[owner] == nil then known[owner] = alive(owner) ~= nil end
  local due = tonumber(redis.call('ZSCORE', KEYS[6], name) or 0)
  if holder == token then
    taken[#taken + 1] = { name, epoch, redis.call('HGET', KEYS[4], name) }
  elseif not known[owner] and due <= now and redis.call('HGET', KEYS[5], name) == lane then
    epoch = text(math.max(tonumber(epoch) + 1, now))
    redis.call('HSET', KEYS[3], name, instance .. ' ' .. epoch .. ' ' .. token)
    redis.call('ZREM', KEYS[6], name)
    taken[#taken + 1] = { name, epoch, redis.call('HGET', KEYS[4], name) }
  end
end
if #taken > 0 then redis.call('ZADD', KEYS[1], text(now + lease), instance) end
return taken
