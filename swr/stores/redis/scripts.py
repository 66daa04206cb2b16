"""Scripts of the server, each atomic there. Portable: Redis 6.2 to 8, Valkey 8 and 9, cluster included.

Keys, for the namespace `ns` and the storage name `h` of an entry's key:

- `ns:{h}` the entries of a key: frames (`swr.core.frames`) side by side, one for each type's fingerprint, the last
  stored first. If they were marked stale, a mark follows them: 16 digits of its version and `s`. After an invalidation
  there is only a tombstone: 16 digits of its version and `t`
- `ns:{h}:l` a hash by fingerprint. A lease is `l`, 16 digits of its end, 16 digits of its version, the holder's token.
  A pause after failed loads is `p`, 16 digits of its end, the number of failures
- `ns:{!}b` a sorted set of tag versions. Its members are `t` + tag, `l` + the key template of loaders, `*` for the last
  clear and `!` for the minimum tag version. `s` + one of the first three is the version of its last mark. `@` + the ID
  of a server's run has minus the time of the last stamp in that run. The stamp shows how old the data of a restarted
  server are
- `ns:{!}h` 16 digits of the newest tag version, and 16 of the last clear
- `ns:{!}a` the announcements: 16 digits of the last clear, 16 of their number, then a Bloom filter of the tags of URLs
  that loads have announced since that clear. No entry carries a tag of a URL that is not in the filter, so an
  invalidation passes over such a tag: it gets no tag version
- `ns:{!}p` a hash: when an invalidation was last passed over, by group of tags; `since` is the version from which on
  this is known, and `announced` the number of announcements

The four keys with `{!}` agree on the last clear and on the number of announcements. If one of them does not, that key
or another one was lost or overwritten. The script that finds this clears everything, because it cannot know what was
lost.

Versions and times are the server's clock in microseconds; versions are raised where needed, so that they never go back.
Both are written as 16 digits of text, which sort like the numbers. Lua would print such numbers with exponents.

The lease is the fence: once it is deleted, the load in flight cannot commit, however long its process sleeps.

Before each script, a comment gives its KEYS | its ARGV -> its reply.
"""

from typing import Final

# Milliseconds that a tombstone stays: longer than any read or commit that it has to stop.
TOMBSTONE_FOR: Final = 60_000
# The most types of value that one key has at a time.
MOST_TYPES: Final = 8


def digits(version: int) -> str:
    """Return a version as scripts write it: 16 digits."""
    return f"{version:016d}"


def milliseconds(seconds: float) -> int:
    """Return seconds as a time-to-live in milliseconds, at least 1, because Redis refuses 0."""
    return max(1, int(seconds * 1000))


TIME: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function digits(number) return string.format('%016.0f', number) end
-- The number, or 0 if swr cannot have written it: it is a year ahead of the clock. If the clock was put back by less,
-- versions go on from where they were.
local function plausible(number) return number and number < now + 31536000000000 and number or 0 end
-- 1, or 0 without the right to publish: the script does the rest anyway.
local function tell(channel, message) return type(redis.pcall('PUBLISH', channel, message)) == 'number' and 1 or 0 end
local function read(key)
  local text = redis.pcall('GET', key)
  return type(text) == 'string' and text or ''
end
"""

# Functions that read an entry's two keys. Their patterns match a version's 16 digits, a fingerprint's 8, and so on.
_ENTRY: Final = (
    TIME
    + """
