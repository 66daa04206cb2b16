"""The ports: two small protocols that the engine needs of a store. One conformance suite tests all stores."""

import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVarTuple

from swr.core.codec import Codec
from swr.entry import Entry
from swr.errors import StoreUnavailable
from swr.stores.tag_versions import Name, TagVersions

Ts = TypeVarTuple("Ts")

# The highest version. No entry is newer, so a lease request that knows this version is never answered with an entry.
NEWEST: Final = 10**16 - 1


class StoreRefused(StoreUnavailable):
    """The store answered, but refused the command."""


class Kind(enum.Enum):
    """The kind of a notification."""

    COMMITTED = "c"
    RELEASED = "r"
    INVALIDATED = "i"
    MARKED = "s"
    TAG_VERSION = "b"
    # A message brought a tag version that this process already knew.
    REPEATED = "r!"
    # A refresher's queue has tasks; the name is that of the shard.
    QUEUED = "q"
    # The server has refused another process's invalidation of a key, or of a tag, a loader or everything. All marks
    # are PENDING_TAG, those of keys, too.
    PENDING_KEY = "k"
    PENDING_TAG = "t"
    REACHABLE = "u"
    UNREACHABLE = "d"
    # Notifications may have been lost, or may still be unread.
    GAP = "g"
    # This process now holds a value that it loaded itself.
    HELD = "h"
    # The server has refused a command of this process.
    REFUSED = "f"


class Notification(NamedTuple):
    """An event in the store; every process that has the store open is notified.

    Parameters:
        kind: what happened.
        name: the key, tag, loader or shard that is concerned; empty for everything. UNREACHABLE and REFUSED have the
            reason here. REACHABLE identifies the runs of the servers, which change at each restart and promotion.
        version: that of the commit, tombstone, mark or tag. HELD has the version of the lease, or 0 without a lease.
            REACHABLE and QUEUED have the server's clock, in microseconds. The other kinds have 0.
        elsewhere: whether another process caused the event just now.
        fingerprint: for a commit, that of the value's type; a commit of one type does not concern values of another.
            For QUEUED, the tags of the consumers to wake, side by side.
    """

    kind: Kind
    name: Name = ""
    version: int = 0
    elsewhere: bool = False
    fingerprint: str = ""

    @property
    def text(self) -> str:
        """The name as a string; only for kinds whose name is never an `OfLoader` or a `Soft`."""
        assert isinstance(self.name, str)
        return self.name


Subscriber = Callable[[Notification], None]


class Lease(NamedTuple):
    """The right to load one key until the lease expires or is deleted; the store checks every commit against it.

    Parameters:
        key: the key.
        token: identifies the holder.
        version: greater than the version of every entry of this key so far.
        tag_version: the newest tag version when the lease was taken.
        failures: how many loads in a row failed before this one.
    """

    key: str
    token: str
    version: int
    tag_version: int
    failures: int = 0


class Held(NamedTuple):
    """The answer to a refused lease request: another load holds the lease, or all processes back off.

    Parameters:
        retry_after: seconds until the lease or the backoff ends.
        now: the store's clock, in the unit of versions; loads that begin from now on have newer versions.
        failures: loads that failed in a row; above 0 every process backs off.
    """

    retry_after: float
    now: int
    failures: int = 0


class Start(Protocol):
    """A function that starts a task of the cache."""

    def __call__(self, function: Callable[[*Ts], Awaitable[Any]], /, *args: *Ts) -> None: ...


class Store(Protocol):
    """The port of a store of entries."""

    @property
    def tag_versions(self) -> TagVersions:
        """The versions of tags and clears that this process knows."""

    async def open(self, start: Start, subscriber: Subscriber) -> None:
        """Connect, and call `subscriber` with every notification from now on."""

    async def aclose(self, subscriber: Subscriber) -> None:
        """Disconnect, and stop calling `subscriber`."""

    def is_unreachable(self, key: str) -> bool:
        """Return whether the key's server is known to be unreachable, so that asking it is useless."""

    async def settled(self) -> None:
        """Wait until the store has taken every pending invalidation."""

    @property
    def has_pending(self) -> bool:
        """Return whether invalidations are pending, because the store is unreachable or refuses them."""

    async def now(self) -> int:
        """Return the store's clock in microseconds since 1970; every later version is newer.

        Raises StoreUnavailable.
        """

    @property
    def sent(self) -> int:
        """Return how many commands have been sent to servers since the store was opened."""

    def forget(self) -> None:
        """Drop everything that is only true while notifications arrive, because the event loop has ended."""

    def keep(self, key: str, entry: Entry[Any], codec: Codec) -> None:
        """Hold an entry whose commit the store has not confirmed, for this process alone."""

    def peek(self, key: str) -> Entry[Any] | None:
        """Return the entry that this process holds and may trust, or None, without waiting."""

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

        The store takes all names in one step, as far as possible. An `OfLoader` names all entries of a loader. A
        `Soft` name marks its entries stale instead. Raises StoreUnavailable.
        """

    @property
    def heard(self) -> int:
        """The store's clock as this process last heard it, in microseconds since 1970; never ahead of the clock now."""

    async def invalidate_announced(self, tags: Sequence[str]) -> None:
        """Invalidate those of `tags` that a load has announced, and pass over the others: no entry carries them.

        Raises StoreUnavailable.
        """

    async def was_passed_over(self, tags: tuple[str, ...], since: int) -> bool:
        """Return whether `invalidate_announced` may have passed over one of `tags` after `since`.

        `since` is a time of the store's clock, in microseconds. Raises StoreUnavailable.
        """


class Leases(Protocol):
    """The port of leases, which decide who may load a key and whether a loaded value may be stored.

    Under one key, each type of value has its own leases, backoffs and entries. The codec's fingerprint identifies the
    type. If two versions of an application store different types, they share only invalidations.
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

        A repeated call with the same token succeeds again. `force` ignores the backoff after failures. The loaded
        entry may carry `tags`; those that `is_announced` accepts are announced to the store. Raises StoreUnavailable.
        """

    async def seize(self, key: str, token: str, ttl: float, codec: Codec) -> Lease:
        """Invalidate `key` and take its lease in one step, so that no load that began before can commit.

        Raises StoreUnavailable.
        """

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Make the lease last `ttl` seconds from now. Raises LeaseLost, StoreUnavailable."""

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Store the entry and give the lease back. Raises LeaseLost, CodecError, StoreUnavailable."""

    async def release(self, lease: Lease, pause: float = 0.0) -> None:
        """Give the lease back without an entry; no process gets it for `pause` seconds. Raises StoreUnavailable."""


class LeasingStore(Store, Leases, Protocol):
    """A store with both ports, as the engine needs it."""


class SharedStore(LeasingStore, Protocol):
    """A store that many processes share."""

    def tell_pending(self, kind: Kind, name: Name) -> None:
        """Notify every process of a pending invalidation if possible, without waiting."""

    def unannounced(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of `tags` that loads must announce, and that may not be announced to the store yet."""

    async def announce(self, tags: tuple[str, ...]) -> None:
        """Announce to the store that loads of entries with `tags` begin. Raises StoreUnavailable."""
