"""Barriers: invalidation by tag, and of everything, in one step however many entries there are.

A barrier is a number that only grows. An entry carries the newest barrier known when its load began
(`Entry.head`); a tag's barrier outdates every entry with that tag whose head is smaller. Nothing is walked.
"""

from typing import Final

ALL: Final = "*"
FLOOR: Final = "!"


class Barriers:
    """What one process knows of the barriers.

    Parameters:
        most_tags: how many tags to remember. Past that the oldest tenth is forgotten and a floor raised:
            every tagged entry older than the floor is outdated, which invalidates too much and never too little.
    """

    __slots__ = ("_clear", "_floor", "_most", "_tags", "head")

    def __init__(self, most_tags: int = 100_000) -> None:
        self.head = 0
        self._clear = 0
        self._floor = 0
        self._most = most_tags
        self._tags: dict[str, int] = {}

    def raise_to(self, name: str, number: int) -> bool:
        """Learn that `name` (a tag, ALL or FLOOR) was invalidated at `number`; False if that was known."""
        self.head = max(self.head, number)
        if name == ALL:
            known, self._clear = self._clear, max(self._clear, number)
        elif name == FLOOR:
            known, self._floor = self._floor, max(self._floor, number)
        else:
            known = max(self._tags.pop(name, 0), self._floor)
            # Newest last, so that the oldest are the first to be forgotten.
            self._tags[name] = max(known, number)
            if len(self._tags) > self._most:
                self._trim()
        return number > known

    def _trim(self) -> None:
        oldest = list(self._tags)[: max(1, self._most // 10)]
        self._floor = max(self._floor, *(self._tags.pop(tag) for tag in oldest))

    def admits(self, head: int, tags: tuple[str, ...]) -> bool:
        """Whether an entry with these tags, loaded when `head` was the newest barrier, still counts."""
        if head < self._clear:
            return False
        if not tags or head >= self.head:
            return True
        return head >= self._floor and all(head >= self._tags.get(tag, 0) for tag in tags)

    def items(self) -> list[tuple[str, int]]:
        """Every barrier, to be pushed to a store that has lost them."""
        named = [(ALL, self._clear), (FLOOR, self._floor)]
        return [(name, number) for name, number in (*named, *self._tags.items()) if number]
