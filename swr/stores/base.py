"""The ports: what the engine asks of a store. Two small protocols, one conformance suite for all who keep them."""

import enum
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol, TypeVarTuple

from swr.codec import Codec
from swr.entry import Entry
from swr.stores.barriers import Barriers

Ts = TypeVarTuple("Ts")

# A version that nothing is newer than: "whatever you have, I want another".
NEWEST: Final = 10**16 - 1


class Kind(enum.Enum):
    """What a message says has happened."""

    COMMITTED = "c"
    RELEASED = "r"
    INVALIDATED = "i"
    BARRIER = "b"
    # A barrier that was learned of before its message came.
    REPEATED = "r!"
    # Tasks were put into the queue of a refresher, whose name it is.
    QUEUED = "q"
    UP = "u"
    DOWN = "d"


class Message(NamedTuple):
    """Something that happened in the store, heard by every process that listens.

    Parameters:
        kind: what.
        name: the key, or for a barrier the tag ("*" for all); for DOWN the reason; empty for UP.
        version: of the commit, the tombstone or the barrier; 0 for the others.
        elsewhere: another process says so, right now.
    """

    kind: Kind
    name: str = ""
    version: int = 0
    elsewhere: bool = False


Listener = Callable[[Message], None]


class Lease(NamedTuple):
    """The right to load one key, until it expires or is deleted; the fence of every commit.

    Parameters:
        key: the key.
        token: who holds it.
        version: greater than that of every entry of this key so far.
        head: the newest barrier at the moment it was taken.
        failures: how many loads in a row have failed before this one.
    """

    key: str
    token: str
    version: int
    head: int
    failures: int = 0


class Held(NamedTuple):
    """A lease that was refused.

    Parameters:
        retry_after: seconds until it expires.
        now: the store's clock, in the unit of versions: what is loaded from now on is newer.
        failures: above 0, nobody loads: so many loads in a row have failed and all keep off for a while.
    """

    retry_after: float
    now: int
    failures: int = 0


class Start(Protocol):
    """Starts a task that the cache owns."""

    def __call__(self, function: Callable[[*Ts], Awaitable[Any]], /, *args: *Ts) -> None: ...


class Store(Protocol):
    """Where entries lie."""

    @property
    def barriers(self) -> Barriers:
        """The tags and clears that this process knows of."""

    async def open(self, start: Start, listener: Listener) -> None:
        """Connect; from now on `listener` is called with every message."""

    async def aclose(self, listener: Listener) -> None:
        """Disconnect; `listener` hears no more."""

    def is_away(self, key: str) -> bool:
        """Whether it is known that nobody can be asked about `key`, so that nothing is lost by not asking."""

    async def settled(self) -> None:
        """Wait until all that could not be told to the store is told."""

    async def now(self) -> int:
        """Return the clock that versions come from: microseconds since 1970, older than every version to come.

        Raises StoreUnavailable.
        """

    @property
    def sent(self) -> int:
        """How many commands have been sent to servers since the store was opened."""

    def forget(self) -> None:
        """Let go of what is only true while somebody listens: the event loop has ended."""

    def keep(self, key: str, entry: Entry[Any]) -> None:
        """Hold, for this process alone, an entry whose commit was not confirmed."""

    def peek(self, key: str) -> Entry[Any] | None:
        """Return what this process holds and may trust, without waiting."""

    async def read(self, key: str, codec: Codec) -> Entry[Any] | None:
        """Return the entry, whatever its age. Raises StoreUnavailable."""

    async def invalidate(self, key: str) -> None:
        """Remove the entry and the lease, so that a load in flight cannot commit. Raises StoreUnavailable."""

    async def invalidate_tag(self, tag: str) -> None:
        """Make every entry with this tag whose load began before now count for nothing; "*" means all entries.

        Raises StoreUnavailable.
        """


class Leases(Protocol):
    """Who may load, and whether what was loaded may be stored."""

    async def acquire(
        self, key: str, token: str, ttl: float, known: int, codec: Codec, *, force: bool = False
    ) -> Lease | Held | Entry[Any]:
        """Take the lease for `ttl` seconds, or return the entry if there is one newer than version `known`.

        Again with the same token it succeeds again. `force` disregards the pause after failures.
        Raises StoreUnavailable.
        """

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Make the lease last `ttl` seconds from now. Raises LeaseLost, StoreUnavailable."""

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Store the entry and give the lease back. Raises LeaseLost, CodecError, StoreUnavailable."""

    async def release(self, lease: Lease, pause: float = 0.0) -> None:
        """Give the lease back without an entry; for `pause` seconds nobody gets it. Raises StoreUnavailable."""


class LeasingStore(Store, Leases, Protocol):
    """Both ports: what the engine runs on."""
