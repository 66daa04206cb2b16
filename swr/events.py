"""Events of a cache, one class for each kind."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final


class Event:
    """An event of a cache; immutable. Ages are seconds by the cache's clock, all other durations are elapsed seconds.

    `loader` is the key template of a loader and `route` the path template of a route; each is empty if there is none.
    `==` ignores `loader`, `route`, `layer` and `is_outer`.
    """

    __slots__ = ()


def _where() -> Any:
    return field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Hit(Event):
    """A reader gets a fresh entry, or the answer that an item does not exist, as its batch loader found.

    Parameters:
        key: of the entry.
        age: seconds since its load began.
        layer: what the reader waited for: "l1" for nothing, "redis" for an answer of Redis, "load" for a load.
        loader: the key template of the entry's loader, or "".
        route: the path template of the request, or "".
    """

    key: str
    age: float
    layer: str = _where()
    loader: str = _where()
    route: str = _where()


@dataclass(frozen=True, slots=True)
class Stale(Event):
    """A reader gets a stale entry.

    Parameters:
        key: of the entry.
        age: seconds since its load began.
        staleness: seconds since it ceased to be fresh; 0 if it is fresh, but not as fresh as this reader asked for.
        error: why the load failed for which this reader waited; None if it did not wait.
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
    """A reader did not get a stored entry: it waited for a load. Published when its wait ends, whatever the result.

    Parameters:
        key: the key that the reader asked for; for a response the key of its URL, whatever selects the variant.
        loader: the key template of the loader, or "".
        route: the path template of the request, or "".
    """

    key: str
    loader: str = _where()
    route: str = _where()


@dataclass(frozen=True, slots=True)
class Bypassed(Event):
    """A request bypassed the cache, which cannot answer such requests. It does not count as a read.

    Parameters:
        key: of its URL.
        reason: why, in the words of the `detail` of `Cache-Status`.
        route: the path template of the request, or "".
    """

    key: str
    reason: str
    route: str = _where()


@dataclass(frozen=True, slots=True)
class NotStored(Event):
    """The app answered a request with a response that swr may not store. The request does not count as a read.

    Parameters:
        key: of its URL.
        reason: why, in the words of the `detail` of `Cache-Status`.
        route: the path template of the request, or "".
    """

    key: str
    reason: str
    route: str = _where()


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """The middleware begins to answer a request that the cache may serve, or that bypasses it.

    Dashboards use it to show single requests. `KINDS` leaves it out, because `Hit`, `Stale` and `Miss` say the same.

    Parameters:
        method: of the request.
        key: of its URL.
        state: "fresh", "stale" or "missing", as in `SWR-State`; "bypass" if the app answers without the cache.
        layer: what answers: "l1", "load", "flight" (a load that another request began) or "app"; None: see the layer of
            the `Hit` or `Stale` just before.
        status: of the response.
        cache_status: what swr adds to `Cache-Status`.
        seconds: since the request came; None for a hit that needed no wait.
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
    """A load did not get the lease: another load holds it, or the key backs off. Published once for each load.

    Parameters:
        key: of the load.
        retry_after: seconds until the lease expires, or the backoff ends.
        failures: failures in a row because of which the key backs off; 0: another load holds the lease.
    """

    key: str
    retry_after: float
    failures: int


@dataclass(frozen=True, slots=True)
class LeaseWaited(Event):
    """A load that did not get the lease has ended its wait for it, or for the holder's value. Once for each load.

    Parameters:
        key: of the load.
        seconds: from the refusal of the lease to the end of the wait.
    """

    key: str
    seconds: float


@dataclass(frozen=True, slots=True)
class RenewalRejected(Event):
    """A process learned during a load that its lease is gone: expired, or deleted by an invalidation.

    Parameters:
        key: of the load.
    """

    key: str


@dataclass(frozen=True, slots=True)
class LoadBegun(Event):
    """A loader, or the app for a response, begins to run. Exactly one `Loaded` or `LoadFailed` follows.

    Parameters:
        key: of the load.
        waited: seconds that it took to get the lease, or to find the store unreachable.
        loader: the key template of the loader that runs, or "".
    """

    key: str
    waited: float
    loader: str = _where()


@dataclass(frozen=True, slots=True)
class Loaded(Event):
    """A load ended with a value, stored or not.

    If the value is to be stored, `Committed` or `CommitRejected` comes before this event. While the store is
    unreachable, neither may come.

    Parameters:
        key: of the load.
        seconds: how long the loader ran, without the commit.
        loader: the key template of the loader, or "".
        route: the path template of the request, or "".
        is_outer: whether a load inside this one counts instead: behind a login, the load of the endpoint.
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
        key: of the load.
        seconds: how long the loader ran.
        error: the exception of the load.
        loader: the key template of the loader, or "".
        route: the path template of the request, or "".
        is_outer: whether a load inside this one counts instead: behind a login, the load of the endpoint.
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
        key: of the entry.
        version: of the entry; later entries of the same key have greater versions.
    """

    key: str
    version: int


@dataclass(frozen=True, slots=True)
class CommitRejected(Event):
    """A value was not stored, because an invalidation or another load superseded it.

    Parameters:
        key: of the value.
    """

    key: str


@dataclass(frozen=True, slots=True)
class Invalidated(Event):
    """A key, a tag, all entries of a loader, or all entries were invalidated or marked stale.

    Parameters:
        key: the invalidated key, or None.
        tag: the invalidated tag, or None.
        elsewhere: whether another process did it, and notified this process.
        loader: the key template of the loader of all these entries, or None.
        soft: whether the entries were marked stale instead of removed.
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
    """swr lost the store, or could not reach it at the start: only the local cache and loaders answer.

    Parameters:
        reason: why, as in the log.
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
    """The store answered a command of this process with a refusal, for example because its memory is full.

    Parameters:
        reason: the store's answer.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class RoundQueued(Event):
    """The leader of a `Refresher` with a queue has enqueued a round.

    Parameters:
        name: of the refresher.
        number: of the round: its start, in seconds since 1970, divided by `every`.
        new: how many tasks the leader added to the queue.
        merged: how many groups were still in the queue from an earlier round.
        missed: how many rounds no leader has enqueued since the last enqueued round.
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
        seconds: how long the worker's part took.
        groups: how many groups the worker looked at; with a queue, how many tasks ended.
        loaded: how many groups the worker loaded.
        current: how many groups were loaded already.
        held: how many groups were skipped because another process loaded them or they back off after failures.
        failed: how many loads failed.
        missed: how many rounds no process has done since the last one that was done.
        commands: how many commands this process sent to Redis in that time, for whatever reason.
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
