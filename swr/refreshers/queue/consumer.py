"""A consumer takes tasks from the queue, loads their groups, and tells the queue the results."""

import contextlib
import itertools
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
# Longest delay, in seconds, before the next try of a task if another process is loading its group.
_HELD_FOR = 1.0
# Seconds that a consumer adds to a delay, because its clock and that of Redis may drift apart meanwhile.
_LATER = 0.01
# Seconds for which closing retries against an unreachable server if the consumer has no unfinished tasks.
_LEAVING = 3.0


class Consumer:
    """The part of a worker that takes tasks and loads.

    Parameters:
        engine: the engine of the cache.
        queue: the queue to take tasks from.
        limiter: runs the loads.
        rounds: says when the report of a round is due.
        report: publishes the end of each round.
        name: the name of this consumer.
        reclaim_after: seconds of silence after which other consumers get the tasks of a consumer.
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
        # The unsent results of each shard. They are separate, so that an unreachable shard does not hold up the others.
        self._settlements: list[list[Settlement]] = [[] for _ in queue.shards]
        # The shards for which a task is sending results.
        self._settling: set[int] = set()
        self._working = anyio.CancelScope()
        # While a reply of `take` is under way, `_deliveries` lacks its tasks: `tend` and closing wait for the reply.
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
            changes = self._limiter.changes
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
                with contextlib.suppress(StoreUnavailable):
                    await self._queue.pass_on(shard, self._name, self._limiter.half)
        elif self._looks.due():
            return 0.0
        return self._looks.next_in()

    async def _look(self, shard: int) -> None:
        most = self._limiter.free_slots
        self._looks.begin(shard)
        # Closing waits for the answer, because the tasks in it must be handed back.
        with anyio.CancelScope(shield=True):
            try:
                async with self._taking:
                    spare = self._limiter.at_once - self._limiter.running - most
                    is_idle, deliveries = await self._queue.take(shard, self._name, most, spare)
                    for delivery in deliveries:
                        self._deliveries[delivery.key, delivery.number] = delivery
            except StoreUnavailable:
                self._looks.wake_in(shard, _AGAIN_IN)
                return
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
                    # The loader does not take these arguments. Another release of the app may have enqueued them.
                    ended(task, Ended(Result.FAILED, 0.0, error))

    def _ended(self, delivery: Delivery, end: Ended) -> None:
        if self._deliveries.pop((delivery.key, delivery.number), None) is None:
            # Closing has handed the task back.
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
        self._settlements[delivery.shard].append(settlement)
        if delivery.shard not in self._settling:
            self._settling.add(delivery.shard)
            self._engine.start(self._settle, delivery.shard)

    async def _settle(self, shard: int) -> None:
        """Send the settlements of a shard to the queue, including those that are added meanwhile."""
        settlements = self._settlements[shard]
        try:
            while settlements:
                some = settlements[:_SETTLED_AT_ONCE]
                try:
                    await self._queue.settle(self._name, some)
                except StoreUnavailable:
                    await anyio.sleep(_AGAIN_IN)
                    continue
                del settlements[: len(some)]
                self._wait_for(some)
        finally:
            self._settling.discard(shard)
            self._limiter.change()

    def _wait_for(self, settlements: list[Settlement]) -> None:
        """Schedule a look for the time when each delayed task is ready again, so that no other consumer need look."""
        for settlement in settlements:
            if settlement.delay > 0:
                self._looks.wake_in(settlement.delivery.shard, settlement.delay + _LATER)

    async def _tend(self) -> None:
        """Tell the queue periodically that this consumer is alive, and requeue the tasks of dead consumers."""
        while True:
            for shard in self._queue.shards:
                with contextlib.suppress(StoreUnavailable):
                    async with self._taking:
                        await self._queue.tend(shard, self._name, 0.7 * self._reclaim_after, self._mine())
            await anyio.sleep(self._reclaim_after / 4)

    def _mine(self) -> Iterable[Delivery]:
        return [*self._deliveries.values(), *(settlement.delivery for settlement in self._unsettled())]

    def _unsettled(self) -> list[Settlement]:
        return list(itertools.chain.from_iterable(self._settlements))

    async def _tell(self) -> None:
        """Report the loads of this consumer for each round."""
        while True:
            this = await self._rounds.next()
            self._report.end()
            self._report.begin(this._replace(missed=0))

    def _on_message(self, message: Notification) -> None:
        if message.kind in (Kind.REACHABLE, Kind.GAP):
            # This consumer may have missed a message that should have woken it.
            self._looks.wake_all()
            self._limiter.change()
        elif message.kind is Kind.QUEUED and tag_of(self._name) in message.fingerprint:
            shard = self._shards.get(message.text)
            if shard is not None:
                self._looks.wake(shard)
                self._limiter.change()

    async def begin(self) -> None:
        """Start a task that takes and loads tasks of the queue, until `end`."""
        self._engine.start(self._work)

    async def end(self, seconds: float) -> None:
        """Take no more tasks, wait at most `seconds` for the loads under way, and hand unfinished tasks back."""
        self._working.cancel()
        began = anyio.current_time()
        with anyio.move_on_after(seconds):
            # This does not wait for tasks whose load has not begun: they would not finish, and are handed back.
            while self._limiter.running or self._unsettled():
                await self._limiter.wait(_AGAIN_IN)
        while True:
            try:
                await self._hand_back()
            except StoreUnavailable:
                # Without unfinished tasks only the deregistration is left, which is not worth a long wait.
                in_hand = self._deliveries or self._unsettled()
                if anyio.current_time() > began + (seconds if in_hand else min(seconds, _LEAVING)):
                    raise
                await anyio.sleep(_AGAIN_IN / 10)
            else:
                return

    async def _hand_back(self) -> None:
        # With this lock, a reply of `take` that is under way arrives first, so that its tasks are handed back, too.
        async with self._taking:
            try:
                await self._queue.each(self._hand_back_in)
            finally:
                await self._queue.leave(self._name, self._limiter.half)

    async def _hand_back_in(self, shard: int) -> None:
        settlements = self._settlements[shard]
        left = [delivery for delivery in self._deliveries.values() if delivery.shard == shard]
        if left or settlements:
            # Wake another consumer for the tasks that are handed back below.
            await self._queue.pass_on(shard, self._name, self._limiter.half)
            await self._queue.settle(self._name, [*settlements, *(Settlement(delivery, "back") for delivery in left)])
        for delivery in left:
            self._deliveries.pop((delivery.key, delivery.number), None)
        settlements.clear()