local sixteen = string.rep('%d', 16)
local frame = '^(' .. sixteen .. ')e(' .. string.rep('%x', 8) .. ')(' .. string.rep('%d', 10) .. ')(' .. sixteen .. ')'
local held = '^([lp])(' .. sixteen .. ')(.*)$'
-- The frames of an entry, up to foreign bytes; the newest version of a frame, tombstone or mark; the version of the
-- mark, or 0; and the end of the frames.
local function frames_in(entry)
  local found, newest, at = {}, 0, 0
  while true do
    local text = redis.pcall('GETRANGE', entry, at, at + 50)
    text = type(text) == 'string' and text or ''
    local version, fingerprint, length, ends = string.match(text, frame)
    version, length = plausible(tonumber(version)), tonumber(length)
    if version == 0 then
      local other = plausible(tonumber(string.match(text, '^(' .. sixteen .. ')' .. (at == 0 and 't' or 's') .. '$')))
      return found, math.max(newest, other), at > 0 and other or 0, at
    end
    found[#found + 1] = {version = version, fingerprint = fingerprint, ends = tonumber(ends), at = at, length = length}
    newest, at = math.max(newest, version), at + math.max(51, length)
  end
end
local function own(frames, fingerprint)
  for _, one in ipairs(frames) do if one.fingerprint == fingerprint then return one end end
end
local function text_of(entry, one) return redis.call('GETRANGE', entry, one.at, one.at + one.length - 1) end
-- The text of a mark that is newer than one of these frames, or ''.
local function mark_of(frames, mark)
  for _, one in ipairs(frames) do if one.version < mark then return digits(mark) .. 's' end end
  return ''
end
-- The lease ('l') or pause ('p') of a type, its end, and the rest. Or 'x' for text that swr has not written: a lease
-- ends within a day, a pause within ten minutes.
local function hold(lease, fingerprint)
  local text = redis.pcall('HGET', lease, fingerprint)
  if type(text) == 'table' then redis.call('DEL', lease) end
  if not text then return end
  local kind, ends, rest = string.match(type(text) == 'string' and text or '', held)
  ends = tonumber(ends)
  local known = kind == 'l' and ends < now + 86400000000 and plausible(tonumber(string.sub(rest, 1, 16))) > 0
    or kind == 'p' and ends < now + 600000000 and string.match(rest, '^%d%d?%d?%d?%d?$')
  return known and kind or 'x', ends, rest
end
local function keep(lease, fingerprint, text, ttl)
  redis.call('HSET', lease, fingerprint, text)
  if redis.call('PTTL', lease) < tonumber(ttl) then redis.call('PEXPIRE', lease, ttl) end
end
-- The leases of a key: fingerprint, version, token, and the text of these two.
local function leases_in(lease)
  local all, found = redis.pcall('HGETALL', lease), {}
  for i = 2, #all, 2 do
    local kind, ends, rest = string.match(all[i], held)
    local version = kind == 'l' and plausible(tonumber(string.sub(rest, 1, 16))) or 0
    if version > 0 then
      found[#found + 1] = {fingerprint = all[i - 1], version = version, token = string.sub(rest, 17), rest = rest}
    end
  end
  return found
end
local function newest_in(leases)
  local newest = 0
  for _, one in ipairs(leases) do newest = math.max(newest, one.version) end
  return newest
end
-- The lease that a token holds; version '' means any.
local function held_by(lease, token, version)
  for _, one in ipairs(leases_in(lease)) do
    if one.token == token and (version == '' or digits(one.version) == version) then return one end
  end
end
"""
)

# (entry, lease)…, and the newest tag version if it is on the same server
# | (fingerprint, token, ttl (ms), known version, force)… -> {text of the newest tag version, answer…}
# An answer is {'found', newer entry}, {'held', ms until its end, time, failures of a pause or 0},
# or {'lease', version, failures, whether foreign text was in its place}
ACQUIRE: Final = (
    _ENTRY
    + """
local function acquire(entry, lease, fingerprint, token, ttl, known, force)
  local frames, newest, mark = frames_in(entry)
  local mine = own(frames, fingerprint)
  if mine and mine.version > tonumber(known) then
    return {'found', text_of(entry, mine) .. mark_of({mine}, mark)}
  end
  local kind, ends, rest = hold(lease, fingerprint)
  local failures, until_then = 0, digits(now + ttl * 1000)
  if kind == 'l' and ends > now then
    local version = string.sub(rest, 1, 16)
    if string.sub(rest, 17) ~= token then return {'held', math.ceil((ends - now) / 1000), digits(now - 1), 0} end
    keep(lease, fingerprint, 'l' .. until_then .. rest, ttl)
    return {'lease', version, 0, 0}
  elseif kind == 'p' and ends + 60000000 > now then
    failures = tonumber(rest)
    if ends > now and force == '0' then
      return {'held', math.ceil((ends - now) / 1000), digits(now - 1), failures}
    end
  end
  local version = digits(math.max(now, newest + 1))
  keep(lease, fingerprint, 'l' .. until_then .. version .. token, ttl)
  return {'lease', version, failures, kind == 'x' and 1 or 0}
end
local count = #ARGV / 5
local newest = KEYS[2 * count + 1]
-- MGET fails without the right to read the key, but not on a foreign value of another type.
local answers = {newest and redis.call('MGET', newest)[1] or ''}
for i = 1, count do
  answers[i + 1] = acquire(KEYS[2 * i - 1], KEYS[2 * i], unpack(ARGV, 5 * i - 4, 5 * i))
end
return answers
"""
)

# (entry, lease)… | channel, (fingerprint, token, version, frame, ttl (ms), message)… -> {1, or 0 if the lease is lost…}
COMMIT: Final = (
    _ENTRY
    + f"""
local most = {MOST_TYPES}
"""
    + """
local told = {}
local function commit(entry, lease, fingerprint, token, version, frame, ttl, message)
  local kind, _, rest = hold(lease, fingerprint)
  local frames, _, mark = frames_in(entry)
  if kind ~= 'l' or rest ~= version .. token then
    -- If the reply to a first attempt was lost, its frame is stored already.
    local mine = own(frames, fingerprint)
    return mine and mine.version == tonumber(version) and 1 or 0
  end
  local stored, ttl, others = {frame}, tonumber(ttl), {}
  for _, one in ipairs(frames) do
    -- Frames of other types stay until their own end. Of too many, the least recent is dropped.
    if one.fingerprint ~= fingerprint and one.ends > now and #stored < most then
      stored[#stored + 1] = text_of(entry, one)
      others[#others + 1] = one
      ttl = math.max(ttl, math.ceil((one.ends - now) / 1000))
    end
  end
  stored[#stored + 1] = mark_of(others, mark)
  redis.call('SET', entry, table.concat(stored), 'PX', string.format('%.0f', ttl))
  redis.call('HDEL', lease, fingerprint)
  told[#told + 1] = message
  return 1
end
local answers = {}
for i = 1, #KEYS / 2 do
  answers[i] = commit(KEYS[2 * i - 1], KEYS[2 * i], unpack(ARGV, 6 * i - 4, 6 * i + 1))
end
if #told == 1 then
  tell(ARGV[1], told[1])
elseif #told > 1 then
  -- One message notifies every process of several commits.
  for i = 1, #told do told[i] = string.format('%08d', #told[i]) .. told[i] end
  tell(ARGV[1], 'm' .. table.concat(told))
end
return answers
"""
)

# entry | fingerprint, version -> 1, or 0 if there is no newer entry. The script writes, so that a following WAIT
# confirms all earlier writes, too
SECURE: Final = (
    _ENTRY
    + """
local mine = own(frames_in(KEYS[1]), ARGV[1])
if not mine or mine.version <= tonumber(ARGV[2]) then return 0 end
redis.call('PEXPIRE', KEYS[1], math.max(1, redis.call('PTTL', KEYS[1])))
return 1
"""
)

# (entry, lease)… -> versions; every load that begins from now on is newer, even if the clock was set back
NEWEST: Final = (
    _ENTRY
    + """
local versions = {}
for i = 1, #KEYS, 2 do
  local _, newest = frames_in(KEYS[i])
  versions[#versions + 1] = digits(math.max(now - 1, newest, newest_in(leases_in(KEYS[i + 1]))))
end
return versions
"""
)

# entry, lease -> {text of the entry's key, the time, {(fingerprint, lease or pause)…}}
LOOK: Final = (
    TIME
    + """
local held = redis.pcall('HGETALL', KEYS[2])
return {read(KEYS[1]), digits(now), held.err and {} or held}
"""
)

# lease | token, version, ttl (ms) -> 1, or 0 if the lease is lost
RENEW: Final = (
    _ENTRY
    + """
local mine = held_by(KEYS[1], ARGV[1], ARGV[2])
if not mine then return 0 end
keep(KEYS[1], mine.fingerprint, 'l' .. digits(now + ARGV[3] * 1000) .. mine.rest, ARGV[3])
return 1
"""
)

# lease | token, version ('' for any), pause (ms), failures, channel, message -> 1, or 0 if the lease is lost
RELEASE: Final = (
    _ENTRY
    + """
local mine = held_by(KEYS[1], ARGV[1], ARGV[2])
if not mine then return 0 end
local pause = tonumber(ARGV[3])
if pause > 0 then
  -- A pause is kept for a minute after its end, so that the next failure adds to its count.
  keep(KEYS[1], mine.fingerprint, 'p' .. digits(now + pause * 1000) .. ARGV[4], pause + 60000)
else
  redis.call('HDEL', KEYS[1], mine.fingerprint)
end
tell(ARGV[5], ARGV[6])
return 1
"""
)

# entry, lease | tombstone's ttl (ms), channel, message before the version, message after it; and to take a lease in the
# same step, its fingerprint, token, ttl (ms) -> {version, 1, or 0 if the message could not be published}
INVALIDATE: Final = (
    _ENTRY
    + """
local _, newest = frames_in(KEYS[1])
local leased = newest_in(leases_in(KEYS[2]))
local version = digits(math.max(now, newest + 1, leased + 1))
-- DEL first: a server out of memory refuses no command of a script that has deleted something.
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('SET', KEYS[1], version .. 't', 'PX', ARGV[1])
if ARGV[5] then keep(KEYS[2], ARGV[5], 'l' .. digits(now + ARGV[7] * 1000) .. version .. ARGV[6], ARGV[7]) end
return {version, tell(ARGV[2], ARGV[3] .. version .. ARGV[4])}
"""
)

# entry, lease | channel, message before the version, message after it: mark the entries as stale, and delete the leases
# -> {version, 1, or 0 if the message could not be published}
MARK: Final = (
    _ENTRY
    + """
local frames, newest, _, last = frames_in(KEYS[1])
local version = digits(math.max(now, newest + 1, newest_in(leases_in(KEYS[2])) + 1))
-- DEL first: a server out of memory refuses no command of a script that has deleted something.
redis.call('DEL', KEYS[2])
if #frames > 0 then redis.call('SETRANGE', KEYS[1], last, version .. 's') end
return {version, tell(ARGV[1], ARGV[2] .. version .. ARGV[3])}
"""
)

# (entry, lease)… | channel, tombstone's ttl (ms), (version of an invalidation, or of a mark and `s`, message)…:
# invalidate the keys again whose invalidation or mark was lost -> their number
REMIND: Final = (
    _ENTRY
    + """
local function remind(entry, lease, text, message)
  local frames, newest, mark = frames_in(entry)
  local is_mark, text = string.sub(text, 17) == 's', string.sub(text, 1, 16)
  local version = tonumber(text)
  if is_mark and mark >= version then return 0 end
  for _, one in ipairs(leases_in(lease)) do
    if one.version < version then redis.call('HDEL', lease, one.fingerprint) end
  end
  local stored, ttl, others = {}, 1, {}
  for _, one in ipairs(frames) do
    if one.version >= version then
      stored[#stored + 1] = text_of(entry, one)
      others[#others + 1] = one
      ttl = math.max(ttl, math.ceil((one.ends - now) / 1000))
    end
  end
  if newest == 0 or newest >= version and #stored == #frames then return 0 end
  redis.call('DEL', entry)
  if #stored > 0 then
    stored[#stored + 1] = mark_of(others, mark)
    redis.call('SET', entry, table.concat(stored), 'PX', string.format('%.0f', ttl))
  else
    redis.call('SET', entry, text .. 't', 'PX', ARGV[2])
  end
  tell(ARGV[1], message)
  return 1
end
local lost = 0
for i = 1, #KEYS / 2 do
  lost = lost + remind(KEYS[2 * i - 1], KEYS[2 * i], ARGV[2 * i + 1], ARGV[2 * i + 2])
end
return lost
"""
)
