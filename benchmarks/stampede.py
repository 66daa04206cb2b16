"""How many loads a crowd causes, and what a stale answer costs: processes of readers on one key, cold, then stale.

    scripts/bench stampede [--quick]

Each contestant gets processes of its own, told by its documentation's recipe against stampedes. In each process all
readers start together, first on a missing key, then once more when what is stored has become stale (or, where a
library knows no stale, has expired). The loader takes 0.3 s. A reader's latency runs from its own first step to its
answer, so that readers do not count the time in which the readers before them were started.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from benchmarks.measure import installed, percentile, print_machine, table, verdict
from benchmarks.rankings import top100_plain
from swr import Cache
from tests.servers import Server, kinds

# The most connections that a process opens; redis-py's own limit of 100 raises where it is reached, this one waits.
CONNECTIONS = 100
KEY = "stampede"


class Setting(NamedTuple):
    """How large the crowd is, and how long things take (seconds)."""

    processes: int
    readers: int
    fresh_for: int
    loader_takes: float
    rounds: int


FULL = Setting(processes=4, readers=250, fresh_for=5, loader_takes=0.3, rounds=3)
QUICK = Setting(processes=2, readers=10, fresh_for=3, loader_takes=0.05, rounds=1)


class Loader:
    """Takes its time, and counts how often it is called in this process."""

    def __init__(self, takes: float) -> None:
        self.loads = 0
        self._takes = takes
        self._ranking = top100_plain()

    async def load(self) -> Any:
        """Return the ranking."""
        self.loads += 1
        await asyncio.sleep(self._takes)
        return self._ranking

    def load_in_thread(self) -> Any:
        """Return the ranking, to a thread."""
        self.loads += 1
        time.sleep(self._takes)
        return self._ranking


Read = Callable[[], Awaitable[Any]]


async def swr(stack: AsyncExitStack, url: str, fresh_for: int, loader: Loader) -> Read:
    """`@cache.cached`, in memory in front of Redis: the defaults."""
    cache = await stack.enter_async_context(Cache(url))
    return cache.cached(KEY, fresh_for=fresh_for, stale_for=600)(loader.load)


async def cashews_early(stack: AsyncExitStack, url: str, fresh_for: int, loader: Loader) -> Read:
    """`@cache.early`: a recalculation in the background ahead of the end."""
    from cashews import Cache as CashewsCache

    cache = CashewsCache()
    cache.setup(url)
    await cache.init()
    stack.push_async_callback(cache.close)
    read: Read = cache.early(ttl=600, early_ttl=fresh_for, key=KEY)(loader.load)
    return read


async def cashews_lock(stack: AsyncExitStack, url: str, fresh_for: int, loader: Loader) -> Read:
    """`@cache(lock=True)`: one caller loads, the others poll for the lock; it knows no stale."""
    from cashews import Cache as CashewsCache

    cache = CashewsCache()
    cache.setup(url)
    await cache.init()
    stack.push_async_callback(cache.close)
    read: Read = cache(ttl=fresh_for, key=KEY, lock=True)(loader.load)
    return read


async def aiocache_stampede(stack: AsyncExitStack, url: str, fresh_for: int, loader: Loader) -> Read:
    """`@cached_stampede`; it knows no stale."""
    import aiocache
    from aiocache.serializers import JsonSerializer
    from redis.asyncio import BlockingConnectionPool

    port = int(url.rpartition(":")[2].partition("/")[0])
    decorate = aiocache.cached_stampede(
        lease=2,
        ttl=fresh_for,
        key=KEY,
        cache=aiocache.RedisCache,
        port=port,
        connection_pool_class=BlockingConnectionPool,
        pool_max_size=CONNECTIONS,
        serializer=JsonSerializer(),
    )
    read = decorate(loader.load)
    stack.push_async_callback(decorate.cache.close)
    result: Read = read
    return result


async def fastapi_cache2(stack: AsyncExitStack, url: str, fresh_for: int, loader: Loader) -> Read:
    """`@cache` on Redis; it knows neither stale nor locks."""
    from fastapi_cache import FastAPICache
    from fastapi_cache.backends.redis import RedisBackend
    from fastapi_cache.decorator import cache
    from redis.asyncio import BlockingConnectionPool, Redis

    pool = BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS)
    client = await stack.enter_async_context(Redis.from_pool(pool))
    FastAPICache.init(RedisBackend(client))

    @cache(expire=fresh_for, key_builder=lambda *_, **__: KEY)
    async def read() -> Any:
        return await loader.load()

    return read


async def fastapi_cachex(stack: AsyncExitStack, url: str, fresh_for: int, loader: Loader) -> Read:
    """`get_or_set` on Redis, with its lock; it knows no stale."""
    from fastapi_cachex import CacheManager
    from fastapi_cachex.backends import AsyncRedisCacheBackend

    # Its pool raises at 100 connections, where the others' pools wait.
    port = int(url.rpartition(":")[2].partition("/")[0])
    backend = AsyncRedisCacheBackend(port=port, max_connections=10 * CONNECTIONS)
    manager = CacheManager(backend)

    async def read() -> Any:
        return await manager.get_or_set(KEY, loader.load, ttl=fresh_for)

    return read


async def fastapi_redis_sdk(stack: AsyncExitStack, url: str, fresh_for: int, loader: Loader) -> Read:
    """`cache()` of an endpoint, which works in an app alone; it knows neither stale nor locks."""
    from fastapi import Depends, FastAPI
    from httpx import ASGITransport, AsyncClient
    from redis_fastapi import FastAPIRedis, cache, get_settings

    settings = get_settings()
    # Where the others' pools wait for one of 100 connections, its pool raises.
    settings.url, settings.max_connections = url, 10 * CONNECTIONS
    app = FastAPI()
    FastAPIRedis(app).lifespan().caching()

    @app.get("/", dependencies=[Depends(cache(ttl=fresh_for))])
    async def ranking():  # type: ignore[no-untyped-def]  # FastAPI would take an annotation for a response model
        return await loader.load()

    await stack.enter_async_context(app.router.lifespan_context(app))
    client = await stack.enter_async_context(AsyncClient(transport=ASGITransport(app), base_url="http://test"))

    async def read() -> Any:
        answer = await client.get("/")
        answer.raise_for_status()

    return read


def dogpile(url: str, fresh_for: int, loader: Loader) -> Callable[[], Any]:
    """`get_or_create` with a lock in Redis and a background runner for what is stale; for threads."""
    from dogpile.cache import make_region
    from redis import BlockingConnectionPool

    def in_background(region: Any, key: str, creator: Callable[[], Any], mutex: Any) -> None:
        def run() -> None:
            try:
                region.set(key, creator())
            finally:
                mutex.release()

        threading.Thread(target=run).start()

    pool = BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS)
    region = make_region(async_creation_runner=in_background).configure(
        "dogpile.cache.redis",
        expiration_time=fresh_for,
        arguments={"connection_pool": pool, "distributed_lock": True, "thread_local_lock": False},
    )
    return lambda: region.get_or_create(KEY, loader.load_in_thread)


class Contestant:
    """What is in one row.

    Parameters:
        name: what the table calls it.
        modules: what has to be installed.
        make: makes its reader; None: it is dogpile, whose readers are threads.
    """

    def __init__(self, name: str, modules: tuple[str, ...], make: Callable[..., Awaitable[Read]] | None) -> None:
        self.name = name
        self.modules = modules
        self.make = make


CONTESTANTS = {
    "swr": Contestant("swr", (), swr),
    "cashews-early": Contestant("cashews early", ("cashews",), cashews_early),
    "cashews-lock": Contestant("cashews lock=True", ("cashews",), cashews_lock),
    "dogpile": Contestant("dogpile.cache, threads", ("dogpile.cache",), None),
    "aiocache": Contestant("aiocache cached_stampede", ("aiocache",), aiocache_stampede),
    "fastapi-cache2": Contestant("fastapi-cache2", ("fastapi", "fastapi_cache"), fastapi_cache2),
    "fastapi-cachex": Contestant("fastapi-cachex, locks", ("fastapi_cachex",), fastapi_cachex),
    "fastapi-redis-sdk": Contestant("fastapi-redis-sdk", ("fastapi", "httpx", "redis_fastapi"), fastapi_redis_sdk),
}


# -- a process of readers -------------------------------------------------------------------------------------


async def _crowd(read: Read, readers: int) -> list[float]:
    latencies: list[float] = []

    async def one() -> None:
        began = time.perf_counter()
        await read()
        latencies.append(time.perf_counter() - began)

    # Who fails has no latency; the conductor counts those who are missing.
    await asyncio.gather(*(one() for _ in range(readers)), return_exceptions=True)
    return latencies


def _crowd_of_threads(read: Callable[[], Any], readers: int) -> list[float]:
    gate = threading.Barrier(readers)
    latencies: list[float] = []

    def one() -> None:
        gate.wait()
        began = time.perf_counter()
        with contextlib.suppress(Exception):
            read()
            latencies.append(time.perf_counter() - began)

    threads = [threading.Thread(target=one) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies


async def work(name: str, url: str, setting: Setting) -> None:
    """Do as the conductor says on standard input: a time at which to start a crowd, or the end."""
    loader, readers, fresh_for = Loader(setting.loader_takes), setting.readers, setting.fresh_for
    async with AsyncExitStack() as stack:
        make = CONTESTANTS[name].make
        if make is None:
            in_threads = dogpile(url, fresh_for, loader)
        else:
            read = await make(stack, url, fresh_for, loader)
        print("ready", flush=True)
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            loader.loads = 0
            await asyncio.sleep(float(line) - time.time())
            if make is None:
                latencies = await asyncio.to_thread(_crowd_of_threads, in_threads, readers)
            else:
                latencies = await _crowd(read, readers)
            # A load in the background counts too.
            await asyncio.sleep(2 * setting.loader_takes)
            print(json.dumps([loader.loads, latencies]), flush=True)


# -- the conductor --------------------------------------------------------------------------------------------


class Crowd:
    """What a crowd in several processes came to.

    Parameters:
        loads: by all processes.
        latencies: of all readers, seconds.
    """

    def __init__(self, loads: int, latencies: list[float]) -> None:
        self.loads = loads
        self.latencies = latencies


def conduct(name: str, server: Server, setting: Setting) -> tuple[Crowd, Crowd]:
    """Return how one contestant does cold, and stale."""
    server.command("FLUSHALL")
    command = [sys.executable, "-m", "benchmarks.stampede", "--work", name, "--url", server.url]
    if setting is QUICK:
        command.append("--quick")
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(setting.processes)
    ]
    try:
        for worker in workers:
            _heard(worker, "ready")
        cold = _crowd_of_processes(workers)
        time.sleep(setting.fresh_for + 0.2)
        return cold, _crowd_of_processes(workers)
    finally:
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.close()
        for worker in workers:
            try:
                worker.wait(timeout=10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def _heard(worker: "subprocess.Popen[str]", expected: str | None = None) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line or (expected is not None and line.strip() != expected):
        raise RuntimeError(f"a worker ended: {line!r}")
    return line


def _crowd_of_processes(workers: "list[subprocess.Popen[str]]") -> Crowd:
    start = time.time() + 0.3
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(f"{start}\n")
        worker.stdin.flush()
    crowd = Crowd(0, [])
    for worker in workers:
        loads, latencies = json.loads(_heard(worker))
        crowd.loads += loads
        crowd.latencies += latencies
    return crowd


def compare(setting: Setting) -> None:
    """Print the table."""
    rows = []
    with Server(kinds()[-1]) as server:
        names = [name for name, contestant in CONTESTANTS.items() if installed(*contestant.modules)]
        crowds: dict[str, list[tuple[Crowd, Crowd]]] = {name: [] for name in names}
        for _ in range(setting.rounds):
            for name in names:
                crowds[name].append(conduct(name, server, setting))
    for name in names:
        cold = [crowd for crowd, _ in crowds[name]]
        stale = [crowd for _, crowd in crowds[name]]
        latencies = [1000 * latency for crowd in stale for latency in crowd.latencies]
        last = statistics.median(percentile([1000 * latency for latency in crowd.latencies], 99) for crowd in stale)
        goal = ""
        if name == "swr":
            goal = f"1, 1, {verdict(last, at_most=5)}"
            if any(crowd.loads != 1 for crowd in [*cold, *stale]):
                goal += "; loads MISSED"
        expected = 2 * setting.rounds * setting.processes * setting.readers
        failed = expected - sum(len(crowd.latencies) for crowd in [*cold, *stale])
        rows.append(
            [
                CONTESTANTS[name].name + (f" ({failed} readers failed)" if failed else ""),
                _loads(cold),
                _loads(stale),
                f"{percentile([1000 * latency for crowd in cold for latency in crowd.latencies], 50):.0f}",
                f"{percentile(latencies, 50):.2f}",
                f"{last:.2f}",
                goal,
            ]
        )
    columns = ["", "loads cold", "loads stale", "cold p50 ms", "stale p50 ms", "stale p99 ms", "goal"]
    crowd = f"{setting.processes} processes x {setting.readers} readers on one key"
    table(f"{crowd}, a loader of {setting.loader_takes:g} s ({setting.rounds} rounds)", columns, rows)


def _loads(crowds: list[Crowd]) -> str:
    """The number of loads, or the least and the most where rounds differ."""
    counts = sorted({crowd.loads for crowd in crowds})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few readers: to see that it runs, not to measure")
    parser.add_argument("--work", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    setting = QUICK if options.quick else FULL
    if options.work:
        asyncio.run(work(options.work, options.url, setting))
        return
    print_machine(
        "swr", "redis", "cashews", "dogpile.cache", "aiocache", "fastapi-cache2", "fastapi-cachex", "fastapi-redis-sdk"
    )
    compare(setting)


if __name__ == "__main__":
    main()
