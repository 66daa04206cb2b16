"""Lua functions of the backend "list": one list of queued tasks, and a list of taken tasks for each consumer.

See `scripts` for what each function does. A receipt is the key of a task.
"""

from typing import Final

FUNCTIONS: Final = """
local function push(id)
  pushed = pushed + 1
  redis.call('LPUSH', ready, id)
end
local function requeue(id)
  pushed = pushed + 1
  redis.call('RPUSH', ready, id)
end
local function drop(receipt, consumer) redis.call('LREM', ready .. ':' .. consumer, 1, receipt) end
local function pull(consumer, most)
  local pulled = {}
  for _ = 1, most do
    local id = redis.call('LMOVE', ready, ready .. ':' .. consumer, 'RIGHT', 'LEFT')
    if not id then break end
    pulled[#pulled + 1] = {id, id}
  end
  return pulled
end
local function reclaim(consumer, receipts, first, idle, most, give_back)
  local known = {}
  for i = first, #receipts do known[receipts[i]] = true end
  for _, id in ipairs(redis.call('LRANGE', ready .. ':' .. consumer, 0, -1)) do
    if not known[id] then
      -- The consumer took this task with a command, but the reply was lost.
      drop(id, consumer)
      give_back(id)
    end
  end
  local left = most
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', seen, '-inf', now - idle)) do
    while left > 0 do
      local id = redis.call('RPOP', ready .. ':' .. other)
      if not id then break end
      give_back(id)
      left = left - 1
    end
  end
end
local function forget(consumer) return redis.call('LLEN', ready .. ':' .. consumer) == 0 end
local function abandon(consumer, give_back)
  local id = redis.call('RPOP', ready .. ':' .. consumer)
  while id do
    give_back(id)
    id = redis.call('RPOP', ready .. ':' .. consumer)
  end
end
local function lengths()
  local taken = 0
  for _, consumer in ipairs(redis.call('ZRANGE', seen, 0, -1)) do
    taken = taken + redis.call('LLEN', ready .. ':' .. consumer)
  end
  return redis.call('LLEN', ready), taken
end
"""
