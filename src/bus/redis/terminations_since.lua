-- Returns the terminations of the latest ms.
-- KEYS: terminations (time of each, in ms); ARGV: ms
-- Out: age in ms and message of each, oldest first.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {}
local kept = redis.call('ZRANGEBYSCORE', KEYS[1], string.format('%.0f', now - tonumber(ARGV[1])), '+inf', 'WITHSCORES')
for i = 1, #kept, 2 do
  reply[#reply + 1] = string.format('%.0f', now - tonumber(kept[i + 1]))
  reply[#reply + 1] = kept[i]
end
return reply
