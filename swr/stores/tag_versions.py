"""Tag versions: invalidation by tag, by loader and of everything, in one step however many entries there are.

A tag version is a number that only grows. An entry carries the newest one known when its load began
(`Entry.tag_version`). Invalidating a tag raises that tag's version, and so outdates every entry with the tag that
carries a smaller number. No entry is visited. The entries of a loader are invalidated in the same way.

A clear is a tag version that outdates every entry with a smaller number, tagged or not. A store that loses tag
versions begins with a clear, because it no longer knows which entries the lost versions had outdated.

Marking a tag stale raises a separate version. Entries with a smaller number are stale (`swr.entry.marked_stale`).

Each request with an unsafe method invalidates the tag of its URL on its host, and most such URLs are never cached. So
loads announce tags of this kind, and an invalidation passes over such a tag if no load has announced it.
"""

from typing import Any, Final

import msgspec

from swr.core.keys import URL_ON_HOST, loader_digest
from swr.entry import Entry

# The name of a clear. No tag has it, because a tag is not empty.
ALL: Final = ""


class OfLoader(msgspec.Struct, frozen=True):
    """All entries of the loaders with one key template."""

    template: str


class OfKey(msgspec.Struct, frozen=True):
    """All entries under one key. A key has no tag version: the entries themselves store when they were marked."""

    key: str


class Soft(msgspec.Struct, frozen=True):
    """A name of entries that are marked stale, not invalidated."""

    of: str | OfLoader | OfKey


# A name to invalidate or to mark in one step: a tag, ALL, a loader, or one of these as `Soft`.
Name = str | OfLoader | Soft


def concerns(name: Name, tags: tuple[str, ...], loader: str) -> bool:
    """Return whether invalidating or marking `name` concerns an entry with these tags, of a loader; see `Entry`."""
    of = name.of if isinstance(name, Soft) else name
    if isinstance(of, OfLoader):
        return loader == loader_digest(of.template)
    return of == ALL or of in tags


class Raised:
    """Numbers that only grow: one for everything, one for each tag and one for each loader."""

    __slots__ = ("all", "loaders", "tags")

    def __init__(self) -> None:
        self.all = 0
        self.tags: dict[str, int] = {}
        # The number and the template of each loader, by the digest that entries carry (`Entry.loader`).
        self.loaders: dict[str, tuple[int, str]] = {}

    def raise_to(self, name: str | OfLoader, number: int, least: int) -> int:
        """Note a new version; return the version known before, for a tag at least `least`."""
        if isinstance(name, OfLoader):
            digest = loader_digest(name.template)
            known = self.loaders.get(digest, (0, ""))[0]
            self.loaders[digest] = max(known, number), name.template
        elif name == ALL:
            known, self.all = self.all, max(self.all, number)
        else:
            known = max(self.tags.pop(name, 0), least)
            # Newest last, so that the oldest are the first to be forgotten.
            self.tags[name] = max(known, number)
        return known

    def of(self, tags: tuple[str, ...], loader: str) -> int:
        """Return the newest version that concerns an entry with these tags and this loader."""
        newest = max(self.all, self.loaders[loader][0]) if loader in self.loaders else self.all
        for tag in tags:
            newest = max(newest, self.tags.get(tag, 0))
        return newest

    def trim(self, most: int) -> int:
        """Forget the oldest tenth of the tags if there are more than `most`; return its newest version, or 0."""
        if len(self.tags) <= most:
            return 0
        oldest = list(self.tags)[: max(1, most // 10)]
        return max(self.tags.pop(tag) for tag in oldest)

    def since(self, number: int) -> list[tuple[str | OfLoader, int]]:
        """Return the names whose versions are newer than `number`, with these versions."""
        named: list[tuple[str | OfLoader, int]] = [(ALL, self.all), *self.tags.items()]
        named += [(OfLoader(template), raised) for raised, template in self.loaders.values()]
        return [(name, raised) for name, raised in named if raised > number]


def is_announced(tag: str) -> bool:
    """Return whether loads announce `tag` before they begin, so that the store knows whether anything carries it."""
    return tag.startswith(URL_ON_HOST)


class TagVersions:
    """The tag versions, as far as one process knows them.

    Parameters:
        most_tags: how many tags to remember. With more, the oldest tenth is forgotten and the minimum is raised. Every
            tagged entry older than the minimum counts as outdated, which invalidates too much and never too little.

    Attributes:
        newest: the newest of all versions.
        minimum: the newest version that may have been forgotten, or 0.
    """

    __slots__ = ("_hard", "_most", "_soft", "minimum", "newest")

    def __init__(self, most_tags: int = 100_000) -> None:
        self.newest = 0
        self.minimum = 0
        self._most = most_tags
        self._hard = Raised()
        self._soft = Raised()

    @property
    def cleared(self) -> int:
        """The version of the last clear."""
        return self._hard.all

    def raise_to(self, name: Name, number: int) -> bool:
        """Learn that `name` was invalidated or marked at version `number`; return False if that was known."""
        self.newest = max(self.newest, number)
        if isinstance(name, Soft):
            assert not isinstance(name.of, OfKey)
            raised, known = self._soft, self._soft.raise_to(name.of, number, self.minimum)
        else:
            raised, known = self._hard, self._hard.raise_to(name, number, self.minimum)
        self.minimum = max(self.minimum, raised.trim(self._most))
        return number > known

    def raise_minimum(self, number: int) -> bool:
        """Learn that every tagged entry older than `number` may be outdated; return False if that was known."""
        self.newest = max(self.newest, number)
        known, self.minimum = self.minimum, max(self.minimum, number)
        return number > known

    def admits_entry(self, entry: Entry[Any]) -> bool:
        """Return whether an entry is still valid: nothing that concerns it was invalidated since its load began."""
        return self.admits(entry.tag_version, entry.tags, entry.loader)

    def admits_stored(self, entry: Entry[Any]) -> bool:
        """Return whether an entry that was read from the store is valid; `newest` must be the store's.

        An entry that carries a newer version was stored before the store lost its versions and its clock was set back.
        """
        # Most entries carry the newest version: nothing was invalidated since their loads began.
        known, newest = entry.tag_version, self.newest
        return known == newest or (known < newest and self.admits_entry(entry))

    def admits(self, tag_version: int, tags: tuple[str, ...], loader: str = "") -> bool:
        """Return whether a value with these tags is valid if its load began when `tag_version` was the newest."""
        if tag_version < self._hard.all:
            return False
        if tag_version >= self.newest or not (tags or loader):
            return True
        return tag_version >= (self.minimum if tags else 0) and tag_version >= self._hard.of(tags, loader)

    def marked_at(self, entry: Entry[Any]) -> int:
        """Return the version at which the entry's tags or loader, or ALL, were marked since its load began, or 0."""
        if entry.tag_version >= self.newest:
            return 0
        number = self._soft.of(entry.tags, entry.loader)
        return number if number > entry.tag_version else 0

    def since(self, number: int) -> list[tuple[Name, int]]:
        """Return the names that were invalidated or marked after version `number`, with their versions."""
        soft = [(Soft(name), raised) for name, raised in self._soft.since(number)]
        return [*self._hard.since(number), *soft]
