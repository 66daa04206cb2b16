"""Lua scripts for the leader's lease; see `scripts` for the keys."""

from typing import Final

# lease, rounds, counters of shard 0 | token, ttl (ms), the part of a round that is enqueued ('': leave it as it is)
# -> {epoch, beginning of the last round, now, part}, or {'', ms until it ends, now, ''}
LEAD: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function digits(number) return string.format('%016.0f', number) end
local time_digits = string.rep('%d', 16)
local held, left = redis.call('GET', KEYS[1]) or '', redis.call('PTTL', KEYS[1])
local epoch = string.match(held, '^' .. time_digits)
-- A lease without an epoch or a TTL is not from a leader, and would keep every process from leading.
if not epoch or left < 0 then held = '' end
if held ~= '' and string.sub(held, 17) ~= ARGV[1] then return {'', left, digits(now), ''} end
if held == '' then
  local before = string.match(redis.call('HGET', KEYS[3], 'epoch') or '', '^' .. time_digits .. '$') or 0
  epoch = digits(math.max(now, tonumber(before) + 1))
  redis.call('HSET', KEYS[3], 'epoch', epoch)
end
redis.call('SET', KEYS[1], epoch .. ARGV[1], 'PX', ARGV[2])
if ARGV[3] ~= '' then redis.call('HSET', KEYS[2], 'part', ARGV[3]) end
return {epoch, redis.call('HGET', KEYS[2], 'round') or '', digits(now), redis.call('HGET', KEYS[2], 'part') or ''}
"""

# lease, rounds | token, beginning of a round -> 1, or 0: another process leads
ENQUEUED: Final = """
if string.sub(redis.call('GET', KEYS[1]) or '', 17) ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[2], 'round', ARGV[2])
redis.call('HDEL', KEYS[2], 'part')
return 1
"""

# lease | token -> 1, or 0: another process leads, or none
ABDICATE: Final = """
if string.sub(redis.call('GET', KEYS[1]) or '', 17) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
