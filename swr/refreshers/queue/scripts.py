"""Lua scripts of a queue. Redis runs each script atomically.

Keys, for the refresher `r` of the namespace `ns` and its shard `i`. They share the hash tag `{r:i}`, or `{r:i.n}` if
`spreading` has chosen that tag for the shard. No colon follows the hash tag, unlike in the keys of entries and leases:

- `ns:{r:i}t` a hash of unfinished tasks: a *record* by the cache key of the group. This cache key is the task's id
- `ns:{r:i}s` the ids of queued tasks: a stream with the consumer group `swr`; or a list, `ns:{r:i}l`
- `ns:{r:i}l:C` with the backend "list": the ids of the tasks that the consumer C has taken
- `ns:{r:i}z` a sorted set: when each waiting task is tried again (microseconds)
- `ns:{r:i}m` a hash, the dirty set: by cache key, the version that the entry must be newer than, and the arguments
- `ns:{r:i}d` a hash of dead letters: by cache key, the record and the reason
- `ns:{r:i}c` a hash of counters, and of the highest epoch of a leader so far
- `ns:{r:i}h` a sorted set: when each consumer was last seen (microseconds)
- `ns:{r:i}i` a sorted set of idle consumers: how many tasks each takes at once, in three digits, and its tag
- `ns:{r:0}L` the leader's lease: 16 digits of epoch, and the leader's token
- `ns:{r:0}r` a hash: the beginning of the last completely enqueued round (microseconds), and the enqueued part of
  another round

A record begins with a letter for the state, and 16 digits for the version that the entry must be newer than. Then come
16 digits for the time of the last delivery, 4 for the number of tries, and the arguments. States: `q` queued, `r`
running, `a` running and wanted again, `w` waiting for another try. The time of a delivery (microseconds) is its fence:
after a task was given to another consumer, the queue ignores the result of the first one.

`streams` and `lists` both define these local functions, which the scripts call:

- push(id): queue a task to be taken last
- requeue(id): queue a task to be taken first with `lists`, and last with `streams`
- pull(consumer, most): give queued tasks to a consumer; return pairs of a receipt and an id
- drop(receipt, consumer): remove a pulled task from those of the consumer
- reclaim(consumer, receipts, first, idle, most, give_back): call give_back with the ids of about `most` tasks of
  consumers that have been silent for `idle` microseconds. `lists` also gives back tasks of this consumer that are not
  in `receipts`
- abandon(consumer, give_back): call give_back with the ids of the tasks of a consumer that leaves
- forget(consumer): remove a consumer if it has no tasks, and return whether it has none
- lengths(): return the number of queued tasks, and of taken ones

Scripts count the ids that they queue in `pushed`. `wakes` decides which consumers get a message about them.
"""

from typing import Final

from swr.refreshers.queue import lists, streams, wakes

_COMMON: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local tasks, ready, delayed, marks, dead, counts, seen, idle_ones = unpack(KEYS)
-- The number of tasks that this script has queued.
local pushed = 0
local function digits(number) return string.format('%016.0f', number) end
local function count(what, by)
  local reply = redis.pcall('HINCRBY', counts, what, by or 1)
  -- Another program has written something that is not a number.
  if type(reply) == 'table' and reply.err then redis.call('HSET', counts, what, by or 1) end
end
local time_digits = string.rep('%d', 16)
local pattern = '^([qraw])(' .. time_digits .. ')(' .. time_digits .. ')(%d%d%d%d)(%[.*%])$'
local function read(text)
  local state, newer_than, delivered, tries, args = string.match(text, pattern)
  if not state then return nil end
  return {state = state, newer_than = newer_than, delivered = delivered, tries = tonumber(tries), args = args}
end
local function get(id)
  local text = redis.call('HGET', tasks, id)
  if not text then return nil end
  local task = read(text)
  if not task then
    -- Another program has written this. The next round enqueues the group again.
    redis.call('HDEL', tasks, id)
    count('malformed')
  end
  return task
end
-- Return the task of a dead letter. Delete the letter if it cannot be read.
local function unburied(id, letter)
  local ok, read_letter = pcall(cjson.decode, letter)
  local task = ok and type(read_letter) == 'table' and type(read_letter.record) == 'string' and read(read_letter.record)
  if not task then
    redis.call('HDEL', dead, id)
    count('malformed')
  end
  return task
end
local function text_of(task)
  return task.state .. task.newer_than .. task.delivered .. string.format('%04d', task.tries) .. task.args
end
local function put(id, task) redis.call('HSET', tasks, id, text_of(task)) end
local function bury(id, task, why)
  redis.call('HDEL', tasks, id)
  redis.call('HSET', dead, id, cjson.encode({record = text_of(task), why = why, at = digits(now)}))
  count('buried')
