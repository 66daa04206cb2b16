"""Operations under way on a key, which must bring no entry that a notification has outdated."""

from typing import Self


class Watch:
    """The operations on one key and type under way: an entry they bring must be at least as new as `minimum`.

    One that is older than `marked_at` is stale.
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
