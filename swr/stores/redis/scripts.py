"""What runs on the server, each step atomic there. Portable: Redis 6.2 to 8, Valkey 8 and 9, cluster included.

Keys, for the namespace `ns` and the storage name `h` of an entry's key:

- `ns:{h}` the entry: a frame (`swr.core.codec`), or a tombstone: 16 digits of version and `t`
- `ns:{h}:l` the lease: `l`, 16 digits of version, the holder's token. Or a pause after failed loads: `p`,
  16 digits of the time (microseconds) at which it ends, the number of failures
- `ns:{!}b` a sorted set of tag versions by tag, `*` for all tags and `!` for the minimum tag
  version; tags are written `t` + tag
- `ns:{!}h` the newest tag version

Versions are the server's microseconds, raised where needed so that they never go back. They travel as 16
digits of text, in which order is the order of numbers: Lua's own numbers would be printed in exponents.

The lease is the fence: once it is deleted, the load in flight cannot commit, however long its process sleeps.
"""

from typing import Final

from swr.core.codec import VERSION_DIGITS

# Milliseconds that a tombstone stays: longer than any read or commit that it has to stop.
TOMBSTONE_FOR: Final = 60_000


def digits(version: int) -> str:
    """Return a version as scripts write it."""
    return f"{version:016d}"


def number(text: bytes | None) -> int:
    """Return a version that was read as text; 0 for what is none, as if the server had lost it."""
    return int(text) if text and text.isdigit() and len(text) <= VERSION_DIGITS else 0


def milliseconds(seconds: float) -> int:
    """Return a time to live for Redis, which takes none below 1 ms."""
    return max(1, int(seconds * 1000))


_TIME: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function digits(number) return string.format('%016.0f', number) end
local function version_in(text) return tonumber(string.match(text, '^(%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d)[et]')) or 0 end
-- A number that would not fit into sixteen digits is foreign.
local function tag_version_in(text)
  local number = tonumber(text) or 0
  return number < 9e15 and number or 0
end
local function read_head(key)
  local text = redis.pcall('GETRANGE', key, 0, 16)
  return type(text) == 'string' and text or ''
end
local function read(key)
  local text = redis.pcall('GET', key)
  return type(text) == 'string' and text or ''
end
"""

# (entry, lease)…, and the newest tag version where it lies on the same server
# | (token, ttl (ms), known version, force)… -> {newest tag version, {what, …}…}
ACQUIRE: Final = (
    _TIME
    + """
local function acquire(entry, lease, token, ttl, known, force)
  local head = read_head(entry)
  local newest = version_in(head)
  if string.sub(head, 17, 17) == 'e' and newest > tonumber(known) then
    return {'found', redis.call('GET', entry)}
  end
  local held = read(lease)
  local kind, failures = string.sub(held, 1, 1), 0
  if kind == 'l' then
    if string.sub(held, 18) == token then
      redis.call('PEXPIRE', lease, ttl)
      return {'lease', string.sub(held, 2, 17), 0}
    end
    return {'held', redis.call('PTTL', lease), digits(now - 1), 0}
  elseif kind == 'p' then
    local left = (tonumber(string.sub(held, 2, 17)) or 0) - now
    failures = tonumber(string.sub(held, 18)) or 0
    if left > 0 and force == '0' then
      return {'held', math.ceil(left / 1000), digits(now - 1), failures}
    end
  end
  local version = digits(math.max(now, newest + 1))
  redis.call('SET', lease, 'l' .. version .. token, 'PX', ttl)
  return {'lease', version, failures}
end
local count = #ARGV / 4
local newest = KEYS[2 * count + 1]
-- Not to be allowed to read it is an error; for MGET a foreign value of another type is none.
local answers = {newest and redis.call('MGET', newest)[1] or ''}
for i = 1, count do
  local a = 4 * i - 3
  answers[i + 1] = acquire(KEYS[2 * i - 1], KEYS[2 * i], ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3])
end
return answers
"""
)

# (entry, lease)… | channel, (token, version, frame, ttl (ms), message)… -> {1, or 0: the lease is lost, …}
COMMIT: Final = (
    _TIME
    + """
local told = {}
local function commit(entry, lease, token, version, frame, ttl, message)
  if read(lease) ~= 'l' .. version .. token then
    -- Ours is already there: the first reply was lost.
    if read_head(entry) == version .. 'e' then return 1 end
    return 0
  end
  redis.call('SET', entry, frame, 'PX', ttl)
  redis.call('DEL', lease)
  told[#told + 1] = message
  return 1
end
local answers = {}
for i = 1, #KEYS / 2 do
  local a = 5 * i - 3
  answers[i] = commit(KEYS[2 * i - 1], KEYS[2 * i], ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4])
end
if #told == 1 then
  redis.call('PUBLISH', ARGV[1], told[1])
