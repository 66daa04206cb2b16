"""Who takes tasks from the queue, loads, and settles them."""

import contextlib
import random
from collections.abc import Iterable

import anyio

from swr.engine import Engine
from swr.errors import StoreUnavailable
from swr.refreshers.queue import Delivery, Queue, Settlement
from swr.refreshers.report import Report
from swr.refreshers.rounds import Rounds
from swr.refreshers.window import Ended, Result, Task, Window
from swr.stores.base import Kind, Message

# Messages may be lost: the queue is looked at all the same.
_LOOKED_AT_EVERY = 5.0
_AGAIN_IN = 1.0
_LONGEST_PAUSE = 60.0
_SETTLED_AT_ONCE = 200
# Whoever somebody else loads is looked at again after so many seconds at the latest.
_HELD_FOR = 1.0
# A server that is away may be back after so many seconds.
_LEAVING = 3.0


class Consumer:
    """One consumer.

    Parameters:
        engine: the cache's.
        queue: where tasks come from.
        window: the loads under way.
        rounds: when the report of a round is due.
        report: who is told of it.
        name: this one's.
        reclaim_after: seconds after which the tasks of one who is silent are given to others.
    """

    def __init__(
        self,
        engine: Engine,
        queue: Queue,
        window: Window,
        rounds: Rounds,
        report: Report,
        name: str,
        reclaim_after: float,
    ) -> None:
        self._engine = engine
        self._queue = queue
        self._window = window
        self._rounds = rounds
        self._report = report
        self._name = name
        self._reclaim_after = reclaim_after
        self._deliveries: dict[tuple[str, int], Delivery] = {}
        self._settlements: list[Settlement] = []
        self._settling = False
        self._working = anyio.CancelScope()
        # What is taken is known here before it is said that it is known.
        self._taking = anyio.Lock()

    async def _work(self) -> None:
        end = self._engine.listen(self._hear)
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
            wait, changes = _AGAIN_IN, self._window.changes
            with contextlib.suppress(StoreUnavailable):
                wait = await self._take()
            if wait:
                await self._window.wait(wait, changes)

    async def _take(self) -> float:
        """Take what there is room for; return after how many seconds to look again, unless something changes."""
        longest = _LOOKED_AT_EVERY
        shards = list(self._queue.shards)
        random.shuffle(shards)
        for shard in shards:
            room = self._window.room
            if not room or self._working.cancel_called:
                return longest
            # Closing waits for the answer, for what was taken is to be handed back.
            with anyio.CancelScope(shield=True):
                async with self._taking:
                    next_in, deliveries = await self._queue.take(shard, self._name, room)
                    for delivery in deliveries:
                        self._deliveries[delivery.key, delivery.number] = delivery
            longest = min(longest, _LOOKED_AT_EVERY if next_in is None else max(0.01, next_in))
            if deliveries and not self._working.cancel_called:
                self._begin(deliveries)
                if len(deliveries) == room:
                    longest = 0.0
        return longest

    def _begin(self, deliveries: list[Delivery]) -> None:
        by_task = {(delivery.key, delivery.since): delivery for delivery in deliveries}

        def ended(task: Task, end: Ended) -> None:
            self._ended(by_task[task.key, task.since], end)

        tasks = [Task(each.key, each.args, each.since) for each in deliveries]
        try:
            self._window.begin(tasks, ended)
        except Exception:
            for task in tasks:
                try:
                    self._window.begin([task], ended)
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
            settlement = Settlement(delivery, "failed", max(pause, again_in), f"{type(error).__name__}: {error}")
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
        finally:
            self._settling = False
            self._window.change()

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

    def _hear(self, message: Message) -> None:
        if message.kind is Kind.UP or (message.kind is Kind.QUEUED and message.name == self._queue.name):
            self._window.change()

    async def begin(self) -> None:
        """Take and load, until `end`."""
        self._engine.start(self._work)

    async def end(self, seconds: float) -> None:
        """Take nothing more, wait for the loads under way for so many seconds at most, and hand the others back."""
        self._working.cancel()
        began = anyio.current_time()
        with anyio.move_on_after(seconds):
            while self._deliveries or self._settlements:
                await self._window.wait(_AGAIN_IN)
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
        # What is being taken is handed back, too.
        async with self._taking:
            left = [Settlement(delivery, "back") for delivery in self._deliveries.values()]
            if left or self._settlements:
                await self._queue.settle(self._name, [*self._settlements, *left])
            self._deliveries.clear()
            self._settlements.clear()
            await self._queue.leave(self._name)