end
"""

_ENQUEUE: Final = """
local epoch, most = ARGV[1], tonumber(ARGV[2])
local newest = string.match(redis.call('HGET', counts, 'epoch') or '', '^' .. time_digits .. '$') or ''
if epoch < newest then return {-1, newest} end
redis.call('HSET', counts, 'epoch', epoch)
local new, merged = 0, 0
local function enqueue(id, newer_than, args)
  local task = get(id)
  if task then
    merged = merged + 1
    if newer_than > task.newer_than then
      task.newer_than, task.args = newer_than, args
      if task.state == 'r' then task.state = 'a' end
      put(id, task)
    end
  else
    new = new + 1
    -- The task of a dead letter gets one try only: if that fails, it is a dead letter again.
    put(id, {state = 'q', newer_than = newer_than, delivered = digits(0), args = args,
      tries = redis.call('HEXISTS', dead, id) == 1 and most - 1 or 0})
    push(id)
  end
end
"""

_ENQUEUED: Final = """
count('enqueued', new)
count('merged', merged)
wake(pushed)
"""

# epoch, most deliveries, (id, newer_than, args)… -> {new, merged}, or {-1, epoch}: another leader has a newer epoch
ENQUEUE: Final = (
    _ENQUEUE
    + "for i = 3, #ARGV, 3 do enqueue(ARGV[i], ARGV[i + 1], ARGV[i + 2]) end"
    + _ENQUEUED
    + "return {new, merged}"
)

# Enqueue the dirty groups: epoch, most deliveries, cursor, about how many -> {new, merged, cursor}
DRAIN: Final = (
    _ENQUEUE
    + """
local reply = redis.call('HSCAN', marks, ARGV[3], 'COUNT', ARGV[4])
local found = reply[2]
for i = 1, #found, 2 do
  local newer_than, args = string.match(found[i + 1], '^(' .. time_digits .. ')(%[.*%])$')
  if newer_than then enqueue(found[i], newer_than, args) else count('malformed') end
  redis.call('HDEL', marks, found[i])
end
"""
    + _ENQUEUED
    + "return {new, merged, reply[1]}"
)

# As DRAIN, for dead letters, each of which is tried again once in a round. A further argument is the beginning of the
# round (microseconds): letters that were delivered since then have had their try in this round.
DRAIN_DEAD: Final = (
    _ENQUEUE
    + """
local reply = redis.call('HSCAN', dead, ARGV[3], 'COUNT', ARGV[4])
local letters = reply[2]
for i = 1, #letters, 2 do
  local task = unburied(letters[i], letters[i + 1])
  if task and task.delivered < ARGV[5] and not get(letters[i]) then
    enqueue(letters[i], task.newer_than, task.args)
  end
end
"""
    + _ENQUEUED
    + "return {new, merged, reply[1]}"
)

# Put groups into the dirty set: (id, newer_than, args)… -> 1
MARK: Final = """
for i = 1, #ARGV, 3 do
  local before = redis.call('HGET', marks, ARGV[i]) or ''
  if (string.match(before, '^' .. time_digits) or '') < ARGV[i + 1] then
    redis.call('HSET', marks, ARGV[i], ARGV[i + 1] .. ARGV[i + 2])
  end
