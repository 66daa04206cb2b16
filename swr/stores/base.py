"""The ports: what the engine asks of a store. Two small protocols, one conformance suite for all who keep them."""

import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVarTuple

from swr.core.codec import Codec
from swr.entry import Entry
from swr.errors import StoreUnavailable
from swr.stores.tag_versions import Name, TagVersions

Ts = TypeVarTuple("Ts")

# A version that nothing is newer than: "whatever you have, I want another".
NEWEST: Final = 10**16 - 1


class StoreRefused(StoreUnavailable):
    """The store was asked, and refused."""


class Kind(enum.Enum):
    """A notification."""

    COMMITTED = "c"
    RELEASED = "r"
    INVALIDATED = "i"
    MARKED = "s"
    TAG_VERSION = "b"
    # A tag version that was known before its message came.
    REPEATED = "r!"
    # There are tasks in the queue of a refresher, in the shard whose name it is.
    QUEUED = "q"
    # Another process has invalidated a key, or a tag and the like, or marked one of them, and the server refused it.
    PENDING_KEY = "k"
    PENDING_TAG = "t"
    REACHABLE = "u"
    UNREACHABLE = "d"
    # Some notifications were missed, perhaps, or lie unread.
    GAP = "g"
    # This process holds the value of a load of its own.
    HELD = "h"
    # The server has refused a command of this process.
    REFUSED = "f"


class Notification(NamedTuple):
    """Something that happened in the store; every process that has it open is notified.

    Parameters:
        kind: what.
        name: the key, or what a tag version is of (empty for all); for UNREACHABLE and REFUSED the reason; for
            REACHABLE which servers these are: another name after each restart and promotion.
        version: of the commit, the tombstone or the mark, or the tag version. For HELD that of the lease, or 0 without
            one. For REACHABLE and QUEUED the server's clock. 0 for the others.
        elsewhere: another process did it, just now.
        fingerprint: of a commit, that of its value's type; a commit of one type concerns no value of another. For
            QUEUED, the tags of the consumers that are to look, one behind the other.
    """

    kind: Kind
    name: Name = ""
    version: int = 0
    elsewhere: bool = False
    fingerprint: str = ""

    @property
    def text(self) -> str:
        """The name, where it is that of a key, or of anything else that has no tag version."""
        assert isinstance(self.name, str)
        return self.name


Subscriber = Callable[[Notification], None]


class Lease(NamedTuple):
    """The right to load one key, until it expires or is deleted; the fence of every commit.

    Parameters:
        key: the key.
        token: who holds it.
        version: greater than that of every entry of this key so far.
        tag_version: the newest tag version at the moment it was taken.
        failures: how many loads in a row have failed before this one.
    """

    key: str
    token: str
    version: int
    tag_version: int
    failures: int = 0


class Held(NamedTuple):
    """A lease that was refused.

    Parameters:
        retry_after: seconds until it expires.
        now: the store's clock, in the unit of versions: what is loaded from now on is newer.
        failures: loads that have failed in a row; above 0 every process backs off for a while.
    """

    retry_after: float
    now: int
    failures: int = 0


class Start(Protocol):
    """Starts a task that the cache owns."""

    def __call__(self, function: Callable[[*Ts], Awaitable[Any]], /, *args: *Ts) -> None: ...


