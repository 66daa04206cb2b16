"""A refresher's queue on Redis: tasks, marks and dead letters, each group at most once, in one or several shards."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

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

_MICROSECONDS: Final = 1_000_000
# Of a number that the queue has written, at most.
_DIGITS: Final = 16
# Tasks in one command, at most.
_AT_ONCE: Final = 500
# Seconds that replicas may lag.
_SECURED_IN: Final = 1.0
_REGISTRY: Final = "{!}q"
# One of its values: the structure in Redis, and the number of shards.
_ENTRY: Final = re.compile(rb"(streams|list):([1-9]\d{0,4})")
_NO_REDIS: Final = 'strategy="queue" keeps its queue in Redis: give the cache a URL, Cache("redis://…")'
BACKENDS: Final = ("streams", "list")


class Queue:
    """The queue of one refresher.

    Parameters:
        store: where it is.
        name: of the refresher.
        backend: "streams" or "list".
        shards: how many, each in a slot of its own.
        deliveries: how often a task is delivered before it is a dead letter.
        replicas: how many replicas must have a mark, a round, or what was loaded, before it counts.
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
        """Make the queue known to `swr queue`."""
        registry = self.store.names.named(_REGISTRY)
        entry = f"{self._backend}:{len(self.shards)}"
        await self.store.commands.ask(registry, "HSET", registry, self._names.hidden(self.name), entry)

    # -- tasks ------------------------------------------------------------------------------------------------

    async def enqueue(self, epoch: str, tasks: Iterable[tuple[str, int, tuple[Any, ...]]]) -> tuple[int, int]:
        """Enqueue tasks (key, newer_than, arguments); return how many are new, and how many were there already.

        Raises:
            Superseded: there is a newer leader.
            ConfigurationError: arguments that cannot travel.
            StoreUnavailable: no answer.
        """
        parts: list[list[bytes | str]] = [[] for _ in self.shards]
        for key, newer_than, args in tasks:
            parts[self._shard(key)] += (
                self._names.hidden(key),
                f"{newer_than:016d}",
                self._sealing.sealed(key, travelling(key, args)),
            )

        async def enqueue(shard: int) -> AsyncIterator[list[Any]]:
            # At least once for every shard: the older leaders are shut out of it.
            for first in range(0, max(1, len(parts[shard])), 3 * _AT_ONCE):
                yield await self._enqueue(shard, scripts.ENQUEUE, epoch, *parts[shard][first : first + 3 * _AT_ONCE])

        return await self._in_each(enqueue)

    async def _in_each(self, enqueue: Callable[[int], AsyncIterator[list[Any]]]) -> tuple[int, int]:
        """Enqueue in all shards at once, even if some fail; return how many tasks are new, and how many were there.

        Raises:
            Superseded: there is a newer leader.
            StoreUnavailable: one has failed.
        """

        async def counted(shard: int) -> tuple[int, int]:
            answers = [answer async for answer in enqueue(shard)]
            return sum(answer[0] for answer in answers), sum(answer[1] for answer in answers)

        counts = await asyncio.gather(*map(counted, self.shards), return_exceptions=True)
        failed = [error for error in counts if isinstance(error, BaseException)]
        if failed:
            raise next((error for error in failed if isinstance(error, Superseded)), failed[0])
        new, merged = zip(*counts, strict=True)
        return sum(new), sum(merged)

    async def _enqueue(self, shard: int, body: str, epoch: str, *args: bytes | str | int) -> list[Any]:
        # Without tasks it says who leads, and no more.
        replicas = self._replicas if args else 0
        answer: list[Any] = await self._run(shard, body, epoch, self._deliveries, *args, replicas=replicas)
        if answer[0] == -1:
            raise Superseded
        return answer

    async def mark(self, groups: dict[str, tuple[Any, ...]]) -> None:
        """Put groups (arguments by key) into the dirty set: what is loaded from now on is new enough.

        Raises:
            ConfigurationError: arguments that cannot travel.
            StoreUnavailable: it is not known that all are there.
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
        """Enqueue what is dirty, and what was given up before this round; see `enqueue`.

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

        One that is idle is woken when there are tasks. One that is not looks again. A task that cannot be read is
        thrown away.

        Parameters:
            most: how many tasks it takes; no more than 500 at once.
            spare: how many tasks it can take and still have a place for `most` others.
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
        """Say what came of deliveries; return how many had been given to others meanwhile.

        Hand a finished task back if too few replicas have its entry: a failover could lose it.
        """
        late = 0
        if self._replicas:
            settlements = await asyncio.gather(*map(self._secured, settlements))
        for shard in self.shards:
            args: list[bytes | str | int] = []
            for delivery, what, delay, why, _ in settlements:
                if delivery.shard == shard:
                    args += (what, delivery.receipt, self._names.hidden(delivery.key), f"{delivery.number:016d}")
                    args += (int(delay * _MICROSECONDS), self._sealing.sealed_text(delivery.key, why))
            if args:
                late += await self._run(shard, scripts.SETTLE, consumer, self._deliveries, *args)
        return late

    async def _secured(self, settlement: Settlement) -> Settlement:
        (_, _, key, newer_than, *_), stored = settlement.delivery, settlement.stored
        if not stored or await self.store.has_replicas(key, stored, newer_than, self._replicas):
            return settlement
        return Settlement(settlement.delivery, "back", _SECURED_IN)

    async def tend(self, shard: int, consumer: str, silent_for: float, deliveries: Iterable[Delivery]) -> int:
        """Say that the consumer lives, and put back the tasks of others that have been silent for some seconds."""
        receipts = [delivery.receipt for delivery in deliveries if delivery.shard == shard]
        back: int = await self._run(shard, scripts.TEND, consumer, int(silent_for * _MICROSECONDS), *receipts)
        return back

    async def pass_on(self, shard: int, consumer: str, most: int) -> None:
        """Have another consumer woken in the place of this one, which can take no task now."""
        await self._run(shard, scripts.PASS_ON, consumer, min(most, _AT_ONCE))

    async def leave(self, consumer: str, most: int = 1) -> None:
        """Remove the consumer, which holds no task any more; see `take`."""
        for shard in self.shards:
            await self._run(shard, scripts.LEAVE, consumer, min(most, _AT_ONCE))

    # -- the leader -------------------------------------------------------------------------------------------

    async def lead(self, token: str, ttl: float, part: str = "") -> Led:
        """Take or renew the leader's lease, and say what part of a round is enqueued."""
        keys = (self._lease, self._rounds, self._keys[0][5])
        epoch, rest, now, part_now = await self.store.commands.script(LEAD, keys, token, int(ttl * 1000), part)
        if epoch:
            return Led(epoch.decode(), 0.0, _number(rest), int(now), part_now.decode("utf-8", "replace"))
        return Led("", max(0, rest) / 1000, None, int(now))

    async def enqueued(self, token: str, begins_at: int) -> bool:
        """Say that the round that began then was enqueued whole; False: somebody else leads."""
        return bool(await self.store.commands.script(ENQUEUED, (self._lease, self._rounds), token, begins_at))

    async def heal(self) -> None:
        """Queue again the tasks that no consumer would come to, because a part of the queue was deleted."""
        for shard in self.shards:
            flags, cursor = b"", b"0"
            while True:
                flags, cursor = await self._run(shard, scripts.HEAL, flags, cursor)
                if cursor == b"0":
                    break

    async def abdicate(self, token: str) -> None:
        """Give the leader's lease back."""
        await self.store.commands.script(ABDICATE, (self._lease,), token)

    # -- for those who look after it --------------------------------------------------------------------------

    async def status(self) -> QueueStatus:
        """Return what the queue holds."""
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
                # The next round throws away what cannot be read.
                with contextlib.suppress(ValueError, KeyError, TypeError, msgspec.DecodeError, CodecError):
                    name, letter = self._names.shown(key), msgspec.json.decode(text)
                    record, why = letter["record"], self._sealing.text(name, str(letter["why"]))
                    args = self._sealing.arguments(name, record[37:].encode())
                    at = int(letter["at"]) / _MICROSECONDS
                    letters.append(DeadLetter(name, args, why, int(record[33:37]), at))
        return sorted(letters, key=lambda letter: letter.key)

    async def retry(self, keys: Iterable[str] = ()) -> int:
        """Make dead letters tasks again, these or all; return how many."""
        return await self._of_letters(keys, self._retry)

    async def _retry(self, shard: int, keys: list[bytes]) -> int:
        back: int = await self._run(shard, scripts.RETRY, *keys)
        return back

    async def purge(self, keys: Iterable[str] = ()) -> int:
        """Throw dead letters away, these or all; return how many."""
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
    """Return the store in Redis behind a cache.

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
        StoreUnavailable: no answer.
    """
    registry = store.names.named(_REGISTRY)
    found = await store.commands.ask(registry, "HGETALL", registry)
    queues = {}
    for name, text in _pairs(found):
        # A queue with another name belongs to processes with another codec.
        with contextlib.suppress(ForeignName):
            shown, entry = store.names.shown(name), _ENTRY.fullmatch(text)
            # Another may have written into it.
            if entry is not None:
                queues[shown] = Queue(store, shown, entry[1].decode(), int(entry[2]))
    return queues


def _pairs(reply: Any) -> Iterable[tuple[bytes, bytes]]:
    """A hash, as either version of the servers' protocol has it."""
    return reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)


def _number(text: bytes) -> int | None:
    """Return a number that the queue has written, or None: there is none, or another has written something else."""
    return int(text) if text.isdigit() and len(text) <= _DIGITS else None
