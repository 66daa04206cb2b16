"""The addresses at which commands that serve HTTP listen."""

import argparse
import socket

from swr.cli.shared import Failure


def address(text: str) -> tuple[str, int]:
    """Return host and port of "host:port", "[::1]:port" or ":port"."""
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be host:port, such as 127.0.0.1:8000, [::1]:8000 or :8000")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise argparse.ArgumentTypeError(f"{text!r}: write an IPv6 address in brackets, [{host}]:{port}")
    return host, int(port)


def listener_at(where: tuple[str, int]) -> tuple[socket.socket, str]:
    """Return a listening socket, and its address as text.

    Parameters:
        where: host and port; host "": all IPv4 interfaces.

    Raises:
        Failure: the socket cannot listen there.
    """
    host, port = where
    shown = f"[{host}]" if ":" in host else host or "0.0.0.0"
    try:
        listener = socket.create_server((host, port), family=family_of(host), backlog=2048)
    except OSError as error:
        raise Failure(f"cannot listen on {shown}:{port}: {error.strerror}") from None
    return listener, f"{shown}:{listener.getsockname()[1]}"


def family_of(host: str) -> socket.AddressFamily:
    """Return the socket family for a host."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
