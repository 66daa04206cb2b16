"""A store, and the links to it, that fail as real ones do: a simulated server and what represents a connection.

`Link` keeps the promises that `swr.stores.redis` keeps towards the tiers above, in the same order: every command
either comes back within the time-out or breaks the link; a broken link is told as DOWN, and once tag_versions have been
learned or given back, as UP; while a link is whole its messages arrive in order; one that dies silently is found
dead within 2 s.
"""

import contextlib
import copy
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeVar

import anyio

from swr.core.codec import ANY, Codec
from swr.entry import Entry
from swr.errors import LeaseLost, StoreUnavailable
from swr.stores.base import Held, Kind, Lease, Notification, Start, StoreRefused, Subscriber
from swr.stores.memory import MemoryStore
from swr.stores.redis.invalidations import Invalidations, LastInvalidation
from swr.stores.tag_versions import ALL, Name, TagVersions
from tests.simulation.oracle import LOST, Oracle

T = TypeVar("T")

_TIMEOUT: Final = 0.2
_SILENT: Final = 1.8
# Of each release of the application: its values are of another type.
CODECS: Final = (ANY, Codec(int))
_FINGERPRINT: Final = len(ANY.fingerprint)


class Gate:
    """Where everything that a process does to the outside stops while the process is stopped."""

    def __init__(self) -> None:
        self._open = anyio.Event()
        self._open.set()

    @property
    def is_open(self) -> bool:
        """Whether the process runs."""
        return self._open.is_set()

    def shut(self) -> None:
        """Stop the process."""
        self._open = anyio.Event()

    def open(self) -> None:
        """Let it go on."""
        self._open.set()

    async def passed(self) -> None:
        """Wait until the process runs."""
        while not self._open.is_set():
            await self._open.wait()


@dataclass(frozen=True)
class Weather:
    """What the network is like.

    Parameters:
        latency: the most seconds that a command, a reply or a message takes.
        lost: the share of commands whose request, or whose reply, is lost, or which arrive only after the client
            has given up.
    """

    latency: float
    lost: float


class _LenientStore(MemoryStore):
    """One to which tag_versions are only something to be asked for."""

    def peek(self, key: str) -> Entry[Any] | None:
        slot = self.local.get(key)
        return None if slot is None else slot.entry

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        tag_versions, self.tag_versions = self.tag_versions, TagVersions()
        try:
            await super().commit(lease, entry, codec)
        finally:
            self.tag_versions = tag_versions


