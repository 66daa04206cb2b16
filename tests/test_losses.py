"""Whatever Redis loses of what swr keeps there, too much is invalidated and never too little."""

import asyncio
import itertools
import os
import random
import time
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from swr import Cache, Policy, State
from swr.engine.load import Load
from swr.events import StoreReachable
from swr.loaders.annotations import codec_for
from swr.stores.local import LocalCache
from swr.stores.served import Served
from tests.proxy import Proxy
from tests.servers import Server
from tests.test_redis import Counter, until

pytestmark = pytest.mark.anyio

LONG = Policy(600)
TAGGED = Policy(600, tags=("t",))
# Every key of swr for one entry.
KEYS = ("swr:{k}", "swr:{k}:l", "swr:{!}b", "swr:{!}h", "swr:{!}a", "swr:{!}p")
LOSSES = [*((key,) for key in KEYS), *itertools.combinations(KEYS[:4], 2), KEYS]
named = pytest.mark.parametrize("lost", LOSSES, ids=lambda lost: " ".join(lost).replace("swr:", ""))


@pytest.fixture
def anyio_backend():
    return "asyncio"


HOW = {
    "tag": lambda cache: cache.invalidate_tag("t"),
    "clear": lambda cache: cache.clear(),
    "url": lambda cache: cache.invalidate_url("/x"),
    "key": lambda cache: cache.invalidate("k"),
}
invalidated = pytest.mark.parametrize("how", HOW)


def policy_for(how: str) -> Policy:
    return Policy(600, tags=("url:/x",)) if how == "url" else TAGGED


class TestEvictedKeys:
    @pytest.mark.uncounted
    @named
    @invalidated
    @pytest.mark.parametrize("remains", [True, False])
    async def test_new_process_gets_no_invalidated_entry_after_keys_are_lost(self, server: Server, how, lost, remains):
        """Whether or not a process remains that remembers."""
        load, policy = Counter(), policy_for(how)
        async with Cache(server.url, timeout=2) as one:
            await one.get_or_load("k", load, policy)
            await HOW[how](one)
            if not remains:
                await one.aclose()
            server.command("DEL", *lost)
            async with Cache(server.url, timeout=2) as other:
                assert (await other.get_or_load("k", load, policy)).value == 2

    @pytest.mark.uncounted
    @named
    async def test_invalidating_another_tag_does_not_hide_that_keys_are_lost(self, server: Server, lost):
        """The set is there again, and holds the other tag alone."""
        load = Counter()
        async with Cache(server.url, timeout=2) as one:
            await one.get_or_load("k", load, TAGGED)
            await one.invalidate_tag("t")
            server.command("DEL", *lost)
            await one.invalidate_tag("other")
        async with Cache(server.url, timeout=2) as other:
            assert (await other.get_or_load("k", load, TAGGED)).value == 2

    @pytest.mark.uncounted
    @named
    @pytest.mark.parametrize("how", ["tag", "clear", "url"])
    async def test_process_that_missed_the_notification_gets_no_invalidated_entry(self, server: Server, how, lost):
        load, policy = Counter(), policy_for(how)
        async with Cache(server.url, timeout=2) as one, Cache(server.url, l1_max_bytes=0, timeout=2) as deaf:
            await deaf.get_or_load("k", load, policy)
            deaf.engine.store.store.on_message = lambda link, data: None
            await HOW[how](one)
            server.command("DEL", *lost)
            assert (await deaf.get_or_load("k", load, policy)).value == 2

    @pytest.mark.uncounted
    @named
    async def test_entry_loaded_before_first_invalidation_is_outdated_after_keys_are_lost(self, server: Server, lost):
        load = Counter()
        async with Cache(server.url, timeout=2) as one:
            await one.get_or_load("k", load, Policy(600, tags=("t",)))
            await one.get_or_load("other", load, Policy(600, tags=("u",)))
            await one.invalidate_tag("t")
            server.command("DEL", *lost)
        async with Cache(server.url, timeout=2) as late:
            assert (await late.get_or_load("k", load, TAGGED)).value == 3
        async with Cache(server.url, timeout=2) as last:
            # And what was loaded since counts.
            assert (await last.get_or_load("k", load, TAGGED)).value == 3

    @pytest.mark.parametrize("lost", KEYS[2:])
    async def test_idle_process_finds_lost_key_and_all_processes_reload(self, server: Server, lost, caplog):
        load = Counter()
        async with Cache(server.url, timeout=2) as one, Cache(server.url, timeout=2) as other:
            for cache in (one, other):
                await cache.get_or_load("k", load, LONG)
            cleared = [cache.engine.store.tag_versions.cleared for cache in (one, other)]
            server.command("DEL", lost)
            await until(lambda: server.command("EXISTS", *KEYS[2:]) == b":4\r\n")
            await until(
                lambda: all(
                    cache.engine.store.tag_versions.cleared > before
                    for cache, before in zip((one, other), cleared, strict=True)
                )
            )
            assert [(await cache.get_or_load("k", load, LONG)).value for cache in (one, other)] == [2, 2]
        assert caplog.text.count("has lost tag versions") == 1


