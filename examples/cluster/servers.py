"""Three masters and three replicas of a Valkey or Redis Cluster, as child processes on the loopback."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Final, Protocol, Self

from redis.crc import key_slot

from examples.demo.servers import StartError, exchange, free_port, running

SLOTS: Final = 16384


class Node(Protocol):
    """A server of a cluster."""

    # The ports for clients and for the other nodes.
    port: int
    bus: int

    def command(self, *words: str) -> bytes:
        """Send one command; return the raw reply, or b"" if there is none."""


class Server:
    """A node that keeps its data in memory, and its knowledge of the other nodes in `folder`.

    Parameters:
        binary: the path of the server, Valkey or Redis.
        folder: the node's own folder.
        node_timeout: seconds of silence after which another node counts as down.
    """

    def __init__(self, binary: str, folder: Path, node_timeout: float) -> None:
        self.port, self.bus = free_port(), free_port()
        self._folder = folder
        self._arguments = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self._arguments += ["--cluster-enabled", "yes", "--cluster-port", str(self.bus)]
        self._arguments += ["--cluster-node-timeout", str(int(node_timeout * 1000)), "--repl-diskless-sync-delay", "0"]
        self._stack = ExitStack()
        self._process: Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, for the first time or again. Raises StartError."""
        self._folder.mkdir(exist_ok=True)
        log = self._folder / "server.log"
        self._process = self._stack.enter_context(running(self._arguments, {}, log, self._pongs))

    def _pongs(self) -> bool:
        return self.command("PING").startswith(b"+PONG")

    def command(self, *words: str) -> bytes:
        """Send one command on a connection of its own; return the raw reply, or b"" if there is none."""
        parts = (f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        return exchange(self.port, f"*{len(words)}\r\n{''.join(parts)}".encode())

    @property
    def is_master(self) -> bool:
        """Whether the server is a master."""
        return b"role:master" in self.command("INFO", "replication")

    @property
    def has_replica(self) -> bool:
        """Whether a connected replica follows the server."""
        return b"state=online" in self.command("INFO", "replication")

    def kill(self) -> None:
        """End the server with SIGKILL: writes that its replica does not have are lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.end()

    def end(self) -> None:
        """End the server."""
        self._stack.close()
        self._process = None


class Six:
    """The cluster, with replicas that are in sync.

    Parameters:
        binary: the path of the server, Valkey or Redis.
        folder: the folder for the files of the nodes.
        node_timeout: seconds of silence after which a node counts as down.
    """

    def __init__(self, binary: str, folder: Path, node_timeout: float = 1.0) -> None:
        self._nodes = [Server(binary, folder / f"node-{number}", node_timeout) for number in range(6)]
        self.masters, self.replicas = self._nodes[:3], self._nodes[3:]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self._nodes)

    def of(self, key: str) -> tuple[Server, Server]:
        """Return the master that had a key at the beginning, and its replica."""
        third = key_slot(key.encode()) * 3 // SLOTS
        return self.masters[third], self.replicas[third]

    def __enter__(self) -> Self:
        try:
            for node in self._nodes:
                node.start()
            join(self.masters, self.replicas)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes:
            node.end()


def _follows(replica: Node, name: str) -> bool:
    """Tell a node to follow a master; return whether the node already knows that master."""
    return replica.command("CLUSTER", "REPLICATE", name) == b"+OK\r\n"


def _knows_all(node: Node) -> bool:
    """Return whether a node knows the master of every slot."""
    says = node.command("CLUSTER", "INFO")
    # With cluster-require-full-coverage off, the state is "ok" before all slots are known.
    return b"cluster_state:ok" in says and b"cluster_slots_assigned:%d\r" % SLOTS in says


def join(masters: Sequence[Node], replicas: Sequence[Node]) -> None:
    """Make one cluster of empty nodes, with a replica for each master or none; return when a failover is possible.

    Raises:
        StartError: the nodes did not form a cluster in time.
    """
    nodes, first = [*masters, *replicas], masters[0]
    for number, node in enumerate(masters):
        low, high = -(-number * SLOTS // len(masters)), -(-(number + 1) * SLOTS // len(masters)) - 1
        if node.command("CLUSTER", "ADDSLOTSRANGE", str(low), str(high)) != b"+OK\r\n":
            raise StartError(f"the node on port {node.port} did not take the slots {low} to {high}")
    for node in nodes[1:]:
        node.command("CLUSTER", "MEET", "127.0.0.1", str(first.port), str(first.bus))
        first.command("CLUSTER", "MEET", "127.0.0.1", str(node.port), str(node.bus))
    for master, replica in zip(masters, replicas, strict=bool(replicas)):
        name = master.command("CLUSTER", "MYID").decode().split("\r\n")[1]
        until(partial(_follows, replica, name), "a replica knows its master")
    until(lambda: all(_knows_all(node) for node in nodes), "all are one cluster")
    in_sync = b"master_link_status:up"
    until(lambda: all(in_sync in node.command("INFO", "replication") for node in replicas), "replicas are in sync")
    # A failover is possible only when a master and the other nodes know its replica.
    known = len(replicas)
    until(
        lambda: all(node.command("CLUSTER", "NODES").count(b"slave") == known for node in nodes),
        "all know the replicas",
    )


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait until `condition` returns True.

    Raises:
        StartError: it did not within `seconds`.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise StartError(f"{what}: that did not come true within {seconds:g} s")
        time.sleep(0.02)
