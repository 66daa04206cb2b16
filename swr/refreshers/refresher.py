"""The public class `Refresher`: refreshes groups on a schedule, so that entries are warm before the first reader."""

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
    """The interface of a strategy, which refreshes groups in this process."""

    async def begin(self) -> None:
        """Begin to refresh, in background tasks of the cache. Raises StoreUnavailable."""

    async def end(self, seconds: float) -> None:
        """Begin no more loads, and wait at most `seconds` for the loads under way."""


class Refresher:
    """A schedule that keeps the entries of a cached loader warm, from any number of processes.

    Parameters:
        loader: a function that `@cache.cached` or `@cache.cached_many` returned.
        keys: the groups: a list, or a function (`def`, `async def`, a generator of either kind) that swr calls in each
            round. Each group is one argument or a tuple of arguments. For a batch loader, a group has a single item
            where the loader takes the list of items.
        every: the time from the beginning of one round to the beginning of the next.
        strategy: "locks": every process walks all groups and loads those whose lease it gets. "queue": one process
            enqueues the groups, and all processes load them. "read": the refresher loads nothing, because the
            decorator already refreshes what readers ask for.
        at_once: how many loads a process runs at a time. Up to half of them begin in one step, as one call of a batch
            loader.
        name: the name of the refresher in Redis, the same in every process. By default swr makes it from the key
            template. If one loader has several refreshers, each needs its own name.
        dirty_only: with "queue": after a first round of all groups, a round enqueues only the groups that `mark_dirty`
            or `changed_since` names.
        changed_since: with "queue": a function that takes a time, in seconds since 1970 by the clock of Redis. It
            returns or yields the groups that have changed since that time. It implies `dirty_only`.
        backend: the data structure of the queue in Redis, "streams" or "list".
        shards: the number of hash slots over which a Redis cluster spreads the queue.
        deliveries: how often the queue delivers a task before the task becomes a dead letter.
        reclaim_after: after a process has been silent for this time, other processes get its tasks.
        lead_for: after the leader has been silent for this time, another process leads.
        drain_for: how long closing waits for running loads before it hands their tasks back.
        replicas: with "queue": how many replicas must have a mark, a round or a loaded entry before it counts.

    Rounds begin at multiples of `every` by the clock of Redis. The clocks of the processes have no influence.

    Raises:
        ConfigurationError: an option cannot work.
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
                f"loader={loader!r} is not cached: give a loader that @cache.cached or @cache.cached_many made"
            )
        if loader.stays_here:
            raise ConfigurationError(
                f"the loader of {loader.template!r} has shared=False: leave that out, because no process can refresh "
                f"what another one holds"
            )
        if strategy not in STRATEGIES:
            raise ConfigurationError(f"strategy={strategy!r}: give one of {', '.join(STRATEGIES)}")
        for option, number, least in (
            ("at_once", at_once, 1),
            ("shards", shards, 1),
            ("deliveries", deliveries, 1),
            ("replicas", replicas, 0),
        ):
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise ConfigurationError(f"{option}={number!r}: give a whole number, {least} or more")
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
            raise ConfigurationError(f"changed_since={changed_since!r}: give a function that takes a time")
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
                raise ConfigurationError(f"backend={backend!r}: give one of {', '.join(BACKENDS)}")
        self._queue_options = backend, shards, deliveries, replicas

    def _queue(self) -> "Queue":
        """Return the queue, in the Redis server that the cache is currently configured with.

        Raises:
            ConfigurationError: the cache is in memory.
        """
        from swr.refreshers.queue.queue import Queue, store_of

        store = store_of(self.loader.engine)
        if self._known_queue is None or self._known_queue.store is not store:
            self._known_queue = Queue(store, self.name, *self._queue_options)
        return self._known_queue

    async def groups(self) -> dict[str, tuple[Any, ...]]:
        """Return the arguments of every call by cache key; log groups that have no key, and leave them out."""
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
                # A group may raise anything, from its own `__str__` for example. The other groups are still refreshed.
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
        """Mark groups for the next round, which refreshes each of them once, however often you have marked it.

        If you mark a group while it is being loaded, the next round loads it again. Only the strategy "queue" has
        marks. With the others this method does nothing: "locks" refreshes every group in each round, "read" what
        readers ask for.

        Parameters:
            groups: in the form of `keys`: each is one argument, or a tuple of arguments.

        Raises:
            ConfigurationError: a group has no key, or JSON cannot represent its arguments exactly.
            StoreUnavailable: swr does not know whether all groups are marked. Mark them again.
        """
        if self.strategy != "queue":
            return
        marked = [group if isinstance(group, tuple) else (group,) for group in groups]
        keyed = {self._key(args): args async for args in in_turns(marked)}
        if self.loader.engine.switch.is_enabled:
            await self.loader.engine.ready()
            await self._queue().mark(keyed)

    async def status(self) -> QueueStatus:
        """Return how many tasks, marks and dead letters of all processes the queue holds.

        The refresher need not be running in this process.

        Raises:
            ConfigurationError: the strategy is not "queue".
            StoreUnavailable: Redis does not answer.
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
            ConfigurationError: the refresher is already running.
        """
        if self._begun:
            raise ConfigurationError(f"the refresher {self.name!r} is running already: begin it in one place")
        self._begun = True
        try:
            if self.strategy != "read" and self.loader.engine.switch.is_enabled:
                await self.loader.engine.ready()
                self._running = self._made()
                await self._running.begin()
        except BaseException:
            self._running, self._begun = None, False
            raise
        return self

    async def aclose(self) -> None:
        """Begin no more loads, wait up to `drain_for` for the loads under way, and hand unfinished tasks back."""
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
