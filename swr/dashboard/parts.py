"""Parts of the messages in `state`: a process, a loader, a key and so on."""

from typing import Literal, TypedDict


class Key(TypedDict):
    """A presentable key.

    Attributes:
        id: the opaque id that routes take. All dashboards of the namespace know it.
        text: the whole text, including hashes, for copying and for a title.
        parts: the same text in pieces, each with a flag that says whether it is a hash. Hashes replace fields, cookies
            and the values of a query.
    """

    id: str
    text: str
    parts: list[tuple[str, bool]]


class Problem(TypedDict):
    """A present problem.

    Attributes:
        level: the severity. Errors come first.
        kind: "redis", "refused", "process", "failing", "hanging", "queue", "dead", "version", "clock", "fleet",
            "unreadable" or "simulated". A kind has at most eight problems, and one more that counts the others.
        text: a sentence that says what happened, and to which thing.
        remedy: what to do about it.
        since: when it began; null if that is unknown.
        target: the name of the row, node, process or queue that it concerns; null: it concerns no single one.
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
        name: the address of the server.
        reachable: whether this process and every process that reports can reach it.
        since: when it became unreachable; null if it is reachable.
        reason: why it is unreachable, as in the log; "" if it is reachable.
        unreachable_from: the ids of the processes that cannot reach it.
    """

    name: str
    reachable: bool
    since: float | None
    reason: str
    unreachable_from: list[str]


class Process(TypedDict):
    """A process that has a digest in Redis, or this one.

    Attributes:
        id: identifies the process; new after a fork.
        host, pid: the host name and the process id.
        version: the release of the application, from `Cache(release=...)` or the environment; "" if it is not set.
        swr: the version of swr.
        started: when the process began to report.
        seen: when its last digest arrived.
        gone: whether the process counts as ended, because it said so or has been silent for too long.
        ended: whether it said so itself: the process was stopped properly, and has not died.
        silent: seconds for which it has not reported, if unusually long; null: it reports, or it is gone.
        reachable: whether it can reach every Redis server.
        unreachable_since: when it lost a server; null if it can reach all.
        reason: why it lost the server; "" if it can reach all.
        reads_per_s: its reads per second between its last two digests.
        loads_in_flight: the number of running loads.
        backoffs: the number of keys that back off after failures.
        l1_bytes, l1_entries, l1_max_bytes: the size of its local cache, and the limit.
        evictions: the number of entries that its local cache has evicted so far.
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
        text: the text of the exception, at most 200 characters, without passwords in URLs.
        at: when the load failed.
        key: the key of the load; null if it is unknown.
    """

    type: str
    text: str
    at: float
    key: Key | None


class Row(TypedDict):
    """A loader or a route. Counts cover the last `State.window` seconds, and all processes.

    Attributes:
        name: the key template or the path template. "other" sums up loaders and routes without their own row.
        kind: "loader" or "route".
        fresh, stale, missing: numbers of reads, by the state that the reader got.
        reads_per_s: all reads, per second.
        l1, redis, load: the same reads, by the layer that answered.
        loads, failed: numbers of loads that ended with a value, and without.
        p50, p99: quantiles of the seconds that loads took, as upper bounds from a histogram; null without loads.
        in_flight: the number of loads that run now.
        backoff_keys: the number of keys that back off now.
        retry_at: when the first of these may be tried again; null if no key backs off.
        last_error: the newest failure; null if no load has failed.
        bytes: the bytes of its entries in the local caches.
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
        reads_per_s, loads_per_s, failed_per_s: reads, all loads, and failed loads, per second.
        fresh, stale, missing: shares of the reads, from 0 to 1; null without reads.
        without_waiting: the share of reads that did not wait for a load; null without reads.
        p50, p99: quantiles of the seconds that loads took; null without loads.
        redis_p50, redis_p99: quantiles of the seconds that Redis took to answer; null without commands.
        in_flight, backoffs: present numbers of running loads, and of keys that back off.
        invalidations_per_s: invalidations per second.
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
    """A key that is read often, according to a sample of the reads.

    Attributes:
        key: the key.
        row: the name of its loader or route.
        reads_per_s: its estimated reads per second.
    """

    key: Key
    row: str
    reads_per_s: float


class Hanging(TypedDict):
    """A load that has run unusually long.

    Attributes:
        key: the key that it loads.
        row: the name of its loader or route.
        process: the id of the process that runs it.
        since: when the load began.
        seconds: for how many seconds it has run.
        timeout: after how many seconds swr cancels it; null: never.
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
        code: the detail of `Cache-Status`, such as "no freshness" or "field x-token".
        text: a sentence that explains it.
        link: the address of the documentation that says what to do: relative to the dashboard, or absolute.
    """

    code: str
    text: str
    link: str


class Uncached(TypedDict):
    """The number of requests that were not cached for one reason, over the last `State.window` seconds.

    Attributes:
        why: the reason.
        count: the number of requests.
    """

    why: Why
    count: int


class DeadLetter(TypedDict):
    """A task that a queue has given up.

    Attributes:
        key: the key of the group. The actions `retry-dead` and `purge-dead` take its `id`.
        error: the text of the last error.
        attempts: the number of tries.
        at: when the queue gave it up.
    """

    key: Key
    error: str
    attempts: int
    at: float


class Queue(TypedDict):
    """The queue of a refresher.

    Attributes:
        name: the name of the refresher.
        strategy: the backend, "streams" or "list".
        leader: whether a process leads.
        leads_for: seconds until the leader's lease ends unless it is renewed.
        consumers: the number of processes that take tasks.
        round_at: when the last completely enqueued round began; null: there was no round.
        backlog: the number of tasks that a process may take now.
        in_hand: the number of tasks that a process has taken.
        waiting: the number of tasks that wait for another try.
        dead: the number of dead letters.
        letters: the newest dead letters, at most 100.
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
    """A fault that a user of the dashboard simulates.

    Attributes:
        kind: "fail-next" or "hang".
        row: the name of the loader or route.
        until: when it ends by itself. "fail-next" may end earlier, with the next load.
    """

    kind: str
    row: str
    until: float | None


class Point(TypedDict):
    """An interval of the history: about one second while a page is open, otherwise about ten.

    Attributes:
        t: the end of the interval.
        seconds: its length. Counts cover the whole interval.
        fresh, stale, missing: numbers of reads, by the state that the reader got.
        waited: the number of reads that waited for a load.
        loads, failed: numbers of loads that ended with a value, and without.
        p50, p99: quantiles of the seconds that loads took; null without loads.
        processes: the number of running processes.
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
    """A mark in the plots.

    Attributes:
        t: when the marked event happened.
        kind: "deploy" (a new release), "process" (a new process), "ended", "gone", "outage", "reachable" or
            "invalidation".
        text: a phrase about it.
    """

    t: float
    kind: str
    text: str
