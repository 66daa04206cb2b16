"""Messages about events, about requests and calls, and about the life of a key."""

from typing import Literal, TypedDict

from swr.dashboard.parts import Key, Why

ReadState = Literal["fresh", "stale", "missing", "bypass"]
Layer = Literal["l1", "redis", "load", "flight", "app"]


class Happening(TypedDict):
    """An event of a cache.

    Attributes:
        t: when the event happened.
        kind: the name of its class in `swr.events`, such as "LoadFailed".
        process: the id of the process.
        text: a sentence about the event.
        key: the key that it is about; null: none.
        row: the loader, route, tag or queue that it is about; null: none.
        bad: whether the event means a problem.
    """

    t: float
    kind: str
    process: str
    text: str
    key: Key | None
    row: str | None
    bad: bool


class Events(TypedDict):
    """The events since the last message.

    Attributes:
        events: the events, the oldest first.
        dropped: how many events were left out since the last message, because too many came.
    """

    events: list[Happening]
    dropped: int


class CallSeen(TypedDict):
    """A request, or a call of a loader.

    Attributes:
        t: when it was answered.
        kind: "request" or "call".
        what: "GET /rankings/ATL", or the loader's key template. Values of a query are hidden.
        state: the state that the reader got.
        layer: the layer that answered, or null if it is unknown. "l1" is the local cache, "load" the reader's own load,
            "flight" the load of another reader, and "app" the app without the cache.
        seconds: how long it took; null if it was not measured.
        process: the id of the process.
        key: its key; null if it has none.
        why: why it was not cached; null if it was.
        status: the status of the response; null for a call.
    """

    t: float
    kind: Literal["request", "call"]
    what: str
    state: ReadState
    layer: Layer | None
    seconds: float | None
    process: str
    key: Key | None
    why: Why | None
    status: int | None


class Calls(TypedDict):
    """The requests and calls since the last message.

    Attributes:
        calls: the requests and calls, the oldest first.
        dropped: how many were left out since the last message, because too many came.
    """

    calls: list[CallSeen]
    dropped: int


class EntryLife(TypedDict):
    """The entry of a key, without its value.

    Attributes:
        state: "fresh", "stale", "error" (served only if a load fails), or "missing" (kept for its validators).
        loaded_at: when its load began.
        fresh_until, stale_until, error_until: the ends of the times in which it is fresh, may be served stale, and may
            be served after a failed load.
        version: grows with each entry of the key.
        bytes: its stored size; null if it is unknown.
        tags: its tags; the tags of URLs lack the queries.
        marked_stale: whether it was marked stale.
        layer: where it was found, "l1" or "redis".
    """

    state: str
    loaded_at: float
    fresh_until: float
    stale_until: float
    error_until: float
    version: int
    bytes: int | None
    tags: list[str]
    marked_stale: bool
    layer: str


class LeaseLife(TypedDict):
    """The lease of a key.

    Attributes:
        kind: "loading", or "backoff" after failures.
        until: when the lease ends unless it is renewed.
        failures: the number of consecutive failures.
    """

    kind: str
    until: float
    failures: int


class Moment(TypedDict):
    """A read or an event of a key that the answering process has seen.

    Attributes:
        t: when it happened.
        kind: "loaded", "failed", "hit", "stale", "missing", "invalidated" or "marked stale".
        text: a phrase about it.
    """

    t: float
    kind: str
    text: str


class KeyLife(TypedDict):
    """The life of one key.

    Attributes:
        now: the present time.
        key: the key.
        row: the name of its loader or route; null if it is unknown.
        entry: its entry; null: no entry is stored.
        lease: its lease; null: no process loads it, and it does not back off.
        moments: the last 50 reads and events that the process has seen, the oldest first. It sees reads only while a
            page is open.
        note: what swr could not find out, and why; or "".
    """

    now: float
    key: Key
    row: str | None
    entry: EntryLife | None
    lease: LeaseLife | None
    moments: list[Moment]
    note: str
