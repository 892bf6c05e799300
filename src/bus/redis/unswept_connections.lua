-- Returns whether connections of a dead process may still count, because no process has swept it yet.
-- KEYS: leases (expiry of each, in ms); ARGV: 1 ms that a lease has left at least while its process renews it; 2 prefix
--       of the channels by which each process hears itself, or '' where the store cannot count all their subscribers
-- Out: '1' or '0'.
local least_left_ms, prefix = tonumber(ARGV[1]), ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leases = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #leases, 2 do
  if tonumber(leases[i + 1]) - now < least_left_ms then return { '1' } end
  -- The store sees the end of a killed process at once by its connection.
  if prefix ~= '' and redis.call('PUBSUB', 'NUMSUB', prefix .. string.match(leases[i], '^[^.]+'))[2] == 0 then
    return { '1' }
  end
end
return { '0' }
