"""The numbers of a queue."""

import msgspec


class QueueStatus(msgspec.Struct, frozen=True):
    """The content of a refresher's queue.

    Attributes:
        name: of the refresher.
        backend: "streams" or "list".
        queued: tasks that a process may take now.
        running: tasks that a process has taken.
        waiting: tasks that wait for another try.
        dirty: groups that are marked for the next round.
        dead: dead letters.
        consumers: seconds since each process was last seen, by its name.
        counts: tasks so far, by what became of them: `enqueued`, `merged` (with one that was queued already),
            `marked`, `done`, `current`, `failed`, `reclaimed`, `late`, `buried`.
        epoch: of the newest leader; 0: there was none yet.
        leads_for: seconds until the leader's lease ends unless it is renewed; 0: there is no leader.
        round: when the last round began that is enqueued whole, in seconds since 1970; None: there was none yet.
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
