-- An attempt that its owner knows nothing of: whoever begins the job next need not wait for it.
-- KEYS: job, begun
-- ARGV: epoch, instance, the job's name
local job = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner')
if job[1] == 'begun' and job[2] == ARGV[1] and job[3] == ARGV[2] then
  redis.call('HDEL', KEYS[1], 'owner', 'token')
  redis.call('HSET', KEYS[2], ARGV[3], ' ' .. ARGV[1] .. ' ')
  return 1
end
-- The job was forgotten (its time was over) and its entry here was not.
if not job[1] then redis.call('HDEL', KEYS[2], ARGV[3]) end
return 0
