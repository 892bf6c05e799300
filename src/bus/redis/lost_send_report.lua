-- Reports to a session's owner that a client's message did not reach it.
-- KEYS: the owner's sessions with lost messages; ARGV: session, most sessions, TTL of the list in seconds
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], -tonumber(ARGV[2]), -1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return { 'ok' }
