"""The tag versions that all processes share: two keys on one server, and what this process has learned of them."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from swr.errors import StoreUnavailable
from swr.stores.base import NEWEST, Kind, Notification, Subscriber
from swr.stores.redis import tag_scripts
from swr.stores.redis.announcements import Announcements, bits_of
from swr.stores.redis.commands import Commands
from swr.stores.redis.messages import Messages, member_of, name_in
from swr.stores.redis.names import ForeignName, Names
from swr.stores.redis.scripts import digits
from swr.stores.redis.topology import Servers
from swr.stores.tag_versions import ALL, Name, TagVersions, is_announced

_MOST_TAGS: Final = 100_000
# Seconds that a tag is kept. An entry with any tag that was loaded before the oldest one counts as outdated. Every
# process learns all tags when it starts, so they must not become ever more.
_KEPT_FOR: Final = 7 * 24 * 3600.0
# How many a server is asked for at once, and in one turn of the event loop: neither is to be held for long.
_LEARNED_AT_ONCE: Final = 20_000
_LEARNED_IN_ONE_TURN: Final = 1000
_MINIMUM: Final = b"!"
_RAISED_AT_ONCE: Final = 1000
# Microseconds: a version that is further ahead of the server's clock is foreign.
_LATEST: Final = 86_400_000_000

# Sends a command, on one connection or to the server that has one key.
Ask = Callable[..., Awaitable[Any]]


class SharedTagVersions:
    """Learns of tag versions that others have raised, raises them, and finds out when the server has lost some.

    Parameters:
        servers: which server has which key.
        names: the keys of the namespace.
        commands: sends commands to the servers.
        messages: writes the messages.

    Attributes:
        known: what this process knows.
        learned: what the key of the newest tag version held when everything in it was known: that version and the
            last clear. Versions that this process has raised may be newer.
        stamp: names the run of their server that this process last learned from.
        time: the clock of their server when this process last learned, in the unit of versions.
    """

    def __init__(self, servers: Servers, names: Names, commands: Commands, messages: Messages) -> None:
        self.known = TagVersions(_MOST_TAGS)
        self.learned = b""
        self.stamp = tag_scripts.STAMP
        self.time = 0
        self._servers = servers
        self._names = names
        self._commands = commands
        self._messages = messages
        self._keys = (names.tag_versions, names.newest_tag_version, names.announcements, names.passed_over)
        self._announcements = Announcements()
        self._ask = functools.partial(commands.ask, names.newest_tag_version)
        self._asked: asyncio.Future[bytes | None] | None = None
        # The newest version of what has another name here. It may be anything.
        self._foreign = 0
        # Up to where a lesson has come that broke off: on a slow line the next one goes on from there.
        self._learned_to = 0
        # The stamp of the last lesson, the clear that it came after, and its time.
        self._stamped = (b"", 0, 0)
        # The number of the last lesson that began, and of the last that succeeded.
        self._begun = self._succeeded = 0

    def open(self, subscriber: Subscriber) -> None:
        """Begin on this event loop; `subscriber` is called with each tag version that was not known."""
        self._subscriber = subscriber
        # Versions that were raised while this process had no subscription are not known.
        self.learned = b""
        self._learned_to = 0
        self._asked = None
        self._learning = asyncio.Lock()

    # -- raising ----------------------------------------------------------------------------------------------

    async def invalidate(self, *names: Name, ask: Ask | None = None) -> None:
        """Raise the versions of tags, of ALL or of what else is named, and notify every process.

        Parameters:
            names: which.
            ask: sends commands to the server that has the tag versions; None: over the link to it.

        Raises:
            StoreUnavailable: no answer.
        """
        for first in range(0, len(names), _RAISED_AT_ONCE):
            newest = self.known.newest
            raised = [(name, NEWEST, "") for name in names[first : first + _RAISED_AT_ONCE]]
            await self._raise(ask or self._ask, newest, newest, raised)

    async def invalidate_announced(self, tags: Sequence[str]) -> None:
        """Raise the versions of those of `tags` that a load has announced.

        Raises:
            StoreUnavailable: no answer.
        """
        newest = self.known.newest
        await self._raise(self._ask, newest, newest, [(tag, NEWEST, self._bits_of(tag)) for tag in tags])

    async def clear_after(self, version: int) -> None:
        """Invalidate everything, unless that was done after `version`."""
        if self.known.cleared > version:
            return
        try:
            await self.invalidate(ALL)
        except StoreUnavailable:
            # Known here and not to the server, so that it clears everything when this process next learns.
            self._raise_to(ALL, max(version, self.known.newest + 1))

    async def raise_again(self, ask: Ask, after: int) -> None:
        """Raise the tag versions after a number that the server has lost, over one connection to it.

        From now on the server may lack an earlier stamp: that is not a reason any more to outdate everything.

        Raises:
            StoreUnavailable, RedisError: no answer.
        """
        self._stamped = (b"", 0, 0)
        tags = self.known.since(after)
        for first in range(0, len(tags), _RAISED_AT_ONCE):
            some = [(tag, number, "") for tag, number in tags[first : first + _RAISED_AT_ONCE]]
            await self._raise(ask, self.known.newest, 0, some)

    async def _raise(self, ask: Ask, known: int, least: int, tags: Iterable[tuple[Name, int, str]]) -> None:
        arguments: list[bytes | int | str] = [*self._announcing, _MOST_TAGS, known, least, int(_KEPT_FOR * 1e6)]
        for tag, number, bits in tags:
            arguments += (member_of(tag, self._names), number, bits)
        now, lost, *raised = await self._run(ask, tag_scripts.RAISE_TAG_VERSIONS, arguments)
        self._note_loss(lost, known)
        self.time = max(self.time, int(now))
        for name, number in zip(raised[::2], raised[1::2], strict=True):
            self._raise_to(name_in(name, self._names), int(number))

    async def _run(self, ask: Ask, script: str, arguments: Sequence[bytes | str | int]) -> Any:
        return await ask("EVAL", script, len(self._keys), *self._keys, *arguments)

    @property
    def _announcing(self) -> tuple[bytes, str, str, bytes]:
        return self._messages.channel, Kind.TAG_VERSION.value, self._messages.instance, self.stamp

    def _raise_to(self, name: Name, number: int) -> None:
        if self.known.raise_to(name, number):
            self._subscriber(Notification(Kind.TAG_VERSION, name, number))

    def _bits_of(self, tag: str) -> str:
        return bits_of(self._names.hidden(tag))

    # -- announcing -------------------------------------------------------------------------------------------

    def unannounced(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of `tags` that a load has to announce first."""
        return self._announcements.missing(tags, self.known.cleared) if tags else ()

    async def announce(self, tags: tuple[str, ...], ask: Ask | None = None) -> None:
        """Tell the server that loads of what carries `tags` begin: from now on it gives them versions.

        Parameters:
            ask: see `invalidate`.

        Raises:
            StoreUnavailable: no answer.
        """
        known = self.known.newest
        arguments: list[bytes | int | str] = [*self._announcing, known, *map(self._bits_of, tags)]
        now, cleared, lost = await self._run(ask or self._ask, tag_scripts.ANNOUNCE, arguments)
        self._note_loss(lost, known)
        self._raise_to(ALL, int(cleared))
        self._announcements.remember(tags, int(now), int(cleared))

    async def announce_again(self, ask: Ask, after: int) -> None:
        """Repeat the announcements after a time that the server has lost, over one connection to it.

        If it may have passed over an invalidation of one of these tags meanwhile, all of them get a version. Their
        entries may be on a server that has lost nothing.

        Raises:
            StoreUnavailable, RedisError: no answer.
        """
        last = self._announcements.last
        if last.forgotten > after:
            # Too many to know them one by one: whatever carries them is outdated.
            await self.invalidate(ALL, ask=ask)
            return
        tags = [one.key for one in last.since(after)]
        for first in range(0, len(tags), _RAISED_AT_ONCE):
            some = tuple(tags[first : first + _RAISED_AT_ONCE])
            await self.announce(some, ask)
            if await self.was_passed_over(some, after, ask):
                await self._raise(ask, self.known.newest, 0, [(tag, NEWEST, "") for tag in some])

    async def was_passed_over(self, tags: tuple[str, ...], since: int, ask: Ask | None = None) -> bool:
        """Return whether an invalidation of one of `tags` may have been passed over after a time.

        Parameters:
            ask: see `invalidate`.

        Raises:
            StoreUnavailable: no answer.
        """
        bits = [self._bits_of(tag) for tag in tags if is_announced(tag)]
        ask = ask or self._ask
        return bool(await ask("EVAL", tag_scripts.PASSED_OVER, 1, self._names.passed_over, since, *bits))

    # -- learning ---------------------------------------------------------------------------------------------

    def on_message(self, name: Name, number: int, before: bytes) -> bool:
        """Learn of a tag version from a message; return False if it was known.

        Parameters:
            name: a tag, ALL, or another name.
            number: its version.
            before: the digits of the newest one before, if the message came from the server that makes the versions.
                If that was learned, nothing is missing in between: a user without the right to publish may have
                raised others. A clear names none, because it begins again.
        """
        if before and before == self.learned[:16]:
            self.learned = digits(number).encode() + self.learned[16:]
        return self.known.raise_to(name, number)

    async def learn(self, ask: Ask) -> None:
        """Learn of what was missed, over one connection to the server that has the tag versions.

        If the server has lost any, everything is outdated, here and for every process.

        Raises:
            StoreUnavailable, RedisError: no answer.
        """
        begun = self._begun
        async with self._learning:
            if self._succeeded > begun:
                # One lesson that began after this call is enough for all who wait for one.
                return
            self._begun += 1
            await self._learn(ask)
            self._succeeded = self._begun

    async def learn_from(self, held: bytes | None) -> int:
        """Learn of tag versions if the key of the newest holds something new; return the newest that is known.

        Parameters:
            held: what the key holds, empty for nothing; None if that cannot be known.

        Raises:
            StoreUnavailable: no answer, and nothing was learned since the opening.
        """
        if held is None:
            if self._servers.is_single or not self.learned:
                raise StoreUnavailable(f"cannot reach Redis at {self._servers.name} ({self._servers.error})")
            # The master that knows cannot be reached, but the one that has the key can: use what is known here.
        elif held != self.learned:
            await self.learn(self._ask)
        return self.known.newest

    def newest_soon(self) -> asyncio.Future[bytes | None]:
        """Read the key of the newest, once for all who ask in one turn of the event loop; None: it cannot be known."""
        if self._asked is None:
            self._asked = asyncio.ensure_future(self._newest())
            asyncio.get_running_loop().call_soon(self._next_turn)
        # A reader that is cancelled does not take the answer from the others.
        return asyncio.shield(self._asked)

    def _next_turn(self) -> None:
        self._asked = None

    async def _newest(self) -> bytes | None:
        try:
            # MGET, for which a foreign value of another type is not an error.
            (held,) = await self._ask("MGET", self._names.newest_tag_version)
        except StoreUnavailable:
            return None
        return held or b""

    async def _learn(self, ask: Ask) -> None:
        known, clear = self.known.newest, self.known.cleared
        after = max(self._learned_to, int(self.learned[:16] or 0))
        is_all = False
        while not is_all:
            stamped = self._stamped[2] if self._stamped[:2] == (self.stamp, clear) else 0
            arguments = (*self._announcing, known, clear, after, stamped, _LEARNED_AT_ONCE)
            lost, now, learned, found, stamped = await self._run(ask, tag_scripts.LEARN, arguments)
            self.time = int(now)
            self._messages.latest = self.time + _LATEST
            self._note_loss(lost, known or lost > 1)
            numbers = await self._learn_some(found)
            # The others come with the next answer, whatever is raised meanwhile.
            is_all = len(numbers) < _LEARNED_AT_ONCE
            clear, after = int(learned[16:]), max(numbers, default=0)
            self._stamped = self.stamp, clear, int(stamped)
            # A number beyond the newest is foreign.
            self._learned_to = min(after, int(learned[:16]))
        # The newest may have been trimmed away; the minimum then covers it.
        self.known.newest = max(self.known.newest, int(learned[:16]))
        self.learned = learned
        if self.known.cleared < self._foreign <= int(learned[:16]):
            await self.invalidate(ALL, ask=ask)

    def _note_loss(self, is_lost: int, known: int) -> None:
        """Log that the server has lost tag versions, unless everything is new to this process, too."""
        if is_lost and known:
            self._commands.warn_once(
                "lost tag versions",
                f"Redis has lost tag versions of the namespace {self._names.prefix.decode()!r}, so that everything "
                f"in it is outdated: it has evicted them (set maxmemory-policy to volatile-lru), or somebody has "
                f"deleted them or put older data in their place",
            )

    async def _learn_some(self, found: list[bytes]) -> list[int]:
        """Learn of members, each followed by its number; return the numbers."""
        numbers = [int(float(score)) for score in found[1::2]]
        for first in range(0, len(numbers), _LEARNED_IN_ONE_TURN):
            for position in range(first, min(first + _LEARNED_IN_ONE_TURN, len(numbers))):
                self._learn_one(found[2 * position], numbers[position])
            await asyncio.sleep(0)
        return numbers

    def _learn_one(self, member: bytes, number: int) -> None:
        if member == _MINIMUM:
            if self.known.raise_minimum(number):
                # ALL, because it may concern whatever has a tag.
                self._subscriber(Notification(Kind.TAG_VERSION, ALL, number))
            return
        try:
            self._raise_to(name_in(member, self._names), number)
        except ForeignName:
            self._foreign = max(self._foreign, number)
        except ValueError:
            # What swr has not written is the tag of no entry.
            pass
