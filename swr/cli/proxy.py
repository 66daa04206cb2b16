"""`swr proxy`: a caching reverse proxy."""

import argparse
import functools
import gc
import logging
import os
import socket
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from swr.cli.listening import address, listener_at
from swr.cli.shared import FAILURE, NAMESPACE_HELP, Commands, Failure, command, duration, find_store, say
from swr.errors import ConfigurationError
from swr.lifecycle.options import codec_in
from swr.policy import seconds
from swr.settings import PURGE_TOKEN, URL, read_environment

# Seconds for which running requests may go on after a signal.
_GRACE: Final = 10
_EXAMPLES: Final = """\
examples:
  swr proxy http://127.0.0.1:9000
      Listens on 127.0.0.1:8000, and obeys the Cache-Control of the service on port 9000.
  swr proxy http://127.0.0.1:9000 --fresh-for 60 --stale-for 10m --stale-if-error 1d
      Also stores answers without a lifetime: they are fresh for a minute, are then served for
      ten minutes while the proxy refreshes them, and replace errors for a day.
  swr proxy http://app:9000 --listen :8000 --redis redis://redis:6379/0
      Listens on all interfaces (IPv4), and shares its entries with all proxies that use this Redis.

Durations are seconds (60) or have a unit: 500ms, 90s, 10m, 12h, 1d, 2w.
The fields SWR-State and Cache-Status of each answer say what the proxy did:
curl -si http://127.0.0.1:8000/
"""


