-- Says again what Redis may have forgotten: that an attempt is under way.
-- KEYS: job, begun
-- ARGV: epoch, instance, token, digest, starts, how long the job is remembered (ms), the job's name
local epoch, instance, token = ARGV[1], ARGV[2], ARGV[3]
local job = redis.call('HMGET', KEYS[1], 'state', 'epoch')
if job[1] == 'over' or (job[2] and tonumber(job[2]) >= tonumber(epoch)) then return 0 end
redis.call('HSET', KEYS[1], 'state', 'begun', 'epoch', epoch, 'owner', instance, 'token', token, 'digest', ARGV[4],
  'starts', ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('HSET', KEYS[2], ARGV[7], instance .. ' ' .. epoch .. ' ' .. token)
return 1
