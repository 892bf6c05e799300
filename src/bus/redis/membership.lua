-- Applies every change of a channel's membership: connections that join and leave, a process's report after the store
-- lost its data, the connections of a dead process; and decides the transitions that follow.
--
-- Two states are kept apart: the connections that are there, and the transitions that were published of them. They
-- differ only while the store's data is young ("settling"): every process first reports its connections, and only then
-- are the differences published.
--
-- KEYS: 1 counter; 2 sockets (owner and user of each); 3 users (twice the number of their connections, plus one if
--       "added" was published); 4 infos (the member data of each user); 5 outbox; 6 incarnation of the store's data (not
--       given with a Redis cluster, where it is in another slot)
-- ARGV: 1 to 28 as named below; then user and info of each announced user; then socket, user and info of each joining
--       connection; then the leaving sockets; then field and entry of each event that the caller still holds
-- Out: 'stale'; or 'full' (of members); or 'limit' (of connections); or 'ok', epoch, seq, time in ms, cursor or '', two
--      counts, then kind, seq and user of each transition, then field and entry of each outbox event, then the infos of
--      all users.
local counter_key, sockets_key, users_key, infos_key, outbox_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local incarnation_key = KEYS[6]
local incarnation = ARGV[1] -- that the caller knows
local compares_incarnation = ARGV[2] == '1'
local process = ARGV[3]
local known_epoch, known_seq = tonumber(ARGV[4]), tonumber(ARGV[5]) -- the highest order that the caller knows
local settling = ARGV[6] == '1'
local cause = ARGV[7] -- of members that leave
local members_max = ARGV[8]
-- TTL of the counter of a vacated channel: least seconds, factor to the age of its history, most seconds
local tombstone_min, tombstone_factor, tombstone_max = string.match(ARGV[9], '^(%d+) (%d+) (%d+)$')
local checks_all_users = ARGV[10] == '1'
local outbox_max = ARGV[11]
local returns_outbox = ARGV[12] == '1' -- of this process
local returns_roster = ARGV[13] == '1'
local dead = ARGV[14] -- a dead process to sweep, or ''
local scan_cursor = ARGV[15] -- where the sweep continues in the sockets
local occupied_announced = ARGV[16] == '1' -- the caller knows that "occupied" was published
local announced_count = tonumber(ARGV[17])
local joining_count = tonumber(ARGV[18])
local leaving_count = tonumber(ARGV[19])
local held_event_count = tonumber(ARGV[20])
local sockets_max = tonumber(ARGV[21]) -- of a channel with a bound, for connections that join
-- Frames that report the transitions are published by the script that decides, so that every process receives them in
-- the order of the decisions.
local report_kind = ARGV[22] -- 'member', 'user', or '' when nobody subscribes to reports
local frames_channel = ARGV[23]
local report_header = ARGV[24] -- the JSON object of the header without its closing brace
-- 'member': the frames before and after the data; 'user': the frames of "occupied" and "vacated", and two unused
local added_start, added_end, removed_start, removed_end = ARGV[25], ARGV[26], ARGV[27], ARGV[28]

if compares_incarnation and redis.call('GET', incarnation_key) ~= incarnation then return { 'stale' } end
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = time[1] .. string.format('%03d', math.floor(time[2] / 1000))

local state = redis.call('HMGET', counter_key, 'epoch', 'seq', 'occupied', 'lost')
local epoch, seq, occupied, lost = tonumber(state[1]), tonumber(state[2] or '0'), state[3] == '1', state[4]
local stored_epoch = epoch
if not epoch or epoch < known_epoch or (epoch == known_epoch and seq < known_seq) then
  -- A new history, later than any other: of an older one, another process may know a higher order than the caller.
  epoch, seq = math.max(now_us, known_epoch + 1), 0
  if settling then lost = incarnation end
end