@pytest.mark.parametrize("command", ["FLUSHALL", "DEL"])
@pytest.mark.parametrize("finder", ["invalidation", "announcement"])
async def test_invalidation_or_announcement_that_finds_a_loss_logs_it_once(
    server: Server, no_heartbeats, caplog, finder: str, command: str
):
    """In a busy fleet that is seldom a heartbeat. What the finder repairs no other process finds."""
    load = Counter()
    async with Cache(server.url, timeout=2) as cache:
        await cache.get_or_load("k", load, LONG)
        server.command(command, *(KEYS[2:] if command == "DEL" else ()))
        if finder == "invalidation":
            await cache.invalidate_tag("t")
        else:
            await cache.get_or_load("r", load, Policy(600, tags=("url:/new",)))
        assert caplog.text.count("Redis has lost tag versions") == 1
        assert (await cache.get_or_load("k", load, LONG)).state is State.MISSING


@pytest.mark.parametrize("key", KEYS[2:])
async def test_older_copy_of_one_key_outdates_everything(server: Server, key: str):
    """As somebody leaves behind who copies or restores keys one by one."""
    load = Counter()
    async with Cache(server.url, timeout=2) as one:
        await one.get_or_load("k", load, TAGGED)
        await one.invalidate_tag("u")
        server.command("COPY", key, "older")
        await one.invalidate_tag("t")
    server.command("RENAME", "older", key)
    async with Cache(server.url, timeout=2) as late:
        assert (await late.get_or_load("k", load, TAGGED)).value == 2


# Seconds by which a server's clock was ahead until it was put back.
AHEAD = (7200, 2 * 86_400, 300 * 86_400)


@pytest.mark.parametrize("seconds", AHEAD)
@pytest.mark.parametrize("how", ["key", "mark"])
async def test_local_copies_are_invalidated_although_server_clock_was_put_back(server: Server, how, seconds):
    """Redis has lost what it stored then, so what it does now gets lower versions."""
    load, ahead = Counter(), f"{(time.time() + seconds) * 1e6:.0f}"
    async with Cache(server.url, timeout=2) as one, Cache(server.url, timeout=2) as other:
        server.command("SET", "swr:{k}", f"{ahead}t")
        for cache in (one, other):
            assert (await cache.get_or_load("k", load, TAGGED)).value == 1
        assert one.engine.store.peek("k").version > int(ahead)
        server.command("DEL", "swr:{k}")
        await (one.mark_stale if how == "mark" else one.invalidate)("k")
        assert (await one.get_or_load("k", load, TAGGED)).value == 2
        await until(lambda: other.engine.store.peek("k") is None)
        assert (await other.get_or_load("k", load, TAGGED)).value > 1


@pytest.mark.parametrize("seconds", AHEAD)
async def test_entry_is_outdated_when_tag_versions_are_lost_after_clock_was_put_back(server: Server, seconds):
    load = Counter()
    async with Cache(server.url, timeout=2) as one:
        # What a process knows, its server has to know.
        one.engine.store.tag_versions.raise_to("u", int((time.time() + seconds) * 1e6))
        await until(lambda: one.engine.store.tag_versions.cleared > time.time() * 1e6)
        await one.get_or_load("k", load, TAGGED)
        lessons = one.engine.store.store._shared._succeeded
        await until(lambda: one.engine.store.store._shared._succeeded > lessons + 1)
        # It knows that now, and does not outdate everything again.
        assert (await one.get_or_load("k", load, TAGGED)).value == 1
    server.command("DEL", *KEYS[2:])
    async with Cache(server.url, timeout=2) as late:
        assert (await late.get_or_load("k", load, TAGGED)).value == 2


