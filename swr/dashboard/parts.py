"""The parts of the messages in `state`: what is known of a process, a loader, a key."""

from typing import Literal, TypedDict


class Key(TypedDict):
    """A key as it may be shown.

    Attributes:
        id: names the key to the routes; opaque, and valid as long as the process that gave it remembers it.
        text: all of it, hashed parts included, for copying and for a title.
        parts: the same text in pieces, each with whether it is a hash: digests of fields and cookies, and the values
            of a query, which the dashboard hides.
    """

    id: str
    text: str
    parts: list[tuple[str, bool]]


class Problem(TypedDict):
    """Something that is wrong now.

    Attributes:
        level: "error" comes first.
        kind: "redis", "refused", "process", "failing", "hanging", "queue", "dead", "version", "clock", "fleet",
            "unreadable" or "simulated". Eight of a kind come at most, and one more that counts the others.
        text: a sentence that says what happened and to which thing.
        remedy: what to do about it.
        since: when it began; null if that is not known.
        target: the name of the row, node, process or queue that it concerns; null: all.
    """

    level: Literal["error", "warning"]
    kind: str
    text: str
    remedy: str
    since: float | None
    target: str | None


class Node(TypedDict):
    """A server of Redis or Valkey.

    Attributes:
        name: its address.
        reachable: whether every process that reports reaches it, and so does this one.
        since: since when it is unreachable; null if it is reachable.
        reason: why, as the log says; "" if it is reachable.
        unreachable_from: the ids of the processes that do not reach it.
    """

    name: str
    reachable: bool
    since: float | None
    reason: str
    unreachable_from: list[str]


class Process(TypedDict):
    """A process that has a digest in Redis, or this one.

    Attributes:
        id: of its cache, made when the cache opened.
        host, pid: where it runs.
        version: of the application, as `Cache(version=...)` or the environment says; "" if neither does.
        swr: the version of swr.
        started: when its cache opened.
        seen: when its last digest arrived.
        gone: whether that is so long ago that it counts as ended, or was its last.
        ended: whether it was: the process was stopped, and has not died.
        silent: for how many seconds it has not reported, if that is longer than usual; None: it has, or it is gone.
        reachable: whether it reaches every node.
        unreachable_since: since when not; null if it does.
        reason: why not; "" if it does.
        reads_per_s: over the last seconds.
        loads_in_flight: loaders that run.
        backoffs: keys whose refresh waits after failures.
        l1_bytes, l1_entries, l1_max_bytes: its local cache.
        evictions: entries that its local cache has given up for lack of room, so far.
    """

    id: str
    host: str
    pid: int
    version: str
    swr: str
    started: float
    seen: float
    gone: bool
    ended: bool
    silent: float | None
    reachable: bool
    unreachable_since: float | None
    reason: str
    reads_per_s: float
    loads_in_flight: int
    backoffs: int
    l1_bytes: int
    l1_entries: int
    l1_max_bytes: int
    evictions: int


class LastError(TypedDict):
    """The newest failure of a loader or route.

    Attributes:
        type: the name of the exception's class.
        text: of the exception, 200 characters at most, without passwords in URLs.
        at: when.
        key: of the load; null if that is not known.
    """

    type: str
    text: str
    at: float
    key: Key | None


class Row(TypedDict):
    """A loader or a route. Counts are those of the last `State.window` seconds, of all processes.

    Attributes:
        name: the key template, or the path template; "other" for what was too many to count one by one.
        kind: "loader" or "route".
        fresh, stale, missing: reads by what the reader was given.
        reads_per_s: their sum, by the second.
        l1, redis, load: the same reads by the layer that answered.
        loads, failed: loads that ended with a value, and without.
        p50, p99: how long loads took; upper bounds from a histogram, null without loads.
        in_flight: loads that run now.
        backoff_keys: keys that wait after failures now.
        retry_at: when the first of them may be tried again; null if none waits.
        last_error: null if no load has failed.
        bytes: stored so far.
    """

    name: str
    kind: Literal["loader", "route"]
    fresh: int
    stale: int
    missing: int
    reads_per_s: float
    l1: int
    redis: int
    load: int
    loads: int
    failed: int
    p50: float | None
    p99: float | None
    in_flight: int
    backoff_keys: int
    retry_at: float | None
    last_error: LastError | None
    bytes: int


