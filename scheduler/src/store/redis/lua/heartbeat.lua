-- KEYS: leases, silence, hosts, begun, cancels, claims
-- ARGV: lease, instance, what the host says of itself
-- Returns what Redis believes to be this instance's: attempts (name, epoch, token), those of them that somebody
-- cancelled, and claims (name, epoch, token).
local instance = ARGV[2]
redis.call('HSET', KEYS[2], 'heard', text(now))
redis.call('ZADD', KEYS[1], text(now + lease), instance)
redis.call('HSET', KEYS[3], instance, ARGV[3])

-- Who has been silent for long is forgotten, but not while everybody has yet to come back.
if now > grace then
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', text(now - 10 * lease), 'LIMIT', 0, 100)) do
    redis.call('ZREM', KEYS[1], gone)
    redis.call('HDEL', KEYS[3], gone)
  end
end

local function mine(key)
  local found = {}
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    local owner, epoch, token = string.match(all[i + 1], '^(%S*) (%d+) (%S*)$')
    if owner == instance then
      found[#found + 1] = { all[i], epoch, token }
    end
  end
  return found
end

local attempts, cancelled = mine(KEYS[4]), {}
for _, attempt in ipairs(attempts) do
  if redis.call('SISMEMBER', KEYS[5], attempt[1]) == 1 then cancelled[#cancelled + 1] = attempt[1] end
end
return { attempts, cancelled, mine(KEYS[6]) }
