"""Queue-based refreshing: one leads and enqueues, all take tasks and load."""

import logging

from swr.errors import StoreUnavailable
from swr.refreshers.queue.consumer import Consumer
from swr.refreshers.queue.leader import Leader

log = logging.getLogger("swr")


class QueueStrategy:
    """One worker, who consumes and may lead.

    Parameters:
        leader: fills the queue, unless another process does.
        consumer: takes from it.
    """

    def __init__(self, leader: Leader, consumer: Consumer) -> None:
        self._leader = leader
        self._consumer = consumer

    async def begin(self) -> None:
        """Begin to lead and to take."""
        await self._leader.begin()
        await self._consumer.begin()

    async def end(self, seconds: float) -> None:
        """Stop leading and taking tasks, and after some seconds hand back those that are not done."""
        try:
            try:
                await self._leader.end()
            finally:
                await self._consumer.end(seconds)
        except StoreUnavailable as error:
            log.warning("closed while Redis is unreachable: others take over its tasks later (%s)", error)