class Store(Protocol):
    """The port of a place where entries lie."""

    @property
    def tag_versions(self) -> TagVersions:
        """The tags and clears that this process knows of."""

    async def open(self, start: Start, subscriber: Subscriber) -> None:
        """Connect; from now on `subscriber` is called with every notification."""

    async def aclose(self, subscriber: Subscriber) -> None:
        """Disconnect; `subscriber` is not called any more."""

    def is_unreachable(self, key: str) -> bool:
        """Return whether the key's server is known to be unreachable, so that asking it is useless."""

    async def settled(self) -> None:
        """Wait until the store has got every pending invalidation."""

    @property
    def has_pending(self) -> bool:
        """Return whether invalidations are pending: the store is unreachable, or refuses them."""

    async def now(self) -> int:
        """Return the clock that versions come from: microseconds since 1970, older than every version to come.

        Raises StoreUnavailable.
        """

    @property
    def sent(self) -> int:
        """Return how many commands have been sent to servers since the store was opened."""

    def forget(self) -> None:
        """Let go of what is only true while notifications arrive: the event loop has ended."""

    def keep(self, key: str, entry: Entry[Any], codec: Codec) -> None:
        """Hold, for this process alone, an entry whose commit was not confirmed."""

    def peek(self, key: str) -> Entry[Any] | None:
        """Return what this process holds and may trust, without waiting."""

    async def read(self, key: str, codec: Codec) -> Entry[Any] | None:
        """Return the entry, whatever its age. Raises StoreUnavailable."""

    async def invalidate(self, key: str) -> None:
        """Remove the entry and the lease, so that a load in flight cannot commit. Raises StoreUnavailable."""

    async def mark_stale(self, key: str) -> None:
        """Mark the entry as stale, and remove the lease, so that a load in flight cannot commit.

        Raises StoreUnavailable.
        """

    async def invalidate_tag(self, *names: Name) -> None:
        """Outdate every entry that has one of these tags and whose load began before now; ALL means all entries.

        In one step, as far as possible. A loader has all its entries; what is `Soft` is marked stale.
        Raises StoreUnavailable.
        """

    @property
    def heard(self) -> int:
        """The clock that versions come from, as it was last heard: not newer than it is now."""

    async def invalidate_announced(self, tags: Sequence[str]) -> None:
        """Do as `invalidate_tag` for those of `tags` that a load has announced; nothing carries the others.

        Raises StoreUnavailable.
        """

    async def was_passed_over(self, tags: tuple[str, ...], since: int) -> bool:
        """Return whether `invalidate_announced` may have done nothing for one of `tags` after the time `since`.

        Raises StoreUnavailable.
        """


class Leases(Protocol):
    """The port of leases: says who may load, and whether a loaded value may be stored.

    Each type of value, as the codec's fingerprint tells it, has leases, backoffs and entries of its own under a key.
    Two versions of an application share invalidations, and nothing else.
    """

    async def acquire(
        self,
        key: str,
        token: str,
        ttl: float,
        known: int,
        codec: Codec,
        *,
        force: bool = False,
        tags: tuple[str, ...] = (),
    ) -> Lease | Held | Entry[Any]:
        """Take the lease for `ttl` seconds, or return the entry if there is one newer than version `known`.

        Again with the same token it succeeds again. `force` disregards the pause after failures. Those of `tags` that
        `is_announced` tells are announced: what is loaded may carry them. Raises StoreUnavailable.
        """

    async def seize(self, key: str, token: str, ttl: float, codec: Codec) -> Lease:
        """Do as `invalidate`, and take the lease in the same step: no load that began before can commit.

        Raises StoreUnavailable.
        """

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Make the lease last `ttl` seconds from now. Raises LeaseLost, StoreUnavailable."""

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Store the entry and give the lease back. Raises LeaseLost, CodecError, StoreUnavailable."""

    async def release(self, lease: Lease, pause: float = 0.0) -> None:
        """Give the lease back without an entry; for `pause` seconds no process gets it. Raises StoreUnavailable."""


class LeasingStore(Store, Leases, Protocol):
    """Both ports: what the engine runs on."""


class SharedStore(LeasingStore, Protocol):
    """A store that many processes share."""

    def tell_pending(self, kind: Kind, name: Name) -> None:
        """Notify every process of a pending invalidation, without waiting, if that is possible."""

    def unannounced(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of `tags` that loads announce, and that the store may not know to be announced."""

    async def announce(self, tags: tuple[str, ...]) -> None:
        """Announce loads of what carries `tags`. Raises StoreUnavailable."""
