-- KEYS: job, result, begun, cancels
-- ARGV: epoch, outcome, result, how long it is kept (ms), how long the job is remembered (ms), the job's name,
--       digest ('' if it is not known), starts, '1' if the result was accepted before and Redis may have forgotten it
local epoch, outcome, result, keep, remember = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local name, digest, starts, confirmed = ARGV[6], ARGV[7], ARGV[8], ARGV[9] == '1'
local job = redis.call('HMGET', KEYS[1], 'state', 'epoch')

if job[1] == 'over' then
  -- The answer was lost on its way, or the result of another attempt stands.
  return job[2] == epoch and 'stored' or 'stale'
end
-- A greater epoch than the one here is an attempt that Redis forgot: none that it knows is newer. A smaller one is
-- too late, unless it was told before that its result stands; then the newer attempt is the one that is too late.
if job[2] and tonumber(job[2]) > tonumber(epoch) and not confirmed then return 'stale' end

-- First what can be refused for lack of memory: a script is not undone.
redis.call('SET', KEYS[2], result, 'PX', keep)
redis.call('HSET', KEYS[1], 'state', 'over', 'epoch', epoch, 'outcome', outcome, 'starts', starts)
if digest ~= '' then redis.call('HSETNX', KEYS[1], 'digest', digest) end
redis.call('HDEL', KEYS[1], 'owner', 'token', 'spent', 'cancelled')
redis.call('PEXPIRE', KEYS[1], remember)
redis.call('HDEL', KEYS[3], name)
redis.call('SREM', KEYS[4], name)
return 'stored'
