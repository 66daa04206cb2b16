"""Lua functions that wake idle consumers for new tasks, and not more consumers than the tasks need.

Every process gets the message, which names the consumers that are to look for tasks. A consumer is idle if it has found
fewer tasks than it can take. The script TAKE notes the idle consumer, and a script that wakes it deletes the note.

The last arguments of each script are the channel, and the parts of the message before and after the consumers' names.

- note(consumer, most, is_idle): note that the consumer is idle and takes `most` tasks at once; or delete the note
- wake(number): wake the consumers that have been idle longest, as many as `number` tasks need
"""

from typing import Final

# How many characters at the end of a consumer's name identify it in a message.
TAG: Final = 8
# Seconds without a look after which an idle consumer counts as dead. A living one looks every five seconds.
_GONE_AFTER: Final = 12

FUNCTIONS: Final = (
    f"local tag, gone_after = {TAG}, {_GONE_AFTER * 1_000_000}"
    + """
local message_end, message_begin, channel = table.remove(ARGV), table.remove(ARGV), table.remove(ARGV)
local function note(consumer, most, is_idle)
  local member = string.format('%03d', most) .. string.sub(string.rep(' ', tag) .. consumer, -tag)
  if is_idle then redis.call('ZADD', idle_ones, now, member) else redis.call('ZREM', idle_ones, member) end
end
local function wake(number)
  if number <= 0 then return end
  redis.call('ZREMRANGEBYSCORE', idle_ones, '-inf', now - gone_after)
  local woken = {}
  while number > 0 and #woken < 1000 do
    local member = redis.call('ZPOPMIN', idle_ones)[1]
    if not member then break end
    local most = tonumber(string.sub(member, 1, 3))
    -- Another program may have written to this sorted set.
    if most and #member == 3 + tag then
      woken[#woken + 1] = string.sub(member, 4)
      number = number - math.max(1, most)
    end
  end
  if #woken > 0 then
    local names = string.format('%04d', #woken) .. table.concat(woken)
    redis.call('PUBLISH', channel, 'q' .. digits(now) .. message_begin .. names .. message_end)
  end
end
"""
)


def tag_of(consumer: str) -> str:
    """Return the name of a consumer in a message."""
    return consumer[-TAG:].rjust(TAG)
