"""Long lists of items, split so that they do not block the event loop, and the invalidations that come meanwhile."""

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from swr.engine.engine import Engine
from swr.entry import Entry
from swr.stores.base import Kind, Notification

T = TypeVar("T")

# Most items of one call of a loader, and of one lookup.
MOST_AT_ONCE: Final = 1000
# Number of items that swr works on in one turn of the event loop.
IN_ONE_TURN: Final = 100


def parts(items: list[T], size: int = IN_ONE_TURN) -> Iterator[tuple[int, list[T]]]:
    """Yield numbered lists of `size` items at most. Between two lists the caller lets other tasks run."""
    for number, first in enumerate(range(0, len(items), size)):
        yield number, items[first : first + size]


class Outdated:
    """A `with` block that notes invalidations, so that a long call does not return answers that they outdated.

    Parameters:
        engine: its notifications tell of invalidations.
        keys: the key of each item; items may be added.
    """

    def __init__(self, engine: Engine, keys: Mapping[Any, str]) -> None:
        self._engine = engine
        self._keys = keys
        self._invalidated: set[str] = set()
        self._has_tags = False
        self._end: Callable[[], None]

    def __enter__(self) -> Self:
        self._end = self._engine.notifications.subscribe(self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _note(self, notification: Notification) -> None:
        if notification.kind is Kind.INVALIDATED:
            self._invalidated.add(notification.text)
        elif notification.kind is not Kind.COMMITTED:
            self._has_tags = True

    def among(self, entries: Mapping[Any, Entry[Any]]) -> list[Any]:
        """Return the items whose entries were invalidated since the last call."""
        names, has_tags = self._invalidated, self._has_tags
        self._invalidated, self._has_tags = set(), False
        if not names and not has_tags:
            return []
        admits_entry = self._engine.store.tag_versions.admits_entry
        return [item for item, entry in entries.items() if self._keys[item] in names or not admits_entry(entry)]
