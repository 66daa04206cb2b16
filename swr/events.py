"""Events of a cache, one class for each kind."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final


class Event:
    """Something that happened. Events are frozen. Ages are seconds by the cache's clock, other times measured seconds.

    Reads and loads say where they belong: `loader` is a key template, `route` a path template; empty for what has none.
    `==` disregards these two.
    """

    __slots__ = ()


def _where() -> Any:
    return field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Hit(Event):
    """A reader is given a fresh entry, or a batch loader knows an item to be absent.

    Parameters:
        key: of the entry.
        age: seconds since its load began.
        layer: what the reader has waited for: "l1" for nothing, "redis" for an answer of Redis, or "load".
        loader: the key template that it belongs to; empty: none.
        route: the path template that it belongs to; empty: none.
    """

    key: str
    age: float
    layer: str = _where()
    loader: str = _where()
    route: str = _where()


@dataclass(frozen=True, slots=True)
class Stale(Event):
    """A reader is given a stale entry.

    Parameters:
        key: of the entry.
        age: seconds since its load began.
        staleness: seconds since it ceased to be fresh; 0 if it is fresh, but not as fresh as this reader asked for.
        error: why the load failed that this reader waited for; None if it waited for none.
        layer: see `Hit`.
        loader: see `Hit`.
        route: see `Hit`.
    """

    key: str
    age: float
    staleness: float
    error: BaseException | None = None
    layer: str = _where()
    loader: str = _where()
    route: str = _where()


@dataclass(frozen=True, slots=True)
class Miss(Event):
    """A reader was given nothing that had been stored before it asked. Published when its wait ends, in any way.

    Parameters:
        key: what was asked for; for a response that of its URL, whatever selects the variant.
        loader: the key template that it belongs to; empty: none.
        route: the path template that it belongs to; empty: none.
    """

    key: str
    loader: str = _where()
    route: str = _where()


@dataclass(frozen=True, slots=True)
class Bypassed(Event):
    """A request has bypassed the cache, and could not have been answered from it. It is not a read.

    Parameters:
        key: of its URL.
        reason: why, as `Cache-Status` says it in `detail`.
        route: the path template, or nothing.
    """

    key: str
    reason: str
    route: str = _where()


@dataclass(frozen=True, slots=True)
class NotStored(Event):
    """A request was answered by the app with a response that could not be stored. It is not a read.

    Parameters:
        key: of its URL.
        reason: why, as `Cache-Status` says it in `detail`.
        route: the path template, or nothing.
    """

    key: str
    reason: str
    route: str = _where()


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """The middleware begins to answer a GET or HEAD, from the cache or not.

    It is for dashboards, which show single requests. `KINDS` leaves it out: `Hit`, `Stale` and `Miss` tell the same.

    Parameters:
        method: of the request.
        key: of its URL.
        state: "fresh", "stale" or "missing", as `SWR-State` says it; "bypass" if the app answers past the cache.
        layer: what answers: "l1", "load", "flight" (a load that another request began) or "app"; None: `Hit` or `Stale`
            has said it just before.
        status: of the response.
        cache_status: what swr adds to `Cache-Status`.
        seconds: since the request came; None for a hit that was ready.
    """

    method: str
    key: str
    state: str
    layer: str | None
    status: int
    cache_status: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class LeaseHeld(Event):
    """A load found the lease taken: it has lost the race. Published once for each load.

    Parameters:
        key: what was to be loaded.
        retry_after: seconds until the lease expires, or the pause ends.
        failures: above 0, the key backs off after this many failures in a row.
    """

    key: str
    retry_after: float
    failures: int


@dataclass(frozen=True, slots=True)
class LeaseWaited(Event):
    """A load that lost the race has waited for the lease, or for the winner's value. Published once for each load.

    Parameters:
        key: what was to be loaded.
        seconds: from the refusal of the lease to the end of the wait.
    """

    key: str
    seconds: float


@dataclass(frozen=True, slots=True)
class RenewalRejected(Event):
    """While it was loading, a process learned that its lease is gone: expired, or deleted by an invalidation.

    Parameters:
        key: what is being loaded.
    """

    key: str


@dataclass(frozen=True, slots=True)
class LoadBegun(Event):
    """A loader, or the app for a response, begins to run. Exactly one `Loaded` or `LoadFailed` follows.

    Parameters:
        key: what is loaded.
        waited: seconds that it took to get the lease, or to find the store unreachable.
        loader: the key template of the loader that runs, or nothing.
    """

    key: str
    waited: float
    loader: str = _where()


@dataclass(frozen=True, slots=True)
class Loaded(Event):
    """A load ended with a value, stored or not.

    `Committed` or `CommitRejected` comes before it where it was to be stored. While the store is unreachable
    neither may come.

    Parameters:
        key: what was loaded.
        seconds: how long the loader ran, without the commit.
        loader: the key template that it belongs to; empty: none.
        route: the path template that it belongs to; empty: none.
        is_outer: whether another load within it counts in its place: behind a login, that of the endpoint.
    """

    key: str
    seconds: float
    loader: str = _where()
    route: str = _where()
    is_outer: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class LoadFailed(Event):
    """A load ended without a value: its loader raised, its value cannot be stored, or the cache was closed.

    Parameters:
        key: what was loaded.
        seconds: how long the loader ran.
        error: what was raised.
        loader: the key template that it belongs to; empty: none.
        route: the path template that it belongs to; empty: none.
        is_outer: whether another load within it counts in its place: behind a login, that of the endpoint.
    """

    key: str
    seconds: float
    error: BaseException
    loader: str = _where()
    route: str = _where()
    is_outer: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Committed(Event):
    """A value was stored.

    Parameters:
        key: under which.
        version: of the entry; later ones of the same key are greater.
    """

    key: str
    version: int


@dataclass(frozen=True, slots=True)
class CommitRejected(Event):
    """A value was not stored, because an invalidation or another load superseded it.

    Parameters:
        key: under which.
    """

    key: str


@dataclass(frozen=True, slots=True)
class Invalidated(Event):
    """A key, a tag, all that a loader has stored, or everything was invalidated or marked stale.

    Parameters:
        key: what, if it is a key.
        tag: what, if it is a tag.
        elsewhere: another process did it, and this one was notified.
        loader: the key template of a loader, if it is all that this loader has stored.
        soft: it was marked stale, instead of removed.
    """

    key: str | None
    tag: str | None
    elsewhere: bool
    loader: str | None = None
    soft: bool = False

    @property
    def scope(self) -> str:
        """The scope of an invalidation: "key", "tag", "loader" or "all"."""
        return next((scope for scope in ("key", "tag", "loader") if getattr(self, scope) is not None), "all")


@dataclass(frozen=True, slots=True)
class StoreUnreachable(Event):
    """The link to the store was lost, or not there to begin with: memory and loaders answer alone.

    Parameters:
        reason: what was wrong, as the log says.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class StoreReachable(Event):
    """The store answers again.

    Parameters:
        unreachable_for: seconds since `StoreUnreachable`.
    """

    unreachable_for: float


