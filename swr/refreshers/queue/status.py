"""The numbers of a queue."""

import msgspec


class QueueStatus(msgspec.Struct, frozen=True):
    """The numbers of a refresher's queue.

    Attributes:
        name: the name of the refresher.
        backend: "streams" or "list".
        queued: tasks that a process may take now.
        running: tasks that a process has taken.
        waiting: tasks that wait for another try.
        dirty: groups that are marked for the next round.
        dead: dead letters.
        consumers: seconds since each process was last seen, by its name.
        counts: counters since the queue began, by name: `enqueued`, `marked`, `done` and `failed`. `merged`: the group
            had a task already. `current`: the stored entry was new enough. `reclaimed`: taken from a silent process.
            `late`: a result that came after another process had got the task. `buried`: made a dead letter.
        epoch: the epoch of the newest leader; 0: there was no leader.
        leads_for: seconds until the leader's lease ends unless it is renewed; 0: there is no leader.
        round: when the last completely enqueued round began, in seconds since 1970; None: there was no round.
    """

    name: str
    backend: str
    queued: int
    running: int
    waiting: int
    dirty: int
    dead: int
    consumers: dict[str, float]
    counts: dict[str, int]
    epoch: int
    leads_for: float
    round: float | None
