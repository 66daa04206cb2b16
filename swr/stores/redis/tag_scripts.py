"""Scripts of the server that has the tag versions, each atomic there.

`swr.stores.redis.scripts` describes the keys.
"""

from typing import Final

from swr.stores.redis.scripts import TIME

# Bits of the announcements, a power of two, after the 32 bytes that say to which clear they belong, and how many there
# were: 1 MB.
ANNOUNCED_BITS: Final = 2**23
# Groups of tags by which the server remembers what was passed over.
_GROUPS: Final = 4096

# Which members of the tag versions say when a server was last stamped: this, and which run of a server it was.
STAMP: Final = b"@"

# The first arguments of every script about tag versions say how to notify of one. They are the channel, the beginning
# of the message, and its part between the version and the newest version before it. The member follows that. The name
# of the stamp is the last of these arguments.
_TAG_VERSIONS: Final = (
    TIME
    + """
local set, last, announced, passed = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local function announce(member, number, before)
  tell(ARGV[1], ARGV[2] .. digits(number) .. ARGV[3] .. digits(before) .. member)
end
local stamp = ARGV[4]
local function newest_in(text) return plausible(tonumber(string.match(text, '^%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d'))) end
-- The newest tag version and the last clear; nil if one of the keys was lost, or holds what swr has not written.
local function agreed()
  local text = read(last)
  local newest, cleared = newest_in(text), tonumber(string.sub(text, 17))
  local member = redis.pcall('ZSCORE', set, '*')
  if newest == 0 or #text ~= 32 or type(member) ~= 'string' or tonumber(member) ~= cleared then return end
  local counted = redis.pcall('HGET', passed, 'announced')
  if type(counted) ~= 'string' or redis.pcall('GETRANGE', announced, 0, 31) ~= string.sub(text, 17) .. counted then
    return
  end
  -- The newest stays in the set, as a tag, as the clear or as the minimum: an older copy of the set lacks it.
  local top = redis.call('ZRANGE', set, -1, -1, 'WITHSCORES')[2]
  if cleared <= newest and tonumber(top) == newest then return newest, cleared end
end
-- Outdate everything. Whatever is known of versions before is older, also where only one of the keys knows it.
local function clear(known)
  local top = redis.pcall('ZRANGE', set, -1, -1, 'WITHSCORES')[2]
  local number = math.max(now, known + 1, newest_in(read(last)) + 1, plausible(tonumber(top)) + 1)
  -- First, because a server without memory refuses no command of a script that has deleted something.
  redis.call('DEL', set, announced, passed)
  redis.call('ZADD', set, number, '*', -now, stamp)
  redis.call('SET', announced, digits(number) .. digits(0))
  redis.call('HSET', passed, 'since', digits(number), 'announced', digits(0))
  redis.call('SET', last, digits(number) .. digits(number))
  announce('*', number, 0)
  return number
end
"""
)

# tag versions, newest tag version, announcements, what was passed over
# | channel, message before the number, message after it, stamp, what the caller knows: newest, last clear, all up to,
#   time of the stamp since that clear; most tags to return
# -> {0, or 2: something was lost, or 1: everything, or it is new; time, newest tag version and last clear,
#     {member, number, …}, time of the stamp}
LEARN: Final = (
    _TAG_VERSIONS
    + """
local known, known_clear, since = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local newest, cleared = agreed()
local lost = 0
local function stamped_at() return plausible(-tonumber(redis.pcall('ZSCORE', set, stamp) or 0)) end
-- In one run of a server a stamp only goes back if older data have taken the place of all.
local function is_older() return cleared == known_clear and stamped_at() < tonumber(ARGV[8]) end
if not newest or newest < known or cleared < known_clear or is_older() then
  lost = read(last) == '' and 1 or 2
  newest = clear(known)
  cleared = newest
end
if cleared ~= known_clear then since = '0' end
-- Without memory there is no stamp, and a server that loses data then seems to have lost more.
if now > stamped_at() + 5000000 then redis.pcall('ZADD', set, -now, stamp) end
-- Those of earlier runs come last: to miss one is to count everything as lost.
local stamps = redis.call('ZCOUNT', set, '-inf', '(0')
if stamps > 8 then redis.call('ZREMRANGEBYRANK', set, 8, stamps - 1) end
local found = redis.call('ZRANGEBYSCORE', set, '(' .. since, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[9])
return {lost, now, digits(newest) .. digits(cleared), found, digits(stamped_at())}
"""
)

