-- KEYS: job, cancels
-- ARGV: the job's name, the channel, how long a job that waits is remembered (ms)
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'over' then return 'over' end
redis.call('HSET', KEYS[1], 'cancelled', '1')
if not state then
  redis.call('HSET', KEYS[1], 'state', 'waiting')
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
elseif state == 'begun' then
  -- The set is what counts; the message only makes it quick.
  redis.call('SADD', KEYS[2], ARGV[1])
  redis.call('PUBLISH', ARGV[2], ARGV[1])
end
return 'noted'
