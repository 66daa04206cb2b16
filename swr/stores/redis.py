"""The store in Redis or Valkey: frames, leases by script, messages over pub/sub, and what makes up for their loss."""

import asyncio
import functools
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from cachetools import LRUCache, TTLCache
from redis.exceptions import AskError, MovedError, RedisError, ResponseError

from swr import codec as frames
from swr.codec import Codec
from swr.entry import Entry
from swr.errors import CodecError, ConfigurationError, LeaseLost, StoreUnavailable
from swr.keys import storage_name
from swr.stores import scripts
from swr.stores.barriers import ALL
from swr.stores.base import Held, Kind, Lease, Listener, Message, Start
from swr.stores.link import Link
from swr.stores.replicas import Floors, Replica, info_fields
from swr.stores.servers import Servers
from swr.stores.shared import SharedBarriers, member
from swr.stores.together import (
    Claim,
    Commit,
    Reading,
    Together,
    digits,
    give,
    messages_in,
    number,
    settle_each,
    share,
)
from swr.stores.wire import Wire

log = logging.getLogger("swr")

_TOMBSTONE_FOR: Final = 60_000
# An entry that is too old when it is committed still lies there this long for those who wait for it.
_AT_LEAST: Final = 5.0
_MOST_TAGS: Final = 100_000
_INSTANCE: Final = 16
# A failover may lose what a master has acknowledged; so many seconds' invalidations are told to its successor.
_TOLD_AGAIN: Final = 60.0
_MOST_TOLD_AGAIN: Final = 10_000
# What INFO calls the line of writes that a server carries on, another one after each promotion.
_HISTORY: Final = b"master_replid"
# Keys of one MGET, at most: the server looks up the next ones while these are taken apart here.
_MOST_READ_AT_ONCE: Final = 16
# Leases that are taken by one EVAL, at most.
_MOST_AT_ONCE: Final = 500
# And of frames in one EVAL: while more is on its way the server would seem to hang.
_MOST_BYTES: Final = 65_536


