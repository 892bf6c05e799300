-- Publishes the termination of a user's connections, and keeps it for processes whose subscription is interrupted.
-- KEYS: terminations (time of each, in ms); ARGV: 1 message; 2 channel of the frames; 3 TTL in ms; 4 most that are kept
local ttl_ms, most = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ttl_ms))
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -most - 1)
redis.call('PEXPIRE', KEYS[1], ttl_ms)
redis.call('PUBLISH', ARGV[2], ARGV[1])
return { 'ok' }
