-- KEYS: job
-- ARGV: how long a job that waits is remembered (ms), the tier that it needs ('' if that is not known)
local new = redis.call('HSETNX', KEYS[1], 'state', 'waiting')
if new == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'state') == 'waiting' then
  redis.call('HSET', KEYS[1], 'tier', ARGV[2])
end
return new
