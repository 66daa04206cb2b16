"""The store in Redis or Valkey: reads and invalidates entries, and combines the parts that do the rest."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis.exceptions import RedisError

from swr.core.codec import Codec
from swr.core.packing import Packing
from swr.entry import Entry
from swr.errors import ConfigurationError, StoreUnavailable
from swr.stores.base import Held, Kind, Lease, Notification, Start, Subscriber
from swr.stores.clocks import wall_clock
from swr.stores.redis import scripts
from swr.stores.redis.commands import Commands
from swr.stores.redis.connection import Connection
from swr.stores.redis.digests import Digests
from swr.stores.redis.failover import Failover
from swr.stores.redis.invalidations import Invalidations
from swr.stores.redis.leases import RedisLeases
from swr.stores.redis.messages import Messages
from swr.stores.redis.names import Names
from swr.stores.redis.notifications import Notifications
from swr.stores.redis.reachability import Reachability
from swr.stores.redis.reading import Reading, settle_all, settle_one
from swr.stores.redis.server_link import REPLY_TIMEOUT, ServerLink
from swr.stores.redis.shared_tag_versions import SharedTagVersions
from swr.stores.redis.topology import Servers
from swr.stores.tag_versions import ALL, Name, Soft

# The most keys of one MGET: the server looks up the next ones while this process decodes these.
_MOST_READ_AT_ONCE: Final = 16
# The most keys whose versions one script returns.
_MOST_VERSIONS_AT_ONCE: Final = 500


class RedisStore:
    """Entries, leases and notifications on the servers of one database, or of a cluster.

    It owns the links to its servers (`swr.stores.redis.server_link.LinkOwner`).

    Parameters:
        servers: knows which server has each key.
        namespace: the beginning of every key.
        timeout: seconds after which a server that is silent counts as hung.
        clock: wall clock, seconds.
        packing: how values and names are written in Redis; None: as they are.
        on_answer: called with the seconds that a command has waited for its reply.

    Attributes:
        names: the keys of the namespace.
        packing: how values and names are written in Redis.
        digests: the digests that processes write for dashboards.
        commands: sends commands and scripts to the servers.
    """

    def __init__(
        self,
        servers: Servers,
        namespace: str = "swr",
        timeout: float = REPLY_TIMEOUT,
        clock: Callable[[], float] = wall_clock,
        packing: Packing | None = None,
        on_answer: Callable[[float], object] = float,
    ) -> None:
        self._on_answer = on_answer
        self.packing = packing = packing or Packing(namespace, None)
        self.names = names = Names(namespace, packing)
        self.commands = commands = Commands(servers, timeout)
        self._servers = servers
        self._is_single = servers.is_single
        self._messages = messages = Messages(names)
        self._shared = shared = SharedTagVersions(servers, names, commands, messages)
        self.tag_versions = shared.known
        self._readings: dict[str, Reading] = {}
        self._unsent: list[Reading] = []
        self._invalidations = invalidations = Invalidations()
        self._leases = RedisLeases(servers, names, commands, messages, shared, invalidations, clock, packing)
        self.digests = Digests(servers, names, commands, packing)
        self._failover = Failover(servers, names, commands, messages, shared, invalidations)
        self._reachability = Reachability(servers, names, shared)
        self._notifications = Notifications(servers, names, commands, messages, shared, invalidations, self._readings)

    # -- opening and closing ----------------------------------------------------------------------------------

    async def open(self, start: Start, subscriber: Subscriber) -> None:
        """Connect; if the first try fails, go on trying in the background.

        Raises:
            ConfigurationError: the event loop is not asyncio's, or the client leads to no server.
        """
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError("redis-py needs asyncio: on trio use Cache() without Redis") from None
        self._subscriber = subscriber
        self._readings.clear()
        self._unsent = []
        self._messages.open()
        self.commands.refusals.open(subscriber)
        self._leases.open()
        self.digests.open()
        self._shared.open(subscriber)
        self._reachability.open(subscriber)
        self._notifications.open(start, subscriber)
        self._servers.open(start, self)
        self._messages.use_database(self._servers.database)
        await self._servers.tried()
        if isinstance(self._servers.error, ConfigurationError):
            raise self._servers.error

    async def aclose(self, subscriber: Subscriber) -> None:
        """Do nothing: the links end with their tasks."""

    # -- what the links report --------------------------------------------------------------------------------

    @property
    def channel(self) -> bytes:
        """The channel that every link subscribes to."""
        return self._messages.channel

    def on_answer(self, seconds: float) -> None:
        """See `LinkOwner`."""
        self._on_answer(seconds)

    async def handshake(self, link: ServerLink, connection: Connection) -> None:
        """Learn of missed changes, and replay invalidations to a server that may have missed them."""
        await self._failover.handshake(link, connection)
        # Messages of this server may have been missed, whether or not the others can be reached.
        self._subscriber(Notification(Kind.GAP))

    async def heartbeat(self, link: ServerLink, connection: Connection, probe: tuple[bytes, int]) -> RedisError | None:
        """Ask for the newest tag version, and whether the server is still the same master; report this process."""
        return await self._failover.heartbeat(link, connection, probe, self.digests.due(link))

    def on_message(self, link: ServerLink, data: bytes) -> None:
        """Take a message of another process, or several that were sent as one."""
        self._notifications.on_message(link, data)

    def on_publish_refused(self, error: RedisError) -> None:
        """Log once that no other process is notified, because the user may not publish."""
        self.commands.warn_once(
            "publish",
            f"Redis refuses to publish on {self.channel!r} ({error}): other processes are not notified of commits, and "
            f"every invalidation clears the whole namespace; give the user +publish and the channels "
            f"&{self.names.prefix.decode()}:*",
        )

    def on_link_changed(self) -> None:
        """Log and notify if reachability has changed."""
        self._reachability.on_link_changed()

    def is_unreachable(self, key: str) -> bool:
        """Return whether the key's server is known to be unreachable, and for more than a moment."""
        return self._reachability.is_unreachable(key)

    # -- entries ----------------------------------------------------------------------------------------------

    @property
    def has_pending(self) -> bool:
        """Return False: this store keeps no invalidation back."""
        return False

    async def settled(self) -> None:
        """Tell dashboards that this process ends; no invalidation is pending in this store."""
        await self.digests.leave()

    async def now(self) -> int:
        """Return the clock of the server of the tag versions, in microseconds since 1970."""
        seconds, microseconds = await self.commands.ask(self.names.newest_tag_version, "TIME")
        return int(seconds) * 1_000_000 + int(microseconds) - 1

    @property
    def sent(self) -> int:
        """Return how many commands have been sent."""
        return self._servers.sent

    def forget(self) -> None:
        """Do nothing: this store holds no entry in the process."""

    def keep(self, key: str, entry: Entry[Any], codec: Codec) -> None:
        """Do nothing: this store holds no entry in the process."""

    def peek(self, key: str) -> Entry[Any] | None:
        """Return None: this store holds no entry in the process."""
        return None

    async def read(self, key: str, codec: Codec) -> Entry[Any] | None:
        """Return the entry of `key`.

        Readers that ask for one key at the same time share one round trip and one decoding. Readers of different keys
        in one turn of the event loop share one write to each server.
        """
        answered: asyncio.Future[None] = asyncio.Future(loop=self._loop)
        reading = self._readings.get(key)
        if reading is not None:
            reading.waiting.append(answered)
        else:
            reading = self._readings[key] = Reading(self._readings, key, self.names.entry(key), answered)
            if not self._unsent:
                self._loop.call_soon(self._send_readings)
            self._unsent.append(reading)
        beside = None if self._is_single else self._shared.newest_soon()
        try:
            await answered
            newest = reading.newest if beside is None else await beside
        except (StoreUnavailable, RedisError):
            # Ask again, alone, and follow redirects.
            reading = Reading({}, key, self.names.entry(key), answered)
            (reading.frame,) = await self.commands.ask(reading.name, "MGET", reading.name)
            newest = await self._shared.newest_soon()
        if newest is None or newest != self._shared.learned:
            await self._shared.learn_from(newest)
        decoded = reading.decoded(codec, self.packing, self.commands.warn_once)
        entry = decoded if decoded is None or isinstance(decoded, Entry) else await decoded
        if entry is None or not self.tag_versions.admits_stored(entry):
            return None
        # A server that has replaced another may not know of the invalidation yet.
        return None if self._invalidations.outdates(key, entry) else self._invalidations.marked(key, entry)

    def _send_readings(self) -> None:
        """Send the readings of this turn of the event loop."""
        readings, self._unsent = self._unsent, []
        if self._is_single:
            for first in range(0, len(readings), _MOST_READ_AT_ONCE):
                some = readings[first : first + _MOST_READ_AT_ONCE]
                names = [reading.name for reading in some]
                self.commands.send(
                    names[0],
                    ("MGET", *names, self.names.newest_tag_version),
                    functools.partial(settle_all, some),
                )
        else:
            for reading in readings:
                self.commands.send(reading.name, ("MGET", reading.name), functools.partial(settle_one, reading))

    @property
    def links(self) -> list[ServerLink]:
        """Return the links to the servers: one, or one to each master of a cluster."""
        return self._servers.links

    async def learn_tag_versions(self) -> None:
        """Ask for the newest tag versions.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        await self._shared.learn_from(await self._shared.newest_soon())

    async def look(self, key: str) -> tuple[bytes, dict[str, bytes], float]:
        """Return the entries and the leases (by fingerprint) of `key`, not decoded, and the server's clock in seconds.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        await self.learn_tag_versions()
        data, now, leases = await self.commands.script(scripts.LOOK, self.names.entry_and_lease(key))
        held = {name.decode("latin-1"): text for name, text in zip(leases[::2], leases[1::2], strict=True)}
        return data, held, int(now) / 1e6

    async def newest(self, keys: list[str]) -> dict[str, int]:
        """Return a version for each key: nothing stored or being loaded is newer, and every later load is.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        most = _MOST_VERSIONS_AT_ONCE if self._is_single else 1
        parts = [keys[first : first + most] for first in range(0, len(keys), most)]
        named = [tuple(name for key in part for name in self.names.entry_and_lease(key)) for part in parts]
        answers = await asyncio.gather(*(self.commands.script(scripts.NEWEST, names) for names in named))
        return {
            key: int(version)
            for part, answer in zip(parts, answers, strict=True)
            for key, version in zip(part, answer, strict=True)
        }

    async def has_replicas(self, key: str, fingerprint: str, newer_than: int, replicas: int) -> bool:
        """Return whether this many replicas have an entry of `key` and of this type newer than `newer_than`."""
        keys = (self.names.entry(key),)
        try:
            return bool(await self.commands.replicated(replicas, scripts.SECURE, keys, fingerprint, newer_than))
        except StoreUnavailable:
            return False

    # -- invalidating -----------------------------------------------------------------------------------------

    async def invalidate(self, key: str) -> None:
        """Replace the entry by a tombstone, delete its lease and notify every process."""
        await self._invalidate(key)

    async def _invalidate(self, key: str, *lease: str | int) -> tuple[int, int]:
        """Invalidate `key`, take the given lease (fingerprint, token, ttl); return the version, and a clear's or 0."""
        before, after = self._messages.around_version(Kind.INVALIDATED, key)
        keys, channel = self.names.entry_and_lease(key), self._messages.channel
        answer, told = await self.commands.script(
            scripts.INVALIDATE, keys, scripts.TOMBSTONE_FOR, channel, before, after, *lease
        )
        version = int(answer)
        self._readings.pop(key, None)
        self._invalidations.remember(key, version)
        self._subscriber(Notification(Kind.INVALIDATED, key, version))
        if told:
            return version, 0
        # No process was notified of the key. But each asks for the newest tag version, and so learns of a clear.
        await self._shared.invalidate(ALL)
        return version, self.tag_versions.cleared

    async def seize(self, key: str, token: str, ttl: float, codec: Codec) -> Lease:
        """Invalidate `key`, and take its lease from its holder."""
        beside = self._shared.newest_soon()
        version, cleared = await self._invalidate(key, codec.fingerprint, token, scripts.milliseconds(ttl))
        # A tag version that is raised after this read outdates the entry that is loaded.
        tag_version = await self._shared.learn_from(await beside)
        return Lease(key, token, version, max(tag_version, cleared))

    def tell_pending(self, kind: Kind, name: Name) -> None:
        """Notify every process of an invalidation that the server has refused."""
        # If the codec cannot hide the name, there is no message.
        with contextlib.suppress(StoreUnavailable):
            message = self._messages.write(kind, name)
            where = self.names.entry(name) if isinstance(name, str) else self.names.newest_tag_version
            self.commands.send(where, ("PUBLISH", self.channel, message), lambda reply: None)

    async def mark_stale(self, key: str) -> None:
        """Mark the entries of `key` as stale, delete its leases and notify every process."""
        before, after = self._messages.around_version(Kind.MARKED, key)
        keys = self.names.entry_and_lease(key)
        answer, told = await self.commands.script(scripts.MARK, keys, self._messages.channel, before, after)
        version = int(answer)
        self._readings.pop(key, None)
        self._invalidations.remember(key, version, is_mark=True)
        self._subscriber(Notification(Kind.MARKED, key, version))
        if not told:
            # As in `_invalidate`.
            await self._shared.invalidate(Soft(ALL))

    async def invalidate_tag(self, *names: Name) -> None:
        """Raise the versions of `names` (tags, loaders, ALL, or marks of these), and notify every process."""
        await self._shared.invalidate(*names)

    @property
    def heard(self) -> int:
        """Return the clock of the server of the tag versions, as this process last heard it."""
        return self._shared.time

    async def invalidate_announced(self, tags: Sequence[str]) -> None:
        """Raise the versions of those of `tags` that a load has announced, and notify every process of them."""
        await self._shared.invalidate_announced(tags)

    async def was_passed_over(self, tags: tuple[str, ...], since: int) -> bool:
        """Return whether an invalidation of one of `tags` may have been passed over after the version `since`."""
        return await self._shared.was_passed_over(tags, since)

    def unannounced(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of `tags` that loads must announce, and that this process has not announced."""
        return self._shared.unannounced(tags)

    async def announce(self, tags: tuple[str, ...]) -> None:
        """Announce to the server that loads of entries with `tags` begin."""
        await self._shared.announce(tags)

    def around_consumers(self, name: str) -> tuple[bytes, bytes, bytes]:
        """Return the channel, and the two parts of a message between which a script puts the consumers to wake.

        Parameters:
            name: the shard that has tasks.
        """
        return self._messages.channel, *self._messages.around_consumers(name)

    # -- leases -----------------------------------------------------------------------------------------------

    async def acquire(
        self,
        key: str,
        token: str,
        ttl: float,
        known: int,
        codec: Codec,
        *,
        force: bool = False,
        tags: tuple[str, ...] = (),
    ) -> Lease | Held | Entry[Any]:
        """Take the lease, or return a refusal or an entry newer than version `known`."""
        return await self._leases.acquire(key, token, ttl, known, codec, force=force, tags=tags)

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Prolong the lease."""
        await self._leases.renew(lease, ttl)

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Store the entry, give the lease back and notify every process."""
        await self._leases.commit(lease, entry, codec)
        self._readings.pop(lease.key, None)

    async def release(self, lease: Lease, pause: float = 0.0) -> None:
        """Give the lease back without an entry."""
        await self._leases.release(lease, pause)