end
count('marked', #ARGV / 3)
return 1
"""

# consumer, most, most deliveries, spare -> {1 if the consumer is idle, otherwise 0,
# {{receipt, id, newer_than, delivery, tries, args}…}}. It is idle if it found fewer than `most` tasks, and at most
# `spare`.
TAKE: Final = """
local consumer, at_once, most, spare = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
redis.call('ZADD', seen, now, consumer)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('ZREM', delayed, id)
  local task = get(id)
  if task and task.state == 'w' then
    task.state = 'q'
    put(id, task)
    push(id)
  end
end
local pulled, taken = pull(consumer, at_once), {}
for _, pair in ipairs(pulled) do
  local receipt, id = pair[1], pair[2]
  local task = get(id)
  if not task or task.state ~= 'q' then
    drop(receipt, consumer)
  elseif task.tries >= most then
    drop(receipt, consumer)
    bury(id, task, 'delivered ' .. task.tries .. ' times, and no worker that took it settled it')
  else
    task.state, task.delivered, task.tries = 'r', digits(now), task.tries + 1
    put(id, task)
    taken[#taken + 1] = {receipt, id, task.newer_than, task.delivered, task.tries, task.args}
  end
end
local is_idle = #pulled < at_once and #pulled <= spare
note(consumer, at_once, is_idle)
wake(pushed - #pulled)
return {is_idle and 1 or 0, taken}
"""

# consumer, most deliveries, (what, receipt, id, delivery, delay (us), why)… -> number of tasks that others had got
SETTLE: Final = """
local consumer, most, late = ARGV[1], tonumber(ARGV[2]), 0
for i = 3, #ARGV, 6 do
  local what, receipt, id, delay = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 4])
  local task = get(id)
  if not task or task.delivered ~= ARGV[i + 3] or (task.state ~= 'r' and task.state ~= 'a') then
    late = late + 1
  else
    drop(receipt, consumer)
    if what == 'done' or what == 'current' then
      redis.call('HDEL', dead, id)
      count(what)
    elseif what == 'failed' then
      count('failed')
    else
      task.tries = task.tries - 1
    end
    if task.state == 'a' then
      task.state = 'q'
      task.tries = what == 'done' and 0 or math.min(task.tries, most - 1)
      put(id, task)
      push(id)
    elseif what == 'done' or what == 'current' then
      redis.call('HDEL', tasks, id)
    elseif what == 'failed' and task.tries >= most then
      bury(id, task, ARGV[i + 5])
    elseif delay > 0 then
      task.state = 'w'
      put(id, task)
      redis.call('ZADD', delayed, now + delay, id)
    else
      task.state = 'q'
      put(id, task)
      requeue(id)
    end
  end
end
if late > 0 then count('late', late) end
wake(pushed)
return late
"""

_GIVE_BACK: Final = """
local back = 0
local function give_back(id)
  local task = get(id)
  if task and (task.state == 'r' or task.state == 'a') then
    task.state = 'q'
    put(id, task)
    requeue(id)
    back = back + 1
  end
end
"""

# consumer, idle (us), receipt… -> number of tasks that were taken from consumers not seen for `idle`
TEND: Final = (
    _GIVE_BACK
    + """
local consumer, idle = ARGV[1], tonumber(ARGV[2])
redis.call('ZADD', seen, now, consumer)
reclaim(consumer, ARGV, 3, idle, 1000, give_back)
if back > 0 then
  count('reclaimed', back)
end
for _, other in ipairs(redis.call('ZRANGEBYSCORE', seen, '-inf', now - 60 * idle)) do
  if forget(other) then redis.call('ZREM', seen, other) end
end
wake(pushed)
return back
"""
)

# Remove a consumer: consumer, most -> number of tasks that the consumer had without knowing
LEAVE: Final = (
    _GIVE_BACK
    + """
redis.call('ZREM', seen, ARGV[1])
note(ARGV[1], tonumber(ARGV[2]), false)
abandon(ARGV[1], give_back)
forget(ARGV[1])
wake(pushed)
return back
"""
)

# Wake another consumer, because this one has no free slots for the tasks that it was woken for: consumer, most -> 1
PASS_ON: Final = """
note(ARGV[1], tonumber(ARGV[2]), false)
wake(1)
return 1
"""

# Requeue tasks that no consumer would find, because somebody has deleted the stream, a list, or the times of waiting
# tasks: flags ('' at first), cursor -> {flags, cursor}. The flags are the states whose data is gone: a task in such a
# state must be queued again. A task that is queued twice is taken once.
HEAL: Final = """
local flags = ARGV[1]
if flags == '' then
  local queued, taken = lengths()
  flags = (queued == 0 and 'q' or '-') .. (taken == 0 and 'ra' or '--')
    .. (redis.call('ZCARD', delayed) == 0 and 'w' or '-')
end
if flags == '----' then return {flags, '0'} end
local reply = redis.call('HSCAN', tasks, ARGV[2], 'COUNT', 500)
local found = reply[2]
for i = 1, #found, 2 do
  local id = found[i]
  local task = get(id)
  if task and string.find(flags, task.state, 1, true) then
    task.state = 'q'
    put(id, task)
    push(id)
  end
end
wake(pushed)
return {flags, reply[1]}
"""

# -> {queued, taken, waiting, dirty, dead, consumers, counters, now}
STATUS: Final = """
local queued, taken = lengths()
return {queued, taken, redis.call('ZCARD', delayed), redis.call('HLEN', marks), redis.call('HLEN', dead),
  redis.call('ZRANGE', seen, 0, -1, 'WITHSCORES'), redis.call('HGETALL', counts), digits(now)}
"""

# Turn dead letters back into tasks: id… -> number of new tasks
RETRY: Final = """
local back = 0
for i = 1, #ARGV do
  local id = ARGV[i]
  local letter = redis.call('HGET', dead, id)
  local task = letter and unburied(id, letter)
  if task then
    redis.call('HDEL', dead, id)
    if not get(id) then
      task.state, task.tries = 'q', 0
      put(id, task)
      push(id)
      back = back + 1
    end
  end
end
wake(pushed)
return back
"""


_FUNCTIONS: Final = {"streams": streams.FUNCTIONS, "list": lists.FUNCTIONS}


def of(backend: str, body: str) -> str:
    """Return a complete script.

    Parameters:
        backend: "streams" or "list".
        body: one of the scripts of this module.
    """
    return _COMMON + wakes.FUNCTIONS + _FUNCTIONS[backend] + body