elseif #told > 1 then
  -- Every process is notified of every commit: of several at a time in one message.
  for i = 1, #told do told[i] = string.format('%08d', #told[i]) .. told[i] end
  redis.call('PUBLISH', ARGV[1], 'm' .. table.concat(told))
end
return answers
"""
)

# entry | version -> 1, or 0: there is no newer entry. It writes, so that WAIT says something of what was written before
SECURE: Final = (
    _TIME
    + """
local head = read_head(KEYS[1])
if string.sub(head, 17, 17) ~= 'e' or version_in(head) <= tonumber(ARGV[1]) then return 0 end
redis.call('PEXPIRE', KEYS[1], math.max(1, redis.call('PTTL', KEYS[1])))
return 1
"""
)

# (entry, lease)… -> versions: what is loaded from now on is newer, whatever the clock says
NEWEST: Final = (
    _TIME
    + """
local versions = {}
for i = 1, #KEYS, 2 do
  local leased = tonumber(string.match(read(KEYS[i + 1]), '^l(%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d)')) or 0
  versions[#versions + 1] = digits(math.max(now - 1, version_in(read_head(KEYS[i])), leased))
end
return versions
"""
)

# lease | token, version, ttl (ms) -> 1, or 0: lost
RENEW: Final = """
if redis.call('GET', KEYS[1]) ~= 'l' .. ARGV[2] .. ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

# lease | token, version ('' for whichever), pause (ms), failures, channel, message
RELEASE: Final = (
    _TIME
    + """
local lease = read(KEYS[1])
if string.sub(lease, 1, 1) ~= 'l' or string.sub(lease, 18) ~= ARGV[1] then return 0 end
if ARGV[2] ~= '' and string.sub(lease, 2, 17) ~= ARGV[2] then return 0 end
local pause = tonumber(ARGV[3])
if pause > 0 then
  -- It outlives its own end by a minute, so that failures go on being counted.
  redis.call('SET', KEYS[1], 'p' .. digits(now + pause * 1000) .. ARGV[4], 'PX', pause + 60000)
else
  redis.call('DEL', KEYS[1])
end
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
"""
)

# entry, lease | tombstone's ttl (ms), channel, message before the version, message after it -> version
INVALIDATE: Final = (
    _TIME
    + """
local leased = tonumber(string.match(read(KEYS[2]), '^l(%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d)')) or 0
local version = digits(math.max(now, version_in(read_head(KEYS[1])) + 1, leased + 1))
redis.call('SET', KEYS[1], version .. 't', 'PX', ARGV[1])
redis.call('DEL', KEYS[2])
redis.call('PUBLISH', ARGV[2], ARGV[3] .. version .. ARGV[4])
return version
"""
)

# entry, lease | version of an invalidation, tombstone's ttl (ms), channel, message: invalidate again what has lost that
REMIND: Final = (
    _TIME
    + """
local leased = tonumber(string.match(read(KEYS[2]), '^l(%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d)')) or 0
if leased > 0 and leased < tonumber(ARGV[1]) then redis.call('DEL', KEYS[2]) end
if version_in(read_head(KEYS[1])) >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. 't', 'PX', ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
"""
)

# tag versions, newest tag version | member, most tags, channel, message before the number, message after it -> number
RAISE_TAG_VERSION: Final = (
    _TIME
    + """
local number = math.max(now, tag_version_in(read(KEYS[2])) + 1)
redis.call('ZADD', KEYS[1], 'GT', number, ARGV[1])
redis.call('SET', KEYS[2], digits(number))
local most = tonumber(ARGV[2])
if redis.call('ZCARD', KEYS[1]) > most then
  -- The oldest tenth of the tags becomes the minimum; the clear stays.
  local all = redis.call('ZSCORE', KEYS[1], '*')
  redis.call('ZREM', KEYS[1], '*', '!')
  local last = math.max(1, math.floor(most / 10)) - 1
  local minimum = redis.call('ZRANGE', KEYS[1], last, last, 'WITHSCORES')[2]
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, last)
  redis.call('ZADD', KEYS[1], minimum, '!')
  if all then redis.call('ZADD', KEYS[1], all, '*') end
end
redis.call('PUBLISH', ARGV[3], ARGV[4] .. digits(number) .. ARGV[5])
return digits(number)
"""
)

# tag versions, newest tag version | newest, number, member, number, member, … : give back what the server has lost
RESTORE: Final = (
    _TIME
    + """
for i = 2, #ARGV, 2 do redis.call('ZADD', KEYS[1], 'GT', ARGV[i], ARGV[i + 1]) end
if tag_version_in(read(KEYS[2])) < tonumber(ARGV[1]) then redis.call('SET', KEYS[2], ARGV[1]) end
return 1
"""
)
