-- Returns a channel's last event to a new subscriber; of the subscribers that miss it at one time, one reports the miss.
-- KEYS: last event, reported miss; ARGV: ms in which a miss is reported once
-- Out: 'kept' and the event; or 'first', when the caller reports the miss; or 'missing'.
local last = redis.call('GET', KEYS[1])
if last then return { 'kept', last } end
if redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[1]) then return { 'first' } end
return { 'missing' }