@dataclass(frozen=True, slots=True)
class CommandRefused(Event):
    """The store, which is reachable, has refused a command of this process: its memory is full, say.

    Parameters:
        reason: what it has answered.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class RoundQueued(Event):
    """The leader of a `Refresher` with a queue has enqueued a round.

    Parameters:
        name: of the refresher.
        number: of the round: its start, in seconds since 1970, divided by `every`.
        new: how many tasks there are now that were not there before.
        merged: how many groups were in the queue already, since an earlier round.
        missed: rounds that no leader has enqueued since the last one.
    """

    name: str
    number: int
    new: int
    merged: int
    missed: int


@dataclass(frozen=True, slots=True)
class RoundEnded(Event):
    """A worker of a `Refresher` has done its part of a round.

    Parameters:
        name: of the refresher.
        number: of the round: its start, in seconds since 1970, divided by `every`.
        seconds: that it took.
        groups: how many it has looked at; with a queue, how many tasks have ended.
        loaded: how many it has loaded.
        current: how many had been loaded already.
        held: how many groups another process was loading, or all processes left alone after failures.
        failed: how many loads have failed.
        missed: rounds that no process has done since the last one.
        commands: how many commands this process sent to Redis in that time, whoever caused them.
    """

    name: str
    number: int
    seconds: float
    groups: int
    loaded: int
    current: int
    held: int
    failed: int
    missed: int
    commands: int


KINDS: Final = (
    Hit, Stale, Miss, Bypassed, NotStored, LeaseHeld, LeaseWaited, RenewalRejected, LoadBegun, Loaded, LoadFailed,
    Committed, CommitRejected, Invalidated, StoreUnreachable, StoreReachable, CommandRefused, RoundQueued, RoundEnded,
)  # fmt: skip

Subscriber = Callable[[Any], object]
