-- KEYS: leases, silence, job, begun, cancels
-- ARGV: lease, instance, token, digest, how long the job is remembered (ms), the job's name
local instance, token, digest, keep, name = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local job = redis.call('HMGET', KEYS[3], 'state', 'digest', 'starts', 'epoch', 'owner', 'token', 'spent', 'cancelled')
local state, known, starts, epoch = job[1], job[2], tonumber(job[3] or 0), tonumber(job[4] or 0)
local owner, holder, spent, cancelled = job[5], job[6], job[7], job[8] == '1' and 1 or 0

if known and known ~= digest then return { 'taken' } end
if state == 'over' then return { 'over' } end
-- The answer to the same question was lost on its way.
if state == 'begun' and holder == token then return { 'attempt', text(epoch), starts, cancelled } end
-- A question that was on its way for so long that its attempt has been taken back already.
if spent == token then return { 'late' } end
if state == 'begun' then
  local left = alive(owner)
  if left then return { 'busy', text(left) } end
end

starts = starts + 1
-- Time makes an epoch that Redis forgot (its last second was never on disk) differ from those given out since.
epoch = math.max(epoch + 1, now)
redis.call('HSET', KEYS[3], 'state', 'begun', 'digest', digest, 'starts', starts, 'epoch', text(epoch),
  'owner', instance, 'token', token)
redis.call('PEXPIRE', KEYS[3], keep)
redis.call('HSET', KEYS[4], name, instance .. ' ' .. text(epoch) .. ' ' .. token)
if cancelled == 1 then redis.call('SADD', KEYS[5], name) end
-- Whoever begins a job is alive.
redis.call('ZADD', KEYS[1], text(now + lease), instance)
return { 'attempt', text(epoch), starts, cancelled }
