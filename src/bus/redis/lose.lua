-- A message of a session did not reach its owner.
-- KEYS: what the owner is to be told; ARGV: session, most sessions, seconds to keep them
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], -tonumber(ARGV[2]), -1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return { 'ok' }
