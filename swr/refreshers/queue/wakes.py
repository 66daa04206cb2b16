"""The functions by which scripts wake consumers: no more of the idle ones than there are tasks for.

A message goes to every process, and names those that are to look. A consumer is idle if it has found fewer tasks than
it can take. The script that has told it so has noted it; the script that wakes it forgets it again.

The last arguments of each script are the channel, and what is in the message around the names of the consumers.

- note(consumer, most, is_idle): the consumer is idle, and takes `most` tasks at once; or it is not
- wake(number): tell the longest idle consumers of a number of tasks
"""

from typing import Final

# The characters of a consumer's name that tell it apart, its last ones.
TAG: Final = 8
# Seconds after which a consumer that has not looked again is not idle, but gone. It looks again every five.
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
    -- Another may have written into it.
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
    """Return what names a consumer in a message."""
    return consumer[-TAG:].rjust(TAG)