class Totals(TypedDict):
    """All rows together, over the last `State.window` seconds.

    Attributes:
        reads_per_s, loads_per_s, failed_per_s: by the second.
        fresh, stale, missing: shares of the reads, 0 to 1; null without reads.
        without_waiting: the share of reads that waited for no load.
        p50, p99: how long loads took; null without loads.
        redis_p50, redis_p99: how long Redis took to answer; null if it was not asked.
        in_flight, backoffs: now.
        invalidations_per_s: by the second.
    """

    reads_per_s: float
    loads_per_s: float
    failed_per_s: float
    fresh: float | None
    stale: float | None
    missing: float | None
    without_waiting: float | None
    p50: float | None
    p99: float | None
    redis_p50: float | None
    redis_p99: float | None
    in_flight: int
    backoffs: int
    invalidations_per_s: float


class Hot(TypedDict):
    """A key that is read most. Sampled: one read in some represents all.

    Attributes:
        key: which.
        row: the name of its loader or route.
        reads_per_s: estimated.
    """

    key: Key
    row: str
    reads_per_s: float


class Hanging(TypedDict):
    """A load that has run longer than loads of its kind do.

    Attributes:
        key: which.
        row: the name of its loader or route.
        process: the id of the process that loads it.
        since: when the load began.
        seconds: how long that is ago.
        timeout: when swr cancels it, in seconds from `since`; null: never.
    """

    key: Key
    row: str
    process: str
    since: float
    seconds: float
    timeout: float | None


class Why(TypedDict):
    """Why a response was not cached, or not answered from the cache.

    Attributes:
        code: the detail of `Cache-Status`, "no freshness" or "field x-token".
        text: a sentence that says it.
        link: the address of the paragraph that mends it, relative to where the app is mounted.
    """

    code: str
    text: str
    link: str


class Uncached(TypedDict):
    """A count of what was not cached over the last `State.window` seconds.

    Attributes:
        why: the reason.
        count: how many requests.
    """

    why: Why
    count: int


class DeadLetter(TypedDict):
    """A task that a queue has given up.

    Attributes:
        key: of the group; its `id` is what `retry-dead` and `purge-dead` take.
        error: why, as text.
        attempts: how often it was tried.
        at: when it was given up.
    """

    key: Key
    error: str
    attempts: int
    at: float


class Queue(TypedDict):
    """The queue of a refresher.

    Attributes:
        name: of the refresher.
        strategy: "streams" or "list".
        leader: whether some process leads.
        leads_for: seconds until its lease ends unless it is renewed.
        consumers: how many processes take tasks.
        round_at: when the last round began that is enqueued whole; null: none yet.
        backlog: tasks that a process may take now.
        in_hand: tasks that a process has taken.
        waiting: tasks that wait for another try.
        dead: how many dead letters there are.
        letters: the newest of them, 100 at most.
    """

    name: str
    strategy: str
    leader: bool
    leads_for: float
    consumers: int
    round_at: float | None
    backlog: int
    in_hand: int
    waiting: int
    dead: int
    letters: list[DeadLetter]


class Simulated(TypedDict):
    """A fault that the dashboard has been asked to simulate.

    Attributes:
        kind: "fail-next" or "hang".
        row: the loader or route.
        until: when it ends by itself; null: with the next load.
    """

    kind: str
    row: str
    until: float | None


class Point(TypedDict):
    """A part of the history: about a second while somebody watches, else about ten.

    Attributes:
        t: its end.
        seconds: how long it is; counts are those of all of it.
        fresh, stale, missing: reads in it.
        waited: those of them that waited for a load.
        loads, failed: loads that ended in it.
        p50, p99: how long they took; null without loads.
        processes: how many reported.
    """

    t: float
    seconds: float
    fresh: int
    stale: int
    missing: int
    waited: int
    loads: int
    failed: int
    p50: float | None
    p99: float | None
    processes: int


class Mark(TypedDict):
    """Something that the plots mark.

    Attributes:
        t: when.
        kind: "deploy" (a new version), "process" (a new process), "ended", "gone", "outage", "reachable" or
            "invalidation".
        text: a phrase that says it.
    """

    t: float
    kind: str
    text: str
