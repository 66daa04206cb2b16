"""Takes tasks from the queue, loads them, and settles them."""

import contextlib
import random
from collections.abc import Iterable

import anyio

from swr.engine.engine import Engine
from swr.engine.failures import text_of
from swr.errors import StoreUnavailable
from swr.refreshers.queue.looks import Looks
from swr.refreshers.queue.queue import Queue
from swr.refreshers.queue.tasks import Delivery, Settlement
from swr.refreshers.queue.wakes import tag_of
from swr.refreshers.rounds.load_limiter import Ended, LoadLimiter, Result, Task
from swr.refreshers.rounds.report import Report
from swr.refreshers.rounds.schedule import Rounds
from swr.stores.base import Kind, Notification

_AGAIN_IN = 1.0
_LONGEST_PAUSE = 60.0
_SETTLED_AT_ONCE = 200
# Seconds after which a task is taken again whose group another process is loading.
_HELD_FOR = 1.0
# Seconds by which the clocks of a consumer and of Redis may part while a task waits.
_LATER = 0.01
# Seconds that closing waits for an unreachable server when it has no task in hand.
_LEAVING = 3.0


class Consumer:
    """One consumer.

    Parameters:
        engine: the cache's.
        queue: where tasks come from.
        limiter: runs the loads.
        rounds: when the report of a round is due.
        report: publishes the end of each round.
        name: this one's.
        reclaim_after: seconds after which the tasks of one who is silent are given to others.
    """

    def __init__(
        self,
        engine: Engine,
        queue: Queue,
        limiter: LoadLimiter,
        rounds: Rounds,
        report: Report,
        name: str,
        reclaim_after: float,
    ) -> None:
        self._engine = engine
        self._queue = queue
        self._limiter = limiter
        self._rounds = rounds
        self._report = report
        self._name = name
        self._reclaim_after = reclaim_after
        self._looks = Looks(queue.shards, anyio.current_time)
        self._shards = {name: shard for shard, name in enumerate(queue.shard_names)}
        self._deliveries: dict[tuple[str, int], Delivery] = {}
        self._settlements: list[Settlement] = []
        self._settling = False
        self._working = anyio.CancelScope()
        # A task is known here before the queue hears that it is.
        self._taking = anyio.Lock()

    async def _work(self) -> None:
        end = self._engine.notifications.subscribe(self._on_message)
        try:
            with self._working:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._take_all)
                    group.start_soon(self._tend)
                    group.start_soon(self._tell)
        finally:
            end()

    async def _take_all(self) -> None:
        while True:
            wait, changes = _AGAIN_IN, self._limiter.changes
            with contextlib.suppress(StoreUnavailable):
                wait = await self._take()
            if wait:
                await self._limiter.wait(wait, changes)

    async def _take(self) -> float:
        """Take tasks for the free slots; return the seconds to wait before the next look, unless something changes."""
        for shard in self._looks.due():
            if self._working.cancel_called:
                return _AGAIN_IN
            if self._limiter.free_slots:
                await self._look(shard)
        if not self._limiter.free_slots:
            for shard in self._looks.passed_on():
                await self._queue.pass_on(shard, self._name, self._limiter.half)
        elif self._looks.due():
            return 0.0
        return self._looks.next_in()

    async def _look(self, shard: int) -> None:
        most = self._limiter.free_slots
        is_idle = False
        self._looks.begin(shard)
        # Closing waits for the answer, because the tasks in it must be handed back.
        with anyio.CancelScope(shield=True):
            try:
                async with self._taking:
                    spare = self._limiter.at_once - self._limiter.running - most
                    is_idle, deliveries = await self._queue.take(shard, self._name, most, spare)
                    for delivery in deliveries:
                        self._deliveries[delivery.key, delivery.number] = delivery
            finally:
                if not is_idle:
                    self._looks.again(shard)
        if deliveries and not self._working.cancel_called:
            self._begin(deliveries)

    def _begin(self, deliveries: list[Delivery]) -> None:
        by_task = {(delivery.key, delivery.newer_than): delivery for delivery in deliveries}

        def ended(task: Task, end: Ended) -> None:
            self._ended(by_task[task.key, task.newer_than], end)

        tasks = [Task(each.key, each.args, each.newer_than) for each in deliveries]
        try:
            self._limiter.begin(tasks, ended)
        except Exception:
            for task in tasks:
                try:
                    self._limiter.begin([task], ended)
                except Exception as error:
                    # Arguments that this loader does not take: another version's, perhaps.
                    ended(task, Ended(Result.FAILED, 0.0, error))

    def _ended(self, delivery: Delivery, end: Ended) -> None:
        if self._deliveries.pop((delivery.key, delivery.number), None) is None:
            # It was handed back.
            return
        result, again_in, error = end.result, end.again_in, end.error
        if result is Result.LOADED:
            settlement = Settlement(delivery, "done", stored=end.stored)
        elif result is Result.CURRENT:
            settlement = Settlement(delivery, "current", stored=end.stored)
        elif result is Result.FAILED:
            pause = min(_LONGEST_PAUSE, 2.0 ** min(delivery.tries - 1, 10)) * random.uniform(0.75, 1.25)
            settlement = Settlement(delivery, "failed", max(pause, again_in), text_of(error))
        else:
            settlement = Settlement(delivery, "back", again_in if error is not None else min(again_in, _HELD_FOR))
        self._settlements.append(settlement)
        if not self._settling:
            self._settling = True
            self._engine.start(self._settle)

    async def _settle(self) -> None:
        """Settle what has ended; what ends meanwhile, too."""
        try:
            while self._settlements:
                some = self._settlements[:_SETTLED_AT_ONCE]
                try:
                    await self._queue.settle(self._name, some)
                except StoreUnavailable:
                    await anyio.sleep(_AGAIN_IN)
                    continue
                del self._settlements[: len(some)]
                self._wait_for(some)
        finally:
            self._settling = False
            self._limiter.change()

    def _wait_for(self, settlements: list[Settlement]) -> None:
        """Look when the tasks that this consumer has put off may be taken again; the other consumers need not."""
        for settlement in settlements:
            if settlement.delay > 0:
                self._looks.wake_in(settlement.delivery.shard, settlement.delay + _LATER)

    async def _tend(self) -> None:
        """Say again and again that this one lives, and take back from those who do not."""
        while True:
            with contextlib.suppress(StoreUnavailable):
                for shard in self._queue.shards:
                    async with self._taking:
                        await self._queue.tend(shard, self._name, 0.7 * self._reclaim_after, self._mine())
            await anyio.sleep(self._reclaim_after / 4)

    def _mine(self) -> Iterable[Delivery]:
        return [*self._deliveries.values(), *(settlement.delivery for settlement in self._settlements)]

    async def _tell(self) -> None:
        """Report what this one has done in each round."""
        while True:
            this = await self._rounds.next()
            self._report.end()
            self._report.begin(this._replace(missed=0))

    def _on_message(self, message: Notification) -> None:
        if message.kind in (Kind.REACHABLE, Kind.GAP):
            # It may have missed what woke it.
            self._looks.wake_all()
            self._limiter.change()
        elif message.kind is Kind.QUEUED and tag_of(self._name) in message.fingerprint:
            shard = self._shards.get(message.text)
            if shard is not None:
                self._looks.wake(shard)
                self._limiter.change()

    async def begin(self) -> None:
        """Take and load, until `end`."""
        self._engine.start(self._work)

    async def end(self, seconds: float) -> None:
        """Take nothing more, wait for the loads under way for some seconds at most, and hand the others back."""
        self._working.cancel()
        began = anyio.current_time()
        with anyio.move_on_after(seconds):
            # A task that was taken and has not begun is handed back: waiting would not finish it.
            while self._limiter.running or self._settlements:
                await self._limiter.wait(_AGAIN_IN)
        while True:
            try:
                await self._hand_back()
            except StoreUnavailable:
                # Who has nothing in hand only takes leave, which is not worth a long wait.
                in_hand = self._deliveries or self._settlements
                if anyio.current_time() > began + (seconds if in_hand else min(seconds, _LEAVING)):
                    raise
                await anyio.sleep(_AGAIN_IN / 10)
            else:
                return

    async def _hand_back(self) -> None:
        # Tasks on their way are handed back, too.
        async with self._taking:
            left = [Settlement(delivery, "back") for delivery in self._deliveries.values()]
            if left or self._settlements:
                for shard in self._queue.shards:
                    # Others are woken for what is handed back.
                    await self._queue.pass_on(shard, self._name, self._limiter.half)
                await self._queue.settle(self._name, [*self._settlements, *left])
            self._deliveries.clear()
            self._settlements.clear()
            await self._queue.leave(self._name, self._limiter.half)
