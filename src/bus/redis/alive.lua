-- A process tells that it is alive, and learns who else is.
-- KEYS: the processes; ARGV: process, its address, ms for which it counts as alive
-- Out: '1' if it was known as alive before, else '0'; then process and address of each that is alive.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local out = { '0' }
for n, value in ipairs(redis.call('HGETALL', KEYS[1])) do
  if n % 2 == 1 then
    out[#out + 1] = value
  else
    local space = string.find(value, ' ', 1, true)
    local process = out[#out]
    if tonumber(string.sub(value, 1, space - 1)) < now then
      redis.call('HDEL', KEYS[1], process)
      out[#out] = nil
    elseif process == ARGV[1] then
      out[1] = '1'
      out[#out] = nil
    else
      out[#out + 1] = string.sub(value, space + 1)
    end
  end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now + tonumber(ARGV[3])) .. ' ' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], 2 * ARGV[3])
out[#out + 1] = ARGV[1]
out[#out + 1] = ARGV[2]
return out
