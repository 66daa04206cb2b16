"""Leases and commits, batched: the requests of one turn of the event loop share one script."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from redis.exceptions import RedisError

from swr.core import frames
from swr.core.codec import Codec
from swr.core.packing import Packing
from swr.core.pages import is_large
from swr.entry import Entry
from swr.errors import LeaseLost, StoreUnavailable
from swr.stores.base import Held, Kind, Lease
from swr.stores.redis import scripts
from swr.stores.redis.batching import Batcher, Room, settle_each
from swr.stores.redis.commands import Commands
from swr.stores.redis.invalidations import Invalidations, LastInvalidation
from swr.stores.redis.messages import Messages
from swr.stores.redis.names import Names
from swr.stores.redis.reading import LARGE, decode_soon
from swr.stores.redis.scripts import digits, milliseconds
from swr.stores.redis.shared_tag_versions import SharedTagVersions
from swr.stores.redis.topology import Servers
from swr.stores.threads import in_thread

# Seconds that an entry stays in Redis at least, because callers may wait for one that is too old at its commit.
_KEPT_AT_LEAST: Final = 5.0
# The most leases that one script takes.
_MOST_AT_ONCE: Final = 500
# The most bytes of frames in one script. While more bytes are on their way, the server would seem to hang.
_MOST_BYTES: Final = 65_536
# The most bytes of unconfirmed frames. Without a limit, a server that reads slowly would fill this process's memory and
# delay every later command.
_MOST_ON_THEIR_WAY: Final = 16 * 2**20


class LeaseRequest(NamedTuple):
    """A request for the lease to load a value of the type with this fingerprint."""

    keys: tuple[bytes, bytes]
    fingerprint: str
    token: str
    ttl: int
    known: int
    force: bool

    @property
    def arguments(self) -> tuple[str | int, ...]:
        return self.fingerprint, self.token, self.ttl, self.known, "1" if self.force else "0"


class Commit(NamedTuple):
    """A request to store an entry under a lease."""

    lease: Lease
    keys: tuple[bytes, bytes]
    fingerprint: str
    frame: bytes
    ttl: int
    message: bytes

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        lease = self.lease
        return self.fingerprint, lease.token, digits(lease.version), self.frame, self.ttl, self.message


class RedisLeases:
    """Takes leases, renews them, and ends each with a commit or without one.

    Parameters:
        servers: knows which server has each key.
        names: the keys of the namespace.
        commands: sends commands to the servers.
        messages: writes the messages.
        shared: the tag versions.
        invalidations: the last invalidations of keys.
        clock: wall clock, seconds.
        packing: how frames are packed.
    """

    def __init__(
        self,
        servers: Servers,
        names: Names,
        commands: Commands,
        messages: Messages,
        shared: SharedTagVersions,
        invalidations: Invalidations,
        clock: Callable[[], float],
        packing: Packing,
    ) -> None:
        self._servers = servers
        self._names = names
        self._commands = commands
        self._messages = messages
        self._shared = shared
        self._invalidations = invalidations
        self._clock = clock
        self._packing = packing

    def open(self) -> None:
        """Begin on this event loop."""
        self._requests = Batcher(self._send_requests, _MOST_AT_ONCE)
        self._commits = Batcher(self._send_commits, _MOST_BYTES)
        self._room = Room(_MOST_ON_THEIR_WAY)

    async def acquire(
        self, key: str, token: str, ttl: float, known: int, codec: Codec, *, force: bool, tags: tuple[str, ...]
    ) -> Lease | Held | Entry[Any]:
        """Take the lease, and look again at the entry and the newest tag version, in one round trip."""
        with self._warning():
            keys = self._names.entry_and_lease(key)
        while True:
            request = LeaseRequest(keys, codec.fingerprint, token, milliseconds(ttl), known, force)
            # The newest tag version is read before the load begins. A version that is raised later outdates the load.
            unannounced = self._shared.unannounced(tags)
            newest, answer = await (
                self._request_and_announce(key, request, unannounced) if unannounced else self._request(request)
            )
            tag_version = await self._shared.learn_from(newest)
            what = answer[0]
            if what == b"lease":
                unannounced = self._shared.unannounced(tags)
                if unannounced:
                    # A clear has ended the announcements meanwhile.
                    await self._shared.announce(unannounced)
                if answer[3]:
                    self._commands.warn_once(f"lease {key}", f"swr replaced a lease of {key!r} that it had not written")
                return Lease(key, token, int(answer[1]), tag_version, int(answer[2]))
            if what == b"held":
                return Held(max(0, int(answer[1])) / 1000, int(answer[2]), int(answer[3]))
            frame: bytes = answer[1]
            entry = await decode_soon(key, frame, codec, self._packing, self._commands.warn_once)
            if entry is not None and self._shared.known.admits_stored(entry):
                if not self._invalidations.outdates(key, entry):
                    return self._invalidations.marked(key, entry)
                # A server that has replaced another does not know of this invalidation yet.
                await self._remind(key)
            known = int(frame[: frames.VERSION_DIGITS])

    async def _remind(self, key: str) -> None:
        """Repeat the last invalidation of `key`, at its version."""
        invalidated = [LastInvalidation(key, self._invalidations.version(key))]
        names = self._names.entry_and_lease(key)
        await self._commands.script(scripts.REMIND, names, *self._messages.reminders(invalidated))

    async def _request(self, request: LeaseRequest) -> tuple[bytes | None, list[Any]]:
        """Return the text of the newest tag version's key, and the script's answer."""
        # If the batch fails, send this request again, alone.
        with contextlib.suppress(StoreUnavailable, RedisError):
            newest = None if self._servers.is_single else self._shared.newest_soon()
            answer: tuple[bytes, list[Any]] = await self._requests.ask(request, self._servers.place_of(request.keys[0]))
            return (answer[0] if newest is None else await newest), answer[1]
        return await self._request_alone(request)

    async def _request_and_announce(
        self, key: str, request: LeaseRequest, tags: tuple[str, ...]
    ) -> tuple[bytes | None, list[Any]]:
        """Return the same as `_request`, and announce `tags` in the same round trip, before the load begins."""
        requesting = asyncio.ensure_future(self._request(request))
        try:
            try:
                await self._shared.announce(tags)
            except StoreUnavailable:
                await requesting
                # No load begins under this lease. In a cluster, it is at another server than the announcements.
                await self.release(Lease(key, request.token, 0, 0), 0.0)
                raise
            return await requesting
        finally:
            requesting.cancel()

    async def _request_alone(self, request: LeaseRequest) -> tuple[bytes | None, list[Any]]:
        """Send a request without a batch, and return the same as `_request`; follow redirects and try twice."""
        newest = self._shared.newest_soon()
        _, answer = await self._commands.script(scripts.ACQUIRE, request.keys, *request.arguments)
        return await newest, answer

    def _send_requests(self, requests: list[LeaseRequest], futures: list[asyncio.Future[Any]]) -> None:
        keys: list[bytes] = [key for request in requests for key in request.keys]
        arguments = [part for request in requests for part in request.arguments]
        if self._servers.is_single:
            # In a cluster, this key has another slot, and `newest_soon` reads it.
            keys.append(self._names.newest_tag_version)
        command = ("EVAL", scripts.ACQUIRE, len(keys), *keys, *arguments)
        self._commands.send(keys[0], command, functools.partial(_settle_requests, futures))

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Prolong the lease."""
        _, key = self._names.entry_and_lease(lease.key)
        renewed = await self._commands.script(
            scripts.RENEW, (key,), lease.token, digits(lease.version), milliseconds(ttl)
        )
        if not renewed:
            raise LeaseLost(f"the lease on {lease.key!r} had expired or was deleted")

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Store the entry, give the lease back and notify every process; if the lease is lost, store nothing."""
        # Encode only when there is room, so that waiting values do not take memory as bytes, too.
        async with self._room.turn:
            await self._room.wait()
            with self._warning():
                keys = self._names.entry_and_lease(lease.key)
                message = self._messages.write(Kind.COMMITTED, lease.key, entry.version, codec.fingerprint)
                frame = await self._encode(lease.key, entry, codec)
            self._room.take(len(frame))
        ttl = max(entry.keep_until - self._clock(), _KEPT_AT_LEAST)
        try:
            done = await self._commit(Commit(lease, keys, codec.fingerprint, frame, milliseconds(ttl), message))
        finally:
            self._room.give_back(len(frame))
        if not done:
            raise LeaseLost(f"the lease on {lease.key!r} had expired or was deleted")
        self._commands.refusals.stored()

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        """Log once that the codec of the cache failed, and raise its error."""
        try:
            yield
        except StoreUnavailable as error:
            self._commands.warn_once("packing", f"nothing is stored in Redis: {error}")
            raise

    async def _encode(self, key: str, entry: Entry[Any], codec: Codec) -> bytes:
        if is_large(entry.value):
            return await in_thread(frames.encode, key, entry, codec, self._packing)
        draft = frames.draft(key, entry, codec)
        if len(draft.payload) > LARGE:
            return await in_thread(frames.pack, draft, self._packing)
        return frames.pack(draft, self._packing)

    async def _commit(self, commit: Commit) -> int:
        try:
            return int(await self._commits.ask(commit, self._servers.place_of(commit.keys[0]), len(commit.frame)))
        except (StoreUnavailable, RedisError):
            # Send this commit again, alone.
            pass
        (done,) = await self._commands.script(scripts.COMMIT, commit.keys, self._messages.channel, *commit.arguments)
        return int(done)

    def _send_commits(self, commits: list[Commit], futures: list[asyncio.Future[Any]]) -> None:
        keys = [key for commit in commits for key in commit.keys]
        arguments = [part for commit in commits for part in commit.arguments]
        command = ("EVAL", scripts.COMMIT, len(keys), *keys, self._messages.channel, *arguments)
        self._commands.send(keys[0], command, functools.partial(settle_each, futures))

    async def release(self, lease: Lease, pause: float) -> None:
        """Give the lease back; version 0 represents a lease whose grant never arrived."""
        await self._commands.script(
            scripts.RELEASE,
            self._names.entry_and_lease(lease.key)[1:],
            lease.token,
            digits(lease.version) if lease.version else "",
            milliseconds(pause) if pause else 0,
            lease.failures + 1,
            self._messages.channel,
            self._messages.write(Kind.RELEASED, lease.key),
        )


def _settle_requests(futures: list[asyncio.Future[Any]], reply: Any) -> None:
    """Give each request its answer, and the first part of the reply: the text of the newest tag version's key."""
    if not isinstance(reply, Exception):
        newest = reply[0] or b""
        reply = [(newest, answer) for answer in reply[1:]]
    settle_each(futures, reply)
