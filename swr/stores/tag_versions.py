"""Tag versions: invalidation by tag, and of everything, in one step however many entries there are.

A tag version is a number that only grows. An entry carries the newest one known when its load began
(`Entry.tag_version`); invalidating a tag raises that tag's version and so outdates every entry with the tag that
carries a smaller number. Nothing is walked.

A clear is a tag version that outdates every entry with a smaller number, tagged or not. A store that loses tag
versions begins with a clear: it cannot tell any more which entries they had outdated.
"""

from typing import Final

# The name of a clear. No tag has it, because a tag is not empty.
ALL: Final = ""


class TagVersions:
    """What one process knows of the tag versions.

    Parameters:
        most_tags: how many tags to remember. Past that the oldest tenth is forgotten and the minimum raised: every
            tagged entry older than the minimum is outdated, which invalidates too much and never too little.

    Attributes:
        newest: the newest version of all.
        cleared: the version of the last clear.
    """

    __slots__ = ("_minimum", "_most", "_tags", "cleared", "newest")

    def __init__(self, most_tags: int = 100_000) -> None:
        self.newest = 0
        self.cleared = 0
        self._minimum = 0
        self._most = most_tags
        self._tags: dict[str, int] = {}

    def raise_to(self, name: str, number: int) -> bool:
        """Learn that `name` (a tag or ALL) was invalidated at `number`; False if that was known."""
        self.newest = max(self.newest, number)
        if name == ALL:
            known, self.cleared = self.cleared, max(self.cleared, number)
        else:
            known = max(self._tags.pop(name, 0), self._minimum)
            # Newest last, so that the oldest are the first to be forgotten.
            self._tags[name] = max(known, number)
            if len(self._tags) > self._most:
                self._trim()
        return number > known

    def raise_minimum(self, number: int) -> bool:
        """Learn that every tagged entry older than `number` may be outdated; False if that was known."""
        self.newest = max(self.newest, number)
        known, self._minimum = self._minimum, max(self._minimum, number)
        return number > known

    def _trim(self) -> None:
        oldest = list(self._tags)[: max(1, self._most // 10)]
        self._minimum = max(self._minimum, *(self._tags.pop(tag) for tag in oldest))

    def admits(self, tag_version: int, tags: tuple[str, ...]) -> bool:
        """Whether an entry with these tags, loaded when `tag_version` was the newest, still counts."""
        if tag_version < self.cleared:
            return False
        if not tags or tag_version >= self.newest:
            return True
        return tag_version >= self._minimum and all(tag_version >= self._tags.get(tag, 0) for tag in tags)

    def since(self, number: int) -> list[tuple[str, int]]:
        """Return what was invalidated after `number`, by name (a tag or ALL)."""
        named = ((ALL, self.cleared), *self._tags.items())
        return [(name, raised) for name, raised in named if raised > number]
