-- Stores a channel's last event, and ends the pause after a reported cache miss.
-- KEYS: last event, reported miss; ARGV: the event, its TTL in seconds
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('DEL', KEYS[2])
return { 'ok' }
