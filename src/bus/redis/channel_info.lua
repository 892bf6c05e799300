-- Returns a channel's connections, users and last event.
-- KEYS: sockets, users, last event
-- Out: 'ok', number of connections, the last event or '', its remaining TTL in ms, then the users' ids.
local reply = { 'ok', tostring(redis.call('HLEN', KEYS[1])), redis.call('GET', KEYS[3]) or '',
  tostring(redis.call('PTTL', KEYS[3])) }
for _, user in ipairs(redis.call('HKEYS', KEYS[2])) do reply[#reply + 1] = user end
return reply
