"""What runs on the server that has the tag versions, each step atomic there.

`swr.stores.redis.scripts` describes the keys.
"""

from typing import Final

from swr.stores.redis.scripts import TIME

# Which members of the tag versions say when a server was last stamped: this, and which run of a server it was.
STAMP: Final = b"@"

# Every script about tag versions gets, as its first arguments, how to notify of one: the channel, the beginning of the
# message, and what stands in it between the version and the newest version before it, which the
# member follows; and the name of the stamp.
_TAG_VERSIONS: Final = (
    TIME
    + """
local set, last = KEYS[1], KEYS[2]
local function announce(member, number, before)
  tell(ARGV[1], ARGV[2] .. digits(number) .. ARGV[3] .. digits(before) .. member)
end
local stamp = ARGV[4]
local function newest_in(text) return plausible(tonumber(string.match(text, '^%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d'))) end
-- The newest tag version and the last clear; nil if either key was lost, or holds what swr has not written.
local function agreed()
  local text = read(last)
  local newest, cleared = newest_in(text), tonumber(string.sub(text, 17))
  local member = redis.pcall('ZSCORE', set, '*')
  if newest == 0 or #text ~= 32 or type(member) ~= 'string' or tonumber(member) ~= cleared then return end
  -- The newest stays in the set, as a tag, as the clear or as the minimum: an older copy of the set lacks it.
  local top = redis.call('ZRANGE', set, -1, -1, 'WITHSCORES')[2]
  if cleared <= newest and tonumber(top) == newest then return newest, cleared end
end
-- Outdate everything. Whatever is known of versions before is older, also where only one of the keys knows it.
local function clear(known)
  local top = redis.pcall('ZRANGE', set, -1, -1, 'WITHSCORES')[2]
  local number = math.max(now, known + 1, newest_in(read(last)) + 1, plausible(tonumber(top)) + 1)
  -- First, because a server without memory refuses no command of a script that has deleted something.
  redis.call('DEL', set)
  redis.call('ZADD', set, number, '*', -now, stamp)
  redis.call('SET', last, digits(number) .. digits(number))
  announce('*', number, 0)
  return number
end
"""
)

# tag versions, newest tag version
# | channel, message before the number, message after it, stamp, what the caller knows: newest, last clear, all up to;
#   most tags to return
# -> {0, or 2: something was lost, or 1: everything, or it is new; time, newest tag version and last clear,
#     {member, number, …}}
LEARN: Final = (
    _TAG_VERSIONS
    + """
local known, known_clear, since = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local newest, cleared = agreed()
local lost = 0
if not newest or newest < known or cleared < known_clear then
  lost = read(last) == '' and 1 or 2
  newest = clear(known)
  cleared = newest
end
if cleared ~= known_clear then since = '0' end
-- Without memory there is no stamp, and a server that loses data then seems to have lost more.
local stamped = plausible(-tonumber(redis.call('ZSCORE', set, stamp) or 0))
if now > stamped + 5000000 then redis.pcall('ZADD', set, -now, stamp) end
-- Those of earlier runs come last: to miss one is to count everything as lost.
local stamps = redis.call('ZCOUNT', set, '-inf', '(0')
if stamps > 8 then redis.call('ZREMRANGEBYRANK', set, 8, stamps - 1) end
local found = redis.call('ZRANGEBYSCORE', set, '(' .. since, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[8])
return {lost, now, digits(newest) .. digits(cleared), found}
"""
)

# tag versions, newest tag version
# | channel, message before the number, message after it, stamp, most tags, newest that the caller knows, and must find,
#   how long tags are kept (µs), (member, number)…: raise each that is older than that number
# -> {member, number, …}: what was raised; everything, if something was lost
RAISE_TAG_VERSIONS: Final = (
    _TAG_VERSIONS
    + """
local most, known = tonumber(ARGV[5]), tonumber(ARGV[6])
local newest, cleared = agreed()
if not newest or newest < tonumber(ARGV[7]) then return {'*', digits(clear(known))} end
local number, before, raised = math.max(now, known + 1, newest + 1), newest, {}
-- Nothing, for a server without memory: see `clear`.
redis.call('ZREM', set, '')
for i = 9, #ARGV, 2 do
  local member = ARGV[i]
  if math.max(cleared, tonumber(redis.call('ZSCORE', set, member) or 0)) < tonumber(ARGV[i + 1]) then
    if member == '*' then return {'*', digits(clear(known))} end
    redis.call('ZADD', set, number, member)
    announce(member, number, before)
    raised[#raised + 1] = member
    raised[#raised + 1] = digits(number)
    number, before = number + 1, number
  end
end
if #raised > 0 then redis.call('SET', last, digits(before) .. digits(cleared)) end
-- Tags of long ago become the minimum, more of them than are added; the clear stays.
local old = redis.call('ZRANGEBYSCORE', set, '(0', '+inf', 'WITHSCORES', 'LIMIT', 0, 10)
for i = 1, #old, 2 do
  if not string.find('*!', old[i], 1, true) and tonumber(old[i + 1]) < now - ARGV[8] then
    redis.call('ZREM', set, old[i])
    redis.call('ZADD', set, old[i + 1], '!')
  end
end
if redis.call('ZCARD', set) > most then
  -- The oldest tenth of the tags becomes the minimum; the clear stays, and so do the stamps, below them.
  local minimum = tonumber(redis.call('ZSCORE', set, '!') or 0)
  redis.call('ZREM', set, '*', '!')
  local first = math.min(8, redis.call('ZCOUNT', set, '-inf', '(0'))
  local oldest = first + math.max(1, math.floor(most / 10)) - 1
  minimum = math.max(minimum, redis.call('ZRANGE', set, oldest, oldest, 'WITHSCORES')[2])
  redis.call('ZREMRANGEBYRANK', set, first, oldest)
  redis.call('ZADD', set, minimum, '!', cleared, '*')
end
return raised
"""
)
