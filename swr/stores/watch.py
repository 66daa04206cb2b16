"""Watches over operations under way, so that none brings an entry that a notification has outdated."""

from typing import Self


class Watch:
    """The operations under way on one key and type, and the versions that their entries must have.

    Attributes:
        minimum: an entry with an older version is refused.
        marked_at: an entry with an older version is stale; 0: no mark came meanwhile.
    """

    __slots__ = ("_fingerprint", "_key", "_under_way", "_watches", "marked_at", "minimum")

    def __init__(self, watches: "dict[str, dict[str, Watch]]", key: str, fingerprint: str) -> None:
        self.minimum = 0
        self.marked_at = 0
        self._under_way = 0
        self._watches = watches
        self._key = key
        self._fingerprint = fingerprint

    def __enter__(self) -> Self:
        self._under_way += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._under_way -= 1
        if not self._under_way:
            of_key = self._watches[self._key]
            del of_key[self._fingerprint]
            if not of_key:
                del self._watches[self._key]
