-- A connection leaves a channel.
-- KEYS and the end of ARGV as where it enters; ARGV: socket, epoch and seq that the caller knows, seconds that the
-- counter outlives the channel
-- Out: 'ok', epoch, time in ms, number of transitions, then kind, seq and user of each.
local entry = redis.call('HGET', KEYS[2], ARGV[1])
if not entry then return { 'ok', '0', '0', '0' } end
local time = redis.call('TIME')
local now_ms = time[1] .. string.format('%03d', math.floor(time[2] / 1000))
local epoch = redis.call('HGET', KEYS[1], 'epoch')
local seq = redis.call('HGET', KEYS[1], 'seq')
if not epoch or tonumber(epoch) < tonumber(ARGV[2]) then
  epoch, seq = ARGV[2], ARGV[3]
elseif tonumber(epoch) == tonumber(ARGV[2]) and tonumber(seq) < tonumber(ARGV[3]) then
  seq = ARGV[3]
end
seq = tonumber(seq)

local out = {}
local function decide(kind, user)
  seq = seq + 1
  out[#out + 1] = kind
  out[#out + 1] = string.format('%.0f', seq)
  out[#out + 1] = user
end

redis.call('HDEL', KEYS[2], ARGV[1])
local user = string.sub(entry, string.find(entry, ' ', 1, true) + 1)
if user ~= '' and redis.call('HINCRBY', KEYS[3], user, -1) <= 0 then
  redis.call('HDEL', KEYS[3], user)
  redis.call('HDEL', KEYS[4], user)
  decide('removed', user)
end
local vacated = redis.call('HLEN', KEYS[2]) == 0
if vacated then decide('vacated', '') end
redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', string.format('%.0f', seq))
if vacated then redis.call('EXPIRE', KEYS[1], ARGV[4]) end

local reply = { 'ok', epoch, now_ms, tostring(#out / 3) }
for _, item in ipairs(out) do reply[#reply + 1] = item end
return reply
