"""The masters of a Redis or Valkey Cluster: a link to each, and the map of slots, kept true through failovers."""

import asyncio
import contextlib
import functools
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import anyio
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, TryAgainError

from swr.errors import StoreUnavailable
from swr.stores.base import Start
from swr.stores.link import Keeper, Link
from swr.stores.replicas import Replica

_SLOTS: Final = 16384
# The map is asked for again: as long as something is amiss, and otherwise.
_SOON: Final = 0.2
_SELDOM: Final = 10.0
# A key that is being moved may be redirected more than once.
_REDIRECTED: Final = 4

Address = tuple[str, int]


class Cluster:
    """The masters of a cluster.

    Parameters:
        connect: makes the client of one node, of its host and port.
        seeds: nodes to ask for the others.
        timeout: seconds after which an unanswered command counts as failed.
        replicas: whether values are read from the masters' replicas.
    """

    one = False
    # A cluster has only this one.
    database = 0

    def __init__(
        self,
        connect: Callable[[str, int], Redis],
        seeds: Sequence[Address],
        timeout: float = 0.2,
        *,
        replicas: bool = False,
    ) -> None:
        self.replicas = replicas
        self.name = ",".join(f"{host}:{port}" for host, port in seeds)
        self._connect = connect
        self._seeds = list(seeds)
        self._timeout = timeout

    def open(self, start: Start, keeper: Keeper) -> None:
        """Begin to keep the map and the links."""
        self._start, self._keeper = start, keeper
        self._links: dict[Address, Link] = {}
        self._replicas: dict[Address, list[Address]] = {}
        self._by_slot: list[Link | None] = [None] * _SLOTS
        # Why there is no map, or which slots have no master in it.
        self._unmapped: Exception | None = StoreUnavailable("the map of its slots is not known yet")
        self._drawn, self._unsure = asyncio.Event(), asyncio.Event()
        start(self._follow)

    async def tried(self) -> None:
        """Wait until it is known of every master whether it can be reached."""
        await self._drawn.wait()
        for link in list(self._links.values()):
            await link.tried.wait()

    @property
    def whole(self) -> bool:
        """Whether every slot has a master that can be reached."""
        return self._unmapped is None and all(link.wire is not None for link in self._links.values())

    @property
    def lost(self) -> Exception | None:
        """Why not every slot can be reached."""
        if self._unmapped is not None and self._drawn.is_set():
            return self._unmapped
        return next((link.lost for link in self._links.values() if link.lost is not None), None)

    @property
    def sent(self) -> int:
        """How many commands have been sent to those who are masters now."""
        return sum(link.sent for link in self._links.values())

    def give_up(self, error: Exception) -> None:
        """Count as lost every master that has not been reached yet."""
        if not self._drawn.is_set():
            self._unmapped = error
            self._drawn.set()
            self._keeper.link_changed()
        for link in self._links.values():
            link.lose(error)

    def doubt(self) -> None:
        """Ask for the map again."""
        self._unsure.set()

    def link_to(self, name: bytes) -> Link:
        """Return the link to the master that has a key.

        Raises:
            StoreUnavailable: its slot has no master that is known of.
        """
        link = self._by_slot[key_slot(name)]
        if link is None:
            self._unsure.set()
            raise StoreUnavailable(f"no master is known for slot {key_slot(name)} ({self._unmapped})")
        return link

    async def ask(self, name: bytes, *command: bytes | str | int) -> Any:
        """Ask the master that has the key `name`, and the one that it redirects to.

        Raises:
            StoreUnavailable: no answer.
            ResponseError: the server's answer is an error.
        """
        link, asking = self.link_to(name), False
        for _ in range(_REDIRECTED):
            try:
                return await (_ask_once(link, command) if asking else link.ask(*command))
            except MovedError as moved:
                self._unsure.set()
                link, asking = self._link(_address(moved, link)), False
            except AskError as asked:
                # The slot is on its way there, and this key was first, or is none.
                link, asking = self._link(_address(asked, link)), True
            except TryAgainError:
                # Of several keys some are there already.
                await asyncio.sleep(self._timeout / _REDIRECTED)
            except ClusterDownError as error:
                self._unsure.set()
                raise StoreUnavailable(str(error)) from error
        raise StoreUnavailable(f"{command[0]!r} was redirected {_REDIRECTED} times")

    # -- the map ----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Keep the map true."""
        while True:
            try:
                self._draw(await self._ask_for_map())
            except (RedisError, OSError, TimeoutError, StoreUnavailable) as error:
                if not self._links:
                    self._unmapped = StoreUnavailable(str(error) or type(error).__name__)
            self._drawn.set()
            self._keeper.link_changed()
            # Whatever is amiss was so while the map was made.
            self._unsure.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SELDOM if self.whole else _SOON):
                    await self._unsure.wait()
            # However often somebody is unsure.
            await asyncio.sleep(_SOON * random.uniform(0.2, 0.5))

    async def _ask_for_map(self) -> tuple[str, list[Any]]:
        """Return the host that was asked and its answer to `CLUSTER SLOTS`; any node will do that answers."""
        whole = [link for link in self._links.values() if link.wire is not None]
        if whole:
            link = random.choice(whole)
            wire = await link.ready()
            return _host(link), await wire.ask("CLUSTER", "SLOTS")
        error: Exception = StoreUnavailable("a cluster needs at least one node to begin with")
        for host, port in dict.fromkeys([*random.sample(self._seeds, len(self._seeds)), *self._links]):
            client = self._connect(host, port)
            try:
                with anyio.fail_after(2 * self._timeout):
                    connection = await client.connection_pool.get_connection()
                    await connection.send_command("CLUSTER", "SLOTS")
                    return host, await connection.read_response(disable_decoding=True)
            except (RedisError, OSError, TimeoutError) as failed:
                error = failed
            finally:
                await client.aclose()
        raise error

    def _draw(self, answer: tuple[str, list[Any]]) -> None:
        """Make the map anew, with links to masters that are new, and without those that are none any more."""
        asked, rows = answer
        by_slot: list[Link | None] = [None] * _SLOTS
        links: dict[Address, Link] = {}
        self._replicas = {}
        for first, last, *nodes in rows:
            # A node that does not know its own address is where it was asked.
            address, *self._replicas[address] = (
                ((host or b"").decode() or asked, int(port)) for host, port, *_ in nodes
            )
            link = links[address] = self._link(address)
            by_slot[first : last + 1] = [link] * (last + 1 - first)
        for address, link in self._links.items():
            if link.wire is not None and None in by_slot:
                # Who knows of no master for a slot knows less than who did: the master itself says if it is none.
                for slot, before in enumerate(self._by_slot):
                    if before is link and by_slot[slot] is None:
                        by_slot[slot] = links[address] = link
            if address not in links:
                link.retire()
        self._links, self._by_slot = links, by_slot
        open_slots = by_slot.count(None)
        self._unmapped = StoreUnavailable(f"{open_slots} slots have no master") if open_slots else None

    def _link(self, address: Address) -> Link:
        link = self._links.get(address)
        if link is None:
            host, port = address
            link = self._links[address] = Link(
                self._connect(host, port), self._timeout, self._keeper, f"Redis {host}:{port}"
            )
            self._start(link.run)
            if self.replicas:
                connect = functools.partial(self._connect_to_replica, address)
                link.replica = Replica(link, connect, self._timeout, readonly=True)
                self._start(link.replica.run)
        return link

    def _connect_to_replica(self, address: Address) -> Redis:
        # A replica that was lost may be another's by now, and one that is new is not in the map.
        self._unsure.set()
        replicas = self._replicas.get(address)
        if not replicas:
            raise StoreUnavailable("none is known")
        return self._connect(*random.choice(replicas))


def _host(link: Link) -> str:
    return cast(str, link.client.connection_pool.connection_kwargs["host"])


def _address(error: AskError, link: Link) -> Address:
    # A node that does not know the other's host means its own.
    return cast(str, error.host) or _host(link), int(error.port)


async def _ask_once(link: Link, command: tuple[bytes | str | int, ...]) -> Any:
    """Ask a server for a key of a slot that is not its own yet."""
    wire = await link.ready()
    wire.send(("ASKING",), _ignored)
    return await wire.ask(*command)


def _ignored(reply: Any) -> None:
    """Nothing is made of it."""
