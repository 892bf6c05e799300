-- Renews a process's lease, and returns the processes whose lease has expired.
-- KEYS: 1 leases (expiry of each, in ms); 2 incarnation of the store's data, in the same slot
-- ARGV: 1 process; 2 TTL of the lease in ms; 3 name for a new incarnation; 4 id of the store's run; 5 uptime of the store
--       in ms, as far as it gives the age of the store's data
-- Out: 'kept', 'new' or 'ended' (an expired lease is not renewed); the incarnation, its age in ms, then dead processes.
local process, lease_ttl_ms, new_incarnation, run_id, uptime_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- "name since run"
local incarnation = redis.call('GET', KEYS[2])
if not incarnation then
  incarnation = new_incarnation .. ' ' .. string.format('%.0f', now - tonumber(uptime_ms)) .. ' ' .. run_id
  redis.call('SET', KEYS[2], incarnation)
elseif string.match(incarnation, ' (%S+)$') ~= run_id then
  incarnation = new_incarnation .. ' ' .. string.format('%.0f', now) .. ' ' .. run_id
  redis.call('SET', KEYS[2], incarnation)
end
local expires = tonumber(redis.call('ZSCORE', KEYS[1], process) or '0')
local reply = { expires == 0 and 'new' or expires >= now and 'kept' or 'ended', incarnation,
  string.format('%.0f', now - tonumber(string.match(incarnation, ' (%d+) '))) }
if reply[1] ~= 'ended' then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(lease_ttl_ms)), process)
end
local ended = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - 1), 'LIMIT', '0', '16')
for _, dead in ipairs(ended) do reply[#reply + 1] = dead end
return reply
