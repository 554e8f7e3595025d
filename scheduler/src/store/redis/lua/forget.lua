-- KEYS: claims, records, lanes, due
-- ARGV: epoch, the job's name
local held = redis.call('HGET', KEYS[1], ARGV[2])
-- Asked again after a lost answer: it is gone, as it should be.
if not held then return 1 end
if string.match(held, '^%S* (%d+)') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
return 1
