-- A connection enters a channel.
-- KEYS: counter, sockets, users (connections of each), infos (what each user shows)
-- ARGV: socket, owner process, user or '', info, most members, epoch and seq that the caller knows, seconds that the
--       counter outlives the channel
-- Out: 'full', or 'ok', epoch, time in ms, number of transitions, then kind and seq of each, then infos of all users.
local time = redis.call('TIME')
local now_us = time[1] .. string.format('%06d', time[2])
local now_ms = time[1] .. string.format('%03d', math.floor(time[2] / 1000))

local epoch = redis.call('HGET', KEYS[1], 'epoch')
local seq = redis.call('HGET', KEYS[1], 'seq')
-- Never below what the caller knows: a store that lost its memory goes on where the cluster was.
if not epoch or tonumber(epoch) < tonumber(ARGV[6]) then
  if tonumber(ARGV[6]) > 0 then
    epoch, seq = ARGV[6], ARGV[7]
  else
    epoch, seq = now_us, '0'
  end
elseif tonumber(epoch) == tonumber(ARGV[6]) and tonumber(seq) < tonumber(ARGV[7]) then
  seq = ARGV[7]
end
seq = tonumber(seq)

local out = {}
local function decide(kind)
  seq = seq + 1
  out[#out + 1] = kind
  out[#out + 1] = string.format('%.0f', seq)
end

local user = ARGV[3]
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then
  if user ~= '' and redis.call('HEXISTS', KEYS[3], user) == 0
    and redis.call('HLEN', KEYS[3]) >= tonumber(ARGV[5]) then
    return { 'full' }
  end
  if redis.call('HLEN', KEYS[2]) == 0 then
    redis.call('PERSIST', KEYS[1])
    decide('occupied')
  end
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ' ' .. user)
  if user ~= '' then
    if redis.call('HINCRBY', KEYS[3], user, 1) == 1 then
      redis.call('HSET', KEYS[4], user, ARGV[4])
      decide('added')
    end
  end
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', string.format('%.0f', seq))
end

local reply = { 'ok', epoch, now_ms, tostring(#out / 2) }
for _, item in ipairs(out) do reply[#reply + 1] = item end
if user ~= '' then
  for _, info in ipairs(redis.call('HVALS', KEYS[4])) do reply[#reply + 1] = info end
end
return reply
