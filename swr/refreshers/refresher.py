"""Groups that are refreshed on a schedule, so that a ranking is warm before anyone asks."""

import logging
import os
import secrets
import socket
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self

import anyio

from swr.errors import ConfigurationError
from swr.policy import Duration, seconds
from swr.refreshers.locks import Locks
from swr.refreshers.queue.status import QueueStatus
from swr.refreshers.rounds.groups import Keys, checked, groups_of, in_turns, travelling
from swr.refreshers.rounds.load_limiter import Loader, LoadLimiter
from swr.refreshers.rounds.report import Report
from swr.refreshers.rounds.schedule import Rounds

if TYPE_CHECKING:
    from swr.refreshers.queue.queue import Queue

log = logging.getLogger("swr")

STRATEGIES: Final = ("read", "locks", "queue")


class Strategy(Protocol):
    """The port of a strategy: refreshes groups, in this process."""

    async def begin(self) -> None:
        """Begin, in tasks of the cache's. Raises StoreUnavailable."""

    async def end(self, seconds: float) -> None:
        """Begin nothing more, and give the loads under way some seconds."""


class Refresher:
    """Keeps what a cached loader loads warm, from any number of processes.

    Parameters:
        loader: what `@cache.cached` or `@cache.cached_many` made.
        keys: the groups: a list, or a function (`def`, `async def`, a generator of either kind) that is asked at every
            round. Each group is one argument or a tuple of arguments; for a batch loader, with one item in the list's
            place.
        every: how much time lies between the beginnings of two rounds.
        strategy: "locks": every process walks all groups and loads those whose lease it gets. "queue": one process
            enqueues, all take and load. "read": nothing, because the decorator refreshes what is asked for.
        at_once: how many loads a process runs at a time. Up to half of them begin in one step, as one call of a batch
            loader.
        name: of the refresher in Redis, the same in every process; by default made of the key template. Several
            refreshers of one loader need a name each.
        dirty_only: with "queue": after a first round of all groups, only those that `mark_dirty` or `changed_since`
            names are enqueued.
        changed_since: with "queue": a function of a time, in seconds since 1970 by the clock of Redis. It returns or
            yields the groups that have changed since. It makes the refresher `dirty_only`.
        backend: of the queue, "streams" or "list".
        shards: of the queue: how many slots of a cluster it is spread over.
        deliveries: how often a task of the queue is delivered before it is a dead letter.
        reclaim_after: after how much silence of a process its tasks are given to others.
        lead_for: how long the leader may be silent before another process leads.
        drain_for: how long closing waits for loads before it hands tasks back.
        replicas: with "queue": how many replicas must have a mark, a round, or what was loaded, before it counts.

    Rounds begin at multiples of `every` by the clock of Redis, whatever the clocks of the processes say.

    Raises:
        ConfigurationError: any of these that cannot work.
    """

    def __init__(
        self,
        loader: Loader,
        keys: Keys,
        every: Duration,
        strategy: Literal["read", "locks", "queue"] = "locks",
        *,
        at_once: int = 32,
        name: str | None = None,
        dirty_only: bool = False,
        changed_since: Callable[[float], Any] | None = None,
        backend: Literal["streams", "list"] = "streams",
        shards: int = 1,
        deliveries: int = 5,
        reclaim_after: Duration = 10,
        lead_for: Duration = 5,
        drain_for: Duration = 10,
        replicas: int = 0,
    ) -> None:
        if not hasattr(loader, "begin") or not hasattr(loader, "template"):
            raise ConfigurationError(
                f"loader={loader!r} is not cached: a refresher keeps warm what @cache.cached or @cache.cached_many made"
            )
        if loader.stays_here:
            raise ConfigurationError(
                f"the loader of {loader.template!r} has shared=False: no process can refresh what another one holds"
            )
        if strategy not in STRATEGIES:
            raise ConfigurationError(f"strategy={strategy!r} is none of {', '.join(STRATEGIES)}")
        for option, number, least in (
            ("at_once", at_once, 1),
            ("shards", shards, 1),
            ("deliveries", deliveries, 1),
            ("replicas", replicas, 0),
        ):
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise ConfigurationError(f"{option}={number!r} is not a whole number, {least} or more")
        times = {
            option: seconds(duration, option)
            for option, duration in (
                ("every", every),
                ("reclaim_after", reclaim_after),
                ("lead_for", lead_for),
                ("drain_for", drain_for),
            )
        }
        for option in ("every", "reclaim_after", "lead_for"):
            if not 0.01 <= times[option] <= 1e9:
                raise ConfigurationError(f"{option}={locals()[option]!r} is not between 0.01 and 1e9 seconds")
        if changed_since is not None and not callable(changed_since):
            raise ConfigurationError(f"changed_since={changed_since!r} is not a function of a time")
        if name is not None and not (isinstance(name, str) and name.isprintable() and name):
            raise ConfigurationError(f"name={name!r} is not a name: give a string of printable characters")
        self.loader = loader
        self.strategy = strategy
        self.every = times["every"]
        self.drain_for = times["drain_for"]
        self.name = name or loader.template.replace("{", "").replace("}", "")
        self._keys = checked(keys)
        self._at_once = at_once
        self._dirty_only = dirty_only or changed_since is not None
        self._changed_since = changed_since
        self._times = times
        self._replicas = replicas
        self._running: Strategy | None = None
        self._begun = False
        self._known_queue: Queue | None = None
        if strategy == "queue":
            from swr.refreshers.queue.queue import BACKENDS

            if backend not in BACKENDS:
                raise ConfigurationError(f"backend={backend!r} is none of {', '.join(BACKENDS)}")
        self._queue_options = backend, shards, deliveries, replicas

    def _queue(self) -> "Queue":
        """Return the queue, in the Redis that the cache is configured with by now.

        Raises:
            ConfigurationError: the cache is in memory.
        """
        from swr.refreshers.queue.queue import Queue, store_of

        store = store_of(self.loader.engine)
        if self._known_queue is None or self._known_queue.store is not store:
            self._known_queue = Queue(store, self.name, *self._queue_options)
        return self._known_queue

    async def groups(self) -> dict[str, tuple[Any, ...]]:
        """Return the arguments of every call by key, as `keys` gives them now; what cannot be a call is left out."""
        return await self._keyed(await groups_of(self._keys))

    async def _changed(self, since: float) -> dict[str, tuple[Any, ...]]:
        assert self._changed_since is not None
        return await self._keyed(await groups_of(self._changed_since, since))

    async def _keyed(self, groups: list[tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        keyed, wrong = {}, []
        async for args in in_turns(groups):
            try:
                keyed[self._key(args)] = args
            except Exception as error:
                # Whatever its `__str__`, or the size of a number, makes of it: the others are refreshed.
                wrong.append((args, error))
        if wrong:
            log.error(
                "the refresher %r leaves out %d of %d groups; the first is %r: %s",
                self.name,
                len(wrong),
                len(groups),
                *wrong[0],
            )
        return keyed

    def _key(self, args: tuple[Any, ...]) -> str:
        key = self.loader.key(*args)
        if self.strategy == "queue":
            travelling(key, args)
        return key

    async def mark_dirty(self, *groups: Any) -> None:
        """Mark groups to be refreshed in the next round: once, however often they are marked until then.

        One that is marked while it is being loaded is loaded again. Without a queue there is nothing to be marked:
        "locks" refreshes every group each round, "read" what is asked for.

        Parameters:
            groups: as `keys` gives them: one argument each, or a tuple of arguments.

        Raises:
            ConfigurationError: a group that cannot be part of a key, or cannot travel.
            StoreUnavailable: it is not known whether all are marked: mark them again.
        """
        if self.strategy != "queue":
            return
        marked = [group if isinstance(group, tuple) else (group,) for group in groups]
        keyed = {self._key(args): args for args in marked}
        if self.loader.engine.switch.is_enabled:
            await self.loader.engine.ready()
            await self._queue().mark(keyed)

    async def status(self) -> QueueStatus:
        """Return what the queue holds: tasks, marks and dead letters of all processes. It need not be running here.

        Raises:
            ConfigurationError: its strategy is not "queue".
            StoreUnavailable: no answer.
        """
        if self.strategy != "queue":
            raise ConfigurationError(
                f"the refresher {self.name!r} has no queue to ask for its status: its strategy is {self.strategy!r}, "
                f'and only strategy="queue" has one'
            )
        if not self.loader.engine.switch.is_enabled:
            return QueueStatus(self.name, self._queue_options[0], 0, 0, 0, 0, 0, {}, {}, 0, 0.0, None)
        await self.loader.engine.ready()
        return await self._queue().status()

    async def __aenter__(self) -> Self:
        """Begin to refresh.

        Raises:
            ConfigurationError: it has begun already.
        """
        if self._begun:
            raise ConfigurationError(f"the refresher {self.name!r} is running already")
        self._begun = True
        try:
            # A cache that is off keeps nothing warm.
            if self.strategy != "read" and self.loader.engine.switch.is_enabled:
                await self.loader.engine.ready()
                self._running = self._made()
                await self._running.begin()
        except BaseException:
            self._running, self._begun = None, False
            raise
        return self

    async def aclose(self) -> None:
        """Begin no more loads, wait for those under way within `drain_for`, hand the rest back."""
        running, self._running, self._begun = self._running, None, False
        if running is not None:
            with anyio.CancelScope(shield=True):
                await running.end(self.drain_for)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _made(self) -> Strategy:
        engine = self.loader.engine
        worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        limiter = LoadLimiter(self.loader, self._at_once)
        rounds = Rounds(engine, self.every)
        report = Report(self.name, engine, limiter, self.every if self.strategy == "locks" else None)
        if self.strategy == "locks":
            return Locks(self.loader, self.groups, rounds, limiter, report, worker)
        from swr.refreshers.queue.consumer import Consumer
        from swr.refreshers.queue.leader import Leader
        from swr.refreshers.queue.strategy import QueueStrategy

        queue = self._queue()
        return QueueStrategy(
            Leader(
                self.loader,
                queue,
                self.groups,
                None if self._changed_since is None else self._changed,
                self._dirty_only,
                self.every,
                self._times["lead_for"],
                worker,
            ),
            Consumer(engine, queue, limiter, rounds, report, worker, self._times["reclaim_after"]),
        )
