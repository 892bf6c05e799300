-- Publishes a channel's subscription count unless it is published already. The script that counts publishes, so that the
-- last count that arrives is the latest.
-- KEYS: sockets, published; ARGV: connections above which a channel is large, ms between two counts of a large channel,
--       TTL in seconds of a published count and of a published 0, channel of the frames, the frame before and after the count
-- Out: 'tell' and the count, which the caller records; or 'later' and the ms to wait; or 'told' when the count is
--      published already.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local count = redis.call('HLEN', KEYS[1])
local published = redis.call('HMGET', KEYS[2], 'count', 'at')
if published[1] then
  if tonumber(published[1]) == count then return { 'told' } end
  local wait = tonumber(published[2]) + tonumber(ARGV[2]) - now
  if count > tonumber(ARGV[1]) and wait > 0 then return { 'later', string.format('%.0f', wait) } end
elseif count == 0 then
  return { 'told' }
end
redis.call('HSET', KEYS[2], 'count', tostring(count), 'at', string.format('%.0f', now))
-- Once no count is stored, 0 counts as published.
redis.call('EXPIRE', KEYS[2], string.match(ARGV[3], count == 0 and ' (%d+)$' or '^(%d+) '))
redis.pcall('PUBLISH', ARGV[4], ARGV[5] .. tostring(count) .. ARGV[6])
return { 'tell', tostring(count) }
