"""The last invalidations of keys, by this process and by others. A server that has lost writes may lack them."""

from typing import Any, Final, NamedTuple

from swr.entry import Entry, marked_stale

_MOST: Final = 10_000


class LastInvalidation(NamedTuple):
    """A key that was invalidated, or marked stale, and at which version."""

    key: str
    version: int
    is_mark: bool = False


class Invalidations:
    """The keys that were invalidated or marked last, each with its version.

    Attributes:
        forgotten: the newest version among the invalidations and marks that were forgotten, because there were too
            many.
    """

    def __init__(self) -> None:
        self.forgotten = 0
        # The version of the last invalidation, and of the last mark, by key. The most recent comes last.
        self._versions: dict[str, int] = {}
        self._marks: dict[str, int] = {}

    def remember(self, key: str, version: int, *, is_mark: bool = False) -> None:
        """Keep an invalidation or a mark, and forget the oldest if there are too many."""
        versions = self._marks if is_mark else self._versions
        versions[key] = max(version, versions.pop(key, 0))
        if len(versions) > _MOST:
            self.forgotten = max(self.forgotten, versions.pop(next(iter(versions))))

    def outdates(self, key: str, entry: Entry[object]) -> bool:
        """Return whether `key` was invalidated after the load of `entry` began."""
        return entry.version < self._versions.get(key, 0)

    def marked(self, key: str, entry: Entry[Any]) -> Entry[Any]:
        """Return `entry`, marked stale if its key was marked after its load began."""
        version = self._marks.get(key, 0)
        return marked_stale(entry, version) if entry.version < version else entry

    def version(self, key: str) -> int:
        """Return the version of the last invalidation of `key`; 0 for none."""
        return self._versions.get(key, 0)

    def since(self, version: int) -> list[LastInvalidation]:
        """Return the keys that were invalidated or marked after a version."""
        hard = [LastInvalidation(key, known) for key, known in self._versions.items() if known > version]
        return hard + [LastInvalidation(key, known, True) for key, known in self._marks.items() if known > version]
