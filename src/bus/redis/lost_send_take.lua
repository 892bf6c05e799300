-- Takes the sessions of a process that lost a client's message.
-- KEYS: the process's sessions with lost messages
local sessions = redis.call('LRANGE', KEYS[1], 0, -1)
if #sessions > 0 then redis.call('DEL', KEYS[1]) end
return sessions
