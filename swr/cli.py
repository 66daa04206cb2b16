"""The command `swr`: what its arguments mean, and what is said when something is wrong with them."""

import argparse
import asyncio
import json
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar, cast

import msgspec

from swr.cache import Cache
from swr.errors import ConfigurationError, StoreUnavailable
from swr.policy import Duration
from swr.stores.barriers import ALL, FLOOR

if TYPE_CHECKING:
    from swr.stores.redis import RedisStore
    from swr.stores.tiered import TieredStore

T = TypeVar("T")

_USAGE: Final = 2
_FAILURE: Final = 1
# Requests that are under way when a signal comes may take so many seconds more.
_GRACE: Final = 10

_EXAMPLES: Final = """\
examples:
  swr proxy http://127.0.0.1:9000
      A cache on 127.0.0.1:8000 that obeys the Cache-Control of the service on port 9000.
  swr proxy http://127.0.0.1:9000 --fresh-for 60 --stale-for 10m --stale-if-error 1d
      The same, for answers that say nothing: a minute fresh, ten more served while they are
      refreshed in the background, and a day in place of errors.
  swr proxy http://app:9000 --listen :8000 --redis redis://redis:6379/0
      On all interfaces (IPv4), sharing what is stored with every other such process.

Durations are seconds (60) or have a unit: 500ms, 90s, 10m, 12h, 1d, 2w.
Every answer says what was done, in SWR-State and Cache-Status: curl -si http://127.0.0.1:8000/
"""


