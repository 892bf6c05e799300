-- Keeps a channel's last event.
-- KEYS: last, missed; ARGV: the event, seconds to keep it
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('DEL', KEYS[2])
return { 'ok' }
