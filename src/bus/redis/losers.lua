-- Takes what a process is to be told.
-- KEYS: what it is to be told
local told = redis.call('LRANGE', KEYS[1], 0, -1)
if #told > 0 then redis.call('DEL', KEYS[1]) end
return told
