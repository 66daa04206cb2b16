"""The strategy "queue" in one process, which takes tasks and loads. If it leads, it enqueues tasks, too."""

import logging

from swr.errors import StoreUnavailable
from swr.refreshers.queue.consumer import Consumer
from swr.refreshers.queue.leader import Leader

log = logging.getLogger("swr")


class QueueStrategy:
    """One worker, which consumes tasks and may lead.

    Parameters:
        leader: fills the queue, unless another process leads.
        consumer: takes tasks from the queue.
    """

    def __init__(self, leader: Leader, consumer: Consumer) -> None:
        self._leader = leader
        self._consumer = consumer

    async def begin(self) -> None:
        """Begin to compete for the lead, and to take tasks."""
        await self._leader.begin()
        await self._consumer.begin()

    async def end(self, seconds: float) -> None:
        """Stop leading and taking tasks, and hand back the tasks that are not done after `seconds`."""
        try:
            try:
                await self._leader.end()
            finally:
                await self._consumer.end(seconds)
        except StoreUnavailable as error:
            log.warning(
                "a refresher closed while Redis is unreachable: other processes get its tasks later (%s)", error
            )