-- Restores the transitions that were published before the store lost its data.
local at, touched = 29, {}
local restores = settling and lost == incarnation
if restores and occupied_announced then occupied = true end
for _ = 1, announced_count do
  if restores then
    local count = tonumber(redis.call('HGET', users_key, ARGV[at]) or '0')
    if count % 2 == 0 then redis.call('HSET', users_key, ARGV[at], count + 1) end
    redis.call('HSETNX', infos_key, ARGV[at], ARGV[at + 1])
  end
  at = at + 2
end

-- Runs one command for many words, because Redis serves no other client while the script runs; 500 words at a time,
-- because a call takes only so many.
local function call_in_batches(command, key, words)
  for from = 1, #words, 500 do
    redis.call(command, key, unpack(words, from, math.min(from + 499, #words)))
  end
end

local function release_user(entry)
  local user = string.sub(entry, string.find(entry, ' ', 1, true) + 1)
  if user ~= '' then
    redis.call('HINCRBY', users_key, user, -2)
    touched[#touched + 1] = user
  end
end

local leaving_at = at + 3 * joining_count
for i = leaving_at, leaving_at + leaving_count - 1 do
  local entry = redis.call('HGET', sockets_key, ARGV[i])
  if entry then
    redis.call('HDEL', sockets_key, ARGV[i])
    release_user(entry)
  end
end
for i = at, leaving_at - 1, 3 do
  local socket, user = ARGV[i], ARGV[i + 1]
  local entry = redis.call('HGET', sockets_key, socket)
  if entry then
    redis.call('HSET', sockets_key, socket, process .. string.sub(entry, string.find(entry, ' ', 1, true), -1))
  else
    if user ~= '' then
      if redis.call('HEXISTS', users_key, user) == 0 and redis.call('HLEN', users_key) >= tonumber(members_max) then
        return { 'full' }
      end
    end
    if sockets_max and redis.call('HLEN', sockets_key) >= sockets_max then return { 'limit' } end
    if user ~= '' then
      redis.call('HINCRBY', users_key, user, 2)
      redis.call('HSETNX', infos_key, user, ARGV[i + 2])
      touched[#touched + 1] = user
    end
    redis.call('HSET', sockets_key, socket, process .. ' ' .. user)
  end
end

-- Sweeps at most 50 connections per call, because Redis serves no other client meanwhile. The scan of a small channel
-- returns all of it as one page, whatever COUNT says.
local cursor, dead_prefix, sweep_max = '', dead .. ' ', 50
if dead ~= '' then
  local page = redis.call('HSCAN', sockets_key, scan_cursor, 'COUNT', 100)
  cursor = page[1] ~= '0' and page[1] or ''
  local swept = {}
  for i = 1, #page[2], 2 do
    if string.sub(page[2][i + 1], 1, #dead_prefix) == dead_prefix then
      if #swept == sweep_max then
        cursor = scan_cursor
        break
      end
      swept[#swept + 1] = page[2][i]
      release_user(page[2][i + 1])
    end
  end
  call_in_batches('HDEL', sockets_key, swept)
end

-- Decides the transitions. Each gets the next seq, and an outbox entry while there is room.
local transitions, entries, room, reports = {}, {}, nil, {}
local report_starts = { occupied = added_start, vacated = removed_start }
local function report(kind, number, user, info)
  local frame
  if report_kind == 'user' then
    frame = report_starts[kind]
  elseif report_kind == 'member' and kind == 'added' then
    frame = info and added_start .. cjson.encode(info) .. added_end
  elseif report_kind == 'member' and kind == 'removed' then
    frame = removed_start .. cjson.encode('{"user_id":' .. cjson.encode(user) .. '}') .. removed_end
  end
  if frame then
    local order = string.format('%.0f', epoch) .. ':' .. number
    reports[#reports + 1] = report_header .. ',"order":"' .. order .. '"}\n' .. frame
  end
end
local function decide(kind, user, info)
  seq = seq + 1
  local number = string.format('%.0f', seq)
  for _, item in ipairs({ kind, number, user }) do transitions[#transitions + 1] = item end
  report(kind, number, user, info)
  room = room or tonumber(outbox_max) - redis.call('HLEN', outbox_key)
  if room > 0 then
    room = room - 1
    entries[#entries + 1] = string.format('%.0f', epoch) .. ':' .. number
    entries[#entries + 1] = table.concat({ process, kind, now_ms, cause, user }, ' ')
  end
end
local has_sockets = redis.call('HLEN', sockets_key) > 0
if not settling then
  if has_sockets and not occupied then
    occupied = true
    decide('occupied', '')
  end
  local counts, removed = {}, {}
  if checks_all_users then
    touched = {}
    local all = redis.call('HGETALL', users_key)
    for i = 1, #all, 2 do
      touched[#touched + 1] = all[i]
      counts[all[i]] = all[i + 1]
    end
  end
  for _, user in ipairs(touched) do
    local count = tonumber(counts[user] or redis.call('HGET', users_key, user) or '3')
    -- A user that is touched twice is decided once: 3 stands for "connected and published".
    counts[user] = '3'
    if count >= 2 and count % 2 == 0 then
      redis.call('HSET', users_key, user, count + 1)
      decide('added', user, redis.call('HGET', infos_key, user))
    elseif count < 2 then
      removed[#removed + 1] = user
      if count == 1 then decide('removed', user) end
    end
  end
  call_in_batches('HDEL', users_key, removed)
  call_in_batches('HDEL', infos_key, removed)
  if occupied and not has_sockets then
    occupied = false
    decide('vacated', '')
  end
  call_in_batches('HSET', outbox_key, entries)
end

-- Stores the counter. A channel without connections, counter and transitions needs none.
local was_occupied = state[3] == '1'
if #transitions > 0 or (stored_epoch ~= epoch and (has_sockets or occupied or stored_epoch))
  or occupied ~= was_occupied then
  redis.call('HSET', counter_key, 'epoch', string.format('%.0f', epoch), 'seq', string.format('%.0f', seq),
    'occupied', occupied and '1' or '0')
end
if restores and (has_sockets or occupied) and state[4] ~= lost then redis.call('HSET', counter_key, 'lost', lost) end
if not settling and state[4] then redis.call('HDEL', counter_key, 'lost') end
if (has_sockets or occupied) and not was_occupied then
  redis.call('PERSIST', counter_key)
elseif not has_sockets and not occupied then
  local ttl = math.floor((now_us - epoch) / 1000000) * tombstone_factor
  redis.call('EXPIRE', counter_key, math.max(tombstone_min + 0, math.min(ttl, tombstone_max + 0)))
end

if restores then
  local first = leaving_at + leaving_count
  for i = first, first + 2 * held_event_count - 2, 2 do
    redis.call('HSETNX', outbox_key, ARGV[i], process .. ' ' .. ARGV[i + 1])
  end
end

-- Returns the outbox of a dead process, which this process takes over, or its own.
local outbox = {}
if dead ~= '' or returns_outbox then
  local wanted = dead ~= '' and dead_prefix or (process .. ' ')
  local all = redis.call('HGETALL', outbox_key)
  for i = 1, #all, 2 do
    if string.sub(all[i + 1], 1, #wanted) == wanted then
      local entry = string.sub(all[i + 1], #wanted + 1)
      redis.call('HSET', outbox_key, all[i], process .. ' ' .. entry)
      outbox[#outbox + 1] = all[i]
      outbox[#outbox + 1] = entry
    end
  end
end

-- After all state is stored, and without an error: a user that may not publish must not leave half a change behind.
for _, message in ipairs(reports) do redis.pcall('PUBLISH', frames_channel, message) end

local reply = { 'ok', string.format('%.0f', epoch), string.format('%.0f', seq), now_ms, cursor,
  tostring(#transitions / 3), tostring(#outbox / 2) }
for _, item in ipairs(transitions) do reply[#reply + 1] = item end
for _, item in ipairs(outbox) do reply[#reply + 1] = item end
if returns_roster then
  for _, info in ipairs(redis.call('HVALS', infos_key)) do reply[#reply + 1] = info end
end
return reply
