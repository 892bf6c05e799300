-- Whether to tell how many connections are in a channel.
-- KEYS: sockets, told; ARGV: a large number of connections, ms between two counts of as many, seconds to remember
-- Out: 'tell' and the count, 'later' and the ms to wait, or 'told'.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local count = redis.call('HLEN', KEYS[1])
local told = redis.call('HMGET', KEYS[2], 'count', 'at')
if told[1] then
  if tonumber(told[1]) == count then return { 'told' } end
  local wait = tonumber(told[2]) + tonumber(ARGV[2]) - now
  if count > tonumber(ARGV[1]) and wait > 0 then return { 'later', string.format('%.0f', wait) } end
elseif count == 0 then
  return { 'told' }
end
redis.call('HSET', KEYS[2], 'count', tostring(count), 'at', string.format('%.0f', now))
redis.call('EXPIRE', KEYS[2], ARGV[3])
return { 'tell', tostring(count) }