class RedisStore:
    """Entries, leases and messages on the servers of one database, or of a cluster.

    Parameters:
        servers: which server has which key.
        namespace: the beginning of every key.
        timeout: seconds that opening waits for the servers.
        clock: wall clock, seconds.
    """

    def __init__(
        self,
        servers: Servers,
        namespace: str = "swr",
        timeout: float = 0.2,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.instance = ""
        self.channel = b""
        self._servers = servers
        self._prefix = namespace.encode()
        self._before_name = self._prefix + b":{"
        self._timeout = timeout
        self._clock = clock
        self._shared = SharedBarriers(self._prefix, _MOST_TAGS, servers, self.ask, self._complain)
        self.barriers = self._shared.known
        # Whether every key can be reached; None: not known since the last opening. And why not, since it was logged.
        self._whole: bool | None = None
        self._reason: Exception | None = None
        self._readings: dict[str, Reading] = {}
        self._asked: list[Reading] = []
        self._complained: set[str] = set()
        # What this process has invalidated of late: versions by key; the last time that this was too much to keep.
        self._invalidated: TTLCache[str, int] = TTLCache(_MOST_TOLD_AGAIN, _TOLD_AGAIN)
        self._forgotten_at = -_TOLD_AGAIN
        # A cluster's masters pass messages on, so that each comes several times.
        self._heard: LRUCache[bytes, None] = LRUCache(1000)
        # What a replica's answers are held against, and whether the newest barrier is asked for apart from values.
        self._floors = Floors()
        self._apart = servers.replicas or not servers.one

    # -- the links --------------------------------------------------------------------------------------------

    async def open(self, start: Start, listener: Listener) -> None:
        """Connect, waiting no longer than the time-out; where that fails, go on trying behind the scenes.

        Raises:
            ConfigurationError: the event loop is not asyncio's.
        """
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError("redis-py needs asyncio: on trio use Cache() without Redis") from None
        self._listener = listener
        self.instance = secrets.token_hex(_INSTANCE // 2)
        self._whole = None
        self._readings.clear()
        self._asked = []
        self._claims = Together(self._send_claims, _MOST_AT_ONCE)
        self._commits = Together(self._send_commits, _MOST_BYTES)
        self._shared.open(listener)
        self._servers.open(start, self)
        # Channels belong to the server, not to a database: the number keeps databases apart.
        self.channel = b"%b:%d:messages" % (self._prefix, self._servers.database)
        try:
            async with asyncio.timeout(self._timeout):
                await self._servers.tried()
        except TimeoutError:
            self._servers.give_up(StoreUnavailable(f"no connection within {self._timeout:g} s"))

    async def aclose(self, listener: Listener) -> None:
        """Nothing: the links end with the tasks that keep them."""

    async def greet(self, link: Link, wire: Wire) -> None:
        """Learn what was missed, and tell a server that has not greeted before what it may have missed itself."""
        info = await self._info(wire)
        if info.get(b"role") == b"slave":
            raise StoreUnavailable("the server is a replica: give the URL of its master, or of the sentinels")
        await self._learn_at(link, wire)
        run_id = info.get(b"run_id", b"")
        if run_id != link.run_id or _was_promoted(info, link) or not run_id:
            await self._tell_again(link, wire)
        link.run_id, link.history = run_id, info.get(_HISTORY)

    async def pulse(self, link: Link, wire: Wire) -> None:
        """Ask for the newest barrier, and whether the server has been another's replica since it greeted."""
        await self._learn_at(link, wire)
        info = await self._info(wire, b"replication")
        # It may have taken over what the other had, and be a master again, all between two beats.
        if _was_promoted(info, link):
            await self._tell_again(link, wire)
        link.history = info.get(_HISTORY)

    async def _learn_at(self, link: Link, wire: Wire) -> None:
        """Learn of barriers, if they are made at this server."""
        if not self._is_at(self._shared.head_key, link):
            return
        try:
            await self._shared.learn(wire.ask)
        except AskError as error:
            if self._servers.one:
                raise StoreUnavailable(_moved(error)) from error
            # Their slot is with another master, or on its way there.
            self._servers.doubt()

    def link_changed(self) -> None:
        """Tell the listener when not every key can be reached any more, and when every one can again."""
        reason = self._servers.lost
        if reason is not None:
            self._servers.doubt()
        if self._servers.whole and self._whole is not True:
            if self._reason is not None:
                log.warning("Redis is back (it was: %s): %s", self._reason, self._where())
            self._whole, self._reason = True, None
            # Messages may have been missed.
            self._floors.forget()
            self._listener(Message(Kind.UP))
        elif reason is not None and self._whole is not False:
            # Once, however often the cache is closed and opened meanwhile.
            if self._reason is None:
                log.warning(
                    "Redis is away (%s); answering from memory and from the loaders until it is back: %s",
                    reason,
                    self._where(),
                )
            self._whole, self._reason = False, reason
            self._listener(Message(Kind.DOWN, str(reason)))

    def _where(self) -> str:
        return f"{self._servers.name}, database {self._servers.database}, namespace {self._prefix.decode()!r}"

    def hear(self, link: Link, data: bytes) -> None:
        """Take a message, on one of the links, or several that were sent as one."""
        messages = messages_in(data)
        if messages is None:
            self._complain("message", f"a message on {self.channel!r} that is not swr's was ignored: {data[:80]!r}")
            return
        for message in messages:
            self._hear(link, message)

    def _hear(self, link: Link, data: bytes) -> None:
        kind, version = data[:1], data[1:17]
        instance, name = data[17 : 17 + _INSTANCE], data[17 + _INSTANCE :]
        mine = instance == self.instance.encode()
        try:
            message = Message(Kind(kind.decode()), name.decode("utf-8", "surrogatepass"), int(version), not mine)
        except ValueError:
            self._complain("message", f"a message on {self.channel!r} that is not swr's was ignored: {data[:80]!r}")
            return
        if message.kind is Kind.BARRIER:
            again = not self._servers.one and self._again(data)
            if self.barriers.raise_to(message.name, message.version):
                self._listener(message)
            elif not (mine or again):
                self._listener(message._replace(kind=Kind.REPEATED))
            if link.wire is not None and self._is_at(self._shared.head_key, link):
                # From where they are made they come in the order of their numbers, and none is missing.
                self._shared.synced = max(self._shared.synced, message.version)
            return
        if message.kind is Kind.QUEUED:
            self._listener(message)
            return
        self._heed(message.name, message.version)
        if mine or (not self._servers.one and message.version and self._again(data)):
            return
        # Who asks from now on must not be given what a GET sent before this message will answer.
        self._readings.pop(message.name, None)
        self._listener(message)

    def _heed(self, key: str, version: int) -> None:
        """Take nothing older from a replica from now on."""
        if self._servers.replicas and version:
            self._floors.raise_to(key, version)

    def _again(self, data: bytes) -> bool:
        """Whether a message was heard already: a cluster's masters pass them on to each other's subscribers."""
        known = data in self._heard
        self._heard[data] = None
        return known

    async def replicated(self, replicas: int, script: str, keys: tuple[bytes, ...], *args: bytes | str | int) -> Any:
        """Run a script, and wait until so many replicas have what it has written.

        Raises:
            StoreUnavailable: they have not, or nobody knows.
        """
        before = self._servers.link_to(keys[0]).wire
        answer = await self.script(script, keys, *args)
        if replicas:
            wire = self._servers.link_to(keys[0]).wire
            # On the connection of the write itself: of any other it would say nothing.
            if wire is None or wire is not before:
                raise StoreUnavailable("the connection broke before replicas had said that they have it")
            had = await wire.ask("WAIT", replicas, _milliseconds(self._timeout / 2))
            if had < replicas:
                raise StoreUnavailable(f"{had} of {replicas} replicas have it after {self._timeout / 2:g} s")
        return answer

    async def newest(self, keys: list[str]) -> dict[str, int]:
        """Return a version for each key: what is stored or being loaded is not newer, what is loaded from now on is.

        Raises:
            StoreUnavailable: no answer.
        """
        most = _MOST_AT_ONCE if self._servers.one else 1
        some = [keys[first : first + most] for first in range(0, len(keys), most)]
        named = [tuple(name for key in part for name in self._keys(key)) for part in some]
        answers = await asyncio.gather(*(self.script(scripts.NEWEST, names) for names in named))
        return {
            key: int(version)
            for part, answer in zip(some, answers, strict=True)
            for key, version in zip(part, answer, strict=True)
        }

    async def has_replicas(self, key: str, since: int, replicas: int) -> bool:
        """Whether so many replicas have an entry of `key` that is newer than version `since`."""
        try:
            return bool(await self.replicated(replicas, scripts.SECURE, self._keys(key)[:1], since))
        except StoreUnavailable:
            return False

    def named(self, name: str) -> bytes:
        """Return `name` as a key of this namespace."""
        return b"%b:%b" % (self._prefix, name.encode())

    def told(self, kind: Kind, name: str) -> tuple[bytes, bytes]:
        """Return the channel, and the message on it that says that something has happened."""
        return self.channel, self._message(kind, name)

    def _message(self, kind: Kind, name: str, version: int = 0) -> bytes:
        return b"%b%016d%b%b" % (
            kind.value.encode(),
            version,
            self.instance.encode(),
            name.encode("utf-8", "surrogatepass"),
        )

    async def ask(self, name: bytes, *command: bytes | str | int) -> Any:
        """Ask the server that has the key `name`.

        Raises:
            StoreUnavailable: no answer, or an error.
        """
        try:
            return await self._servers.ask(name, *command)
        except MovedError as error:
            self._complain("moved", _moved(error))
            raise StoreUnavailable(str(error)) from error
        except RedisError as error:
            self._complain(f"{command[0]!r} {type(error).__name__}", f"Redis refused a command: {error}")
            raise StoreUnavailable(str(error)) from error

    async def script(self, script: str, keys: tuple[bytes, ...], *args: bytes | str | int) -> Any:
        """Run a script where its keys lie.

        Raises:
            StoreUnavailable: it did not run, or nobody knows.
        """
        # EVAL, not EVALSHA: the server caches by content either way, and nothing has to be loaded anew after a
        # failover.
        return await self.ask(keys[0], "EVAL", script, len(keys), *keys, *args)

    def _complain(self, about: str, text: str) -> None:
        """Log once a kind of trouble."""
        if about not in self._complained and len(self._complained) < 1000:
            self._complained.add(about)
            log.warning("%s", text)

    def _entry_key(self, key: str) -> bytes:
        return self._before_name + storage_name(key).encode() + b"}"

    def _keys(self, key: str) -> tuple[bytes, bytes]:
        entry = self._entry_key(key)
        return entry, entry + b":l"

    # -- failover ---------------------------------------------------------------------------------------------

    async def _info(self, wire: Wire, *section: bytes) -> dict[bytes, bytes]:
        """Return what a server says of itself; nothing where that may not be asked."""
        try:
            info: bytes = await wire.ask("INFO", *section)
        except ResponseError:
            return {}
        return info_fields(info)

    async def _tell_again(self, link: Link, wire: Wire) -> None:
        """Tell a server that took another's place of the last invalidations, which it may have missed."""
        seconds, microseconds = await wire.ask("TIME")
        now = int(seconds) * 1_000_000 + int(microseconds)
        owner = self._is_at(self._shared.head_key, link)
        if time.monotonic() - self._forgotten_at < _TOLD_AGAIN:
            # Too many to be known one by one.
            if owner:
                self._shared.raise_to(ALL, max(now, self.barriers.head + 1))
            else:
                await self.invalidate_tag(ALL)
        if owner:
            since = now - int(_TOLD_AGAIN * 1e6)
            lost = [(name, number) for name, number in self.barriers.items() if number > since]
            await self._shared.restore(wire.ask, lost)
        told = []
        for key, version in list(self._invalidated.items()):
            keys = self._keys(key)
            if self._servers.one or self._is_at(keys[0], link):
                message = self._message(Kind.INVALIDATED, key, version)
                told.append(
                    wire.ask("EVAL", scripts.REMIND, 2, *keys, digits(version), _TOMBSTONE_FOR, self.channel, message)
                )
        await asyncio.gather(*told)

    def _is_at(self, name: bytes, link: Link) -> bool:
        try:
            return self._servers.link_to(name) is link
        except StoreUnavailable:
            return False

    async def invalidate_tag(self, tag: str) -> None:
        """Raise the barrier of `tag` (or of ALL) and tell everyone."""
        before, after = self._around_version(Kind.BARRIER, tag)
        raised = await self.script(
            scripts.BARRIER, self._shared.keys, member(tag), _MOST_TAGS, self.channel, before, after
        )
        self._shared.raise_to(tag, int(raised))

    def _around_version(self, kind: Kind, name: str) -> tuple[bytes, bytes]:
        whole = self._message(kind, name)
        return whole[:1], whole[17:]

    # -- entries ----------------------------------------------------------------------------------------------

    async def settled(self) -> None:
        """At once: what this store has not told it has refused to tell."""

    async def now(self) -> int:
        """Return the clock of the server that has the barriers."""
        seconds, microseconds = await self.ask(self._shared.head_key, "TIME")
        return int(seconds) * 1_000_000 + int(microseconds) - 1

    @property
    def sent(self) -> int:
        """Return how many commands have been sent."""
        return self._servers.sent

    def forget(self) -> None:
        """Nothing: this store holds no entry in the process."""

    def keep(self, key: str, entry: Entry[Any]) -> None:
        """Nothing: this store holds no entry in the process."""

    def peek(self, key: str) -> Entry[Any] | None:
        """Nothing: this store holds no entry in the process."""
        return None

    async def read(self, key: str, codec: Codec) -> Entry[Any] | None:
        """Return the entry of `key`.

        Readers of one key at one time share one trip and one decoding; readers of different keys in one turn of the
        event loop share one write, or one for each server.
        """
        answered: asyncio.Future[None] = self._loop.create_future()
        reading = self._readings.get(key)
        if reading is not None:
            reading.waiting.append(answered)
        else:
            reading = self._readings[key] = Reading(self._readings, key, answered)
            if not self._asked:
                self._loop.call_soon(self._ask_all)
            self._asked.append(reading)
        beside = self._shared.newest_soon() if self._apart else None
        try:
            await answered
            newest = reading.newest if beside is None else await beside
        except (StoreUnavailable, RedisError):
            # Once more, and to where the server redirects.
            name, reading = self._entry_key(key), Reading({}, key, answered)
            (reading.frame,) = await self.ask(name, "MGET", name)
            newest = await self._shared.newest_soon()
        if newest is None or newest != self._shared.synced:
            await self._shared.learn_from(newest)
        if reading.codec is not codec:
            reading.codec, reading.entry = codec, self._decode(key, reading.frame, codec)
        entry = reading.entry
        return entry if entry is not None and self.barriers.admits(entry.head, entry.tags) else None

    def is_away(self, key: str) -> bool:
        """Whether the key's server is known to be away, and not only since a moment ago."""
        if self._whole is not False:
            return False
        try:
            # One server has every key, whatever its name there.
            return self._servers.link_to(b"" if self._servers.one else self._entry_key(key)).is_away
        except StoreUnavailable:
            return True

    def _ask_all(self) -> None:
        """Send what was asked in this turn of the event loop."""
        asked, self._asked = self._asked, []
        if not self._apart:
            for first in range(0, len(asked), _MOST_READ_AT_ONCE):
                some = asked[first : first + _MOST_READ_AT_ONCE]
                names = [self._entry_key(reading.key) for reading in some]
                self._send(names[0], ("MGET", *names, self._shared.head_key), functools.partial(share, some))
        else:
            ask = self._ask_replica if self._servers.replicas else self._ask_master
            for reading in asked:
                ask(reading)

    def _ask_replica(self, reading: Reading) -> None:
        """Ask a replica that is in order, or else the master."""
        name = self._entry_key(reading.key)
        try:
            replica = self._servers.link_to(name).replica
        except StoreUnavailable:
            replica = None
        if replica is None or replica.wire is None or not self._trusts(replica):
            self._ask_master(reading)
        else:
            replica.wire.send(("MGET", name), functools.partial(self._take, replica, reading))

    def _ask_master(self, reading: Reading) -> None:
        name = self._entry_key(reading.key)
        self._send(name, ("MGET", name), functools.partial(give, reading))

    def _trusts(self, replica: Replica) -> bool:
        """Whether all that a replica may lack is known by key."""
        return self._whole is True and replica.since >= self._floors.since

    def _take(self, replica: Replica, reading: Reading, reply: Any) -> None:
        """Take a replica's answer, or ask its master: it has failed, or lags behind what was heard of."""
        if isinstance(reply, ResponseError):
            replica.doubt()
        if isinstance(reply, Exception) or not self._trusts(replica) or not self._floors.admit(reading.key, reply[0]):
            self._ask_master(reading)
        else:
            give(reading, reply)

    def _send(self, name: bytes, command: tuple[bytes | str | int, ...], on_reply: Callable[[Any], None]) -> None:
        try:
            wire = self._servers.link_to(name).wire
        except StoreUnavailable:
            wire = None
        if wire is None:
            on_reply(StoreUnavailable("the link is broken"))
        else:
            wire.send(command, on_reply)

    async def look(self, key: str) -> tuple[bytes, bytes, int]:
        """Return what lies there for `key`, whoever put it there: the entry, the lease, and its time to live, in ms.

        Raises:
            StoreUnavailable: no answer.
        """
        entry, lease = self._keys(key)
        await self._shared.learn_from(await self._shared.newest_soon())
        (frame,), (held,) = await self.ask(entry, "MGET", entry), await self.ask(lease, "MGET", lease)
        return frame or b"", held or b"", await self.ask(lease, "PTTL", lease)

    def _decode(self, key: str, frame: bytes | None, codec: Codec) -> Entry[Any] | None:
        if not frame:
            return None
        try:
            return frames.decode(key, frame, codec)
        except CodecError as error:
            if not frames.is_tombstone(frame):
                why = f"was passed over: {error}" if frames.is_entry(frame) else "is not swr's and was passed over"
                self._complain(f"frame {key}", f"the entry of {key!r} in Redis {why}")
            return None

    async def invalidate(self, key: str) -> None:
        """Put a tombstone in the place of the entry, delete its lease and tell everyone."""
        before, after = self._around_version(Kind.INVALIDATED, key)
        version = await self.script(scripts.INVALIDATE, self._keys(key), _TOMBSTONE_FOR, self.channel, before, after)
        self._readings.pop(key, None)
        if len(self._invalidated) == _MOST_TOLD_AGAIN and key not in self._invalidated:
            self._forgotten_at = time.monotonic()
        self._invalidated[key] = int(version)
        self._heed(key, int(version))
        self._listener(Message(Kind.INVALIDATED, key, int(version)))

    # -- leases -----------------------------------------------------------------------------------------------

    async def acquire(
        self, key: str, token: str, ttl: float, known: int, codec: Codec, *, force: bool = False
    ) -> Lease | Held | Entry[Any]:
        """Take the lease, in one trip with a second look at the entry and the newest barrier."""
        while True:
            claim = Claim(key, token, _milliseconds(ttl), known, force)
            # The barrier is read before the load begins: one raised later outdates what is loaded.
            if self._servers.one:
                try:
                    head, answer = await self._claims.ask(claim)
                except (StoreUnavailable, RedisError):
                    head, answer = await self._claim_alone(claim)
            else:
                head, answer = await self._claim_alone(claim)
            newest = await self._shared.learn_from(head)
            what = answer[0]
            if what == b"lease":
                return Lease(key, token, int(answer[1]), newest, int(answer[2]))
            if what == b"held":
                return Held(max(0, int(answer[1])) / 1000, int(answer[2]), int(answer[3]))
            frame: bytes = answer[1]
            self._heed(key, int(frame[: frames.VERSION_DIGITS]))
            entry = self._decode(key, frame, codec)
            if entry is not None and self.barriers.admits(entry.head, entry.tags):
                return entry
            known = int(frame[: frames.VERSION_DIGITS])

    async def _claim_alone(self, claim: Claim) -> tuple[int | None, list[Any]]:
        """Return the newest barrier and the script's answer; a failure is tried once more, where it redirects to."""
        head = self._shared.newest_soon()
        _, answer = await self.script(scripts.ACQUIRE, self._keys(claim.key), *claim.arguments)
        return await head, answer

    def _send_claims(self, claims: list[Claim], futures: list[asyncio.Future[Any]]) -> None:
        keys = [key for claim in claims for key in self._keys(claim.key)]
        arguments = [part for claim in claims for part in claim.arguments]
        newest = self._shared.head_key
        self._send(
            newest,
            ("EVAL", scripts.ACQUIRE, len(keys) + 1, *keys, newest, *arguments),
            functools.partial(_settle_claims, futures),
        )

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Prolong the lease."""
        _, key = self._keys(lease.key)
        if not await self.script(scripts.RENEW, (key,), lease.token, digits(lease.version), _milliseconds(ttl)):
            raise LeaseLost(f"the lease on {lease.key!r} had expired or was deleted")

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Store the entry, give the lease back and tell everyone; or nothing of it, if the lease is gone."""
        frame = frames.encode(lease.key, entry, codec)
        message = self._message(Kind.COMMITTED, lease.key, entry.version)
        ttl = max(entry.keep_until - self._clock(), _AT_LEAST)
        if not await self._commit(Commit(lease, frame, _milliseconds(ttl), message)):
            raise LeaseLost(f"the lease on {lease.key!r} had expired or was deleted")
        self._readings.pop(lease.key, None)
        self._heed(lease.key, entry.version)

    async def _commit(self, commit: Commit) -> int:
        if self._servers.one:
            try:
                return int(await self._commits.ask(commit, len(commit.frame)))
            except (StoreUnavailable, RedisError):
                # Once more, alone.
                pass
        keys = self._keys(commit.lease.key)
        (done,) = await self.script(scripts.COMMIT, keys, self.channel, *commit.arguments)
        return int(done)

    def _send_commits(self, commits: list[Commit], futures: list[asyncio.Future[Any]]) -> None:
        keys = [key for commit in commits for key in self._keys(commit.lease.key)]
        arguments = [part for commit in commits for part in commit.arguments]
        command = ("EVAL", scripts.COMMIT, len(keys), *keys, self.channel, *arguments)
        self._send(keys[0], command, functools.partial(settle_each, futures))

    async def release(self, lease: Lease, pause: float = 0.0) -> None:
        """Give the lease back; a lease whose version is 0 is one whose grant was never heard of."""
        await self.script(
            scripts.RELEASE,
            self._keys(lease.key)[1:],
            lease.token,
            digits(lease.version) if lease.version else "",
            _milliseconds(pause) if pause else 0,
            lease.failures + 1,
            self.channel,
            self._message(Kind.RELEASED, lease.key),
        )


def _moved(error: AskError) -> str:
    return f"the server is a node of a cluster ({error}): give a URL redis+cluster://…"


def _was_promoted(info: dict[bytes, bytes], link: Link) -> bool:
    """Whether a server has become a master since it was asked last, as its INFO says."""
    # A master begins another line of writes for its first replica, too; after a promotion it names the last one.
    return (
        info.get(b"role") == b"master"
        and info.get(_HISTORY) != link.history
        and info.get(b"master_replid2", b"").strip(b"0") != b""
    )


def _settle_claims(futures: list[asyncio.Future[Any]], reply: Any) -> None:
    """Give each claim its answer, with the newest barrier, which comes first."""
    if not isinstance(reply, Exception):
        head = number(reply[0])
        reply = [(head, answer) for answer in reply[1:]]
    settle_each(futures, reply)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
