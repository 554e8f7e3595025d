-- KEYS: job
-- ARGV: how long a job that waits is remembered (ms)
if redis.call('HSETNX', KEYS[1], 'state', 'waiting') == 0 then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
