"""The last invalidations of keys, this process's own and others': a server that has lost writes may lack them."""

from typing import Final

from swr.entry import Entry

_MOST: Final = 10_000


class Invalidations:
    """Which keys were invalidated last, and at which version.

    Attributes:
        forgotten: the newest version of those that were too many to remember.
    """

    def __init__(self) -> None:
        self.forgotten = 0
        # By key, the last to be invalidated last.
        self._versions: dict[str, int] = {}

    def remember(self, key: str, version: int) -> None:
        """Keep an invalidation, and forget the oldest if there are too many."""
        self._versions[key] = max(version, self._versions.pop(key, 0))
        if len(self._versions) > _MOST:
            self.forgotten = max(self.forgotten, self._versions.pop(next(iter(self._versions))))

    def outdates(self, key: str, entry: Entry[object]) -> bool:
        """Return whether `key` was invalidated after the load of `entry` began."""
        return entry.version < self._versions.get(key, 0)

    def version(self, key: str) -> int:
        """Return the version of the last invalidation of `key`; 0 for none."""
        return self._versions.get(key, 0)

    def since(self, version: int) -> list[tuple[str, int]]:
        """Return the keys that were invalidated after a version, and when."""
        return [(key, known) for key, known in self._versions.items() if known > version]
