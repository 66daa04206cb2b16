"""The versions that this process has served: a store that lost data must not take it back to something older."""

from collections.abc import Callable
from typing import Any, Final

from swr.core.codec import Codec
from swr.entry import Entry, doubtful
from swr.stores.base import NEWEST
from swr.stores.local import LocalCache, Replaced, Slot

_MOST: Final = 10_000


class Served:
    """The versions of the last keys, also of those that the local cache does not hold (any more).

    Parameters:
        local: the local cache.
        admits: returns whether the tag versions admit an entry.

    Attributes:
        servers: which servers the store's are now.
        reached_at: their clock when they were last reached.
    """

    def __init__(self, local: LocalCache, admits: Callable[[Entry[Any]], bool]) -> None:
        self.servers = ""
        self.reached_at = 0
        self._local = local
        self._admits = admits
        # By key and fingerprint, the last to be served last.
        self._versions: dict[tuple[str, str], int] = {}

    def note(self, key: str, fingerprint: str, version: int) -> None:
        """Note the version that was served last.

        An entry that was loaded without a lease has none. Then it is 0 if the store was unreachable, and `NEWEST` if
        it refused the lease. The version of a commit whose fate is unknown is negative.
        """
        versions, place = self._versions, (key, fingerprint)
        versions.pop(place, None)
        versions[place] = version
        if len(versions) > _MOST:
            del versions[next(iter(versions))]

    def note_commit(self, key: str, fingerprint: str, version: int) -> None:
        """Note another process's commit, which is newer than what was loaded without a lease."""
        if self.version(key, fingerprint) == NEWEST:
            self.note(key, fingerprint, version)

    def version(self, key: str, fingerprint: str) -> int | None:
        """Return the version that was served last; None: it is not known."""
        return self._versions.get((key, fingerprint))

    def newer(self, slot: Slot | None, entry: Entry[Any], codec: Codec) -> Slot | None:
        """Return what the local cache holds, if that is of the same type and the store's entry may be older."""
        held = self.held(slot, codec)
        if held is None:
            return None
        return held if self.replaces(held, entry) or self._may_be_older(entry, held.entry.version) else None

    def held(self, slot: Slot | None, codec: Codec) -> Slot | None:
        """Return what the local cache holds, if that is of the same type and may still be served."""
        if slot is None or slot.origin.fingerprint != codec.fingerprint or not self._admits(slot.entry):
            return None
        return slot

    def replaces(self, slot: Slot, entry: Entry[Any]) -> bool:
        """Return whether the store has not changed since it did not take what this process has loaded."""
        replaced = slot.origin.replaced
        return replaced is not None and replaced[:2] == (self.servers, entry.version)

    def replaced_by_keeping(self, slot: Slot | None) -> Replaced | None:
        """Return what the store has under a key, for the slot of an entry that the store did not take."""
        if slot is None:
            return None
        return slot.origin.replaced or (self.servers, slot.entry.version, slot.entry.marked_at)

    def was_marked(self, slot: Slot, entry: Entry[Any]) -> bool:
        """Return whether the store's entry was marked stale since the slot's entry took its place here."""
        replaced = slot.origin.replaced
        return replaced is not None and replaced[2] != entry.marked_at

    def is_older(self, key: str, entry: Entry[Any], codec: Codec) -> bool:
        """Return whether the store's entry may be older than what this process has served last."""
        served = self._versions.get((key, codec.fingerprint))
        return served is not None and self._may_be_older(entry, served)

    def is_overtaken(self, key: str, entry: Entry[Any], codec: Codec) -> bool:
        """Return whether this process has served a later commit than that of an entry whose reply was lost."""
        served = self.version(key, codec.fingerprint)
        return served is not None and 0 < entry.version < served < NEWEST

    def began_later(self, key: str, entry: Entry[Any], codec: Codec) -> bool:
        """Return whether a load that this process has served, and that the store has not, may be later than this one.

        It began while the store was unreachable, and this one had its lease from before.
        """
        served = self.version(key, codec.fingerprint)
        return served is not None and served <= 0 and self._may_be_older(entry, served)

    def knows_newer(self, key: str, entry: Entry[Any], codec: Codec) -> bool:
        """Return whether the store's entry may be older than what this process holds, or has served last."""
        return self.is_older(key, entry, codec) or self.newer(self._local.get(key), entry, codec) is not None

    def _may_be_older(self, entry: Entry[Any], version: int) -> bool:
        if version > 0:
            return entry.version < version
        # It was loaded before the servers were reached again, without a lease or with one that may have been lost.
        # Another load that took the lease then may have read before it.
        return entry.version != -version and entry.version <= self.reached_at


def is_newest(held: Entry[Any], entry: Entry[Any] | None) -> bool:
    """Return whether a confirmed entry of the local cache is not older than the store's."""
    # Of what was stored after a load without a lease there would be a notification.
    return entry is None or not held.version or held.version >= entry.version


def in_doubt(entry: Entry[Any], own: Entry[Any] | None, now: float) -> Entry[Any]:
    """Return the entry on which readers fall back if the store's may be older than what this process has served.

    The process prefers what it holds. Otherwise one reader gets the store's entry, and a later one, for whom the store
    is unreachable, what was held before.

    Parameters:
        entry: the store's.
        own: what this process holds; None: nothing any more.
        now: the wall-clock time, seconds.
    """
    return doubtful(entry if own is None or now >= own.servable_until else own)
