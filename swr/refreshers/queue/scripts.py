"""Scripts of the server for queues, each atomic there.

Keys, for the refresher `r` of the namespace `ns` and its shard `i`. They are under one hash tag `{r:i}`, or `{r:i.n}`
where `spreading` has found that one for the shard. No colon follows it, as it does in the keys of entries and
leases:

- `ns:{r:i}t` a hash, the tasks that are not done: by the key of the group's entry a *record*
- `ns:{r:i}s` what is to be done, of task keys: a stream with the consumer group `swr`; or a list, `ns:{r:i}l`
- `ns:{r:i}l:C` of a list: what the consumer C has taken
- `ns:{r:i}z` a sorted set, when tasks are to be tried again (microseconds)
- `ns:{r:i}m` a hash, the dirty set: by key the version that the entry must be newer than, and the arguments
- `ns:{r:i}d` a hash, the dead letters: by key the record and why
- `ns:{r:i}c` a hash of counters, and the highest epoch of a leader so far
- `ns:{r:i}h` a sorted set, when each consumer was last seen (microseconds)
- `ns:{r:i}i` a sorted set, the idle consumers: how many tasks each takes at once, in three digits, and its tag
- `ns:{r:0}L` the leader's lease: 16 digits of epoch and its token
- `ns:{r:0}r` a hash: when the last round began that was enqueued whole (microseconds), and what part of another is

A record is one letter of state, and 16 digits of the version that the entry must be newer than. Then come 16 digits of
the time of its last delivery, 4 that count tries, and the arguments. States: `q` queued, `r` running, `a` running and
wanted again, `w` waiting for another try. The time of a delivery (microseconds) is its fence: who was taken for dead
settles nothing any more.

`streams` and `lists` each define the same local functions, which the scripts call:

- push(id), requeue(id): have a task key taken last, or first where there is an order
- pull(consumer, most): give a consumer task keys; return pairs of a receipt and a key
- drop(receipt, consumer): forget a pair that was pulled
- reclaim(consumer, receipts, first, idle, most, give_back): call give_back with the keys of consumers that have been
  silent for `idle` microseconds. Call it also with those whose delivery this consumer does not know of
- abandon(consumer, give_back): call give_back with what a consumer has that leaves
- forget(consumer): remove a consumer that has nothing
- lengths(): return how many keys are to be taken, and how many have been taken

Scripts count in `pushed` the keys that consumers are to take. `wakes` decides which consumers hear of them.
"""

from typing import Final

from swr.refreshers.queue import lists, streams, wakes

_COMMON: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local tasks, ready, delayed, marks, dead, counts, seen, idle_ones = unpack(KEYS)
-- How many task keys this script has pushed.
local pushed = 0
local function digits(number) return string.format('%016.0f', number) end
local function count(what, by)
  local reply = redis.pcall('HINCRBY', counts, what, by or 1)
  -- What is there is no number, and not of this queue's making.
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
    -- Not of this queue's making. The next round enqueues the group again.
    redis.call('HDEL', tasks, id)
    count('malformed')
  end
  return task
end
-- What was given up, as a task; a letter that nobody can read is thrown away.
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
    -- A dead letter is delivered once in a while, and no oftener.
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

# epoch, most deliveries, (id, newer_than, args)… -> {new, merged}; {-1, epoch}: one is newer
ENQUEUE: Final = (
    _ENQUEUE
    + "for i = 3, #ARGV, 3 do enqueue(ARGV[i], ARGV[i + 1], ARGV[i + 2]) end"
    + _ENQUEUED
    + "return {new, merged}"
)

# epoch, most deliveries, cursor, about how many: enqueue what is dirty -> {new, merged, cursor}
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

# The same for what was given up, which is tried again once a round. Further argument: what was delivered from this time
# on (microseconds) was tried in this round.
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

# (id, newer_than, args)… -> 1: they are dirty
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

# consumer, most, most deliveries, spare -> {1: it is idle, and woken when there are tasks, or 0, {{receipt, id,
# newer_than, delivery, tries, args}…}}. It is idle if it has found fewer than it can take, and `spare` at most.
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

# consumer, most deliveries, (what, receipt, id, delivery, delay (us), why)… -> how many had been given to others
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

# consumer, idle (us), receipt… -> how many tasks were taken from consumers who have not been seen for so long
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
  redis.call('ZREM', seen, other)
  forget(other)
end
wake(pushed)
return back
"""
)

# consumer, most: it takes nothing any more -> how many tasks it had that it did not know of
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

# consumer, most: it has no place for the tasks that it was woken for, so that another one is woken -> 1
PASS_ON: Final = """
note(ARGV[1], tonumber(ARGV[2]), false)
wake(1)
return 1
"""

# flags ('' at first), cursor -> {flags, cursor}: queue again what no consumer would come to, because somebody
# has deleted the stream, a list, or the times of waiting tasks. The flags are the states in which no task can be that
# is there still. One that is queued twice is taken once.
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

# -> {queued, taken, waiting, dirty, dead, consumers, counters}
STATUS: Final = """
local queued, taken = lengths()
return {queued, taken, redis.call('ZCARD', delayed), redis.call('HLEN', marks), redis.call('HLEN', dead),
  redis.call('ZRANGE', seen, 0, -1, 'WITHSCORES'), redis.call('HGETALL', counts), digits(now)}
"""

# id… -> how many dead letters are tasks again
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
    """Return a script over a stream or a list."""
    return _COMMON + wakes.FUNCTIONS + _FUNCTIONS[backend] + body
