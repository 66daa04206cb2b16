"""The leader fills the queue. It is one of the workers, by a lease with an epoch."""

import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio

from swr.engine.engine import Engine
from swr.engine.failures import text_of
from swr.errors import SWRError
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

Groups = Callable[[], Awaitable[dict[str, tuple[Any, ...]]]]
ChangedSince = Callable[[float], Awaitable[dict[str, tuple[Any, ...]]]]


class Leader:
    """One who may lead.

    Parameters:
        loader: what is refreshed.
        queue: what is filled.
        groups: the arguments of every call, by key.
        changed_since: those of what has changed since a time (seconds since 1970), or None.
        dirty_only: whether only what is marked or has changed is enqueued, after a first round of all.
        every: seconds between two rounds.
        lead_for: seconds that the lease lasts unless it is renewed.
        token: who this is.
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
        self._leading = anyio.CancelScope()
        # How often in a row it has failed.
        self._failures = 0

    @property
    def _engine(self) -> Engine:
        return self._loader.engine

    async def begin(self) -> None:
        """Lead when no other process does, until `end`."""
        self._engine.start(self._run)

    async def end(self) -> None:
        """Begin no round any more, and have somebody else lead."""
        self._leading.cancel()
        await self._queue.abdicate(self._token)

    async def _run(self) -> None:
        with self._leading:
            while True:
                pause = await self._tried()
                await anyio.sleep(pause)

    async def _tried(self) -> float:
        """Lead: do what is due now. Return in how many seconds to look again; after failures that grows."""
        try:
            pause = await self._turn()
        except Superseded:
            self._epoch = ""
            return _AGAIN_IN
        except Exception as error:
            # The log tells of an unreachable Redis already; otherwise `keys`, `changed_since` or `replicas` failed.
            if self._engine.is_store_up and not self._failures:
                log.warning(
                    "the refresher %r could not enqueue a round: %s; it is tried again and again",
                    self._queue.name,
                    text_of(error),
                    exc_info=None if isinstance(error, SWRError) else error,
                )
            self._failures += 1
            return min(_AGAIN_IN * 2.0 ** min(self._failures - 1, 10), max(_AGAIN_IN, self._every / MICROSECONDS))
        self._failures = 0
        return pause

    async def _turn(self) -> float:
        """Enqueue a round if one is due; return in how many seconds to look again."""
        epoch, held_for, last, now, part = await self._queue.lead(self._token, self._lead_for)
        if not epoch:
            self._epoch = ""
            # Not all at once.
            return held_for + random.uniform(0.01, 0.2)
        if epoch != self._epoch:
            # Every shard shuts out the previous leader first.
            await self._queue.enqueue(epoch, ())
            await self._queue.register()
            self._epoch = epoch
        begins_at = now // self._every * self._every
        if last is None or begins_at > last:
            await self._enqueue(epoch, begins_at, last, part, now)
            return 0.0
        # A server's clock that went back does not begin a round again.
        next_in = min(self._every, begins_at + self._every - now) / MICROSECONDS
        return min(next_in, self._lead_for / 3)

    async def _enqueue(self, epoch: str, begins_at: int, last: int | None, part: str, now: int) -> None:
        number = begins_at // self._every
        missed = 0 if last is None else max(0, (begins_at - last) // self._every - 1)
        new = merged = 0
        await self._queue.heal()
        if last is None or not self._dirty_only:
            groups = await in_order_of_places(await self._kept(self._groups), self._place_of)
            tasks = [(key, begins_at, args) for key, args in groups.items()]
            # Of as many groups as it takes long to enqueue, a leader that is killed leaves the rest to the next.
            these = f"{begins_at}:{await _digest(groups, self._queue.store.names.digest_key)}:"
            done = int(part.removeprefix(these)) if part.startswith(these) else 0
            for first in range(done, len(tasks), _AT_ONCE):
                counts = await self._queue.enqueue(epoch, tasks[first : first + _AT_ONCE])
                new, merged = new + counts[0], merged + counts[1]
                await self._keep(f"{these}{first + _AT_ONCE}")
            if merged:
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
            await self._queue.mark(groups)
        drained = await self._queue.drain(epoch, now)
        new, merged = new + drained[0], merged + drained[1]
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
        """Renew the lease, and say what part of the round is enqueued."""
        if (await self._queue.lead(self._token, self._lead_for, part)).epoch != self._epoch:
            raise Superseded

    async def _kept(self, ask: Groups) -> dict[str, tuple[Any, ...]]:
        """Return what `ask` does, and renew the lease as long as that takes."""
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
    """Return a digest of a list of groups in their order; with a key, only those who have it can make one."""
    digest = hashlib.blake2b(digest_size=8, key=key)
    async for group in in_turns(groups):
        digest.update(group.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
