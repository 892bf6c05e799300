-- Everything that changes who is in a channel: connections that come and go, what a process knew when the store lost
-- its memory, the connections of a process that died, and what of it all is told.
--
-- Two things are kept apart: who is there, and what was told of it. They differ only while the store's memory is young
-- ("settling"): every process first says whom it has, and only then the differences are told.
--
-- KEYS: 1 counter, 2 sockets (owner and user of each), 3 users (twice their connections, and one if they were told of),
--       4 infos (what each user shows), 5 outbox, 6 incarnation of the store's memory (not given in a cluster of stores)
-- ARGV: 1 incarnation that the caller knows, 2 whether to compare, 3 process, 4 and 5 epoch and seq that it knows,
--       6 settling, 7 cause, 8 most members, 9 seconds that the counter outlives the channel, 10 whether to look at all
--       users, 11 most entries of the outbox, 12 whether to return the outbox of the process, 13 whether to return who
--       is there, 14 a dead process or '', 15 where to go on in the sockets, 16 whether the caller knows that the channel
--       was told of as occupied, 17 to 20 how many users it knows were told of, sockets that come, sockets that go, what
--       it decided and is not safe yet; then user and info of each, then socket, user and info of each, then the
--       sockets, then field and entry of each
-- Out: 'stale', or 'full', or 'ok', epoch, time in ms, where to go on or '', two counts, then kind, seq, user and info
--      of each transition, then field and entry of the outbox, then the infos of all users.
if ARGV[2] == '1' and redis.call('GET', KEYS[6]) ~= ARGV[1] then return { 'stale' } end
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = time[1] .. string.format('%03d', math.floor(time[2] / 1000))
local process, settling, cause, dead = ARGV[3], ARGV[6] == '1', ARGV[7], ARGV[14]

local state = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'occupied', 'lost')
local epoch, seq, told, lost = tonumber(state[1]), tonumber(state[2] or '0'), state[3] == '1', state[4]
local known_epoch, known_seq = tonumber(ARGV[4]), tonumber(ARGV[5])
local found = epoch
if not epoch or epoch < known_epoch or (epoch == known_epoch and seq < known_seq) then
  -- A new history, later than any other: of an older one, others may have seen more than the caller.
  epoch, seq = math.max(now_us, known_epoch + 1), 0
  if settling then lost = ARGV[1] end
end

-- What was told before the memory was lost.
local at, touched = 21, {}
local present, come, go = tonumber(ARGV[17]), tonumber(ARGV[18]), tonumber(ARGV[19])
local restores = settling and lost == ARGV[1]
if restores and ARGV[16] == '1' then told = true end
for _ = 1, present do
  if restores then
    local count = tonumber(redis.call('HGET', KEYS[3], ARGV[at]) or '0')
    if count % 2 == 0 then redis.call('HSET', KEYS[3], ARGV[at], count + 1) end
    redis.call('HSETNX', KEYS[4], ARGV[at], ARGV[at + 1])
  end
  at = at + 2
end