# The same keys
# | channel, message before the number, message after it, stamp, most tags, newest that the caller knows, and must find,
#   how long tags are kept (µs), (member, number, bits)…: raise each that is older than that number, and announced, if
#   bits are named
# -> {time, 1 if something was lost, member, number, …}: what was raised; everything, if something was lost
RAISE_TAG_VERSIONS: Final = (
    _TAG_VERSIONS
    + f"local groups = {_GROUPS}"
    + """
local function is_announced(bits)
  for bit in string.gmatch(bits, '%d+') do
    if redis.call('GETBIT', announced, bit) == 0 then return false end
  end
  return true
end
local most, known = tonumber(ARGV[5]), tonumber(ARGV[6])
local newest, cleared = agreed()
if not newest or newest < tonumber(ARGV[7]) then return {digits(now), 1, '*', digits(clear(known))} end
local number, before, raised = math.max(now, known + 1, newest + 1), newest, {digits(now), 0}
-- Nothing, for a server without memory: see `clear`. And one that takes no writes refuses what it would pass over.
redis.call('ZREM', set, '')
for i = 9, #ARGV, 3 do
  local member = ARGV[i]
  if not is_announced(ARGV[i + 2]) then
    redis.call('HSET', passed, string.match(ARGV[i + 2], '%d+') % groups, digits(now))
  elseif math.max(cleared, tonumber(redis.call('ZSCORE', set, member) or 0)) < tonumber(ARGV[i + 1]) then
    if member == '*' then return {digits(now), 0, '*', digits(clear(known))} end
    redis.call('ZADD', set, number, member)
    announce(member, number, before)
    raised[#raised + 1] = member
    raised[#raised + 1] = digits(number)
    number, before = number + 1, number
  end
end
if #raised == 2 then return raised end
redis.call('SET', last, digits(before) .. digits(cleared))
-- Only tags become the minimum, which is that of tagged entries. What concerns others too is not much: it stays.
local function is_tag(member) return string.find(member, '^s?t') end
-- Tags of long ago, more of them than are added.
local before_then = string.format('(%.0f', now - ARGV[8])
local old, trimmed = redis.call('ZRANGEBYSCORE', set, '(0', before_then, 'WITHSCORES', 'LIMIT', 0, 200), 0
for i = 1, #old, 2 do
  if is_tag(old[i]) and trimmed < 10 then
    redis.call('ZREM', set, old[i])
    redis.call('ZADD', set, old[i + 1], '!')
    trimmed = trimmed + 1
  end
end
if redis.call('ZCARD', set) > most then
  -- The oldest tenth of the tags; the stamps are below them.
  local minimum = tonumber(redis.call('ZSCORE', set, '!') or 0)
  redis.call('ZREM', set, '*', '!')
  local first = math.min(8, redis.call('ZCOUNT', set, '-inf', '(0'))
  local oldest = first + math.max(1, math.floor(most / 10)) - 1
  minimum = math.max(minimum, redis.call('ZRANGE', set, oldest, oldest, 'WITHSCORES')[2])
  for _, member in ipairs(redis.call('ZRANGE', set, first, oldest)) do
    if is_tag(member) then redis.call('ZREM', set, member) end
  end
  redis.call('ZADD', set, minimum, '!', cleared, '*')
end
return raised
"""
)

# The same keys
# | channel, message before the number, message after it, stamp, newest that the caller knows, bits…: note that loads of
#   what carries these tags begin
# -> {time, the last clear, 1 if something was lost}: they are noted until the next clear
ANNOUNCE: Final = (
    _TAG_VERSIONS
    + """
local known = tonumber(ARGV[5])
local newest, cleared = agreed()
local lost = (not newest or newest < known) and 1 or 0
if lost == 1 then cleared = clear(known) end
-- Nothing, for a server without memory: see `clear`.
redis.call('ZREM', set, '')
-- Counted in both keys, so that an older copy of one is found.
local count = digits(redis.call('HGET', passed, 'announced') + 1)
redis.call('HSET', passed, 'announced', count)
redis.call('SETRANGE', announced, 16, count)
for i = 6, #ARGV do
  for bit in string.gmatch(ARGV[i], '%d+') do redis.call('SETBIT', announced, bit, 1) end
end
return {digits(now), digits(cleared), lost}
"""
)

# what was passed over | version, bits… -> 1: a tag of these may have been passed over since that version
PASSED_OVER: Final = f"""
local function newer(field)
  local text = redis.pcall('HGET', KEYS[1], field)
  return type(text) ~= 'string' or (tonumber(text) or 0) > tonumber(ARGV[1])
end
local function is_there(field) return redis.pcall('HEXISTS', KEYS[1], field) == 1 end
if newer('since') then return 1 end
for i = 2, #ARGV do
  local group = string.match(ARGV[i], '%d+') % {_GROUPS}
  if is_there(group) and newer(group) then return 1 end
end
return 0
"""
