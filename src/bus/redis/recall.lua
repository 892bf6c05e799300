-- A channel's last event, for someone who comes.
-- KEYS: last, missed; ARGV: ms in which one is to tell that there is none
-- Out: 'kept' and the event, or 'first', or 'missing'.
local last = redis.call('GET', KEYS[1])
if last then return { 'kept', last } end
if redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[1]) then return { 'first' } end
return { 'missing' }
