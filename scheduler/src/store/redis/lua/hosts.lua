-- KEYS: leases, silence, hosts
-- ARGV: lease
-- Returns for each host what it says of itself, and for how much longer it counts as alive (µs; 0: it does not).
local said, all = redis.call('HGETALL', KEYS[3]), {}
for i = 1, #said, 2 do
  all[#all + 1] = { said[i + 1], text(alive(said[i]) or 0) }
end
return all
