-- KEYS: leases, silence, claims, records, lanes, due
-- ARGV: lease, instance, token, the job's name, record, lane
-- A job that is claimed twice (its delivery came again before it was acknowledged) stays with the first, alive. One whose
-- owner is dead passes to whoever has the same message once more. Another message of the same job must not take the
-- place of the first: its sender is answered when the job is over, and so is the first one's.
local instance, token, name = ARGV[2], ARGV[3], ARGV[4]
local held, last = redis.call('HGET', KEYS[3], name), 0
if held then
  local owner, epoch, holder = string.match(held, '^(%S*) (%d+) (%S*)$')
  if holder == token then return { 'claimed', epoch } end
  if alive(owner) or redis.call('HGET', KEYS[4], name) ~= ARGV[5] then return { 'held' } end
  last = tonumber(epoch)
end
local epoch = text(math.max(last + 1, now))
redis.call('HSET', KEYS[4], name, ARGV[5])
redis.call('HSET', KEYS[5], name, ARGV[6])
redis.call('HSET', KEYS[3], name, instance .. ' ' .. epoch .. ' ' .. token)
redis.call('ZREM', KEYS[6], name)
redis.call('ZADD', KEYS[1], text(now + lease), instance)
return { 'claimed', epoch }
