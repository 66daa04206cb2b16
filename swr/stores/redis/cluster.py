"""The masters of a Redis or Valkey Cluster: a link to each, and the map of slots, refreshed at every failover."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import anyio
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from swr.errors import StoreUnavailable
from swr.stores.base import Start
from swr.stores.redis.patience import patience
from swr.stores.redis.reasons import reason_of
from swr.stores.redis.releases import connection_of
from swr.stores.redis.server_link import CONNECT_TIMEOUT, REPLY_TIMEOUT, LinkOwner, ServerLink, Timeouts

_SLOTS: Final = 16384
# Seconds between two refreshes of the map: while some slot is unreachable, and otherwise.
_SOON: Final = 0.2
_SELDOM: Final = 10.0
# The most attempts of one command: a key that is being moved may be redirected more than once.
_REDIRECTED: Final = 4

Address = tuple[str, int]


class Cluster:
    """The masters of a cluster.

    Parameters:
        connect: makes the client of one node from its host and port.
        seeds: nodes to ask for the others.
        timeout: seconds after which a server that is silent counts as hung.
        connect_timeout: seconds that connecting may take.
    """

    is_single = False
    # A cluster has only database 0.
    database = 0

    def __init__(
        self,
        connect: Callable[[str, int], Redis],
        seeds: Sequence[Address],
        timeout: float = REPLY_TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self.name = ",".join(f"{host}:{port}" for host, port in seeds)
        self._connect = connect
        self._seeds = list(seeds)
        self._timeouts = Timeouts(timeout, connect_timeout)

    def open(self, start: Start, owner: LinkOwner) -> None:
        """Start a task that keeps the map up to date, with a link to each master."""
        self._start, self._owner = start, owner
        self._links: dict[Address, ServerLink] = {}
        self._by_slot: list[ServerLink | None] = [None] * _SLOTS
        # Why there is no map, or why the map lacks masters for some slots; None if it is complete.
        self._unmapped: Exception | None = StoreUnavailable("the map of its slots is not known yet")
        self._drawn, self._map_outdated = asyncio.Event(), asyncio.Event()
        start(self._follow)

    async def tried(self) -> None:
        """Wait until swr knows of every master whether it can be reached."""
        await self._drawn.wait()
        for link in list(self._links.values()):
            await link.tried.wait()

    @property
    def is_reachable(self) -> bool:
        """Return whether every slot has a master that can be reached."""
        return self._unmapped is None and all(link.connection is not None for link in self._links.values())

    @property
    def error(self) -> Exception | None:
        """The reason why some slot cannot be reached, or None."""
        if self._unmapped is not None and self._drawn.is_set():
            return self._unmapped
        return next((link.error for link in self._links.values() if link.error is not None), None)

    @property
    def sent(self) -> int:
        """Return how many commands have been sent to the servers that are masters now."""
        return sum(link.sent for link in self._links.values())

    @property
    def runs(self) -> str:
        """Return the IDs of the masters' runs and replication histories, as one text."""
        return " ".join(sorted(link.server_run for link in self._links.values()))

    @property
    def links(self) -> list[ServerLink]:
        """Return the links to the masters."""
        return list(self._links.values())

    def refresh_map(self) -> None:
        """Ask for the map again."""
        self._map_outdated.set()

    def link_to(self, name: bytes) -> ServerLink:
        """Return the link to the master that has a key.

        Raises:
            StoreUnavailable: no master is known for its slot.
        """
        link = self._by_slot[key_slot(name)]
        if link is None:
            self._map_outdated.set()
            raise StoreUnavailable(f"no master is known for slot {key_slot(name)} ({self._unmapped})")
        return link

    def place_of(self, name: bytes) -> int:
        """Return the slot of a key."""
        return key_slot(name)

    async def ask(self, name: bytes, *command: bytes | str | int) -> Any:
        """Ask the master that has the key `name`, and follow its redirects.

        Raises:
            StoreUnavailable: the server did not answer, or redirected the command too often.
            ResponseError: the server's answer is an error.
        """
        link, asking = self.link_to(name), False
        for _ in range(_REDIRECTED):
            try:
                return await (_ask_once(link, command) if asking else link.ask(*command))
            except MovedError as moved:
                self._map_outdated.set()
                link, asking = self._link(_address(moved, link)), False
            except AskError as asked:
                # The slot is being moved to that server. This key was already moved, or does not exist.
                link, asking = self._link(_address(asked, link)), True
            except TryAgainError:
                # The slot is being moved, and only some of the command's keys were already moved.
                await asyncio.sleep(self._timeouts.reply / _REDIRECTED)
            except ClusterDownError as error:
                self._map_outdated.set()
                raise StoreUnavailable(str(error)) from error
        raise StoreUnavailable(f"{command[0]!r} was redirected {_REDIRECTED} times")

    # -- the map ----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Keep the map up to date."""
        while True:
            try:
                self._draw(await self._ask_for_map())
            except Exception as error:
                # Ask again after any error, because the links of a map that is never drawn again lead nowhere.
                if not self._links:
                    self._unmapped = reason_of(error)
            self._drawn.set()
            self._owner.on_link_changed()
            # This map is new, so drop all requests so far, also those that `on_link_changed` has just made.
            self._map_outdated.clear()
            with anyio.move_on_after(_SELDOM if self.is_reachable else _SOON):
                await self._map_outdated.wait()
            # Frequent requests must not make swr ask for maps without a pause.
            await asyncio.sleep(_SOON * random.uniform(0.2, 0.5))

    async def _ask_for_map(self) -> tuple[str, list[Any]]:
        """Return the host of any node that answers, and its answer to `CLUSTER SLOTS`."""
        connected = [link for link in self._links.values() if link.connection is not None]
        if connected:
            link = random.choice(connected)
            connection = await link.ready()
            return _host(link), await connection.ask("CLUSTER", "SLOTS")
        # Ask all nodes at once, because any of them may hang.
        nodes = dict.fromkeys([*self._seeds, *self._links])
        clients = {(host, port): self._connect(host, port) for host, port in nodes}
        answers: list[tuple[str, list[Any]]] = []
        error: Exception = StoreUnavailable("a cluster needs at least one node to begin with")

        async def ask(host: str, client: Redis) -> None:
            nonlocal error
            try:
                answers.append((host, await self._ask_node(client)))
                for task in tasks:
                    task.cancel()
            except Exception as failed:
                # A provider of credentials may raise any error.
                error = failed

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(host, client)) for (host, _), client in clients.items()]
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                for client in clients.values():
                    await client.aclose()
        if not answers:
            raise error
        return answers[0]

    async def _ask_node(self, client: Redis) -> list[Any]:
        with patience(self._timeouts.connect, "no connection"):
            connection = await connection_of(client.connection_pool)
            await connection.send_command("CLUSTER", "SLOTS")
            return cast(list[Any], await connection.read_response(disable_decoding=True))

    def _draw(self, answer: tuple[str, list[Any]]) -> None:
        """Replace the map; start links to new masters, and end those to servers that are no longer masters."""
        asked, rows = answer
        by_slot: list[ServerLink | None] = [None] * _SLOTS
        links: dict[Address, ServerLink] = {}
        for first, last, (host, port, *_), *_ in rows:
            # A node that does not know its own host has the host at which it was asked.
            address = (host or b"").decode() or asked, int(port)
            link = links[address] = self._link(address)
            by_slot[first : last + 1] = [link] * (last + 1 - first)
        for address, link in self._links.items():
            if link.connection is not None and None in by_slot:
                # The node that was asked knows no master for some slots. If another master is still connected, it keeps
                # its slots: a demoted master would say so itself.
                for slot, before in enumerate(self._by_slot):
                    if before is link and by_slot[slot] is None:
                        by_slot[slot] = links[address] = link
            if address not in links:
                link.retire()
        self._links, self._by_slot = links, by_slot
        open_slots = by_slot.count(None)
        self._unmapped = StoreUnavailable(f"{open_slots} slots have no master") if open_slots else None

    def _link(self, address: Address) -> ServerLink:
        link = self._links.get(address)
        if link is None:
            host, port = address
            link = self._links[address] = ServerLink(
                self._connect(host, port), self._timeouts, self._owner, f"{host}:{port}"
            )
            self._start(link.run)
        return link


def _host(link: ServerLink) -> str:
    return cast(str, link.client.connection_pool.connection_kwargs["host"])


def _address(error: AskError, link: ServerLink) -> Address:
    # A redirect without a host means the host of the node that redirects.
    return cast(str, error.host) or _host(link), int(error.port)


async def _ask_once(link: ServerLink, command: tuple[bytes | str | int, ...]) -> Any:
    """Ask a server for a key of a slot that is still being moved to it."""
    connection = await link.ready()
    connection.send(("ASKING",), _ignored)
    return await connection.ask(*command)


def _ignored(reply: Any) -> None:
    """Ignore a reply."""
