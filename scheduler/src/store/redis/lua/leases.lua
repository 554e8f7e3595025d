-- Comes before each script that asks who is alive. KEYS[1]: leases (instance -> when it runs out, in µs of Redis'
-- own clock), KEYS[2]: silence, ARGV[1]: how long a lease lasts, in µs; 0 for onlookers, who renew none and so may not
-- judge a silence.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local lease = tonumber(ARGV[1])

-- Numbers beyond 2^31 must not be written as 1.7e+15.
local function text(number) return string.format('%.0f', number) end

-- If nobody's heartbeat came for half a lease, it was Redis that was away, and leases ran out whose owners live.
-- They get one more lease to come back in. `grace` is when that ends.
local silence = redis.call('HMGET', KEYS[2], 'heard', 'grace')
local heard, grace = tonumber(silence[1] or now), tonumber(silence[2] or 0)
if lease > 0 and now - heard > lease / 2 then
  grace = now + lease
  redis.call('HSET', KEYS[2], 'heard', text(now), 'grace', text(grace))
end

-- For how much longer an instance counts as alive; nil: it does not. One that was buried has no lease at all.
local function alive(instance)
  local till = instance and instance ~= '' and redis.call('ZSCORE', KEYS[1], instance)
  if not till then return nil end
  till = math.max(tonumber(till), grace)
  if till > now then return till - now end
  return nil
end
