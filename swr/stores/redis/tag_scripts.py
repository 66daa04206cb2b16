"""Scripts that run on the server of the tag versions, each atomic there.

`swr.stores.redis.scripts` describes the keys, and the comments before the scripts.
"""

from typing import Final

from swr.stores.redis.scripts import TIME

# Bits of the Bloom filter of announcements: 1 MB, a power of two. 32 bytes before it hold the last clear and the number
# of announcements.
ANNOUNCED_BITS: Final = 2**23
# Groups of tags; for each, the server remembers when an invalidation was last passed over.
_GROUPS: Final = 4096

# The beginning of a stamp's name among the tag versions; the ID of the server's run follows.
STAMP: Final = b"@"

# The beginning of LEARN, RAISE_TAG_VERSIONS and ANNOUNCE. Their first three arguments are for messages about tag
# versions: the channel, and two parts of a message. The script writes the new version after the first part, and the
# version before it and the member after the second. The fourth argument is the name of the stamp.
_TAG_VERSIONS: Final = (
    TIME
    + """
local set, last, announced, passed = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local function announce(member, number, before)
  tell(ARGV[1], ARGV[2] .. digits(number) .. ARGV[3] .. digits(before) .. member)
end
local stamp = ARGV[4]
local function newest_in(text) return plausible(tonumber(string.match(text, '^%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d'))) end
-- The newest tag version and the last clear; nil if one of the keys was lost, or swr has not written it.
local function agreed()
  local text = read(last)
  local newest, cleared = newest_in(text), tonumber(string.sub(text, 17))
  local member = redis.pcall('ZSCORE', set, '*')
  if newest == 0 or #text ~= 32 or type(member) ~= 'string' or tonumber(member) ~= cleared then return end
  local counted = redis.pcall('HGET', passed, 'announced')
  if type(counted) ~= 'string' or redis.pcall('GETRANGE', announced, 0, 31) ~= string.sub(text, 17) .. counted then
    return
  end
  -- The set always has the newest version, as a tag, the clear or the minimum. Only an older copy lacks it.
  local top = redis.call('ZRANGE', set, -1, -1, 'WITHSCORES')[2]
  if cleared <= newest and tonumber(top) == newest then return newest, cleared end
end
-- Outdate everything. The new version is newer than every version that the caller or any of the keys knows.
local function clear(known)
  local top = redis.pcall('ZRANGE', set, -1, -1, 'WITHSCORES')[2]
  local number = math.max(now, known + 1, newest_in(read(last)) + 1, plausible(tonumber(top)) + 1)
  -- DEL first: a server out of memory refuses no command of a script that has deleted something.
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

# tag versions, newest tag version, announcements, passed-over invalidations
# | channel, message before the version, message after it, stamp, what the caller knows (newest version, last clear,
#   version up to which it knows all, time of the stamp since that clear), most members to return
# -> {0, 1 if the server has no tag versions, or 2 if it has lost some; time; newest tag version and last clear;
#     {(member, version)…}; time of the stamp}
LEARN: Final = (
    _TAG_VERSIONS
    + """
local known, known_clear, since = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local newest, cleared = agreed()
local lost = 0
local function stamped_at() return plausible(-tonumber(redis.pcall('ZSCORE', set, stamp) or 0)) end
-- Within one run of a server, a stamp goes back only if older data have replaced all data.
local function is_older() return cleared == known_clear and stamped_at() < tonumber(ARGV[8]) end
if not newest or newest < known or cleared < known_clear or is_older() then
  lost = read(last) == '' and 1 or 2
  newest = clear(known)
  cleared = newest
end
if cleared ~= known_clear then since = '0' end
-- A server out of memory takes no stamp. If it then loses data, it seems to have lost more of them.
if now > stamped_at() + 5000000 then redis.pcall('ZADD', set, -now, stamp) end
-- Keep the stamps of the last eight runs. If the stamp of an earlier run is needed, everything counts as lost.
local stamps = redis.call('ZCOUNT', set, '-inf', '(0')
if stamps > 8 then redis.call('ZREMRANGEBYRANK', set, 8, stamps - 1) end
local found = redis.call('ZRANGEBYSCORE', set, '(' .. since, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[9])
return {lost, now, digits(newest) .. digits(cleared), found, digits(stamped_at())}
"""
)

# The same keys
# | channel, message before the version, message after it, stamp, most members, newest version that the caller knows,
#   version that the server must know, how long tags are kept (µs), (member, version, bits)…: raise each member that is
#   older than the version with it, and that was announced, if it has bits
# -> {time, 1 if something was lost, (member, version)…}: the raised members; the clear, if something was lost
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
-- ZREM of nothing, like DEL in `clear`: after it, a server out of memory refuses no command. And a server that takes no
-- writes refuses the whole script here, even if all tags would be passed over.
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
-- Only tags may be replaced by the minimum, which concerns all tagged entries. The other members are few, and stay.
local function is_tag(member) return string.find(member, '^s?t') end
-- Remove up to ten old tags, which is more than most calls add.
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
  -- Remove the oldest tenth of the tags. The stamps come before them in the set.
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
# | channel, message before the version, message after it, stamp, newest version that the caller knows, bits…: note
#   until the next clear that loads of entries with these tags begin
# -> {time, the last clear, 1 if something was lost}
ANNOUNCE: Final = (
    _TAG_VERSIONS
    + """
local known = tonumber(ARGV[5])
local newest, cleared = agreed()
local lost = (not newest or newest < known) and 1 or 0
if lost == 1 then cleared = clear(known) end
-- ZREM of nothing, like DEL in `clear`: after it, a server out of memory refuses no command.
redis.call('ZREM', set, '')
-- The count is in two keys, so that an older copy of one is found.
local count = digits(redis.call('HGET', passed, 'announced') + 1)
redis.call('HSET', passed, 'announced', count)
redis.call('SETRANGE', announced, 16, count)
for i = 6, #ARGV do
  for bit in string.gmatch(ARGV[i], '%d+') do redis.call('SETBIT', announced, bit, 1) end
end
return {digits(now), digits(cleared), lost}
"""
)

# passed-over invalidations | version, bits… -> 1 if one of these tags may have been passed over since that version
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
