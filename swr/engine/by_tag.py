"""An index of objects by tag: it finds the flights with a tag, for example, without a scan of all flights."""

from typing import Generic, TypeVar

T = TypeVar("T")


class ByTag(Generic[T]):
    """An index of members by each of their tags. Members of a tag come in the order in which they were added."""

    def __init__(self) -> None:
        self._members: dict[str, dict[T, None]] = {}
        self._tags: dict[T, tuple[str, ...]] = {}

    def add(self, member: T, tags: tuple[str, ...]) -> None:
        """Index `member` by `tags`, in addition to the tags that it has already."""
        if not tags:
            return
        known = self._tags.get(member, ())
        new = tuple(tag for tag in dict.fromkeys(tags) if tag not in known)
        if new:
            self._tags[member] = known + new
            for tag in new:
                self._members.setdefault(tag, {})[member] = None

    def remove(self, member: T) -> None:
        """Remove `member` from the index."""
        for tag in self._tags.pop(member, ()):
            members = self._members[tag]
            del members[member]
            if not members:
                del self._members[tag]

    def of(self, tag: str) -> list[T]:
        """Return the members with `tag`."""
        return list(self._members.get(tag, ()))

    def clear(self) -> None:
        """Forget all members."""
        self._members.clear()
        self._tags.clear()
