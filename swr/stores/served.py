"""The versions that this process has served, so that a store that lost data does not make it serve older ones."""

from collections.abc import Callable
from typing import Any, Final

from swr.core.codec import Codec
from swr.entry import Entry, doubtful
from swr.stores.base import NEWEST
from swr.stores.local import LocalCache, Replaced, Slot

_MOST: Final = 10_000


class Served:
    """The last served version of each recent key, whether or not the local cache holds its entry.

    Parameters:
        local: the local cache.
        admits: returns whether the tag versions admit an entry.

    Attributes:
        servers: identifies the runs of the store's servers.
        reached_at: the servers' clock, in microseconds, when they were last reached.
    """

    def __init__(self, local: LocalCache, admits: Callable[[Entry[Any]], bool]) -> None:
        self.servers = ""
        self.reached_at = 0
        self._local = local
        self._admits = admits
        # The versions by key and fingerprint; the most recently served comes last.
        self._versions: dict[tuple[str, str], int] = {}

    def note(self, key: str, fingerprint: str, version: int) -> None:
        """Note the version that was served last.

        Parameters:
            version: the entry's version, negative if its commit was not confirmed. An entry that was loaded without a
                lease has none: then 0 if the store was unreachable, and `NEWEST` if the store refused the lease.
        """
        versions, place = self._versions, (key, fingerprint)
        versions.pop(place, None)
        versions[place] = version
        if len(versions) > _MOST:
            del versions[next(iter(versions))]

    def note_commit(self, key: str, fingerprint: str, version: int) -> None:
        """Note another process's commit, which is newer than an entry that was loaded without a lease."""
        if self.version(key, fingerprint) == NEWEST:
            self.note(key, fingerprint, version)

    def version(self, key: str, fingerprint: str) -> int | None:
        """Return the version that was served last, or None if it is not known."""
        return self._versions.get((key, fingerprint))

    def newer(self, slot: Slot | None, entry: Entry[Any], codec: Codec) -> Slot | None:
        """Return the slot if it may still be served and the store's entry may be older, or None."""
        held = self.held(slot, codec)
        if held is None:
            return None
        return held if self.replaces(held, entry) or self._may_be_older(entry, held.entry.version) else None

    def held(self, slot: Slot | None, codec: Codec, epoch: int | None = None) -> Slot | None:
        """Return the slot if its value is of the codec's type and no tag version has outdated it, or None.

        Parameters:
            epoch: the slot must be of this epoch, so that this process has missed nothing since; None: of any.
        """
        if slot is None or slot.origin.fingerprint != codec.fingerprint or not self._admits(slot.entry):
            return None
        return slot if epoch is None or slot.origin.epoch == epoch else None

    def in_doubt(self, key: str, entry: Entry[Any], own: Entry[Any] | None, now: float) -> Entry[Any]:
        """Return the fallback of readers if the store's entry may be older than the one that this process served last.

        If `own` is None, this process forgets the entry that it holds. Otherwise, if the store became unreachable, a
        later reader would get that entry after others got the store's.

        Parameters:
            entry: the store's entry.
            own: this process's entry if the process has missed nothing since it came, or None.
            now: the wall-clock time, in seconds.
        """
        if own is not None and now < own.servable_until:
            return doubtful(own)
        self._local.drop(key)
        return doubtful(entry)

    def replaces(self, slot: Slot, entry: Entry[Any]) -> bool:
        """Return whether the store still has the entry that it had when it did not take the slot's entry."""
        replaced = slot.origin.replaced
        return replaced is not None and replaced[:2] == (self.servers, entry.version)

    def replaced_by_keeping(self, slot: Slot | None) -> Replaced | None:
        """Return which entry of the store is replaced here when this process keeps one that the store did not take.

        Parameters:
            slot: the slot of the key so far; None: the store's entry is not known.
        """
        if slot is None:
            return None
        return slot.origin.replaced or (self.servers, slot.entry.version, slot.entry.marked_at)

    def was_marked(self, slot: Slot, entry: Entry[Any]) -> bool:
        """Return whether the store's entry was marked stale after the slot's entry replaced it in this process."""
        replaced = slot.origin.replaced
        return replaced is not None and replaced[2] != entry.marked_at

    def is_older(self, key: str, entry: Entry[Any], codec: Codec) -> bool:
        """Return whether the store's entry may be older than the version that this process has served last."""
        served = self._versions.get((key, codec.fingerprint))
        return served is not None and self._may_be_older(entry, served)

    def is_overtaken(self, key: str, entry: Entry[Any], codec: Codec) -> bool:
        """Return whether this process has served a later commit than `entry`, whose own commit was not confirmed."""
        served = self.version(key, codec.fingerprint)
        return served is not None and 0 < entry.version < served < NEWEST

    def began_later(self, key: str, entry: Entry[Any], codec: Codec) -> bool:
        """Return whether this process may have served an entry of a later load, which the store did not take.

        That load began while the store was unreachable. The load of `entry` got its lease before.
        """
        served = self.version(key, codec.fingerprint)
        return served is not None and served <= 0 and self._may_be_older(entry, served)

    def knows_newer(self, key: str, entry: Entry[Any], codec: Codec) -> bool:
        """Return whether the store's entry may be older than the one that this process holds, or has served last."""
        return self.is_older(key, entry, codec) or self.newer(self._local.get(key), entry, codec) is not None

    def _may_be_older(self, entry: Entry[Any], version: int) -> bool:
        if version > 0:
            return entry.version < version
        # The served entry was loaded before the servers were reached again, without a lease or with one that may have
        # been lost. Another load that took the lease in that time may have read older data.
        return entry.version != -version and entry.version <= self.reached_at


def is_newest(held: Entry[Any], entry: Entry[Any] | None) -> bool:
    """Return whether a confirmed entry of the local cache is not older than the store's."""
    # An entry without a version was loaded without a lease. A notification would have told of a newer one in the store.
    return entry is None or not held.version or held.version >= entry.version
