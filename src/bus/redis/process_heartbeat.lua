-- Registers a value of a process, such as its address, and returns those of every process that is alive.
-- KEYS: the processes; ARGV: process, its value, TTL of the registration in ms
-- Out: '1' if the process was registered before, else '0'; then process and value of each that is alive.
local process_ttl_ms = ARGV[3]
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
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now + tonumber(process_ttl_ms)) .. ' ' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], 2 * process_ttl_ms)
out[#out + 1] = ARGV[1]
out[#out + 1] = ARGV[2]
return out
