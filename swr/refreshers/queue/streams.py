"""Lua functions of the backend "streams": a stream with a consumer group.

See `scripts` for what each function does. A receipt is the id of an entry of the stream.
"""

from typing import Final

FUNCTIONS: Final = """
local function push(id)
  pushed = pushed + 1
  redis.call('XADD', ready, '*', 'k', id)
end
local function group() redis.pcall('XGROUP', 'CREATE', ready, 'swr', '0', 'MKSTREAM') end
local function drop(receipt, consumer)
  redis.call('XACK', ready, 'swr', receipt)
  redis.call('XDEL', ready, receipt)
end
local function pull(consumer, most)
  local reply = redis.pcall('XREADGROUP', 'GROUP', 'swr', consumer, 'COUNT', most, 'STREAMS', ready, '>')
  if type(reply) == 'table' and reply.err then
    group()
    reply = redis.call('XREADGROUP', 'GROUP', 'swr', consumer, 'COUNT', most, 'STREAMS', ready, '>')
  end
  local pulled = {}
  if reply then
    for _, entry in ipairs(reply[1][2]) do pulled[#pulled + 1] = {entry[1], entry[2][2] or ''} end
  end
  return pulled
end
local function reclaim(consumer, receipts, first, idle, most, give_back)
  for i = first, #receipts do
    -- This resets the idle time of the consumer's own tasks. Tasks that others have got are no longer pending.
    redis.pcall('XCLAIM', ready, 'swr', consumer, 0, receipts[i], 'JUSTID')
  end
  local cursor, left = '0-0', most
  repeat
    local reply = redis.pcall('XAUTOCLAIM', ready, 'swr', '!', math.floor(idle / 1000), cursor, 'COUNT', 100)
    if reply.err then return end
    cursor = reply[1]
    for _, entry in ipairs(reply[2]) do
      drop(entry[1])
      give_back(entry[2][2] or '')
      left = left - 1
    end
  until cursor == '0-0' or left <= 0
end
local function forget(consumer)
  local idle = redis.pcall('XINFO', 'CONSUMERS', ready, 'swr')
  if idle.err then return true end
  for _, fields in ipairs(idle) do
    if fields[2] == consumer then
      if fields[4] > 0 then return false end
      redis.call('XGROUP', 'DELCONSUMER', ready, 'swr', consumer)
    end
  end
  return true
end
-- `reclaim` gives back the tasks that the consumer did not know of, once they have been idle long enough.
local function abandon(consumer, give_back) end
local function lengths()
  local pending = redis.pcall('XPENDING', ready, 'swr')
  local taken = type(pending) == 'table' and not pending.err and pending[1] or 0
  return redis.call('XLEN', ready) - taken, taken
end
local function requeue(id) push(id) end
"""
