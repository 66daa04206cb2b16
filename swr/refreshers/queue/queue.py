"""A refresher's queue in Redis, in one or several shards. Each group has at most one task, mark and dead letter."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar, cast

import msgspec
from redis.crc import key_slot

from swr.engine.engine import Engine
from swr.errors import CodecError, ConfigurationError
from swr.refreshers.queue import scripts
from swr.refreshers.queue.lease_scripts import ABDICATE, ENQUEUED, LEAD
from swr.refreshers.queue.sealing import Sealing
from swr.refreshers.queue.spreading import hash_tags
from swr.refreshers.queue.status import QueueStatus
from swr.refreshers.queue.tasks import DeadLetter, Delivery, Led, Settlement, Superseded
from swr.refreshers.rounds.groups import in_turns, travelling
from swr.stores.base import NEWEST
from swr.stores.redis.names import ForeignName
from swr.stores.redis.scripts import digits
from swr.stores.redis.store import RedisStore
from swr.stores.tiered import TieredStore

log = logging.getLogger("swr")
T = TypeVar("T")

_MICROSECONDS: Final = 1_000_000
# The most digits of a number that the queue writes.
_DIGITS: Final = 16
# The most tasks in one command.
_AT_ONCE: Final = 500
# Delay, in seconds, of a finished task that is handed back because too few replicas have its entry.
_SECURED_IN: Final = 1.0
_REGISTRY: Final = "{!}q"
# A value of the registry, a hash of all queues of the namespace: the backend and the number of shards.
_ENTRY: Final = re.compile(rb"(streams|list):([1-9]\d{0,4})")
_NO_REDIS: Final = 'strategy="queue" keeps its queue in Redis: give the cache a URL, Cache("redis://…")'
BACKENDS: Final = ("streams", "list")


class Queue:
    """The queue of one refresher.

    Parameters:
        store: the store in Redis that holds the queue.
        name: the name of the refresher.
        backend: "streams" or "list".
        shards: the number of shards. On a cluster, each shard has its own hash slot.
        deliveries: how often a task is delivered before it becomes a dead letter.
        replicas: how many replicas must have a mark, a round or a loaded entry before it counts.
    """

    def __init__(
        self,
        store: RedisStore,
        name: str,
        backend: str = "streams",
        shards: int = 1,
        deliveries: int = 5,
        replicas: int = 0,
    ) -> None:
        self.name = name
        self.shards = range(shards)
        self.shard_names = [f"{name}:{shard}" for shard in self.shards]
        self.store = store
        self._backend = backend
        self._deliveries = deliveries
        self._replicas = replicas
        self._names = names = store.names
        self._sealing = Sealing(store.packing, name)
        tags = hash_tags(names.storage_name(name), shards, lambda tag: names.named(f"{{{tag}}}"))
        parts = ("t", "s" if backend == "streams" else "l", "z", "m", "d", "c", "h", "i")
        self._keys = [tuple(names.named(f"{{{tag}}}{part}") for part in parts) for tag in tags]
        self._lease, self._rounds = (names.named(f"{{{tags[0]}}}{part}") for part in ("L", "r"))

    async def _run(self, shard: int, body: str, *args: bytes | str | int, replicas: int = 0) -> Any:
        script, told = scripts.of(self._backend, body), self.store.around_consumers(self.shard_names[shard])
        return await self.store.commands.replicated(replicas, script, self._keys[shard], *args, *told)

    def _shard(self, key: str) -> int:
        return key_slot(self.store.names.entry(key)) % len(self.shards)

    async def register(self) -> None:
        """Add the queue to the registry, in which `swr queue` finds it."""
        registry = self.store.names.named(_REGISTRY)
        entry = f"{self._backend}:{len(self.shards)}"
        await self.store.commands.ask(registry, "HSET", registry, self._names.hidden(self.name), entry)

    # -- tasks ------------------------------------------------------------------------------------------------

    async def enqueue(self, epoch: str, tasks: Iterable[tuple[str, int, tuple[Any, ...]]]) -> tuple[int, int]:
        """Enqueue tasks (key, newer_than, arguments); return how many are new, and how many groups had a task already.

        Raises:
            Superseded: there is a newer leader.
            ConfigurationError: JSON cannot represent a task's arguments exactly.
            StoreUnavailable: Redis does not answer.
        """
        parts: list[list[bytes | str]] = [[] for _ in self.shards]
        for key, newer_than, args in tasks:
            parts[self._shard(key)] += (
                self._names.hidden(key),
                f"{newer_than:016d}",
                self._sealing.sealed(key, travelling(key, args)),
            )

        async def enqueue(shard: int) -> AsyncIterator[list[Any]]:
            # Each shard gets at least one command, even without tasks, so that it rejects older leaders from now on.
            for first in range(0, max(1, len(parts[shard])), 3 * _AT_ONCE):
                yield await self._enqueue(shard, scripts.ENQUEUE, epoch, *parts[shard][first : first + 3 * _AT_ONCE])

        return await self._in_each(enqueue)

    async def _in_each(self, enqueue: Callable[[int], AsyncIterator[list[Any]]]) -> tuple[int, int]:
        """Enqueue as `each` does; return the same counts as `enqueue`, of all shards."""

        async def counted(shard: int) -> tuple[int, int]:
            answers = [answer async for answer in enqueue(shard)]
            return sum(answer[0] for answer in answers), sum(answer[1] for answer in answers)

        new, merged = zip(*await self.each(counted), strict=True)
        return sum(new), sum(merged)

    async def each(self, do: Callable[[int], Awaitable[T]]) -> list[T]:
        """Do something in all shards, even if some fail; return the results. Raises Superseded, StoreUnavailable."""
        done = await asyncio.gather(*map(do, self.shards), return_exceptions=True)
        failed = [error for error in done if isinstance(error, BaseException)]
        if failed:
            raise next((error for error in failed if isinstance(error, Superseded)), failed[0])
        return cast("list[T]", done)

    async def _enqueue(self, shard: int, body: str, epoch: str, *args: bytes | str | int) -> list[Any]:
        # Without tasks, the script only notes the leader's epoch. Replicas need not confirm that.
        replicas = self._replicas if args else 0
        answer: list[Any] = await self._run(shard, body, epoch, self._deliveries, *args, replicas=replicas)
        if answer[0] == -1:
            raise Superseded
        return answer

    async def mark(self, groups: dict[str, tuple[Any, ...]]) -> None:
        """Put groups (arguments by key) into the dirty set. Any load that begins from now on is new enough for them.

        Raises:
            ConfigurationError: JSON cannot represent a group's arguments exactly.
            StoreUnavailable: the dirty set may lack some of the groups.
        """
        travels = {key: travelling(key, args) async for key, args in in_turns(groups.items())}
        for some in (list(travels)[first : first + _AT_ONCE] for first in range(0, len(travels), _AT_ONCE)):
            parts: list[list[bytes | str]] = [[] for _ in self.shards]
            for key, newer_than in (await self.store.newest(some)).items():
                sealed = self._sealing.sealed(key, travels[key])
                parts[self._shard(key)] += (self._names.hidden(key), f"{newer_than:016d}", sealed)
            for shard, part in enumerate(parts):
                if part:
                    await self._run(shard, scripts.MARK, *part, replicas=self._replicas)

    async def drain(self, epoch: str, began: int = NEWEST) -> tuple[int, int]:
        """Enqueue the dirty groups, and the dead letters last delivered before this round; return as `enqueue` does.

        Parameters:
            began: when this round began, in microseconds by the server's clock.
        """

        async def drain(shard: int) -> AsyncIterator[list[Any]]:
            for script in (scripts.DRAIN, scripts.DRAIN_DEAD):
                cursor = b"0"
                while True:
                    answer = await self._enqueue(shard, script, epoch, cursor, _AT_ONCE, digits(began))
                    yield answer
                    cursor = answer[2]
                    if cursor == b"0":
                        break

        return await self._in_each(drain)

    async def take(self, shard: int, consumer: str, most: int, spare: int = 0) -> tuple[bool, list[Delivery]]:
        """Take tasks; return whether the consumer is idle, and the tasks.

        The queue wakes only idle consumers for new tasks; others look again. It throws away tasks that it cannot read.

        Parameters:
            most: the most tasks to take; the queue gives at most 500 at once.
            spare: how many tasks the consumer can take and still have free slots for `most` others.
        """
        args = consumer, min(most, _AT_ONCE), self._deliveries, spare
        is_idle, taken = await self._run(shard, scripts.TAKE, *args)
        deliveries = []
        for receipt, key, newer_than, number, tries, args in taken:
            try:
                name = self._names.shown(key)
                task = name, int(newer_than), int(number), tries, tuple(self._sealing.arguments(name, args))
            except (ValueError, msgspec.DecodeError, CodecError) as error:
                await self._throw_away(shard, consumer, receipt, key, number, error)
            else:
                deliveries.append(Delivery(shard, receipt, *task))
        return bool(is_idle), deliveries

    async def _throw_away(
        self, shard: int, consumer: str, receipt: bytes, key: bytes, number: bytes, error: Exception
    ) -> None:
        log.warning(
            "the queue of the refresher %r held a task for %r that cannot be read (%s); swr has thrown it away",
            self.name,
            key,
            error,
        )
        await self._run(shard, scripts.SETTLE, consumer, self._deliveries, "done", receipt, key, number, 0, "")

    async def settle(self, consumer: str, settlements: list[Settlement]) -> int:
        """Store the results of deliveries; return how many of the tasks another consumer had got meanwhile.

        If too few replicas have the entry of a finished task, the task is handed back: a failover could lose the entry.
        """
        if self._replicas:
            settlements = await asyncio.gather(*map(self._secured, settlements))

        async def settle(shard: int) -> int:
            args: list[bytes | str | int] = []
            for delivery, what, delay, why, _ in settlements:
                if delivery.shard == shard:
                    args += (what, delivery.receipt, self._names.hidden(delivery.key), f"{delivery.number:016d}")
                    args += (int(delay * _MICROSECONDS), self._sealing.sealed_text(delivery.key, why))
            return await self._run(shard, scripts.SETTLE, consumer, self._deliveries, *args) if args else 0

        return sum(await self.each(settle))

    async def _secured(self, settlement: Settlement) -> Settlement:
        (_, _, key, newer_than, *_), stored = settlement.delivery, settlement.stored
        if not stored or await self.store.has_replicas(key, stored, newer_than, self._replicas):
            return settlement
        return Settlement(settlement.delivery, "back", _SECURED_IN)

    async def tend(self, shard: int, consumer: str, silent_for: float, deliveries: Iterable[Delivery]) -> int:
        """Note that a consumer lives and has `deliveries`; requeue tasks of others silent for `silent_for` seconds."""
        receipts = [delivery.receipt for delivery in deliveries if delivery.shard == shard]
        back: int = await self._run(shard, scripts.TEND, consumer, int(silent_for * _MICROSECONDS), *receipts)
        return back

    async def pass_on(self, shard: int, consumer: str, most: int) -> None:
        """Wake another consumer for the shard's tasks, because this one has no free slots now."""
        await self._run(shard, scripts.PASS_ON, consumer, min(most, _AT_ONCE))

    async def leave(self, consumer: str, most: int = 1) -> None:
        """Remove the consumer, which has no more tasks; `most` as in `take`."""
        await self.each(lambda shard: self._run(shard, scripts.LEAVE, consumer, min(most, _AT_ONCE)))

    # -- the leader -------------------------------------------------------------------------------------------

    async def lead(self, token: str, ttl: float, part: str = "") -> Led:
        """Take or renew the leader's lease for `ttl` seconds; if `part` is not "", store it as the enqueued part."""
        keys = (self._lease, self._rounds, self._keys[0][5])
        epoch, rest, now, part_now = await self.store.commands.script(LEAD, keys, token, int(ttl * 1000), part)
        if epoch:
            return Led(epoch.decode(), 0.0, _number(rest), int(now), part_now.decode("utf-8", "replace"))
        return Led("", max(0, rest) / 1000, None, int(now))

    async def enqueued(self, token: str, begins_at: int) -> bool:
        """Note that the round of `begins_at` (microseconds) is completely enqueued; False: another worker leads."""
        return bool(await self.store.commands.script(ENQUEUED, (self._lease, self._rounds), token, begins_at))

    async def heal(self) -> None:
        """Requeue the tasks that no consumer would find, because somebody deleted a part of the queue in Redis."""

        async def heal(shard: int) -> None:
            flags, cursor = await self._run(shard, scripts.HEAL, b"", b"0")
            while cursor != b"0":
                flags, cursor = await self._run(shard, scripts.HEAL, flags, cursor)

        await self.each(heal)

    async def abdicate(self, token: str) -> None:
        """Give the leader's lease back."""
        await self.store.commands.script(ABDICATE, (self._lease,), token)

    # -- status and dead letters ------------------------------------------------------------------------------

    async def status(self) -> QueueStatus:
        """Return the numbers of the queue, of all its shards."""
        held = [0] * 5
        consumers: dict[str, float] = {}
        counts: dict[str, int] = {}
        epoch = 0
        for shard in self.shards:
            *numbers, seen, counted, now = await self._run(shard, scripts.STATUS)
            held = [sum(pair) for pair in zip(held, numbers, strict=True)]
            for name, at in zip(seen[::2], seen[1::2], strict=True):
                silent, text = max(0.0, (int(now) - float(at)) / _MICROSECONDS), name.decode("utf-8", "replace")
                consumers[text] = min(silent, consumers.get(text, silent))
            for name, number in zip(counted[::2], counted[1::2], strict=True):
                text, value = name.decode("utf-8", "replace"), _number(number) or 0
                if text == "epoch":
                    epoch = max(epoch, value)
                else:
                    counts[text] = counts.get(text, 0) + value
        left = await self.store.commands.ask(self._lease, "PTTL", self._lease)
        last = await self.store.commands.ask(self._rounds, "HGET", self._rounds, "round")
        queued, running, waiting, dirty, dead = held
        return QueueStatus(
            name=self.name,
            backend=self._backend,
            queued=queued,
            running=running,
            waiting=waiting,
            dirty=dirty,
            dead=dead,
            consumers=consumers,
            counts=counts,
            epoch=epoch,
            leads_for=max(0, left) / 1000,
            round=None if (begun := _number(last or b"")) is None else begun / _MICROSECONDS,
        )

    async def dead(self) -> list[DeadLetter]:
        """Return the dead letters, by key."""
        letters = []
        for keys in self._keys:
            found = await self.store.commands.ask(keys[4], "HGETALL", keys[4])
            for key, text in _pairs(found):
                # This skips letters that cannot be read. The next round throws them away.
                with contextlib.suppress(ValueError, KeyError, TypeError, msgspec.DecodeError, CodecError):
                    name, letter = self._names.shown(key), msgspec.json.decode(text)
                    record, why = letter["record"], self._sealing.text(name, str(letter["why"]))
                    args = self._sealing.arguments(name, record[37:].encode())
                    at = int(letter["at"]) / _MICROSECONDS
                    letters.append(DeadLetter(name, args, why, int(record[33:37]), at))
        return sorted(letters, key=lambda letter: letter.key)

    async def retry(self, keys: Iterable[str] = ()) -> int:
        """Turn dead letters back into tasks, those of `keys` or all; return the number of new tasks."""
        return await self._of_letters(keys, self._retry)

    async def _retry(self, shard: int, keys: list[bytes]) -> int:
        back: int = await self._run(shard, scripts.RETRY, *keys)
        return back

    async def purge(self, keys: Iterable[str] = ()) -> int:
        """Throw dead letters away, those of `keys` or all; return their number."""
        return await self._of_letters(keys, self._purge)

    async def _purge(self, shard: int, keys: list[bytes]) -> int:
        dead = self._keys[shard][4]
        gone: int = await self.store.commands.ask(dead, "HDEL", dead, *keys)
        return gone

    async def _of_letters(self, keys: Iterable[str], do: Any) -> int:
        wanted = list(keys) or [letter.key for letter in await self.dead()]
        done = 0
        for shard in self.shards:
            own = [self._names.hidden(key) for key in wanted if self._shard(key) == shard]
            for first in range(0, len(own), _AT_ONCE):
                done += await do(shard, own[first : first + _AT_ONCE])
        return done


