"""The servers behind a store, and which has which key: a single server (or Sentinel's master), or a cluster."""

from collections.abc import Callable
from typing import Any, Protocol

from redis.asyncio import Redis

from swr.stores.base import Start
from swr.stores.redis.server_link import CONNECT_TIMEOUT, REPLY_TIMEOUT, LinkOwner, ServerLink, Timeouts


class Servers(Protocol):
    """The servers behind one store, and the links to them."""

    # Whether one server has every key, so that one command can name any of them.
    is_single: bool
    # The number of the database on the servers.
    database: int
    # The addresses of the servers, for the log; known after `open`.
    name: str

    def open(self, start: Start, owner: LinkOwner) -> None:
        """Start the links."""

    async def tried(self) -> None:
        """Wait until swr knows of every server whether it can be reached."""

    @property
    def is_reachable(self) -> bool:
        """Return whether every key can be reached."""

    @property
    def error(self) -> Exception | None:
        """The reason why some key cannot be reached; None if every key can be, or if that is not known yet."""

    @property
    def sent(self) -> int:
        """Return how many commands have been sent."""

    @property
    def runs(self) -> str:
        """The IDs of the servers' runs and replication histories; a restart or a promotion changes the text."""

    @property
    def links(self) -> list[ServerLink]:
        """The links to the servers, one for each server."""

    def refresh_map(self) -> None:
        """Ask again which server has which key."""

    def link_to(self, name: bytes) -> ServerLink:
        """Return the link to the server that has a key. Raises StoreUnavailable."""

    def place_of(self, name: bytes) -> int:
        """Return where a key lies: one command can name several keys of one place."""

    async def ask(self, name: bytes, *command: bytes | str | int) -> Any:
        """Ask the server that has the key `name`. Raises StoreUnavailable, ResponseError."""


class Single:
    """A single server, or the master that Sentinel names.

    Parameters:
        connect: makes the client; called at every opening.
        timeout: seconds after which a server that is silent counts as hung.
        owned: whether the link closes the client at its end.
        connect_timeout: seconds that connecting may take.
    """

    is_single = True

    def __init__(
        self,
        connect: Callable[[], Redis],
        timeout: float = REPLY_TIMEOUT,
        owned: bool = True,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self.database = 0
        self.name = ""
        self._connect = connect
        self._timeouts = Timeouts(timeout, connect_timeout)
        self._owned = owned

    def open(self, start: Start, owner: LinkOwner) -> None:
        """Start the link."""
        client = self._connect()
        pool: Any = client.connection_pool
        known = pool.connection_kwargs
        self.database = int(known.get("db") or 0)
        # The master's name behind sentinels, a socket's path, or an address.
        address = f"{known.get('host', 'localhost')}:{known.get('port', 6379)}"
        self.name = getattr(pool, "service_name", None) or known.get("path") or address
        self._link = ServerLink(client, self._timeouts, owner, self.name, owned=self._owned)
        start(self._link.run)

    async def tried(self) -> None:
        """Wait until swr knows whether the server can be reached."""
        await self._link.tried.wait()

    @property
    def is_reachable(self) -> bool:
        """Return whether the server can be reached."""
        return self._link.connection is not None

    @property
    def error(self) -> Exception | None:
        """The reason why the server cannot be reached, or None."""
        return self._link.error

    @property
    def sent(self) -> int:
        """Return how many commands have been sent."""
        return self._link.sent

    @property
    def runs(self) -> str:
        """Return the IDs of the server's run and of its replication history."""
        return self._link.server_run

    @property
    def links(self) -> list[ServerLink]:
        """Return the link."""
        return [self._link]

    def refresh_map(self) -> None:
        """Do nothing: one server has all keys."""

    def link_to(self, name: bytes) -> ServerLink:
        """Return the link."""
        return self._link

    def place_of(self, name: bytes) -> int:
        """Return 0: all keys are in one place."""
        return 0

    async def ask(self, name: bytes, *command: bytes | str | int) -> Any:
        """Ask the server."""
        return await self._link.ask(*command)