class Server:
    """One `MemoryStore` behind many links; a restart puts an empty one in its place.

    Parameters:
        clock: its wall clock, seconds.
        oracle: is told what happens.
        lenient: it takes and gives what a tag version has outdated, as Redis does, whose readers pass that over.
    """

    def __init__(self, clock: Callable[[], float], oracle: Oracle, *, lenient: bool) -> None:
        self._clock = clock
        self._oracle = oracle
        self._make = _LenientStore if lenient else MemoryStore
        self.store = self._make(clock=clock)
        self.tag_versions = self.store.tag_versions
        # How often it was started.
        self.run = 0
        # Whether it has no memory left, and until when it answers nothing.
        self.full = 0
        self.stalled_until = -math.inf
        self.links: list[Link] = []
        # Whose command is being carried out, and the last thing it did.
        self.client: Link | None = None
        self.said = Notification(Kind.REACHABLE)

    async def start(self, start: Start, *, tag_versions: bool = False, saved: "Saved | None" = None) -> None:
        """Start with what was saved, or empty; with `tag_versions` these alone are kept."""
        self.run += 1
        last = self.store._last
        self.store = self._make(clock=self._clock)
        # Its clock goes on.
        self.store._last = last
        if saved is None:
            self._know(self.tag_versions if tag_versions else TagVersions())
        else:
            self._know(copy.deepcopy(saved.tag_versions))
            for name, entry in saved.entries:
                self.store.local.put(name, entry)
            self.store._holds.update(saved.holds)
        await self.store.open(start, self._on_notification)
        self._oracle.restarted(None if saved is None else saved.at)
        for link in self.links:
            link.fall()

    def save(self, at: float) -> "Saved":
        """Return what a server holds that starts from a dump of now."""
        entries = [(name, slot.entry) for name, slot in self.store.local.slots.items()]
        return Saved(at, entries, dict(self.store._holds), copy.deepcopy(self.tag_versions))

    async def invalidate(self, key: str) -> Notification:
        """Invalidate what every release has stored, in one step."""
        for codec in CODECS:
            await self.store.invalidate(place(key, codec))
        self._tell(Notification(Kind.INVALIDATED, key, self.store._last))
        return self.said

    async def mark_stale(self, key: str) -> Notification:
        """Mark what every release has stored, in one step."""
        for codec in CODECS:
            await self.store.mark_stale(place(key, codec))
        self._tell(Notification(Kind.MARKED, key, self.store._last))
        return self.said

    async def seize(self, key: str, token: str, ttl: float, codec: Codec) -> Lease:
        """Invalidate what every release has stored, and give the lease of one, in one step."""
        for other in CODECS:
            if other is not codec:
                await self.store.invalidate(place(key, other))
        lease = await self.store.seize(place(key, codec), token, ttl, codec)
        self._tell(Notification(Kind.INVALIDATED, key, lease.version))
        return lease._replace(key=key)

    def remind(self, last: LastInvalidation) -> None:
        """Invalidate or mark a key again, as it was before."""
        key, version, is_mark = last
        lost = False
        for codec in CODECS:
            name = place(key, codec)
            slot, hold = self.store.local.get(name), self.store._holds.get(name)
            if hold is not None and hold.token is not None and hold.version < version:
                del self.store._holds[name]
                lost = True
            if slot is not None and slot.entry.version < version and not (is_mark and slot.entry.is_marked):
                lost = True
                if is_mark:
                    slot.mark_stale(version)
                else:
                    self.store.local.drop(name)
        if lost:
            self._tell(Notification(Kind.MARKED if is_mark else Kind.INVALIDATED, key, version), again=True)

    def _know(self, tag_versions: TagVersions) -> None:
        self.tag_versions = self.store.tag_versions = tag_versions
        self.store.local.recheck_all()

    def evict(self, key: str | None, *, newest: bool) -> None:
        """Lose the entry and the lease of a key; or the tag versions, of which `newest` keeps the newest."""
        if key is not None:
            for codec in CODECS:
                self.store.local.drop(place(key, codec))
                self.store._holds.pop(place(key, codec), None)
            self._oracle.evicted(key)
            return
        left = TagVersions()
        left.newest = self.tag_versions.newest if newest else 0
        self._know(left)

    def lacks(self, known: TagVersions) -> bool:
        """Whether the server has lost tag versions, going by what it has and by what one worker knows."""
        mine = self.tag_versions
        return not mine.cleared or mine.newest < known.newest or mine.cleared < known.cleared

    async def raise_tag(self, name: Name, known: TagVersions) -> None:
        """Raise a tag version; if some were lost, outdate everything in its place."""
        if self.lacks(known):
            self.lose(known.newest)
        else:
            await self.store.invalidate_tag(name)

    def lose(self, known: int) -> None:
        """Outdate everything: what was lost may have outdated any of it."""
        number = max(self.store._next(), self.tag_versions.newest + 1, known + 1)
        self.store._last = number
        self._know(TagVersions())
        self.tag_versions.raise_to(ALL, number)
        self._tell(Notification(Kind.TAG_VERSION, ALL, number))

    def _on_notification(self, message: Notification) -> None:
        if message.kind is Kind.TAG_VERSION:
            self._tell(message)
        elif message.kind not in (Kind.INVALIDATED, Kind.MARKED):
            place = message.text
            self._tell(message._replace(name=place[_FINGERPRINT:], fingerprint=place[:_FINGERPRINT]))

    def _tell(self, message: Notification, *, again: bool = False) -> None:
        self.said = message
        slot = self.store.local.get(f"{message.fingerprint}{message.name}")
        if again:
            pass
        elif message.kind is not Kind.COMMITTED:
            self._oracle.told(message, -1)
        elif not self.tag_versions.cleared:
            # Tag versions were evicted. When that is found out, this is outdated with everything else.
            pass
        elif slot is not None and self.tag_versions.admits_entry(slot.entry):
            self._oracle.told(message, slot.entry.value)
        for link in self.links:
            # TagVersions are heard by whoever raised them, too.
            if link is not self.client or message.kind is Kind.TAG_VERSION:
                link.send(message)

    def leased(self) -> list[str]:
        """Return the tokens that hold a lease."""
        return [hold.token for hold in dict(self.store._holds).values() if hold.token is not None]


