"""The Python queues that `benchmarks/queues.py` compares with, each run by the interpreter that has it.

    python benchmarks/contestants.py NAME enqueue|drain URL TASKS CONCURRENCY

Nothing of swr is imported: arq and saq pin an older redis-py, so each of them lives in an environment of its own.
`drain` prints the seconds from the start of the worker to the call of the last task.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

_AT_ONCE = 100


class Tasks:
    """Counts the calls of an empty task."""

    def __init__(self, number: int) -> None:
        self.called = 0
        self._number = number
        self.done = asyncio.Event()

    def call(self) -> None:
        """One call."""
        self.called += 1
        if self.called == self._number:
            self.done.set()


async def several(number: int, enqueue: Callable[[int], Awaitable[Any]]) -> None:
    """Enqueue so many tasks, some at once."""
    for first in range(0, number, _AT_ONCE):
        await asyncio.gather(*(enqueue(task) for task in range(first, min(number, first + _AT_ONCE))))


async def until_done(worker: Awaitable[Any], tasks: Tasks) -> float:
    """Run a worker until the last task is called; return the seconds."""
    began = time.perf_counter()
    running = asyncio.ensure_future(worker)
    done = asyncio.ensure_future(tasks.done.wait())
    await asyncio.wait((running, done), return_when=asyncio.FIRST_COMPLETED)
    if not done.done():
        running.result()
        raise RuntimeError("the worker ended before its tasks")
    return time.perf_counter() - began


async def arq(what: str, url: str, number: int, at_once: int) -> float:
    """Run arq, which keeps tasks in a sorted set."""
    from arq import create_pool, func
    from arq.connections import RedisSettings
    from arq.worker import Worker

    settings = RedisSettings.from_dsn(url)
    if what == "enqueue":
        pool = await create_pool(settings)
        await several(number, lambda task: pool.enqueue_job("empty", task))
        return 0.0
    tasks = Tasks(number)

    async def empty(_: Any, task: int) -> None:
        tasks.call()

    worker = Worker(
        [func(empty, name="empty", keep_result=0)],
        redis_settings=settings,
        max_jobs=at_once,
        log_results=False,
        handle_signals=False,
        # The default of half a second is what it would wait for.
        poll_delay=0.01,
    )
    return await until_done(worker.async_run(), tasks)


async def saq(what: str, url: str, number: int, at_once: int) -> float:
    """Run saq, which keeps tasks in a list."""
    from saq import Queue, Worker

    queue = Queue.from_url(url)
    await queue.connect()
    if what == "enqueue":
        # ttl -1: no results are kept.
        await several(number, lambda task: queue.enqueue("empty", task=task, ttl=-1))
        return 0.0
    tasks = Tasks(number)

    async def empty(_: Any, *, task: int) -> None:
        tasks.call()

    return await until_done(Worker(queue, [("empty", empty)], concurrency=at_once).start(), tasks)


async def taskiq(what: str, url: str, number: int, at_once: int, kind: str) -> float:
    """Run taskiq over a stream, or over a list, from which tasks are lost with their worker."""
    from taskiq.api import run_receiver_task
    from taskiq_redis import ListQueueBroker, RedisStreamBroker

    broker = ListQueueBroker(url) if kind == "list" else RedisStreamBroker(url, consumer_id="0")
    tasks = Tasks(number)

    @broker.task(task_name="empty")
    async def empty(task: int) -> None:
        tasks.call()

    if what == "enqueue":
        await broker.startup()
        await several(number, empty.kiq)
        return 0.0
    return await until_done(
        run_receiver_task(broker, max_async_tasks=at_once, max_prefetch=at_once, run_startup=True), tasks
    )


CONTESTANTS: dict[str, Callable[[str, str, int, int], Awaitable[float]]] = {
    "arq": arq,
    "saq": saq,
    "taskiq-streams": lambda *args: taskiq(*args, "streams"),
    "taskiq-list": lambda *args: taskiq(*args, "list"),
}


async def main(name: str, what: str, url: str, number: str, at_once: str) -> None:
    """Do one of both."""
    print(await CONTESTANTS[name](what, url, int(number), int(at_once)), flush=True)
    # What the worker has under way is of no interest.
    os._exit(0)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    asyncio.run(main(*sys.argv[1:]))
