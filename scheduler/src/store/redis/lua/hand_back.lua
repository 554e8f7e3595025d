-- A claim that its owner cannot carry out, or knows nothing of: anybody may take it after a while.
-- KEYS: claims, due
-- ARGV: epoch, the job's name, after how long (µs)
local held = redis.call('HGET', KEYS[1], ARGV[2])
if not held or string.match(held, '^%S* (%d+)') ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local due = time[1] * 1000000 + time[2] + tonumber(ARGV[3])
redis.call('ZADD', KEYS[2], string.format('%.0f', due), ARGV[2])
redis.call('HSET', KEYS[1], ARGV[2], ' ' .. ARGV[1] .. ' ')
return 1