@dataclass(frozen=True)
class Saved:
    """A dump: when it was made, and what a server holds that starts from it."""

    at: float
    entries: list[tuple[str, Entry[Any]]]
    holds: dict[str, Any]
    tag_versions: TagVersions


def place(key: str, codec: Codec) -> str:
    """Return under which name the server keeps what one release has stored for a key."""
    return f"{codec.fingerprint}{key}"


class Link:
    """One worker's connection: a `LeasingStore` that reaches the server, or does not.

    It is on the server's list from the beginning.

    Parameters:
        server: the server.
        worker: whose, for the oracle.
        gate: shut while the worker is paused. What it cannot stop is the engine's own timers: they go off in time,
            but whatever they then want of the store waits here, so that to the world they are late.
        random: draws latencies and losses.
        weather: how bad it is.
        oracle: is told what the worker learns.
        background: starts a task that belongs to nobody: a command that arrives after its sender has given up.
        codec: of the worker's release.
    """

    def __init__(
        self,
        server: Server,
        worker: str,
        gate: Gate,
        random: Random,
        weather: Weather,
        oracle: Oracle,
        background: Callable[[Callable[[], Awaitable[None]]], object],
        codec: Codec = ANY,
    ) -> None:
        self.tag_versions = TagVersions()
        self._codec = codec
        self._invalidations = Invalidations()
        # Of which run of the server it knows that it has had every invalidation.
        self._run = 0
        self.up = False
        self.dead = False
        self.weather = weather
        self._server = server
        self._worker = worker
        self._gate = gate
        self._random = random
        self._oracle = oracle
        self._background = background
        self._broken = anyio.Event()
        self._restored = anyio.Event()
        self._lost_at = -math.inf
        self._down_until = -math.inf
        self._inbox: deque[tuple[float, Notification]] = deque()
        self._stirred = anyio.Event()
        self._subscribed = False
        self._silent = False
        self._learned = (0, 0)
        server.links.append(self)

    # -- what happens to it -----------------------------------------------------------------------------------

    def fall(self, down_for: float = 0.0) -> None:
        """Break, and stay down for so many seconds."""
        self._down_until = max(self._down_until, anyio.current_time() + down_for)
        self._subscribed = False
        self._oracle.breaks(self._worker)
        self._broken.set()
        self._stirred.set()

    def silence(self) -> None:
        """Lose all messages from now on, until the beats find it out."""
        if self._subscribed and not self._silent:
            self._silent = True
            self._inbox.clear()
            self._oracle.disturb()
            self._background(self._found_out)

    async def _found_out(self) -> None:
        broken = self._broken
        await anyio.sleep(self._random.uniform(0, _SILENT))
        await self._gate.passed()
        if broken is self._broken:
            self.fall()
        self._oracle.calm()

    def die(self) -> None:
        """Reach nothing and hear nothing any more: the process was killed."""
        self.dead = True
        self.fall(math.inf)

    def send(self, message: Notification) -> None:
        """Take a message of the server's on its way."""
        if self._subscribed and not self._silent:
            arrives = max(anyio.current_time(), self._server.stalled_until) + self._latency()
            self._inbox.append((max(arrives, self._inbox[-1][0] if self._inbox else 0.0), message))
            self._stirred.set()

    # -- the link ---------------------------------------------------------------------------------------------

    async def open(self, start: Start, subscriber: Subscriber) -> None:
        """Connect; where that takes too long, go on trying behind the scenes."""
        self._subscriber = subscriber
        self._oracle.begins(self._worker)
        start(self._keep)
        with anyio.move_on_after(_TIMEOUT):
            await self._restored.wait()

    async def aclose(self, subscriber: Subscriber) -> None:
        """Disconnect."""
        if not self.dead:
            self.die()

    def _latency(self) -> float:
        return self._random.uniform(0.0, self.weather.latency)

    async def _keep(self) -> None:
        while True:
            await anyio.sleep(self._random.uniform(0.0, 0.1))
            await anyio.sleep_until(self._down_until)
            await self._gate.passed()
            self._broken, self._stirred = anyio.Event(), anyio.Event()
            self._inbox.clear()
            self._subscribed, self._silent = True, False
            try:
                if self._run != self._server.run:
                    await self._trip(self._replay)
                # Whatever the store says is the newest: this worker may have raised one that is newer.
                self._learned = (0, 0)
                await self._learn(await self._trip(self._head))
                self._tell_up()
                await self._listen()
            except StoreUnavailable:
                self.fall()
            await self._gate.passed()
            self._down()

    async def _replay(self) -> None:
        """Tell the server of every invalidation and mark of a key that it may have lost."""
        self._run = self._server.run
        for last in self._invalidations.since(0):
            self._server.remind(last)

    def _tell_up(self) -> None:
        self.up = True
        self._restored.set()
        self._oracle.link(self._worker, up=True)
        self._subscriber(Notification(Kind.REACHABLE, str(self._server.run), self._server.store._next()))

    def _down(self) -> None:
        if self.up:
            self.up = False
            self._restored = anyio.Event()
            self._lost_at = anyio.current_time()
            self._oracle.link(self._worker, up=False)
            self._subscriber(Notification(Kind.UNREACHABLE))

    async def _listen(self) -> None:
        while not self._broken.is_set():
            if not self._inbox:
                self._stirred = anyio.Event()
                await self._stirred.wait()
                continue
            with anyio.move_on_after(self._inbox[0][0] - anyio.current_time()):
                await self._broken.wait()
            await self._gate.passed()
            if self._inbox and self._inbox[0][0] <= anyio.current_time() and not self._broken.is_set():
                self._hear(self._inbox.popleft()[1])

    def _hear(self, message: Notification) -> None:
        if message.kind is Kind.TAG_VERSION:
            self._raise(message.name, message.version)
            cleared = message.version if message.name == ALL else self._learned[1]
            self._learned = max(self._learned, (message.version, cleared))
        else:
            self._remember(message)
            self._oracle.heard(self._worker, message)
            self._subscriber(message)

    def _remember(self, message: Notification) -> None:
        if message.kind in (Kind.INVALIDATED, Kind.MARKED):
            self._invalidations.remember(message.text, message.version, is_mark=message.kind is Kind.MARKED)

    # -- commands ---------------------------------------------------------------------------------------------

    async def _wait(self, seconds: float) -> None:
        broken = self._broken
        with anyio.move_on_after(seconds):
            await broken.wait()
        await self._gate.passed()
        if broken.is_set():
            raise StoreUnavailable("the link broke")

    async def _trip(self, command: Callable[[], Awaitable[T]]) -> T:
        """Carry one command there, and its reply back."""
        await self._gate.passed()
        lost = self._random.random() < self.weather.lost
        fate = self._random.choice(("request", "reply", "late")) if lost else ""
        stall = self._server.stalled_until - anyio.current_time()
        if stall >= _TIMEOUT:
            fate = "late"
        elif stall > 0:
            await self._wait(stall)
        if fate == "reply":
            self._oracle.trials[LOST] += 1
        if fate == "late":
            # It is in a buffer of a server that hangs: it is carried out before the link can be made again.
            down_for = max(stall, self._random.uniform(_TIMEOUT, 1.0))
            self._down_until = max(self._down_until, anyio.current_time() + down_for)
            self._background(lambda: self._arrive(down_for, command))
        await self._wait(_TIMEOUT if fate in ("request", "late") else self._latency())
        if fate not in ("request", "late"):
            result = await self._carry_out(command)
            await self._wait(_TIMEOUT if fate == "reply" else self._latency())
            if not fate:
                return result
        self.fall()
        raise StoreUnavailable("no reply in time")

    async def _arrive(self, seconds: float, command: Callable[[], Awaitable[object]]) -> None:
        await anyio.sleep(seconds * self._random.random())
        await anyio.sleep_until(self._server.stalled_until)
        with contextlib.suppress(LeaseLost, StoreRefused):
            await self._carry_out(command)

    async def _carry_out(self, command: Callable[[], Awaitable[T]]) -> T:
        self._server.client = self
        try:
            return await command()
        finally:
            self._server.client = None

    async def _ask(self, command: Callable[[], Awaitable[T]]) -> T:
        """Ask once, and once more if the link broke and is back at once."""
        again = False
        while True:
            if not self.up:
                with anyio.move_on_after(self._lost_at + _TIMEOUT / 4 - anyio.current_time()):
                    await self._restored.wait()
            if not self.up:
                raise StoreUnavailable("down")
            try:
                return await self._trip(command)
            except StoreRefused:
                raise
            except StoreUnavailable:
                self._down()
                if again:
                    raise
                again = True

    # -- tag_versions ---------------------------------------------------------------------------------------------

    async def _head(self) -> tuple[int, int]:
        return self._server.tag_versions.newest, self._server.tag_versions.cleared

    def _raise(self, name: Name, number: int) -> None:
        message = Notification(Kind.TAG_VERSION, name, number)
        self._oracle.heard(self._worker, message)
        if self.tag_versions.raise_to(name, number):
            self._subscriber(message)

    async def _learn(self, head: tuple[int, int]) -> None:
        """Fetch the tag_versions that this worker has missed; if the server has lost some, all is outdated."""
        if self._learned == head and head[1]:
            return

        async def exchange() -> tuple[tuple[int, int], list[tuple[str, int]]]:
            known = self.tag_versions
            if self._server.lacks(known):
                self._server.lose(known.newest)
            since = self._learned[0] if self._server.tag_versions.cleared == known.cleared else 0
            return await self._head(), self._server.tag_versions.since(since)

        head, found = await self._trip(exchange)
        for name, number in sorted(found, key=lambda pair: pair[1]):
            self._raise(name, number)
        self._learned = max(self._learned, head)

    async def invalidate_tag(self, *names: Name) -> None:
        """Raise tag versions."""

        async def command() -> list[Notification]:
            said = []
            for name in names:
                await self._server.raise_tag(name, self.tag_versions)
                said.append(self._server.said)
            return said

        for said in await self._ask(command):
            self._raise(said.name, said.version)

    # -- entries and leases -----------------------------------------------------------------------------------

    async def now(self) -> int:
        """Return the server's clock."""
        return await self._ask(lambda: self._server.store.now())

    @property
    def sent(self) -> int:
        """None: nothing is counted."""
        return 0

    def is_unreachable(self, key: str) -> bool:
        """Whether the link has been broken for a while."""
        return not self.up and anyio.current_time() >= self._lost_at + _TIMEOUT / 4

    @property
    def has_pending(self) -> bool:
        """Never: this store keeps no invalidation back."""
        return False

    def tell_pending(self, kind: Kind, name: Name) -> None:
        """Nothing: the server refuses no invalidation."""

    @property
    def heard(self) -> int:
        """Nothing: no value is stored that was not announced."""
        return 0

    async def invalidate_announced(self, tags: Sequence[str]) -> None:
        """Raise the tag versions, whatever was announced."""
        await self.invalidate_tag(*tags)

    async def was_passed_over(self, tags: tuple[str, ...], since: int) -> bool:
        """Never."""
        return False

    def unannounced(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """None: the server raises every tag version."""
        return ()

    async def announce(self, tags: tuple[str, ...]) -> None:
        """Nothing: the server raises every tag version."""

    async def settled(self) -> None:
        """At once."""

    def forget(self) -> None:
        """Nothing: no entry is held here."""

    def keep(self, key: str, entry: Entry[Any], codec: Codec) -> None:
        """Nothing: no entry is held here."""

    def peek(self, key: str) -> Entry[Any] | None:
        """Nothing: no entry is held here."""
        return None

    async def read(self, key: str, codec: Codec) -> Entry[Any] | None:
        """Read, and learn of tag_versions."""

        async def command() -> tuple[Entry[Any] | None, tuple[int, int]]:
            return await self._server.store.read(place(key, codec), codec), await self._head()

        entry, head = await self._ask(command)
        await self._learn(head)
        if entry is None or not self.tag_versions.admits_entry(entry):
            return None
        return None if self._invalidations.outdates(key, entry) else self._invalidations.marked(key, entry)

    async def invalidate(self, key: str) -> None:
        """Invalidate."""

        self._hear_own(await self._ask(lambda: self._server.invalidate(key)))

    def _hear_own(self, message: Notification) -> None:
        self._remember(message)
        self._oracle.heard(self._worker, message)
        self._subscriber(message)

    async def mark_stale(self, key: str) -> None:
        """Mark."""
        self._hear_own(await self._ask(lambda: self._server.mark_stale(key)))

    async def seize(self, key: str, token: str, ttl: float, codec: Codec) -> Lease:
        """Seize, and learn of tag_versions."""

        async def command() -> tuple[Lease, Notification, tuple[int, int]]:
            self._oracle.seizes(self._worker, key)
            lease = await self._server.seize(key, token, ttl, codec)
            return lease, self._server.said, await self._head()

        lease, message, head = await self._ask(command)
        self._hear_own(message)
        await self._learn(head)
        return lease

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
        """Acquire, and learn of tag_versions."""
        while True:

            async def command(known: int = known) -> tuple[Lease | Held | Entry[Any], tuple[int, int]]:
                return await self._acquire(key, token, ttl, known, codec, force=force), await self._head()

            answer, head = await self._ask(command)
            await self._learn(head)
            if not isinstance(answer, Entry):
                return answer
            if self._invalidations.outdates(key, answer):
                await self._ask(self._replay)
            elif self.tag_versions.admits_entry(answer):
                return self._invalidations.marked(key, answer)
            known = answer.version

    async def _acquire(
        self, key: str, token: str, ttl: float, known: int, codec: Codec, *, force: bool
    ) -> Lease | Held | Entry[Any]:
        store, name = self._server.store, place(key, codec)
        before = store._holds.get(name)
        answer = await store.acquire(name, token, ttl, known, codec, force=force)
        if not isinstance(answer, Lease):
            return answer
        if self._server.full:
            # Nothing was written.
            store._holds.pop(name)
            if before is not None:
                store._holds[name] = before
            self._refuse()
        return answer._replace(key=key)

    def _refuse(self) -> None:
        if self._server.full:
            self._oracle.refuses()
            raise StoreRefused("OOM command not allowed when used memory > 'maxmemory'")

    def _placed(self, lease: Lease) -> Lease:
        return lease._replace(key=place(lease.key, self._codec))

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Renew."""

        async def command() -> None:
            self._refuse()
            await self._server.store.renew(self._placed(lease), ttl)

        await self._ask(command)

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Commit; once more if need be, which is then no failure."""

        async def command() -> None:
            stored = await self._server.store.read(place(lease.key, codec), codec)
            if stored is None or stored.version != lease.version:
                self._refuse()
                await self._server.store.commit(self._placed(lease), entry, codec)

        await self._ask(command)

    async def release(self, lease: Lease, pause: float = 0.0) -> None:
        """Release."""

        async def command() -> None:
            if pause:
                self._refuse()
            await self._server.store.release(self._placed(lease), pause)

        await self._ask(command)
