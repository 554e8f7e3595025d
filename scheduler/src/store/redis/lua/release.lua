-- KEYS: job, begun, cancels
-- ARGV: epoch, the job's name
local job = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'starts', 'token')
if job[1] ~= 'begun' or job[2] ~= ARGV[1] then return 0 end
local starts = tonumber(job[3]) - 1
-- An earlier attempt that may have run is not undone with this one: then the job has begun, and nobody has it.
redis.call('HSET', KEYS[1], 'state', starts > 0 and 'begun' or 'waiting', 'starts', starts, 'spent', job[4] or '')
redis.call('HDEL', KEYS[1], 'owner', 'token')
if starts > 0 then
  redis.call('HSET', KEYS[2], ARGV[2], ' ' .. job[2] .. ' ')
else
  redis.call('HDEL', KEYS[2], ARGV[2])
  redis.call('SREM', KEYS[3], ARGV[2])
end
return 1
