"""A flight: one load of one key in this process, and everyone who waits for it."""

from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from swr.codec import Codec
from swr.entry import Entry
from swr.flag import Flag

if TYPE_CHECKING:
    from swr.engine import Engine
    from swr.load import Load


class Job(Protocol):
    """What a face wants loaded: how, and what the values are."""

    codec: Codec
    # What a run sees of context variables; None: a copy of what the caller sees that causes it.
    context: Context | None

    def run(self, load: "Load") -> Coroutine[Any, Any, None]:
        """Load, and call `load.land(...)` or `load.leave()` once; an exception is the load's failure."""

    def masks(self, entry: Entry[Any], error: BaseException, now: float) -> bool:
        """Whether `entry`, within its windows, may stand in for this failure."""


class Flight:
    """The states are: waiting for the lease, loading, over (`done` is set and one of the results stands).

    Parameters:
        engine: whose.
        key: what is loaded.
        job: how.
        entry: what is stored so far, or None.
        forced: load even if the store has a fresh entry.
        since: load even so, unless it is newer than this version; with it nobody waits behind another's lease or
            disregards a pause after failures, but readers who have joined.
        fence: how many barriers this process knew when the flight began; where no lease guards the load, one more
            dooms it.
    """

    __slots__ = (
        "_heard",
        "answered",
        "began",
        "done",
        "doomed",
        "ended",
        "engine",
        "entry",
        "error",
        "expired",
        "fence",
        "forced",
        "has_news",
        "job",
        "kept",
        "key",
        "landed",
        "left",
        "refused",
        "scope",
        "since",
        "then",
        "version",
        "waiters",
        "waits_for",
    )

    # What cancels its task, once it has one.
    scope: anyio.CancelScope

    def __init__(
        self,
        engine: "Engine",
        key: str,
        job: Job,
        entry: Entry[Any] | None,
        fence: int,
        *,
        forced: bool = False,
        since: int | None = None,
    ) -> None:
        self.engine = engine
        self.key = key
        self.job = job
        self.entry = entry
        self.forced = forced
        self.since = since
        self.fence = fence
        self.done = Flag()
        # The store has said who has the lease, as often as it was asked.
        self.answered = Flag()
        # Something has happened to its key since it asked for the lease.
        self.has_news = False
        self._heard: Flag | None = None
        self.waiters = 0
        # Called when it is over, in the task of its load.
        self.then: tuple[Callable[[Flight], None], ...] = ()
        # What its loader is waiting for.
        self.waits_for: tuple[Flight, ...] = ()
        # Set while loading: the lease's version, or 0 without a lease. Before that nothing has been read that
        # an invalidation could outdate.
        self.version: int | None = None
        self.doomed = False
        # When the lease was refused, the loader called, and when it returned, in seconds of the event loop's clock;
        # None: not yet.
        self.refused: float | None = None
        self.began: float | None = None
        self.ended: float | None = None
        # The load has run too long: whatever it still does counts for nothing.
        self.expired = False
        # The results.
        self.landed: Entry[Any] | None = None
        self.error: BaseException | None = None
        self.left = False
        # What has landed is this process's alone: the store was away, or did not confirm it.
        self.kept = False

    @property
    def is_over(self) -> bool:
        """Whether its load counts no more: a result stands, or will in a moment, since it was given up."""
        return self.expired or self.done.is_set()

    def hear(self) -> None:
        """Say that something has happened to its key."""
        self.has_news = True
        if self._heard is not None:
            self._heard.set()

    async def news(self) -> None:
        """Wait until it `has_news`."""
        self._heard = Flag()
        if self.has_news:
            self._heard.set()
        await self._heard.wait()