def store_of(engine: Engine, otherwise: str = _NO_REDIS) -> RedisStore:
    """Return the Redis store of a cache.

    Parameters:
        otherwise: the message of the error.

    Raises:
        ConfigurationError: the cache has no store in Redis.
    """
    if isinstance(engine.store, TieredStore) and isinstance(engine.store.store, RedisStore):
        return engine.store.store
    raise ConfigurationError(otherwise)


async def known(store: RedisStore) -> dict[str, Queue]:
    """Return the queues of a namespace, by name.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    registry = store.names.named(_REGISTRY)
    found = await store.commands.ask(registry, "HGETALL", registry)
    queues = {}
    for name, text in _pairs(found):
        # If a name cannot be decoded, the queue belongs to processes with another codec.
        with contextlib.suppress(ForeignName):
            shown, entry = store.names.shown(name), _ENTRY.fullmatch(text)
            # Another program may have written to the registry.
            if entry is not None:
                queues[shown] = Queue(store, shown, entry[1].decode(), int(entry[2]))
    return queues


def _pairs(reply: Any) -> Iterable[tuple[bytes, bytes]]:
    """Return the pairs of a hash: RESP3 replies with a dictionary, RESP2 with a flat list."""
    return reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)


def _number(text: bytes) -> int | None:
    """Return the number in `text`, or None if the queue cannot have written `text`."""
    return int(text) if text.isdigit() and len(text) <= _DIGITS else None
