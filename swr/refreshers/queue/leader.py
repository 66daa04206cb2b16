"""The leader fills the queue. It is the worker that holds the leader's lease, which has an epoch."""

import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import anyio

from swr.engine.engine import Engine
from swr.engine.failures import text_of
from swr.errors import StoreUnavailable, SWRError
from swr.events import RoundQueued
from swr.refreshers.queue.queue import Queue
from swr.refreshers.queue.spreading import in_order_of_places
from swr.refreshers.queue.tasks import Superseded
from swr.refreshers.rounds.groups import in_turns
from swr.refreshers.rounds.load_limiter import Loader
from swr.refreshers.rounds.schedule import MICROSECONDS

log = logging.getLogger("swr")
_AGAIN_IN = 1.0
_AT_ONCE = 1000
_NONE = 0, 0
T = TypeVar("T")

Groups = Callable[[], Awaitable[dict[str, tuple[Any, ...]]]]
ChangedSince = Callable[[float], Awaitable[dict[str, tuple[Any, ...]]]]


class Leader:
    """The part of a worker that fills the queue while it holds the leader's lease.

    Parameters:
        loader: the cached loader of the groups.
        queue: the queue to fill.
        groups: returns the arguments of every call, by cache key.
        changed_since: returns the arguments of the groups that changed since a time (seconds since 1970), or None.
        dirty_only: whether rounds after the first one enqueue only marked or changed groups.
        every: seconds from the beginning of one round to the next.
        lead_for: seconds after which the lease ends unless the leader renews it.
        token: identifies this worker as the holder of the lease.
    """

    def __init__(
        self,
        loader: Loader,
        queue: Queue,
        groups: Groups,
        changed_since: ChangedSince | None,
        dirty_only: bool,
        every: float,
        lead_for: float,
        token: str,
    ) -> None:
        self._loader = loader
        self._queue = queue
        self._groups = groups
        self._changed_since = changed_since
        self._dirty_only = dirty_only
        self._every = max(1, int(every * MICROSECONDS))
        self._lead_for = lead_for
        self._token = token
        self._epoch = ""
        # The epoch that every shard knows.
        self._announced = ""
        # Why a step of this turn failed. The other steps are tried anyway, because they may concern other shards.
        self._failed: StoreUnavailable | None = None
        # The beginning of the last round that this worker has enqueued in all shards that it could reach.
        self._reached = -1
        self._leading = anyio.CancelScope()
        # The number of consecutive failures, and the types of exceptions that were logged.
        self._failures = 0
        self._logged: set[type[Exception]] = set()

    @property
    def _engine(self) -> Engine:
        return self._loader.engine

    async def begin(self) -> None:
        """Start a task that leads whenever no other process does, until `end`."""
        self._engine.start(self._run)

    async def end(self) -> None:
        """Begin no more rounds, and give the lease back, so that another process leads."""
        self._leading.cancel()
        await self._queue.abdicate(self._token)

    async def _run(self) -> None:
        with self._leading:
            while True:
                pause = await self._tried()
                await anyio.sleep(pause)

    async def _tried(self) -> float:
        """Take a turn, and return the seconds until the next one, which grow with consecutive failures."""
        try:
            pause = await self._turn()
        except Superseded:
            self._epoch = ""
            return _AGAIN_IN
        except Exception as error:
            # If Redis is unreachable, the log already says so. Otherwise `keys`, `changed_since` or `replicas` failed.
            is_outage = isinstance(error, StoreUnavailable) and not self._engine.is_store_up
            if not is_outage and type(error) not in self._logged:
                self._logged.add(type(error))
                log.warning(
                    "the refresher %r could not enqueue a round: %s; it keeps trying",
                    self._queue.name,
                    text_of(error),
                    exc_info=None if isinstance(error, SWRError) else error,
                )
            self._failures += 1
            return min(_AGAIN_IN * 2.0 ** min(self._failures - 1, 10), max(_AGAIN_IN, self._every / MICROSECONDS))
        self._failures = 0
        self._logged.clear()
        return pause

    async def _turn(self) -> float:
        """Take or renew the lease, and enqueue a round if one is due; return the seconds until the next turn."""
        epoch, held_for, last, now, part = await self._queue.lead(self._token, self._lead_for)
        if not epoch:
            self._epoch = ""
            # The random part keeps the waiting workers from asking all at once.
            return held_for + random.uniform(0.01, 0.2)
        self._epoch, self._failed = epoch, None
        if epoch != self._announced:
            await self._attempt(self._announce(epoch))
        begins_at = now // self._every * self._every
        if last is None or begins_at > last:
            await self._enqueue(epoch, begins_at, last, part, now)
            return 0.0
        self._raise_failed()
        # If the server's clock was set back, no round is repeated, and the pause is at most one round.
        next_in = min(self._every, begins_at + self._every - now) / MICROSECONDS
        return min(next_in, self._lead_for / 3)

    async def _announce(self, epoch: str) -> None:
        """Tell every shard the new epoch, so that the shards reject the previous leader from now on."""
        await self._queue.enqueue(epoch, ())
        await self._queue.register()
        self._announced = epoch

    async def _attempt(self, step: Awaitable[T]) -> T | None:
        """Return the result of a step, or None if a shard cannot be reached; then the turn later ends with an error."""
        try:
            return await step
        except StoreUnavailable as error:
            self._failed = self._failed or error
            return None

    def _raise_failed(self) -> None:
        if self._failed is not None:
            raise self._failed

    async def _enqueue(self, epoch: str, begins_at: int, last: int | None, part: str, now: int) -> None:
        number = begins_at // self._every
        missed = 0 if last is None else max(0, (begins_at - last) // self._every - 1)
        new = merged = 0
        await self._attempt(self._queue.heal())
        if begins_at == self._reached:
            self._raise_failed()
        if last is None or not self._dirty_only:
            groups = await in_order_of_places(await self._kept(self._groups), self._place_of)
            tasks = [(key, begins_at, args) for key, args in groups.items()]
            # Enqueuing many groups takes long. If the leader dies meanwhile, the next leader goes on at `part`.
            these = f"{begins_at}:{await _digest(groups, self._queue.store.names.digest_key)}:"
            done = int(part.removeprefix(these)) if part.startswith(these) else 0
            for first in range(done, len(tasks), _AT_ONCE):
                counts = await self._attempt(self._queue.enqueue(epoch, tasks[first : first + _AT_ONCE])) or _NONE
                new, merged = new + counts[0], merged + counts[1]
                await self._keep(f"{these}{first + _AT_ONCE}" if self._failed is None else "")
            if merged and self._failed is None:
                log.warning(
                    "round %d of the refresher %r: %d of %d groups are still in the queue since the last one. Loads "
                    "fail (`swr queue status` counts them), or it needs more workers or a longer `every`",
                    number,
                    self._queue.name,
                    merged,
                    len(groups),
                )
        elif self._changed_since is not None:
            began = last / MICROSECONDS
            changed = self._changed_since
            groups = await self._kept(lambda: changed(began))
            await self._attempt(self._queue.mark(groups))
        drained = await self._attempt(self._queue.drain(epoch, now)) or _NONE
        new, merged = new + drained[0], merged + drained[1]
        self._reached = begins_at
        self._raise_failed()
        if not await self._queue.enqueued(self._token, begins_at):
            raise Superseded
        if missed:
            log.warning(
                "%d rounds of the refresher %r were left out; this one makes up for all", missed, self._queue.name
            )
        self._engine.events.publish(RoundQueued, self._queue.name, number, new, merged, missed)

    def _place_of(self, key: str) -> int:
        store = self._queue.store
        return store.commands.place_of(store.names.entry(key))

    async def _keep(self, part: str = "") -> None:
        """Renew the lease, and store which part of the round is enqueued.

        Raises:
            Superseded: there is a newer leader.
        """
        if (await self._queue.lead(self._token, self._lead_for, part)).epoch != self._epoch:
            raise Superseded

    async def _kept(self, ask: Groups) -> dict[str, tuple[Any, ...]]:
        """Call `ask`, renewing the lease meanwhile, and return the result."""
        found: dict[str, tuple[Any, ...]] = {}

        async def renew() -> None:
            while True:
                await anyio.sleep(self._lead_for / 3)
                await self._keep()

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(renew)
                found = await ask()
                group.cancel_scope.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return found


async def _digest(groups: Iterable[str], key: bytes) -> str:
    """Return a digest of an ordered list of groups. With a `key`, only processes that have the key can compute it."""
    digest = hashlib.blake2b(digest_size=8, key=key)
    async for group in in_turns(groups):
        digest.update(group.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
