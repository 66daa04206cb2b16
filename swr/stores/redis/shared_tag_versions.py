"""The tag versions that all processes share: four keys on one server, and what this process has learned from them."""

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
# Seconds that the version of a tag is kept. After that, every tagged entry from before it counts as outdated. Every
# process learns all tags when it starts, so their number must not grow without end.
_KEPT_FOR: Final = 7 * 24 * 3600.0
# How many tag versions a server sends at once, and this process learns in one turn of its event loop. More would block
# the one or the other for long.
_LEARNED_AT_ONCE: Final = 20_000
_LEARNED_IN_ONE_TURN: Final = 1000
_MINIMUM: Final = b"!"
_RAISED_AT_ONCE: Final = 1000
# Microseconds that a version may be ahead of the server's clock: a year, as in the scripts. swr has not written one
# that is further ahead.
_LATEST: Final = 31_536_000_000_000

# A function that sends a command, on one connection or to the server that has one key.
Ask = Callable[..., Awaitable[Any]]


class SharedTagVersions:
    """Learns tag versions that other processes have raised, raises versions, and notices if the server has lost some.

    Parameters:
        servers: knows which server has each key.
        names: the keys of the namespace.
        commands: sends commands to the servers.
        messages: writes the messages.

    Attributes:
        known: the tag versions that this process knows.
        learned: the text of the newest tag version's key (that version and the last clear) up to which this process has
            learned everything. Versions that this process has raised may be newer.
        stamp: the name of the stamp for the server's run that this process last learned from.
        time: the server's clock when this process last learned, in the unit of versions.
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
        # The newest version of a name that this process cannot read. It may concern any entry.
        self._foreign = 0
        # The version that `_learn` had reached when it broke off. On a slow line the next call goes on from there.
        self._learned_to = 0
        # The last stamp that this process has learned: its name, the clear before it, and its time.
        self._stamped = (b"", 0, 0)
        # The numbers of the last call of `_learn` that began, and of the last that succeeded.
        self._begun = self._succeeded = 0

    def open(self, subscriber: Subscriber) -> None:
        """Begin on this event loop; `subscriber` is called with each tag version that was not known."""
        self._subscriber = subscriber
        # This process does not know versions that were raised while it had no subscription.
        self.learned = b""
        self._learned_to = 0
        self._asked = None
        self._learning = asyncio.Lock()

    # -- raising ----------------------------------------------------------------------------------------------

    async def invalidate(self, *names: Name, ask: Ask | None = None) -> None:
        """Raise the versions of `names` (tags, loaders, ALL, or marks of these), and notify every process.

        Parameters:
            names: what to invalidate or to mark.
            ask: sends commands to the server of the tag versions; None: the link to it does.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        for first in range(0, len(names), _RAISED_AT_ONCE):
            newest = self.known.newest
            raised = [(name, NEWEST, "") for name in names[first : first + _RAISED_AT_ONCE]]
            await self._raise(ask or self._ask, newest, newest, raised)

    async def invalidate_announced(self, tags: Sequence[str]) -> None:
        """Raise the versions of those of `tags` that a load has announced.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        newest = self.known.newest
        await self._raise(self._ask, newest, newest, [(tag, NEWEST, self._bits_of(tag)) for tag in tags])

    async def clear_after(self, version: int) -> None:
        """Invalidate everything, unless there was a clear after `version`."""
        if self.known.cleared > version:
            return
        try:
            await self.invalidate(ALL)
        except StoreUnavailable:
            # The server does not know this version. So it clears everything when this process next learns from it.
            self._raise_to(ALL, max(version, self.known.newest + 1))

    async def raise_again(self, ask: Ask, after: int) -> None:
        """Raise the tag versions newer than `after` again, which the server may have lost, over one connection to it.

        From now on, a missing earlier stamp does not outdate everything any more.

        Raises:
            StoreUnavailable, RedisError: the server did not answer, or answered with an error.
        """
        self._stamped = (b"", 0, 0)
        if self.known.minimum > after:
            # This process has forgotten some of these versions, so it invalidates everything.
            await self.invalidate(ALL, ask=ask)
            return
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
        """Return those of `tags` that a load must announce before it begins."""
        return self._announcements.missing(tags, self.known.cleared) if tags else ()

    async def announce(self, tags: tuple[str, ...], ask: Ask | None = None) -> None:
        """Tell the server that loads of entries with `tags` begin, so that it no longer passes over these tags.

        Parameters:
            ask: see `invalidate`.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        known = self.known.newest
        arguments: list[bytes | int | str] = [*self._announcing, known, *map(self._bits_of, tags)]
        now, cleared, lost = await self._run(ask or self._ask, tag_scripts.ANNOUNCE, arguments)
        self._note_loss(lost, known)
        self._raise_to(ALL, int(cleared))
        self._announcements.remember(tags, int(now), int(cleared))

    async def announce_again(self, ask: Ask, after: int) -> None:
        """Repeat the announcements after the time `after`, which the server may have lost, over one connection to it.

        If the server may have passed over an invalidation of one of these tags meanwhile, all of them are invalidated.
        Their entries may be on another server, which has lost nothing.

        Raises:
            StoreUnavailable, RedisError: the server did not answer, or answered with an error.
        """
        last = self._announcements.last
        if last.forgotten > after:
            # This process has forgotten some of the announcements, so it invalidates everything.
            await self.invalidate(ALL, ask=ask)
            return
        tags = [one.key for one in last.since(after)]
        for first in range(0, len(tags), _RAISED_AT_ONCE):
            some = tuple(tags[first : first + _RAISED_AT_ONCE])
            await self.announce(some, ask)
            if await self.was_passed_over(some, after, ask):
                await self._raise(ask, self.known.newest, 0, [(tag, NEWEST, "") for tag in some])

    async def was_passed_over(self, tags: tuple[str, ...], since: int, ask: Ask | None = None) -> bool:
        """Return whether an invalidation of one of `tags` may have been passed over after the version `since`.

        Parameters:
            ask: see `invalidate`.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        bits = [self._bits_of(tag) for tag in tags if is_announced(tag)]
        ask = ask or self._ask
        return bool(await ask("EVAL", tag_scripts.PASSED_OVER, 1, self._names.passed_over, since, *bits))

    # -- learning ---------------------------------------------------------------------------------------------

    def on_message(self, name: Name, number: int, before: bytes) -> bool:
        """Learn of a tag version from a message; return False if it was known.

        Parameters:
            name: a tag, a loader, ALL, or a mark of these.
            number: its version.
            before: the digits of the newest version before it, if the message came from the server of the tag versions.
                If this process has learned that version, it has missed none in between. Otherwise a user without the
                right to publish may have raised some. A clear has 0 here, because versions begin again.
        """
        if before and before == self.learned[:16]:
            self.learned = digits(number).encode() + self.learned[16:]
        return self.known.raise_to(name, number)

    async def learn(self, ask: Ask) -> None:
        """Learn the tag versions that were missed, over one connection to their server.

        If the server has lost any, swr outdates all entries for every process.

        Raises:
            StoreUnavailable, RedisError: the server did not answer, or answered with an error.
        """
        begun = self._begun
        async with self._learning:
            if self._succeeded > begun:
                # Another call has learned since this one began. That is enough for all waiting callers.
                return
            self._begun += 1
            await self._learn(ask)
            self._succeeded = self._begun

    async def learn_from(self, held: bytes | None) -> int:
        """Learn tag versions if the text of the newest tag version's key is new; return the newest known version.

        Parameters:
            held: that text, empty if the key does not exist; None if its server could not be reached.

        Raises:
            StoreUnavailable: the server did not answer; in a cluster, None is an error only until anything was learned.
        """
        if held is None:
            if self._servers.is_single or not self.learned:
                reason = self._servers.error or "the connection was lost"
                raise StoreUnavailable(f"cannot reach Redis at {self._servers.name} ({reason})")
            # The master of the tag versions cannot be reached, but the one of the entry can: use the known versions.
        elif held != self.learned:
            await self.learn(self._ask)
        return self.known.newest

    def newest_soon(self) -> asyncio.Future[bytes | None]:
        """Return the text of the newest tag version's key; None if its server cannot be reached.

        All callers in one turn of the event loop share one command.
        """
        if self._asked is None:
            self._asked = asyncio.ensure_future(self._newest())
            asyncio.get_running_loop().call_soon(self._next_turn)
        # The shield keeps the command alive for the other callers if one is cancelled.
        return asyncio.shield(self._asked)

    def _next_turn(self) -> None:
        self._asked = None

    async def _newest(self) -> bytes | None:
        try:
            # MGET, because a foreign value of another type is not an error for it.
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
            # After a full answer this asks again, whether or not versions are raised meanwhile.
            is_all = len(numbers) < _LEARNED_AT_ONCE
            clear, after = int(learned[16:]), max(numbers, default=0)
            self._stamped = self.stamp, clear, int(stamped)
            # swr has not written a version beyond the newest.
            self._learned_to = min(after, int(learned[:16]))
        # The newest version may have been trimmed away; the minimum then covers it.
        self.known.newest = max(self.known.newest, int(learned[:16]))
        self.learned = learned
        if self.known.cleared < self._foreign <= int(learned[:16]):
            await self.invalidate(ALL, ask=ask)

    def _note_loss(self, is_lost: int, known: int) -> None:
        """Log that the server has lost tag versions, unless this process did not know any either."""
        if is_lost and known:
            self._commands.warn_once(
                "lost tag versions",
                f"Redis has lost tag versions of the namespace {self._names.prefix.decode()!r}, so that everything "
                f"in it is outdated: it has evicted them (set maxmemory-policy to volatile-lru), or somebody has "
                f"deleted them or put older data in their place",
            )

    async def _learn_some(self, found: list[bytes]) -> list[int]:
        """Learn of members, each followed by its version; return the versions."""
        numbers = [int(float(score)) for score in found[1::2]]
        for first in range(0, len(numbers), _LEARNED_IN_ONE_TURN):
            for position in range(first, min(first + _LEARNED_IN_ONE_TURN, len(numbers))):
                self._learn_one(found[2 * position], numbers[position])
            await asyncio.sleep(0)
        return numbers

    def _learn_one(self, member: bytes, number: int) -> None:
        if member == _MINIMUM:
            if self.known.raise_minimum(number):
                # ALL, because the minimum may concern any entry with a tag.
                self._subscriber(Notification(Kind.TAG_VERSION, ALL, number))
            return
        try:
            self._raise_to(name_in(member, self._names), number)
        except ForeignName:
            self._foreign = max(self._foreign, number)
        except ValueError:
            # swr has not written this member, so no entry has it as a tag.
            pass
