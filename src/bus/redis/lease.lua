-- A process says that it lives, and hears who does not.
-- KEYS: 1 leases (until when, in ms), 2 incarnation of the store's memory; both of one slot
-- ARGV: 1 process, 2 ms that the lease holds, 3 a new name for the incarnation, 4 what tells the run of the store,
--       5 for how many ms the store has run, as far as that tells the age of its memory
-- Out: 'kept', 'new' or 'ended', which is not renewed; the incarnation, its age in ms, then dead processes.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- "name since run"
local incarnation = redis.call('GET', KEYS[2])
if not incarnation then
  incarnation = ARGV[3] .. ' ' .. string.format('%.0f', now - tonumber(ARGV[5])) .. ' ' .. ARGV[4]
  redis.call('SET', KEYS[2], incarnation)
elseif string.match(incarnation, ' (%S+)$') ~= ARGV[4] then
  incarnation = ARGV[3] .. ' ' .. string.format('%.0f', now) .. ' ' .. ARGV[4]
  redis.call('SET', KEYS[2], incarnation)
end
local held = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '0')
local reply = { held == 0 and 'new' or held >= now and 'kept' or 'ended', incarnation,
  string.format('%.0f', now - tonumber(string.match(incarnation, ' (%d+) '))) }
if reply[1] ~= 'ended' then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
end
local ended = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - 1), 'LIMIT', '0', '16')
for _, process in ipairs(ended) do reply[#reply + 1] = process end
return reply