@pytest.mark.parametrize("lost", [KEYS[2:3], KEYS[3:], KEYS[2:]])
async def test_server_out_of_memory_can_still_outdate_everything(own_server: Server, lost):
    load = Counter()
    async with Cache(own_server.url, timeout=5) as one:
        await one.get_or_load("k", load, TAGGED)
        await one.invalidate_tag("t")
    own_server.command("CONFIG", "SET", "maxmemory", "1")
    own_server.command("DEL", *lost)
    async with Cache(own_server.url, timeout=5) as other:
        assert (await other.get_or_load("k", load, TAGGED)).value == 2
        assert own_server.command("EXISTS", *KEYS[2:]) == b":4\r\n"
        assert other.engine.store.is_reachable


class Job:
    """Loads a number, as `get_or_load` does that is given the same loader."""

    context = None
    new_seat = None
    is_outer = False

    def __init__(self, load: Callable[[], Awaitable[int]], policy: Policy) -> None:
        self._load, self._policy = load, policy
        self.codec, self.tags, self.loader = codec_for(load), policy.tags, ""

    async def run(self, load: Load) -> None:
        await load.store(await self._load(), self._policy)

    def may_fall_back(self, entry: object, error: BaseException, now: float) -> bool:
        return True


class Trial:
    """Caches that come and go, on a server that loses keys; each read is judged.

    Parameters:
        url: of the server.
        seed: of all that happens.
    """

    KEYS = [f"k{number}" for number in range(4)]
    TAGS = {"k0": ("a",), "k1": ("a", "b"), "k2": ("b",), "k3": ()}

    def __init__(self, url: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.namespace = f"trial{seed}"
        self.redis = Redis.from_url(url)
        self.url = url
        self.rows = dict.fromkeys(self.KEYS, 0)
        self.caches: list[Cache] = []
        self.invalidated = dict(self.rows)
        # What every process may be expected to know, once it has got its messages.
        self.newest, self.versions = 0, dict[str, int]()
        # By cache, the oldest row of each key that it may still answer.
        self.oldest: dict[Cache, dict[str, int]] = {}

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            if not self.caches:
                await self.come()
            await self.random.choice(self.actions)()
        while self.caches:
            await self.go()
        await self.redis.aclose()

    @property
    def actions(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        return (*3 * (self.read,), self.invalidate, self.lose, self.come, self.go)

    async def come(self) -> None:
        if len(self.caches) < 4:
            local = self.random.choice((0, 2**20))
            cache = await Cache(self.url, namespace=self.namespace, l1_max_bytes=local, timeout=5).__aenter__()
            self.caches.append(cache)
            # Whatever was invalidated before it came, it must not answer.
            self.oldest[cache] = dict(self.invalidated)

    async def go(self) -> None:
        if self.caches:
            await self.caches.pop(self.random.randrange(len(self.caches))).aclose()

    async def read(self) -> None:
        cache, key = self.random.choice(self.caches), self.random.choice(self.KEYS)
        assert await self.load(cache, key) >= self.oldest[cache][key], f"{key} of {self.namespace}"

    def job(self, key: str) -> "Job":
        async def load() -> int:
            return self.rows[key]

        return Job(load, Policy(600, tags=self.TAGS[key]))

    async def load(self, cache: Cache, key: str) -> int:
        return (await cache.engine.fetch(key, self.job(key))).value

    async def invalidate(self) -> None:
        cache = self.random.choice(self.caches)
        tag = self.random.choice(("a", "b", "", *self.KEYS))
        keys = [key for key in self.KEYS if tag in ("", key, *self.TAGS[key])]
        for key in keys:
            self.rows[key] += 1
        await (cache.invalidate(tag) if tag in self.KEYS else cache.invalidate_tag(tag) if tag else cache.clear())
        # Others have got the message a little later, if what they would have missed is not lost before.
        self.oldest[cache].update({key: self.rows[key] for key in keys})
        self.invalidated.update({key: self.rows[key] for key in keys})

    async def lose(self) -> None:
        names = [f"{self.namespace}:{{{key}}}{end}" for key in self.KEYS for end in ("", ":l")]
        tags = [f"{self.namespace}:{{!}}{end}" for end in "bhap"]
        lost = self.random.sample([*names, *4 * tags], self.random.randint(1, 3))
        await self.redis.delete(*lost)


class OlderTrial(Trial):
    """The server also saves, and restarts with what it has saved; one cache lives all the time and remembers."""

    def __init__(self, server: Server, seed: int) -> None:
        super().__init__(server.url, seed)
        self.server = server

    async def run(self, steps: int) -> None:
        async with Cache(self.url, namespace=self.namespace, timeout=5) as witness:
            self.witness = witness
            await super().run(steps)

    @property
    def actions(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        return (*3 * (self.read,), *2 * (self.refresh,), self.invalidate, self.save, self.restart, self.come, self.go)

    async def read(self) -> None:
        cache, key = self.random.choice(self.caches), self.random.choice(self.KEYS)
        value = await self.load(cache, key)
        assert value >= self.oldest[cache][key], f"{key} of {self.namespace}"
        # It never goes back from what it has served, as long as it holds that.
        if cache.local.slots.maxsize:
            self.oldest[cache][key] = value

    async def refresh(self) -> None:
        cache, key = self.random.choice(self.caches), self.random.choice(self.KEYS)
        self.rows[key] += 1
        await cache.engine.refresh(key, self.job(key))
        if cache.local.slots.maxsize:
            self.oldest[cache][key] = self.rows[key]

    async def save(self) -> None:
        self.server.command("SAVE")

    async def restart(self) -> None:
        # Until the one that remembers has heard of everything.
        known = self.witness.engine.store.store
        for key, version in self.versions.items():
            await until(lambda key=key, version=version: known._invalidations.version(key) >= version)
        await until(lambda: known.tag_versions.newest >= self.newest)
        await restart_before(self.server, self.witness, *self.caches)

    async def invalidate(self) -> None:
        await super().invalidate()
        for cache in self.caches:
            store = cache.engine.store.store
            self.newest = max(self.newest, store.tag_versions.newest)
            for key in self.KEYS:
                self.versions[key] = max(self.versions.get(key, 0), store._invalidations.version(key))


@pytest.mark.uncounted
async def test_random_trials_serve_no_older_value_after_redis_restarts_with_older_data(own_server: Server):
    for seed in range(12 if os.environ.get("SWR_FULL") == "1" else 4):
        await OlderTrial(own_server, seed).run(60)


@pytest.mark.uncounted
async def test_random_trials_with_lost_keys_serve_no_invalidated_value(server: Server):
    for seed in range(40):
        await Trial(server.url, seed).run(60)


@pytest.mark.uncounted
class TestEviction:
    """The server itself evicts, under ordinary writes."""

    @pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "allkeys-lfu"])
    async def test_new_process_gets_no_invalidated_entry_while_redis_evicts_keys(self, own_server: Server, policy):
        client = Redis.from_url(own_server.url)
        rows = dict.fromkeys(range(40), 0)

        async def check(cache: Cache) -> None:
            for number in rows:
                entry = await cache.get_or_load(f"row{number}", lambda number=number: rows[number], tagged(number))
                assert entry.value == rows[number]

        def tagged(number: int) -> Policy:
            return Policy(600, tags=(f"row:{number}",))

        await client.config_set("maxmemory-policy", policy)
        await client.config_set("maxmemory-samples", "1")
        used = (await client.info("memory"))["used_memory"]
        await client.config_set("maxmemory", str(used + 3_000_000))
        async with Cache(own_server.url, timeout=5) as writer:
            for turn in range(10):
                async with Cache(own_server.url, timeout=5) as reader:
                    await check(reader)
                for number in range(turn % 2, 40, 2):
                    rows[number] += 1
                    await writer.invalidate_tag(f"row:{number}")
                # Ordinary writes, until something has to go.
                async with client.pipeline(transaction=False) as pipe:
                    for number in range(300):
                        pipe.set(f"other:{turn}:{number}", b"x" * 5_000)
                    await pipe.execute()
        assert (await client.info("stats"))["evicted_keys"] > 1000
        await client.aclose()


def restart(server: Server) -> None:
    """Kill a server and start it with what it last saved."""
    server.kill()
    server.start()


async def restart_before(server: Server, *caches: Cache) -> None:
    """Restart a server, and wait until each cache has noticed that it went and that it is there again."""
    returns = [0] * len(caches)

    def note(number: int) -> Callable[[object], None]:
        def add(event: object) -> None:
            returns[number] += 1

        return add

    ends = [cache.subscribe(note(number), StoreReachable) for number, cache in enumerate(caches)]
    await asyncio.to_thread(restart, server)
    await until(lambda: all(returns) and all(cache.engine.store.is_reachable for cache in caches))
    for end in ends:
        end()


def stamp_of(cache: Cache) -> str:
    """Return the name of the stamp of the run of the server that a cache has learned from."""
    return cache.engine.store.store._shared.stamp.decode()


class TestOlderData:
    """Redis restarts from its last dump, or a replica takes over that is behind."""

    @pytest.mark.uncounted
    @pytest.mark.parametrize("how", HOW)
    @pytest.mark.parametrize("alive", ["the one that invalidated", "one that heard of it"])
    async def test_later_invalidation_still_applies_while_a_process_remembers_it(self, own_server: Server, how, alive):
        load, policy = Counter(), policy_for(how)
        async with Cache(own_server.url, l1_max_bytes=0) as one, Cache(own_server.url, l1_max_bytes=0) as other:
            await one.get_or_load("k", load, policy)
            await other.get_or_load("k", load, policy)
            own_server.command("SAVE")
            await HOW[how](one)
            known = other.engine.store.store
            if how == "key":
                await until(lambda: known._invalidations.version("k"))
            await until(lambda: known.tag_versions.newest == one.engine.store.tag_versions.newest)
            living = one if alive == "the one that invalidated" else other
            await (other if living is one else one).aclose()
            await restart_before(own_server, living)
            assert (await living.get_or_load("k", load, policy)).value == 2
        async with Cache(own_server.url) as late:
            assert (await late.get_or_load("k", load, policy)).value == 2

    async def test_more_invalidated_keys_than_a_process_remembers_outdate_everything(
        self, own_server: Server, monkeypatch
    ):
        monkeypatch.setattr("swr.stores.redis.invalidations._MOST", 3)
        load = Counter()
        async with Cache(own_server.url) as cache:
            await cache.get_or_load("k", load, LONG)
            own_server.command("SAVE")
            await cache.invalidate("k")
            for number in range(3):
                await cache.invalidate(f"other{number}")
            await restart_before(own_server, cache)
            async with Cache(own_server.url) as late:
                assert (await late.get_or_load("k", load, LONG)).value == 2

    async def test_more_invalidated_tags_than_a_process_remembers_outdate_everything(
        self, own_server: Server, monkeypatch
    ):
        """The server has room for all that the process still remembers, so it forgets none of it."""
        monkeypatch.setattr("swr.stores.redis.shared_tag_versions._MOST_TAGS", 40)
        load = Counter()
        async with Cache(own_server.url) as cache:
            await cache.get_or_load("k", load, TAGGED)
            own_server.command("SAVE")
            await cache.invalidate_tags("t", *map(str, range(40)))
            await restart_before(own_server, cache)
            async with Cache(own_server.url) as late:
                assert (await late.get_or_load("k", load, TAGGED)).value == 2

    async def test_stamp_newer_than_all_invalidations_outdates_nothing(self, own_server: Server, monkeypatch):
        """A server that has lost nothing is told nothing, however many invalidations are known or forgotten."""
        monkeypatch.setattr("swr.stores.redis.invalidations._MOST", 3)
        monkeypatch.setattr("swr.stores.redis.failover._MARGIN", 0)
        load = Counter()
        async with Cache(own_server.url) as cache:
            for number in range(10):
                await cache.invalidate(f"other{number}")
            await cache.invalidate_tag("t")
            newest = cache.engine.store.tag_versions.newest
            own_server.command("ZADD", "swr:{!}b", f"-{newest + 1}", stamp_of(cache))
            await cache.get_or_load("k", load, TAGGED)
            own_server.command("SAVE")
            await restart_before(own_server, cache)
            assert cache.engine.store.tag_versions.newest == newest
            assert (await cache.get_or_load("k", load, TAGGED)).value == 1

    @pytest.mark.parametrize("stamp", ["-9999999999999999", "-inf", "5", None])
    async def test_foreign_or_missing_stamp_makes_process_repeat_its_invalidations(self, own_server: Server, stamp):
        load = Counter()
        async with Cache(own_server.url, l1_max_bytes=0) as cache:
            await cache.get_or_load("k", load, LONG)
            name = stamp_of(cache)
            own_server.command(*(("ZADD", "swr:{!}b", stamp, name) if stamp else ("ZREM", "swr:{!}b", name)))
            own_server.command("SAVE")
            await cache.invalidate("k")
            await restart_before(own_server, cache)
            assert (await cache.get_or_load("k", load, LONG)).value == 2
            await until(lambda: stamp_of(cache) != name)
            await until(
                lambda: own_server.command("ZSCORE", "swr:{!}b", stamp_of(cache)).split(b"\r\n")[1].startswith(b"-1")
            )

    @pytest.mark.uncounted
    @pytest.mark.parametrize("starts", [1, 3])
    async def test_process_that_connects_first_does_not_hide_that_data_is_older(
        self, own_server: Server, monkeypatch, starts
    ):
        monkeypatch.setattr("swr.stores.redis.failover._MARGIN", 0)
        load = Counter()
        async with Proxy(own_server.port) as proxy, Cache(proxy.url) as one:
            await one.get_or_load("k", load, LONG)
            # Nobody was there for a minute, or else the next process would not stamp the data again.
            own_server.command("ZADD", "swr:{!}b", f"-{(time.time() - 60) * 1e6:.0f}", stamp_of(one))
            own_server.command("SAVE")
            await one.invalidate("k")
            proxy.tell(refuse=True)
            proxy.cut()
            for _ in range(starts):
                await asyncio.to_thread(restart, own_server)
                async with Cache(own_server.url) as first:
                    # It knows of no invalidation, and stamps the data as new.
                    await first.get_or_load("other", load, LONG)
                    own_server.command("SAVE")
            proxy.heal()
            proxy.tell()
            await until(lambda: one.engine.store.is_reachable)
        loads = load.runs
        async with Cache(own_server.url) as late:
            assert (await late.get_or_load("k", load, LONG)).value == loads + 1

    @pytest.mark.parametrize("how", ["another database is swapped in", "a backup is restored key by key"])
    async def test_older_data_in_a_running_server_outdates_everything_once(self, own_server: Server, how):
        """No connection breaks, and nothing but the stamp says that the data are older: a key has no tag version."""
        load = Counter()
        redis, aside = Redis(port=own_server.port), Redis(port=own_server.port, db=1)
        async with redis, aside, Cache(own_server.url) as one:
            await one.get_or_load("k", load, LONG)
            names = await redis.keys("swr:*")
            backup = {name: await redis.dump(name) for name in names}
            # As if the server had run on for ten seconds since.
            await redis.zincrby("swr:{!}b", -1e7, stamp_of(one))
            shared = one.engine.store.store._shared
            stamped = shared._stamped[2]
            await until(lambda: shared._stamped[2] > stamped)
            await one.invalidate("k")
            cleared = one.engine.store.tag_versions.cleared
            is_swapped = how == "another database is swapped in"
            async with (aside if is_swapped else redis).pipeline(transaction=True) as restored:
                restored.delete(*names)
                for name, data in backup.items():
                    restored.restore(name, 0, data)
                await restored.execute()
            if is_swapped:
                await redis.swapdb(0, 1)
            await until(lambda: one.engine.store.tag_versions.cleared > cleared)
            async with Cache(own_server.url) as late:
                assert (await late.get_or_load("k", load, LONG)).value == 2
            # Once, and not again and again.
            cleared, lessons = one.engine.store.tag_versions.cleared, shared._succeeded
            await until(lambda: shared._succeeded > lessons + 1)
            assert one.engine.store.tag_versions.cleared == cleared

    async def test_stamps_of_only_the_last_eight_server_runs_are_kept(self, own_server: Server):
        for number in range(12):
            own_server.command("ZADD", "swr:{!}b", f"-{number + 1}", f"@run{number}")
        async with Cache(own_server.url) as cache:
            await cache.invalidate_tag("t")
            for number in range(12):
                own_server.command("ZADD", "swr:{!}b", f"-{number + 1}", f"@run{number}")
            await until(lambda: own_server.command("ZCOUNT", "swr:{!}b", "-inf", "(0") == b":8\r\n")
            # And nothing else is gone.
            assert own_server.command("ZSCORE", "swr:{!}b", "@run11") == b"$3\r\n-12\r\n"
            assert own_server.command("ZCOUNT", "swr:{!}b", "1", "+inf") == b":2\r\n"

    @pytest.mark.parametrize("l1_max_bytes", [0, 2**20])
    async def test_process_that_served_a_newer_value_does_not_serve_the_older_one(
        self, own_server: Server, l1_max_bytes
    ):
        load, options = Counter(), {"l1_max_bytes": l1_max_bytes}
        async with Cache(own_server.url, **options) as one, Cache(own_server.url, **options) as other:
            for cache in (one, other):
                assert (await cache.get_or_load("k", load, LONG)).value == 1
            own_server.command("SAVE")
            await refresh(one, "k", load)
            assert load.runs == 2
            await until(lambda: l1_max_bytes == 0 or other.engine.store.peek("k") is None)
            assert (await other.get_or_load("k", load, LONG)).value == 2
            await restart_before(own_server, one, other)
            for cache in (one, other, one, other):
                assert (await cache.get_or_load("k", load, LONG)).value == 3
        async with Cache(own_server.url) as late:
            assert (await late.get_or_load("k", load, LONG)).value == 3
        assert load.runs == 3

    @pytest.mark.parametrize("l1_max_bytes", [0, 2**20])
    async def test_process_whose_newer_copy_was_evicted_does_not_serve_the_older_one(
        self, own_server: Server, l1_max_bytes
    ):
        load = Counter()
        async with Cache(own_server.url, l1_max_bytes=l1_max_bytes) as cache:
            await cache.get_or_load("k", load, LONG)
            own_server.command("SAVE")
            await refresh(cache, "k", load)
            cache.local.drop("k")
            await restart_before(own_server, cache)
            # Asked for twice at once, one of them finds what the other has loaded.
            found = await asyncio.gather(*(cache.get_or_load("k", load, LONG) for _ in range(2)))
            assert [outcome.value for outcome in found] == [3, 3]

    async def test_served_versions_of_only_the_last_keys_are_remembered(self, monkeypatch):
        monkeypatch.setattr("swr.stores.served._MOST", 2)
        served = Served(LocalCache(0, 0), lambda entry: True)
        for key in ("a", "b", "a", "c"):
            served.note(key, "type", 1)
        assert [served.version(key, "type") for key in "abc"] == [1, None, 1]

    @pytest.mark.parametrize("l1_max_bytes", [0, 2**20])
    async def test_key_loaded_without_redis_is_reloaded_when_another_process_stored_it_too(
        self, own_server: Server, l1_max_bytes
    ):
        """The server did not get it, and another process has stored something meanwhile: nobody knows which is newer."""
        load = Counter()
        async with (
            Proxy(own_server.port) as proxy,
            Cache(proxy.url, l1_max_bytes=l1_max_bytes) as one,
            Cache(own_server.url) as other,
        ):
            for cache in (one, other):
                assert (await cache.get_or_load("k", load, LONG)).value == 1
            await refresh(other, "k", load)
            proxy.refuse = True
            proxy.cut()
            await until(lambda: not one.engine.store.is_reachable)
            await refresh(one, "k", load)
            if l1_max_bytes:
                assert (await one.get_or_load("k", load, LONG)).value == 3
            proxy.refuse = False
            await until(lambda: one.engine.store.is_reachable)
            assert (await one.get_or_load("k", load, LONG)).value == 4
            await until(lambda: other.engine.store.peek("k") is None)
            assert (await other.get_or_load("k", load, LONG)).value == 4
            assert load.runs == 4

    @pytest.mark.parametrize("l1_max_bytes", [0, 2**20])
    async def test_load_whose_lease_was_taken_during_outage_is_reloaded_afterwards(
        self, own_server: Server, l1_max_bytes
    ):
        """Its load had a lease, which another process took away during the outage: versions are those of leases."""
        load, gate = Counter(), asyncio.Event()

        async def slow() -> int:
            await gate.wait()
            return await load()

        async with (
            Proxy(own_server.port) as proxy,
            Cache(proxy.url, l1_max_bytes=l1_max_bytes) as one,
            Cache(own_server.url) as other,
        ):
            reader = asyncio.create_task(one.get_or_load("k", slow, LONG))
            await until(lambda: own_server.command("EXISTS", "swr:{k}:l") == b":1\r\n")
            proxy.refuse = True
            proxy.cut()
            await until(lambda: not one.engine.store.is_reachable)
            assert await other.set("k", await load(), LONG, returns=int)
            gate.set()
            assert (await reader).value == 2
            proxy.refuse = False
            await until(lambda: one.engine.store.is_reachable)
            assert (await one.get_or_load("k", load, LONG)).value == 3

    async def test_load_begun_before_outage_does_not_replace_a_value_loaded_during_it(self, own_server: Server):
        """The load began before, ends afterwards, and still has its lease."""
        load, gate = Counter(), asyncio.Event()

        async def slow() -> int:
            value = await load()
            await gate.wait()
            return value

        async with Proxy(own_server.port) as proxy, Cache(proxy.url, lease_for=600) as one:
            reader = asyncio.create_task(one.get_or_load("k", slow, LONG))
            await until(lambda: load.runs == 1)
            proxy.refuse = True
            proxy.cut()
            await until(lambda: not one.engine.store.is_reachable)
            await refresh(one, "k", load)
            assert (await one.get_or_load("k", load, LONG)).value == 2
            proxy.refuse = False
            await until(lambda: one.engine.store.is_reachable)
            gate.set()
            assert (await reader).value == 1
            assert (await one.get_or_load("k", load, LONG)).value == 3

    async def test_value_loaded_during_outage_is_kept_if_redis_has_not_changed(self, own_server: Server):
        load = Counter()
        async with Proxy(own_server.port) as proxy, Cache(proxy.url) as one, Cache(own_server.url) as other:
            for cache in (one, other):
                assert (await cache.get_or_load("k", load, LONG)).value == 1
            for value in (2, 3):
                proxy.refuse = True
                proxy.cut()
                await until(lambda: not one.engine.store.is_reachable)
                for _ in range(2):
                    await refresh(one, "k", load)
                proxy.refuse = False
                await until(lambda: one.engine.store.is_reachable)
                for _ in range(2):
                    assert (await one.get_or_load("k", load, LONG)).value == 2 * value - 1
            assert (await other.get_or_load("k", load, LONG)).value == 1
            # What another process stores from now on is newer.
            await refresh(other, "k", load)
            await until(lambda: one.engine.store.peek("k") is None)
            assert (await one.get_or_load("k", load, LONG)).value == load.runs == 6

    async def test_value_another_process_stores_after_outage_replaces_one_loaded_during_it(self, own_server: Server):
        load = Counter()
        async with Proxy(own_server.port) as proxy, Cache(proxy.url) as one, Cache(own_server.url) as other:
            for cache in (one, other):
                assert (await cache.get_or_load("k", load, LONG)).value == 1
            proxy.refuse = True
            proxy.cut()
            await until(lambda: not one.engine.store.is_reachable)
            await refresh(one, "k", load)
            proxy.refuse = False
            await until(lambda: one.engine.store.is_reachable)
            await refresh(other, "k", load)
            await until(lambda: one.engine.store.peek("k") is None)
            assert (await one.get_or_load("k", load, LONG)).value == 3


async def refresh(cache: Cache, key: str, load: Counter) -> None:
    """Load a key that `get_or_load` asks for, whatever is stored."""
    await cache.engine.refresh(key, Job(load, LONG))
