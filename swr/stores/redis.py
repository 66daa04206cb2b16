"""The store in Redis or Valkey: frames, leases by script, messages over pub/sub, and the health of the link."""

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable
from typing import Any, Final, cast

import anyio
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from swr import codec as frames
from swr.codec import Codec
from swr.entry import Entry
from swr.errors import CodecError, ConfigurationError, LeaseLost, StoreUnavailable
from swr.keys import storage_name
from swr.stores import scripts
from swr.stores.barriers import ALL, FLOOR, Barriers
from swr.stores.base import Held, Kind, Lease, Listener, Message, Start
from swr.stores.wire import Closed, Wire, settle

log = logging.getLogger("swr")

_TOMBSTONE_FOR: Final = 60_000
# An entry that is too old when it is committed still lies there this long for those who wait for it.
_AT_LEAST: Final = 5.0
# A subscription that dies silently is noticed within 2 s.
_BEAT: Final = 0.45
_SILENT_BEATS: Final = 3
_MOST_TAGS: Final = 100_000
_INSTANCE: Final = 16
_RESTORED_AT_ONCE: Final = 1000


class RedisStore:
    """Entries, leases and messages on one standalone server.

    Parameters:
        connect: makes the client (`redis.asyncio.Redis`); called at every opening.
        namespace: the beginning of every key.
        timeout: seconds after which an unanswered command counts as failed.
        owned: whether the client is closed with the store.
        clock: wall clock, seconds.
    """

    def __init__(
        self,
        connect: Callable[[], Redis],
        namespace: str = "swr",
        timeout: float = 0.2,
        owned: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.barriers = Barriers(_MOST_TAGS)
        self.instance = ""
        self._connect = connect
        self._prefix = namespace.encode()
        self._timeout = timeout
        self._owned = owned
        self._clock = clock
        self._channel = b""
        self._barrier_keys = (b"%b:{!}b" % self._prefix, b"%b:{!}h" % self._prefix)
        self._wire: Wire | None = None
        self._changed = asyncio.Event()
        self._tried = asyncio.Event()
        self._lost: Exception | None = None
        self._lost_at = 0.0
        self._readings: dict[str, _Reading] = {}
        # Up to here every barrier is known; one's own may be known far beyond.
        self._synced = 0
        self._complained: set[str] = set()

    # -- the link ---------------------------------------------------------------------------------------------

    async def open(self, start: Start, listener: Listener) -> None:
        """Connect, waiting no longer than the time-out; where that fails, go on trying behind the scenes.

        Raises:
            ConfigurationError: the event loop is not asyncio's.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError("redis-py needs asyncio: on trio use Cache() without Redis") from None
        self._listener = listener
        self.instance = secrets.token_hex(_INSTANCE // 2)
        self._client = self._connect()
        # Channels belong to the server, not to a database: the number keeps databases apart.
        database = self._client.connection_pool.connection_kwargs.get("db") or 0
        self._channel = b"%b:%d:messages" % (self._prefix, int(database))
        self._changed, self._tried = asyncio.Event(), asyncio.Event()
        self._lost = None
        self._readings.clear()
        self._learning = asyncio.Lock()
        start(self._keep_link)
        try:
            async with asyncio.timeout(self._timeout):
                await self._tried.wait()
        except TimeoutError:
            self._down(StoreUnavailable(f"no connection within {self._timeout:g} s"))

    async def aclose(self, listener: Listener) -> None:
        """Close the client, if it is the store's own."""
        self._wire = None
        if self._owned:
            await self._client.aclose()

    async def _keep_link(self) -> None:
        delay = 0.0
        while True:
            began, self._was_up = time.monotonic(), False
            try:
                await self._session()
            except Exception as error:
                # Whatever it was: the link is what everything hangs on, and is made again.
                self._down(error)
            self._tried.set()
            # The first try after a loss comes at once; then with growing, random distance, half a second at most.
            delay = 0.0 if time.monotonic() - began > 0.1 and self._was_up else min(0.5, delay * 2 or 0.01)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    async def _session(self) -> None:
        """One connection for commands and one for messages, while both are well."""
        pool = self._client.connection_pool
        channel = self._client.pubsub()
        connection = None
        try:
            async with asyncio.timeout(5 * self._timeout):
                await channel.subscribe(self._channel)
                await channel.get_message(timeout=None)
                connection = await pool.get_connection()  # type: ignore[no-untyped-call]
            wire = Wire(connection, self._timeout)
            async with asyncio.TaskGroup() as group:
                group.create_task(wire.run())
                group.create_task(self._listen(channel))
                group.create_task(self._beat(channel, wire))
        except* (RedisError, OSError, TimeoutError, StoreUnavailable) as errors:
            raise StoreUnavailable(_first(errors)) from None
        finally:
            self._wire = None
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                if connection is not None:
                    await connection.disconnect(nowait=True)
                    await pool.release(connection)
                await channel.aclose()  # type: ignore[no-untyped-call]

    async def _listen(self, channel: PubSub) -> None:
        """Hear messages."""
        while True:
            message = await channel.get_message(timeout=None)
            self._unanswered = 0
            if message is not None and message["type"] == "message":
                self._hear(message["data"])
            elif message is not None and message["type"] == "subscribe":
                raise StoreUnavailable("the subscription was broken and made anew; messages may be lost")

    async def _beat(self, channel: PubSub, wire: Wire) -> None:
        """Ask for a sign of life at every beat, and learn of barriers that were missed."""
        self._unanswered = 0
        await self._learn(wire, await self._head(wire))
        self._up(wire)
        # Counted, not timed: a pause of this process itself is no silence of the server's.
        while self._unanswered < _SILENT_BEATS:
            await asyncio.sleep(_BEAT)
            self._unanswered += 1
            await channel.ping()
            await self._learn(wire, await self._head(wire))
        raise StoreUnavailable("no sign of life from the subscription")

    def _hear(self, data: bytes) -> None:
        kind, version = data[:1], data[1:17]
        instance, name = data[17 : 17 + _INSTANCE], data[17 + _INSTANCE :]
        mine = instance == self.instance.encode()
        try:
            message = Message(Kind(kind.decode()), name.decode("utf-8", "surrogatepass"), int(version))
        except ValueError:
            self._complain("message", f"a message on {self._channel!r} that is not swr's was ignored: {data[:80]!r}")
            return
        if message.kind is Kind.BARRIER:
            self._raise_barrier(message.name, message.version)
            if self._wire is not None:
                # Messages come in the order of their numbers, and none is missing while the link is whole.
                self._synced = max(self._synced, message.version)
            return
        if mine:
            return
        # Who asks from now on must not be given what a GET sent before this message will answer.
        self._readings.pop(message.name, None)
        self._listener(message)

    def _message(self, kind: Kind, name: str, version: int = 0) -> bytes:
        return b"%b%016d%b%b" % (
            kind.value.encode(),
            version,
            self.instance.encode(),
            name.encode("utf-8", "surrogatepass"),
        )

    def _up(self, wire: Wire) -> None:
        self._wire, self._was_up = wire, True
        if self._lost is not None:
            log.warning("Redis is back (it was: %s)", self._lost)
            self._lost = None
        self._tried.set()
        self._changed.set()
        self._listener(Message(Kind.UP))

    def _down(self, error: Exception) -> None:
        self._wire = None
        if self._lost is None and not isinstance(error, Closed):
            self._lost, self._lost_at = error, time.monotonic()
            log.warning("Redis is away (%s); answering from memory and from the loaders until it is back", error)
            self._changed.clear()
            self._listener(Message(Kind.DOWN))

    async def _link(self) -> Wire:
        """Return the wire; where it was lost only now, wait a moment, for most often it is back at once."""
        if self._wire is None:
            grace = self._lost_at + self._timeout / 4 - time.monotonic()
            if grace > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace):
                        await self._changed.wait()
        if self._wire is None:
            raise StoreUnavailable(f"Redis is away ({self._lost})")
        return self._wire

    async def _ask(self, *command: bytes | str | int) -> Any:
        """Ask once, and once more if the connection broke and is back at once: every command may be repeated."""
        wire = await self._link()
        try:
            try:
                return await wire.ask(*command)
            except StoreUnavailable as error:
                self._down(error)
            return await (await self._link()).ask(*command)
        except RedisError as error:
            self._complain(f"{command[0]!r} {type(error).__name__}", f"Redis refused a command: {error}")
            raise StoreUnavailable(str(error)) from error

    async def _script(self, script: str, keys: tuple[bytes, ...], *args: bytes | str | int) -> Any:
        # EVAL, not EVALSHA: the server caches by content either way, and nothing has to be loaded anew after a
        # failover.
        return await self._ask("EVAL", script, len(keys), *keys, *args)

    def _complain(self, about: str, text: str) -> None:
        """Log once a kind of trouble."""
        if about not in self._complained and len(self._complained) < 1000:
            self._complained.add(about)
            log.warning("%s", text)

    def _entry_key(self, key: str) -> bytes:
        return b"%b:{%b}" % (self._prefix, storage_name(key).encode())

    def _keys(self, key: str) -> tuple[bytes, bytes]:
        entry = self._entry_key(key)
        return entry, entry + b":l"

    # -- barriers ---------------------------------------------------------------------------------------------

    def _raise_barrier(self, name: str, number: int) -> None:
        if self.barriers.raise_to(name, number):
            self._listener(Message(Kind.BARRIER, name, number))

    async def _learn(self, wire: Wire, head: bytes | None) -> None:
        """Fetch the barriers that this process has missed, or give back those that the server has lost."""
        if self._synced == _number(head) >= self.barriers.head:
            return
        async with self._learning:
            # Asked again, for whoever was before has learned and restored already.
            await self._learn_alone(wire, _number(await self._head(wire)))

    async def _head(self, wire: Wire) -> bytes | None:
        # MGET, for which a foreign value of another type is no error.
        (head,) = await wire.ask("MGET", self._barrier_keys[1])
        return cast("bytes | None", head)

    async def _learn_alone(self, wire: Wire, newest: int) -> None:
        if newest < self.barriers.head:
            lost = self.barriers.items()
            for first in range(0, len(lost), _RESTORED_AT_ONCE):
                pairs = [
                    part for name, number in lost[first : first + _RESTORED_AT_ONCE] for part in (number, _member(name))
                ]
                await wire.ask("EVAL", scripts.RESTORE, 2, *self._barrier_keys, self.barriers.head, *pairs)
        if newest <= self._synced:
            return
        found = await wire.ask("ZRANGEBYSCORE", self._barrier_keys[0], f"({self._synced}", "+inf", "WITHSCORES")
        pairs_found = found if found and isinstance(found[0], list) else zip(found[::2], found[1::2], strict=True)
        for member, score in sorted(pairs_found, key=lambda pair: float(pair[1])):
            self._raise_barrier(_tag(member), int(float(score)))
        # The newest may have been trimmed away; what it said is then in the floor.
        self.barriers.head = max(self.barriers.head, newest)
        self._synced = max(self._synced, newest)

    async def invalidate_tag(self, tag: str) -> None:
        """Raise the barrier of `tag` (or of ALL) and tell everyone."""
        before, after = self._around_version(Kind.BARRIER, tag)
        number = await self._script(
            scripts.BARRIER, self._barrier_keys, _member(tag), _MOST_TAGS, self._channel, before, after
        )
        self._raise_barrier(tag, int(number))

    def _around_version(self, kind: Kind, name: str) -> tuple[bytes, bytes]:
        whole = self._message(kind, name)
        return whole[:1], whole[17:]

    # -- entries ----------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Nothing: this store holds no entry in the process."""

    def keep(self, key: str, entry: Entry[Any]) -> None:
        """Nothing: this store holds no entry in the process."""

    def peek(self, key: str) -> Entry[Any] | None:
        """Nothing: this store holds no entry in the process."""
        return None

    async def read(self, key: str, codec: Codec) -> Entry[Any] | None:
        """Return the entry of `key`; readers of one key at one time share one trip and one decoding."""
        reading = self._readings.get(key)
        if reading is None:
            wire = self._wire or await self._link()
            reading = self._readings[key] = _Reading(self._readings, key)
            # Before it is sent, for a broken wire answers at once.
            reply = reading.reply()
            wire.send(("MGET", self._entry_key(key), self._barrier_keys[1]), reading.settle)
        else:
            reply = reading.reply()
        try:
            frame, head = await reply
        except StoreUnavailable as error:
            self._down(error)
            frame, head = await self._ask("MGET", self._entry_key(key), self._barrier_keys[1])
            reading = _Reading({}, key)
        if _number(head) != self._synced:
            await self._learn(await self._link(), head)
        if reading.codec is not codec:
            reading.codec, reading.entry = codec, self._decode(key, frame, codec)
        entry = reading.entry
        return entry if entry is not None and self.barriers.admits(entry.head, entry.tags) else None

    def _decode(self, key: str, frame: bytes | None, codec: Codec) -> Entry[Any] | None:
        if not frame or not frames.is_entry(frame):
            if frame and not frames.is_tombstone(frame):
                self._complain(f"frame {key}", f"the entry of {key!r} in Redis is not swr's and was passed over")
            return None
        try:
            return frames.decode(key, frame, codec)
        except CodecError as error:
            self._complain(f"frame {key}", f"the entry of {key!r} in Redis was passed over: {error}")
            return None

    async def invalidate(self, key: str) -> None:
        """Put a tombstone in the place of the entry, delete its lease and tell everyone."""
        before, after = self._around_version(Kind.INVALIDATED, key)
        version = await self._script(scripts.INVALIDATE, self._keys(key), _TOMBSTONE_FOR, self._channel, before, after)
        self._readings.pop(key, None)
        self._listener(Message(Kind.INVALIDATED, key, int(version)))

    # -- leases -----------------------------------------------------------------------------------------------

    async def acquire(
        self, key: str, token: str, ttl: float, known: int, codec: Codec, *, force: bool = False
    ) -> Lease | Held | Entry[Any]:
        """Take the lease, in one trip with a second look at the entry and the newest barrier."""
        while True:
            # The barrier is read before the load begins: one raised later outdates what is loaded.
            head = asyncio.ensure_future(self._ask("MGET", self._barrier_keys[1]))
            try:
                answer = await self._script(
                    scripts.ACQUIRE, self._keys(key), token, _milliseconds(ttl), known, "1" if force else "0"
                )
                (newest,) = await head
            finally:
                head.cancel()
            if _number(newest) != self._synced:
                await self._learn(await self._link(), newest)
            what = answer[0]
            if what == b"lease":
                return Lease(key, token, int(answer[1]), _number(newest), int(answer[2]))
            if what == b"held":
                return Held(max(0, int(answer[1])) / 1000, int(answer[2]), int(answer[3]))
            frame: bytes = answer[1]
            entry = self._decode(key, frame, codec)
            if entry is not None and self.barriers.admits(entry.head, entry.tags):
                return entry
            known = int(frame[: frames.VERSION_DIGITS])

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Prolong the lease."""
        _, key = self._keys(lease.key)
        if not await self._script(scripts.RENEW, (key,), lease.token, _digits(lease.version), _milliseconds(ttl)):
            raise LeaseLost(f"the lease on {lease.key!r} had expired or was deleted")

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Store the entry, give the lease back and tell everyone; or nothing of it, if the lease is gone."""
        frame = frames.encode(lease.key, entry, codec)
        message = self._message(Kind.COMMITTED, lease.key, entry.version)
        ttl = max(entry.keep_until - self._clock(), _AT_LEAST)
        if not await self._script(
            scripts.COMMIT,
            self._keys(lease.key),
            lease.token,
            _digits(lease.version),
            frame,
            _milliseconds(ttl),
            self._channel,
            message,
        ):
            raise LeaseLost(f"the lease on {lease.key!r} had expired or was deleted")
        self._readings.pop(lease.key, None)

    async def release(self, lease: Lease, pause: float = 0.0) -> None:
        """Give the lease back; a lease whose version is 0 is one whose grant was never heard of."""
        await self._script(
            scripts.RELEASE,
            self._keys(lease.key)[1:],
            lease.token,
            _digits(lease.version) if lease.version else "",
            _milliseconds(pause) if pause else 0,
            lease.failures + 1,
            self._channel,
            self._message(Kind.RELEASED, lease.key),
        )