-- One call for many: nobody else is served while this runs. In parts, because a call takes so many words only.
local function all_at_once(command, key, words)
  for from = 1, #words, 500 do
    redis.call(command, key, unpack(words, from, math.min(from + 499, #words)))
  end
end

local function gone(entry)
  local user = string.sub(entry, string.find(entry, ' ', 1, true) + 1)
  if user ~= '' then
    redis.call('HINCRBY', KEYS[3], user, -2)
    touched[#touched + 1] = user
  end
end

local came = at + 3 * come
for i = came, came + go - 1 do
  local entry = redis.call('HGET', KEYS[2], ARGV[i])
  if entry then
    redis.call('HDEL', KEYS[2], ARGV[i])
    gone(entry)
  end
end
for i = at, came - 1, 3 do
  local socket, user = ARGV[i], ARGV[i + 1]
  local entry = redis.call('HGET', KEYS[2], socket)
  if entry then
    redis.call('HSET', KEYS[2], socket, process .. string.sub(entry, string.find(entry, ' ', 1, true), -1))
  else
    if user ~= '' then
      if redis.call('HEXISTS', KEYS[3], user) == 0 and redis.call('HLEN', KEYS[3]) >= tonumber(ARGV[8]) then
        return { 'full' }
      end
      redis.call('HINCRBY', KEYS[3], user, 2)
      redis.call('HSETNX', KEYS[4], user, ARGV[i + 2])
      touched[#touched + 1] = user
    end
    redis.call('HSET', KEYS[2], socket, process .. ' ' .. user)
  end
end

-- So many only, because nobody else is served meanwhile: of a small channel, a page is all of it.
local cursor, prefix, most = '', dead .. ' ', 50
if dead ~= '' then
  local page = redis.call('HSCAN', KEYS[2], ARGV[15], 'COUNT', 100)
  cursor = page[1] ~= '0' and page[1] or ''
  local theirs = {}
  for i = 1, #page[2], 2 do
    if string.sub(page[2][i + 1], 1, #prefix) == prefix then
      if #theirs == most then
        cursor = ARGV[15]
        break
      end
      theirs[#theirs + 1] = page[2][i]
      gone(page[2][i + 1])
    end
  end
  all_at_once('HDEL', KEYS[2], theirs)
end

-- What is to be told.
local out, entries, room = {}, {}, nil
local function decide(kind, user, info)
  seq = seq + 1
  local number = string.format('%.0f', seq)
  for _, item in ipairs({ kind, number, user, info }) do out[#out + 1] = item end
  room = room or tonumber(ARGV[11]) - redis.call('HLEN', KEYS[5])
  if room > 0 then
    room = room - 1
    entries[#entries + 1] = string.format('%.0f', epoch) .. ':' .. number
    entries[#entries + 1] = table.concat({ process, kind, now_ms, cause, user }, ' ')
  end
end
local here = redis.call('HLEN', KEYS[2]) > 0
if not settling then
  if here and not told then
    told = true
    decide('occupied', '', '')
  end
  local counts, left = {}, {}
  if ARGV[10] == '1' then
    touched = {}
    local all = redis.call('HGETALL', KEYS[3])
    for i = 1, #all, 2 do
      touched[#touched + 1] = all[i]
      counts[all[i]] = all[i + 1]
    end
  end
  for _, user in ipairs(touched) do
    local count = tonumber(counts[user] or redis.call('HGET', KEYS[3], user) or '3')
    -- Who is looked at once more has nothing to tell any more.
    counts[user] = '3'
    if count >= 2 and count % 2 == 0 then
      redis.call('HSET', KEYS[3], user, count + 1)
      decide('added', user, redis.call('HGET', KEYS[4], user) or '')
    elseif count < 2 then
      left[#left + 1] = user
      if count == 1 then decide('removed', user, '') end
    end
  end
  all_at_once('HDEL', KEYS[3], left)
  all_at_once('HDEL', KEYS[4], left)
  if told and not here then
    told = false
    decide('vacated', '', '')
  end
  all_at_once('HSET', KEYS[5], entries)
end

-- A channel of which nothing is known and nothing is told needs no counter.
local was = state[3] == '1'
if #out > 0 or (found ~= epoch and (here or told or found)) or told ~= was then
  redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', epoch), 'seq', string.format('%.0f', seq),
    'occupied', told and '1' or '0')
end
if restores and (here or told) and state[4] ~= lost then redis.call('HSET', KEYS[1], 'lost', lost) end
if not settling and state[4] then redis.call('HDEL', KEYS[1], 'lost') end
if (here or told) and not was then
  redis.call('PERSIST', KEYS[1])
elseif not here and not told then
  redis.call('EXPIRE', KEYS[1], ARGV[9])
end

if restores then
  local first = came + go
  for i = first, first + 2 * tonumber(ARGV[20]) - 2, 2 do
    redis.call('HSETNX', KEYS[5], ARGV[i], process .. ' ' .. ARGV[i + 1])
  end
end

local outbox = {}
if dead ~= '' or ARGV[12] == '1' then
  local wanted = dead ~= '' and prefix or (process .. ' ')
  local all = redis.call('HGETALL', KEYS[5])
  for i = 1, #all, 2 do
    if string.sub(all[i + 1], 1, #wanted) == wanted then
      local entry = string.sub(all[i + 1], #wanted + 1)
      redis.call('HSET', KEYS[5], all[i], process .. ' ' .. entry)
      outbox[#outbox + 1] = all[i]
      outbox[#outbox + 1] = entry
    end
  end
end

local reply = { 'ok', string.format('%.0f', epoch), now_ms, cursor, tostring(#out / 4), tostring(#outbox / 2) }
for _, item in ipairs(out) do reply[#reply + 1] = item end
for _, item in ipairs(outbox) do reply[#reply + 1] = item end
if ARGV[13] == '1' then
  for _, info in ipairs(redis.call('HVALS', KEYS[4])) do reply[#reply + 1] = info end
end
return reply
