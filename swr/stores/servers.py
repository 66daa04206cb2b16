"""Which server has which key: one that has all (or whichever Sentinel names), or the masters of a cluster."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

from redis.asyncio import Redis

from swr.stores.base import Start
from swr.stores.link import Keeper, Link
from swr.stores.replicas import Replica


class Servers(Protocol):
    """The servers behind one store, and the way to each."""

    # Whether one server has every key, so that one command can name any of them.
    one: bool
    # Which of a server's databases it is.
    database: int
    # What tells them from others in a log, once they are open.
    name: str
    # Whether values are read from replicas.
    replicas: bool

    def open(self, start: Start, keeper: Keeper) -> None:
        """Begin to keep the links."""

    async def tried(self) -> None:
        """Wait until it is known of every server whether it can be reached."""

    @property
    def whole(self) -> bool:
        """Whether every key can be reached."""

    @property
    def lost(self) -> Exception | None:
        """Why not every key can be reached; None: every one can, or it is not known yet."""

    @property
    def sent(self) -> int:
        """How many commands have been sent."""

    def give_up(self, error: Exception) -> None:
        """Count what cannot be reached yet as lost."""

    def doubt(self) -> None:
        """Ask again which server has which key."""

    def link_to(self, name: bytes) -> Link:
        """Return the link to the server that has a key. Raises StoreUnavailable."""

    async def ask(self, name: bytes, *command: bytes | str | int) -> Any:
        """Ask the server that has the key `name`. Raises StoreUnavailable, ResponseError."""


class Single:
    """One server.

    Parameters:
        connect: makes the client; called at every opening.
        timeout: seconds after which an unanswered command counts as failed.
        owned: whether the client is closed with the link.
        replica_of: makes a client of a replica, of the client of the master; None: values are read from the master.
    """

    one = True

    def __init__(
        self,
        connect: Callable[[], Redis],
        timeout: float = 0.2,
        owned: bool = True,
        replica_of: Callable[[Redis], Redis] | None = None,
    ) -> None:
        self.database = 0
        self.name = ""
        self.replicas = replica_of is not None
        self._replica_of = replica_of
        self._connect = connect
        self._timeout = timeout
        self._owned = owned

    def open(self, start: Start, keeper: Keeper) -> None:
        """Begin to keep the link."""
        client = self._connect()
        pool: Any = client.connection_pool
        known = pool.connection_kwargs
        self.database = int(known.get("db") or 0)
        # Behind sentinels the name of the master, or where it listens.
        address = f"{known.get('host', 'localhost')}:{known.get('port', 6379)}"
        self.name = getattr(pool, "service_name", None) or known.get("path") or address
        self._link = Link(client, self._timeout, keeper, owned=self._owned)
        start(self._link.run)
        if self._replica_of is not None:
            replica = self._link.replica = Replica(
                self._link, functools.partial(self._replica_of, client), self._timeout
            )
            start(replica.run)

    async def tried(self) -> None:
        """Wait until it is known whether the server can be reached."""
        await self._link.tried.wait()

    @property
    def whole(self) -> bool:
        """Whether the server can be reached."""
        return self._link.wire is not None

    @property
    def lost(self) -> Exception | None:
        """Why the server cannot be reached."""
        return self._link.lost

    @property
    def sent(self) -> int:
        """How many commands have been sent."""
        return self._link.sent

    def give_up(self, error: Exception) -> None:
        """Count the server as lost."""
        self._link.lose(error)

    def doubt(self) -> None:
        """Nothing: there is one."""

    def link_to(self, name: bytes) -> Link:
        """Return the link."""
        return self._link

    async def ask(self, name: bytes, *command: bytes | str | int) -> Any:
        """Ask the server."""
        return await self._link.ask(*command)