class _Reading:
    """One GET under way, everyone who waits for it, and what was made of its answer.

    Each waits on a future of his own, so that one reader's cancellation does not reach the others.
    """

    __slots__ = ("_key", "_readings", "_waiting", "codec", "entry")

    def __init__(self, readings: "dict[str, _Reading]", key: str) -> None:
        self._readings = readings
        self._key = key
        self._waiting: list[asyncio.Future[Any]] = []
        self.codec: Codec | None = None
        self.entry: Entry[Any] | None = None

    def reply(self) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    def settle(self, reply: Any) -> None:
        if self._readings.get(self._key) is self:
            del self._readings[self._key]
        for future in self._waiting:
            settle(future, reply)


def _first(errors: BaseExceptionGroup[Any]) -> str:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__


def _member(name: str) -> bytes:
    """A barrier's name as it stands in the sorted set, where a tag must not be taken for ALL or FLOOR."""
    return (name if name in (ALL, FLOOR) else f"t{name}").encode("utf-8", "surrogatepass")


def _tag(member: bytes) -> str:
    try:
        name = member.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        # Not ours; a tag that nothing carries.
        name = repr(member)
    return name if name in (ALL, FLOOR) else name[1:]


def _number(digits: bytes | None) -> int:
    """Return a barrier's number; what is none counts as lost."""
    return int(digits) if digits and digits.isdigit() else 0


def _digits(version: int) -> str:
    return f"{version:016d}"


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
