"""The tags of URLs that this process has announced to the server, each before a load whose entry may carry it."""

import hashlib
from typing import Final

from swr.stores.redis.invalidations import Invalidations
from swr.stores.redis.tag_scripts import ANNOUNCED_BITS
from swr.stores.tag_versions import is_announced

_BITS_EACH: Final = 3
# Bits of the text before the Bloom filter.
_OFFSET: Final = 256


class Announcements:
    """The last announcements of this process.

    Attributes:
        last: their times by tag, in the unit of versions. A server that has lost writes may lack them.
    """

    def __init__(self) -> None:
        self.last = Invalidations()
        # The version of the clear after which they were made. The next clear ends them.
        self._cleared = 0

    def missing(self, tags: tuple[str, ...], cleared: int) -> tuple[str, ...]:
        """Return those of `tags` that loads must announce, and that this process has not announced since a clear.

        Parameters:
            cleared: the version of the last clear.
        """
        return tuple(
            tag for tag in tags if is_announced(tag) and (cleared > self._cleared or not self.last.version(tag))
        )

    def remember(self, tags: tuple[str, ...], now: int, cleared: int) -> None:
        """Note announcements that the server has taken.

        Parameters:
            now: when the server took them, by its clock.
            cleared: the version of the last clear that the server knows.
        """
        if cleared != self._cleared:
            self.last, self._cleared = Invalidations(), cleared
        for tag in tags:
            self.last.remember(tag, now)


def bits_of(tag: bytes) -> str:
    """Return the bits of a tag in the Bloom filter, as scripts take them.

    Parameters:
        tag: the form of the tag in Redis.
    """
    digest = hashlib.blake2b(tag, digest_size=4 * _BITS_EACH).digest()
    places = (int.from_bytes(digest[at : at + 4]) for at in range(0, len(digest), 4))
    return " ".join(str(_OFFSET + place % ANNOUNCED_BITS) for place in places)