def add(commands: Commands) -> None:
    """Add `proxy`."""
    proxy = command(
        commands,
        "proxy",
        _proxy,
        "run a caching reverse proxy in front of an HTTP service",
        "Run a caching reverse proxy: a shared HTTP cache (RFC 9111) in front of an HTTP service.",
        _EXAMPLES,
    )
    proxy.add_argument(
        "upstream", help="the service, http://host:port; a path in it is put before the path of every request"
    )
    option = proxy.add_argument
    option(
        "--listen",
        type=address,
        default="127.0.0.1:8000",
        metavar="ADDRESS",
        help="host:port, [::1]:port or :port (%(default)s)",
    )

    proxy.add_argument(
        "--server",
        choices=("uvicorn", "granian"),
        default="uvicorn",
        help="granian: more requests a second, and fewer limits for clients (%(default)s)",
    )

    lifetimes = proxy.add_argument_group("lifetimes of answers that name none themselves")
    time = functools.partial(lifetimes.add_argument, type=duration, metavar="TIME")
    time("--fresh-for", help="how long an answer is served without asking the service (not at all)")
    time("--stale-for", default=0, help="how long after that it is still served, and refreshed in the background (0)")
    time("--stale-if-error", default=0, help="how long after --fresh-for it is served if the service fails (0)")

    storage = proxy.add_argument_group("storage")
    option = storage.add_argument
    option(
        "--redis",
        metavar="URL",
        help=f"Redis or Valkey, redis://host:port/db (the value of {URL}, or the memory of this process)",
    )
    option("--namespace", metavar="NAME", help=NAMESPACE_HELP)
    option("--l1-max-bytes", type=int, default=64 * 2**20, metavar="N", help="the most bytes in memory (%(default)s)")
    option("--max-body-bytes", type=int, default=2**20, metavar="N", help="longer answers are not stored (%(default)s)")
    option(
        "--cookies",
        choices=("private", "rfc9111"),
        default="private",
        help="private: requests with cookies bypass the cache; rfc9111: cookies do not matter (%(default)s)",
    )

    option(
        "--ignore-fields",
        type=_names,
        default=(),
        metavar="NAMES",
        help="request fields, separated by commas, on which no answer depends (only fields known to be harmless)",
    )

    service = proxy.add_argument_group("the service")
    option = service.add_argument
    time = functools.partial(option, type=duration, metavar="TIME")
    time("--timeout", default=30, help="how long the service may be silent (%(default)s)")
    time("--connect-timeout", default=5, help="how long connecting may take (%(default)s)")
    option("--max-connections", type=int, default=100, metavar="N", help="the most connections to it (%(default)s)")
    time("--hard-timeout", default=60, help="how long an answer that is to be stored may take in total (%(default)s)")
    option(
        "--trust-forwarded",
        action="store_true",
        help="behind another proxy: pass on the Forwarded and X-Forwarded-* fields that it sends",
    )
    clients = proxy.add_argument_group("the clients")
    time = functools.partial(clients.add_argument, type=duration, metavar="TIME")
    time("--head-timeout", default=10, help="how long the header section of a request may take (%(default)s)")
    time(
        "--client-timeout",
        default=30,
        help="how far a client may fall behind 500 bytes a second, sending a body or taking an answer (%(default)s)",
    )
    time("--keep-alive", help="how long an idle connection stays open (5; with granian, use --head-timeout)")
    proxy.add_argument(
        "--log-level",
        choices=("critical", "error", "warning", "info", "debug"),
        default="warning",
        help="the least severe level that is logged (%(default)s)",
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _proxy(options: argparse.Namespace) -> int:
    """Serve a caching proxy until a signal ends the process."""
    try:
        # Missing packages must show before anything is opened.
        import uvicorn  # noqa: F401  # imported to see whether it is installed

        import swr.proxy.server  # noqa: F401  # imported to see whether its packages are installed
        from swr.proxy import caching_proxy
    except ImportError as error:
        return say(f"proxy needs httpx and uvicorn ({error}): pip install 'swr[proxy]'", FAILURE)
    if options.fresh_for is None and (options.stale_for or options.stale_if_error):
        raise ConfigurationError("--stale-for and --stale-if-error count from --fresh-for: give it too")
    find_store(options)
    environment = read_environment()
    app = caching_proxy(
        options.upstream,
        redis=options.redis,
        secret=environment.secret or b"",
        codec=codec_in(environment),
        namespace=options.namespace,
        l1_max_bytes=options.l1_max_bytes,
        fresh_for=options.fresh_for,
        stale_for=options.stale_for,
        stale_if_error=options.stale_if_error,
        cookies=options.cookies,
        ignore_fields=options.ignore_fields,
        max_body_bytes=options.max_body_bytes,
        timeout=options.timeout,
        connect_timeout=options.connect_timeout,
        max_connections=options.max_connections,
        client_timeout=options.client_timeout,
        hard_timeout=options.hard_timeout,
        trust_forwarded=options.trust_forwarded,
        # The token is not an option: every user of the machine can see the options of a process.
        purge_token=os.environ.get(PURGE_TOKEN, "").strip(),
    )
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    serve = _on_granian if options.server == "granian" else _on_uvicorn
    try:
        serve(_without_traceback(app), options)
    finally:
        gc.unfreeze()
    return 0


def _started(shown: str, options: argparse.Namespace) -> None:
    # Freezing keeps modules, classes and functions out of later garbage collections, which stop the event loop.
    gc.collect()
    gc.freeze()
    print(f"swr: http://{shown} -> {options.upstream}", flush=True)


def _on_uvicorn(app: ASGIApp, options: argparse.Namespace) -> None:
    """Serve the app with all limits for clients."""
    import uvicorn

    from swr.proxy.server import ClientProtocol

    class Protocol(ClientProtocol):
        """A protocol with the operator's time-outs."""

    Protocol.head_timeout = _positive("--head-timeout", options)
    Protocol.client_timeout = _positive("--client-timeout", options)
    if options.keep_alive is None:
        options.keep_alive = 5
    keep_alive = _positive("--keep-alive", options)
    listener, shown = listener_at(options.listen)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            _started(shown, options)

    config = uvicorn.Config(
        app,
        http=Protocol,
        lifespan="on",
        # The proxy does not offer WebSocket. It answers a request for an upgrade as a normal request.
        ws="none",
        log_config=None,
        log_level=options.log_level,
        access_log=False,
        # An answer keeps the Date and Server of the service.
        date_header=False,
        server_header=False,
        # The service decides whether to trust what another proxy says about the client.
        proxy_headers=False,
        timeout_keep_alive=keep_alive,  # type: ignore[arg-type]  # asyncio takes fractions
        timeout_graceful_shutdown=_GRACE,
    )
    Server(config).run([listener])


def _on_granian(app: ASGIApp, options: argparse.Namespace) -> None:
    """Serve the app with the limits that granian has."""
    try:
        from swr.proxy.granian_server import serve
    except ImportError as error:
        raise Failure(f"--server granian needs granian and uvloop ({error}): pip install 'swr[granian]'") from None
    if options.keep_alive is not None:
        raise ConfigurationError(
            "--keep-alive does not work with granian: use --head-timeout, which also counts between two requests"
        )
    head_timeout = _positive("--head-timeout", options)
    listener, shown = listener_at(options.listen)
    host, port = listener.getsockname()[:2]
    # granian opens its own socket. This one only tested that the address is free.
    listener.close()
    serve(app, host, port, head_timeout=head_timeout, grace=_GRACE, on_start=lambda: _started(shown, options))


def _without_traceback(app: ASGIApp) -> ASGIApp:
    """Return an app that logs one line, without a traceback, if the client or the service breaks off or is too slow.

    Afterwards the server closes the connection to the client, as after any exception.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except (ConnectionError, TimeoutError) as error:
            logging.getLogger("swr").warning("%s %r: %s", scope.get("method"), scope.get("path"), error)

    return answer


def _positive(name: str, options: argparse.Namespace) -> float:
    """Return the seconds of an option.

    Raises:
        ConfigurationError: the value is not a duration above 0.
    """
    value = getattr(options, name.removeprefix("--").replace("-", "_"))
    if seconds(value, name) <= 0:
        raise ConfigurationError(f"{name} must be more than 0 seconds")
    return seconds(value, name)
