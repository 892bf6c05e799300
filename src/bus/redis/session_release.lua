-- Deletes a session's entry when the session ends, unless another process owns it by now.
-- KEYS: the session; ARGV: process
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return { 'ok' }