_INSPECT: Final = """\
examples:
  swr inspect ranking:ATL:100 --redis redis://127.0.0.1:6379/0
      Whether the entry is fresh, stale or missing, why, until when, and who is loading it.
  swr inspect 'GET http://example.com\n/rankings/ATL?' --redis redis+cluster://node1,node2
      The same for a response, in a cluster; \\n stands for the line break in a key.

The key is that of the template with its arguments filled in; a decorated function tells it: top100.key("ATL").
"""
_INVALIDATE: Final = """\
examples:
  swr invalidate ranking:ATL:100 --redis redis://127.0.0.1:6379/0
      One key, in Redis and in the memory of every process.
  swr invalidate --tag group:ATL --redis redis+sentinel://host1,host2/main
      All that carries a tag.
  swr invalidate --all --redis redis://127.0.0.1:6379/0
      Everything of the namespace.
"""


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """End with the message and where help is."""
        self.exit(_USAGE, f"swr: {message} ({self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 2 for what was asked wrongly, 1 for what failed."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except ConfigurationError as error:
        return _say(str(error), _USAGE)
    except StoreUnavailable as error:
        return _say(f"Redis did not do it: {error}", _FAILURE)
    except KeyboardInterrupt:
        # Ctrl-C, after everything has been closed.
        return 128 + signal.SIGINT
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("swr", description="A stale-while-revalidate cache.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    _add_proxy(
        commands.add_parser(
            "proxy",
            help="a caching reverse proxy in front of an HTTP service",
            description="A caching reverse proxy: a shared HTTP cache (RFC 9111) in front of an HTTP service.",
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    _add_inspect(
        commands.add_parser(
            "inspect",
            help="what lies in Redis for one key",
            description="What lies in Redis for one key: state, age, deadlines, version, size, tags and lease.",
            epilog=_INSPECT,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    _add_invalidate(
        commands.add_parser(
            "invalidate",
            help="remove a key, all that carries a tag, or everything, in every process",
            description="Remove what is stored, in Redis and in the memory of every process that uses it.",
            epilog=_INVALIDATE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    return parser


def _add_inspect(inspect: argparse.ArgumentParser) -> None:
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("key", help="the key, ranking:ATL:100")
    _add_store(inspect)


def _add_invalidate(invalidate: argparse.ArgumentParser) -> None:
    invalidate.set_defaults(run=_invalidate)
    what = invalidate.add_mutually_exclusive_group(required=True)
    what.add_argument("key", nargs="?", help="the key, ranking:ATL:100")
    what.add_argument("--tag", help="all that carries this tag")
    what.add_argument("--all", action="store_true", help="everything of the namespace")
    _add_store(invalidate)


def _add_store(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--redis",
        metavar="URL",
        required=True,
        help="redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://",
    )
    add("--namespace", default="swr", metavar="NAME", help="the beginning of every key in Redis (%(default)s)")
    add("--timeout", type=_duration, default=2, metavar="TIME", help="how long Redis may be silent (%(default)s)")
    add("--json", action="store_true", help="for programs: one JSON object")


def _inspect(options: argparse.Namespace) -> int:
    """Say what lies in Redis for a key."""
    from swr.inspection import inspect, told

    key = _key(options.key)
    found = asyncio.run(_with_store(options, lambda store: inspect(store, key)))
    print(json.dumps(msgspec.to_builtins(found)) if options.json else told(found))
    return 0


def _invalidate(options: argparse.Namespace) -> int:
    """Remove what is stored."""
    if options.all:
        asyncio.run(_with_store(options, lambda store: store.invalidate_tag(ALL)))
        return _invalidated(options, "all", True, "everything")
    if options.tag is not None:
        if options.tag in ("", ALL, FLOOR):
            raise ConfigurationError(f"--tag {options.tag!r} is no tag; for everything: --all")
        asyncio.run(_with_store(options, lambda store: store.invalidate_tag(options.tag)))
        return _invalidated(options, "tag", options.tag, f"all that carries the tag {options.tag!r}")
    key = _key(options.key)
    asyncio.run(_with_store(options, lambda store: store.invalidate(key)))
    return _invalidated(options, "key", key, repr(key))


def _invalidated(options: argparse.Namespace, kind: str, what: str | bool, shown: str) -> int:
    said = json.dumps({"invalidated": {kind: what}, "namespace": options.namespace})
    print(said if options.json else f"invalidated {shown} in the namespace {options.namespace!r}")
    return 0


def _key(text: str) -> str:
    """Return the key that is meant; those of responses have a line break in them."""
    return text.replace("\\n", "\n")


async def _with_store(options: argparse.Namespace, ask: "Callable[[RedisStore], Awaitable[T]]") -> T:
    """Do something with the store alone, where what fails is said and not made up for later."""
    # What is said is said in one line, by whoever asked.
    log = logging.getLogger("swr")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        async with Cache(options.redis, namespace=options.namespace, timeout=options.timeout, l1_max_bytes=0) as cache:
            tiered = cast("TieredStore", cache.engine.store)
            return await ask(cast("RedisStore", tiered.store))
    finally:
        log.setLevel(before)


def _add_proxy(proxy: argparse.ArgumentParser) -> None:
    proxy.set_defaults(run=_proxy)
    proxy.add_argument("upstream", help="the service, http://host:port; a path is put before every path")
    add = proxy.add_argument
    add(
        "--listen",
        type=_address,
        default="127.0.0.1:8000",
        metavar="ADDRESS",
        help="host:port, [::1]:port or :port (%(default)s)",
    )

    lifetimes = proxy.add_argument_group("how long, where an answer does not say it itself")
    add = lifetimes.add_argument
    add("--fresh-for", type=_duration, metavar="TIME", help="served without a question (not at all)")
    add(
        "--stale-for",
        type=_duration,
        default=0,
        metavar="TIME",
        help="after that, served and refreshed behind the reader (0)",
    )
    add(
        "--stale-if-error",
        type=_duration,
        default=0,
        metavar="TIME",
        help="after --fresh-for, the answer if the service fails (0)",
    )

    storage = proxy.add_argument_group("what is stored, and where")
    add = storage.add_argument
    add("--redis", metavar="URL", help="Redis or Valkey, redis://host:port/db; without it this process's memory")
    add("--namespace", default="swr", metavar="NAME", help="the beginning of every key in Redis (%(default)s)")
    add("--l1-max-bytes", type=int, default=64 * 2**20, metavar="N", help="the most held in memory (%(default)s)")
    add("--max-body-bytes", type=int, default=2**20, metavar="N", help="longer answers are not stored (%(default)s)")
    add(
        "--cookies",
        choices=("private", "rfc9111"),
        default="private",
        help="private: requests with cookies go past the cache; rfc9111: cookies do not matter (%(default)s)",
    )

    service = proxy.add_argument_group("the service")
    add = service.add_argument
    add("--timeout", type=_duration, default=30, metavar="TIME", help="how long it may be silent (%(default)s)")
    add(
        "--connect-timeout",
        type=_duration,
        default=5,
        metavar="TIME",
        help="how long connecting may take (%(default)s)",
    )
    add("--max-connections", type=int, default=100, metavar="N", help="the most connections to it (%(default)s)")
    add(
        "--trust-forwarded",
        action="store_true",
        help="behind another proxy: keep the Forwarded and X-Forwarded-* that it sends",
    )
    proxy.add_argument(
        "--log-level",
        choices=("critical", "error", "warning", "info", "debug"),
        default="warning",
        help="(%(default)s)",
    )


def _proxy(options: argparse.Namespace) -> int:
    """Serve a caching proxy until a signal comes."""
    try:
        import uvicorn

        from swr.proxy import caching_proxy
    except ImportError as error:
        return _say(f"proxy needs httpx and uvicorn ({error}): pip install 'swr[proxy]'", _FAILURE)
    if options.fresh_for is None and (options.stale_for or options.stale_if_error):
        raise ConfigurationError("--stale-for and --stale-if-error count from --fresh-for: give it too")
    app = caching_proxy(
        options.upstream,
        redis=options.redis,
        namespace=options.namespace,
        l1_max_bytes=options.l1_max_bytes,
        fresh_for=options.fresh_for,
        stale_for=options.stale_for,
        stale_if_error=options.stale_if_error,
        cookies=options.cookies,
        max_body_bytes=options.max_body_bytes,
        timeout=options.timeout,
        connect_timeout=options.connect_timeout,
        max_connections=options.max_connections,
        trust_forwarded=options.trust_forwarded,
    )
    host, port = options.listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    shown = f"[{host}]" if ":" in host else host or "0.0.0.0"
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        return _say(f"cannot listen on {shown}:{port}: {error.strerror}", _FAILURE)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"swr: http://{shown}:{listener.getsockname()[1]} -> {options.upstream}", flush=True)

    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = uvicorn.Config(
        app,
        lifespan="on",
        # An upgrade to WebSocket is not offered; the request is answered as if it had not been asked for.
        ws="none",
        log_config=None,
        log_level=options.log_level,
        access_log=False,
        # The answers are the service's, with its own Date and Server.
        date_header=False,
        server_header=False,
        # It is for the service to believe what another proxy says of the client.
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE,
    )
    Server(config).run([listener])
    return 0


def _address(text: str) -> tuple[str, int]:
    """Return host and port of "host:port", "[::1]:port" or ":port"."""
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port, such as 127.0.0.1:8000, [::1]:8000 or :8000")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise argparse.ArgumentTypeError(f"{text!r}: write an IPv6 address in brackets, [{host}]:{port}")
    return host, int(port)


def _duration(text: str) -> Duration:
    """Return a number as seconds, anything else as it is: what it means is not decided here."""
    try:
        return float(text)
    except ValueError:
        return text


def _say(message: str, code: int) -> int:
    print(f"swr: {message}", file=sys.stderr)
    return code
