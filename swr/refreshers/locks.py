"""The strategy "locks": in each round, every worker walks all groups and loads those whose lease it gets.

There is no coordinator. Workers begin with different groups (rendezvous hashing), so that they seldom compete.
Notifications tell a worker which groups other workers have committed. If another worker holds a group's lease, the
worker asks for the group again when that lease would end. So the groups of a dead worker are loaded in the same round.
"""

import hashlib
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio

from swr.refreshers.rounds.groups import in_turns
from swr.refreshers.rounds.load_limiter import Ended, Loader, LoadLimiter, Result, Task
from swr.refreshers.rounds.report import Report
from swr.refreshers.rounds.schedule import Round, Rounds
from swr.stores.base import Kind, Notification

log = logging.getLogger("swr")
# Seconds until a round that failed begins again; they double with each failure in a row.
_AGAIN_IN: Final = 1.0
Groups = Callable[[], Awaitable[dict[str, tuple[Any, ...]]]]


class Locks:
    """One worker of the strategy "locks".

    Parameters:
        loader: the cached loader that the worker calls for each group.
        groups: returns the arguments of every call, by cache key.
        rounds: says when each round begins.
        limiter: runs the loads.
        report: publishes the end of each round.
        worker: the name of this worker.
    """

    def __init__(
        self, loader: Loader, groups: Groups, rounds: Rounds, limiter: LoadLimiter, report: Report, worker: str
    ) -> None:
        self._loader = loader
        self._groups = groups
        self._rounds = rounds
        self._limiter = limiter
        self._report = report
        self._worker = worker.encode()[-64:]
        # The next four are of the current round.
        self._begins_at = 0
        # Arguments of the groups to ask for now, by key.
        self._todo: dict[str, tuple[Any, ...]] = {}
        # Arguments of the groups to ask for again, by key, with the time to do so.
        self._held: dict[str, tuple[tuple[Any, ...], float]] = {}
        # Keys that other workers have committed. The answer that refuses this worker the lease may arrive later.
        self._done: set[str] = set()
        self._walking = anyio.CancelScope()

    async def begin(self) -> None:
        """Start a task that walks the groups in each round, until `end`."""
        self._loader.engine.start(self._run)

    async def end(self, seconds: float) -> None:
        """Begin no more loads, and wait at most `seconds` for the loads under way."""
        self._walking.cancel()
        await self._limiter.drained(seconds)

    async def _run(self) -> None:
        with self._walking:
            await self._walk_all()

    async def _walk_all(self) -> None:
        end = self._loader.engine.notifications.subscribe(self._on_message)
        failures = 0
        try:
            while True:
                before = self._rounds.last
                this = await self._rounds.next()
                self._report.begin(this)
                try:
                    groups = await self._groups()
                    await self._walk(this, groups)
                except Exception:
                    # `keys` failed: its database may be unreachable for a moment, and the next round be a day away.
                    log.exception("round %d of the refresher %r failed", this.number, self._report.name)
                    self._rounds.last = before
                    await anyio.sleep(min(_AGAIN_IN * 2.0 ** min(failures, 10), this.left))
                    failures += 1
                else:
                    failures = 0
                    self._report.end(len(groups))
        finally:
            end()

    def _on_message(self, message: Notification) -> None:
        """Skip the groups that other workers have committed in this round."""
        is_commit = message.kind is Kind.COMMITTED and message.fingerprint == self._loader.codec.fingerprint
        if is_commit and message.version > self._begins_at:
            self._done.add(message.text)
            self._todo.pop(message.text, None)
            if self._held.pop(message.text, None) is not None:
                self._limiter.change()
        elif message.kind is Kind.REACHABLE:
            self._limiter.change()
        elif message.kind is Kind.RELEASED and message.text in self._held:
            self._held[message.text] = self._held[message.text][0], anyio.current_time()
            self._limiter.change()

    async def _walk(self, this: Round, groups: dict[str, tuple[Any, ...]]) -> None:
        engine, limiter = self._loader.engine, self._limiter
        self._begins_at = this.begins_at
        self._todo, self._held, self._done = {}, {}, set()
        near = sorted([(self._distance(key), key) async for key in in_turns(groups)])
        self._todo = {key: groups[key] for _, key in near if key not in self._done}
        over_at = anyio.current_time() + this.left
        while self._todo or self._held or limiter.running:
            now = anyio.current_time()
            if now >= over_at and not self._todo:
                # The next round asks for the groups that other workers are still loading.
                self._held.clear()
            for key in [key for key, (_, at) in self._held.items() if at <= now]:
                self._todo[key] = self._held.pop(key)[0]
            free_slots = limiter.free_slots if engine.is_store_up else 0
            if self._todo and free_slots:
                some = {key: self._todo.pop(key) for key in list(itertools.islice(self._todo, free_slots))}
                limiter.begin([Task(key, args, this.begins_at) for key, args in some.items()], self._ended)
            elif self._todo or self._held or limiter.running:
                ahead = [at - now for at in (over_at, *(at for _, at in self._held.values())) if at > now]
                await limiter.wait(min(ahead, default=None))

    def _ended(self, task: Task, end: Ended) -> None:
        if end.result not in (Result.LOADED, Result.CURRENT) and task.key not in self._done:
            self._held[task.key] = task.args, anyio.current_time() + end.again_in

    def _distance(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, key=self._worker).digest()
