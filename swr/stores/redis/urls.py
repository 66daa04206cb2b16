"""Finds the servers behind a URL or a client of the user."""

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import ConnectionPool, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from swr.errors import ConfigurationError
from swr.settings import SCHEMES, redacted, refusal_of
from swr.stores.redis.cluster import Address, Cluster
from swr.stores.redis.releases import PLAIN
from swr.stores.redis.server_link import CONNECT_TIMEOUT
from swr.stores.redis.topology import Servers, Single

# Arguments that redis-py's cluster client adds to its connections for its own use.
_CLUSTERS: Final = {"max_connections", "redis_connect_func", "response_callbacks"}
# An error of Python that contains one of these texts quotes a part of the URL.
_QUOTING: Final = ("Port could not be cast", "netloc", "IPv4")


def servers_of(url: str | None, redis: object, timeout: float, connect_timeout: float = CONNECT_TIMEOUT) -> Servers:
    """Return the servers that a URL or a client names.

    Parameters:
        url: see `swr.Cache`.
        redis: a client of redis-py instead of a URL, or None.
        timeout: seconds after which a server that is silent counts as hung.
        connect_timeout: seconds that connecting may take.

    Raises:
        ConfigurationError: the URL or the client cannot work, or both were given.
    """
    if redis is not None:
        if url is not None:
            raise ConfigurationError(f"both a URL ({redacted(url)}) and redis= were given: give one")
        return _of_client(redis, timeout, connect_timeout)
    if not isinstance(url, str) or not url.startswith(SCHEMES):
        raise ConfigurationError(refusal_of(url))
    try:
        if "+cluster://" in url:
            return _cluster(url, timeout, connect_timeout)
        connect = _sentinel(url, timeout, connect_timeout) if "+sentinel://" in url else _server(url)
        pool = connect().connection_pool
        # Make a connection without connecting it, so that redis-py rejects here what it does not understand.
        pool.make_connection()
        _refuse_decoding(redacted(url), pool.connection_kwargs)
    except (AttributeError, RedisError, TypeError, ValueError) as error:
        text = str(error)
        if any(word in text for word in _QUOTING) or "@" in _behind_location(url):
            # The text would quote what was taken for the port, the host or the database: a part of a password.
            text = (
                "a port is not a number, the text in brackets is not an address, or a password has characters to be "
                "percent-encoded: '/' as %2F"
            )
        raise ConfigurationError(f"{redacted(url)}: {text}") from None
    return Single(connect, timeout, connect_timeout=connect_timeout)


def _behind_location(url: str) -> str:
    """Return the path, the query and the fragment of a URL."""
    return "".join(re.split("[/?#]", url.partition("://")[2], maxsplit=1)[1:])


def _options() -> dict[str, Any]:
    # redis-py's own retries would make a refused connection take 4 s and a hung one a minute. Its time-outs also count
    # the pauses of this process. The time-outs of the links do not.
    return {"socket_timeout": None, "socket_connect_timeout": None, "retry": Retry(NoBackoff(), 0)}


def _server(url: str) -> Callable[[], Redis]:
    database = urlsplit(url).path.strip("/")
    if database and not database.isdigit() and not url.startswith("unix://"):
        # redis-py would use database 0 instead.
        raise ValueError(f"{database!r} is not the number of a database: write redis://host:port/0")
    options = {**PLAIN, **_options(), **_verified(dict(parse_url(url)))}
    # `?protocol=3` in the URL overrides these options.
    return lambda: Redis.from_url(url, **options)


def _sentinel(url: str, timeout: float, connect_timeout: float) -> Callable[[], Redis]:
    """Return a function that makes the client of a master that Sentinel knows.

    The URL is `redis+sentinel://user:password@host:port,host:port/master/database?sentinel_username=…&…`.
    """
    hosts, path, kwargs = _several(url, 26379)
    master, _, database = path.strip("/").partition("/")
    database = database or str(kwargs.get("db") or "")
    if not master or (database and not database.isdigit()):
        raise ValueError("give the master's name and the database after the sentinels: …/mymaster/0")
    kwargs = {**PLAIN, **kwargs, **_options(), "db": int(database or 0)}
    # The sentinels have their own accounts. If one hangs, there must be time left to ask the next.
    each = min(timeout, connect_timeout / len(hosts))
    known = {**PLAIN, **_options(), "socket_timeout": each, "socket_connect_timeout": each}
    for name in ("username", "password"):
        if f"sentinel_{name}" in kwargs:
            known[name] = kwargs.pop(f"sentinel_{name}")
    if kwargs.pop("connection_class", None) is SSLConnection:
        kwargs["ssl"] = known["ssl"] = True
        known.update({name: value for name, value in kwargs.items() if name.startswith("ssl_")})

    def connect() -> Redis:
        sentinel = Sentinel(hosts, sentinel_kwargs=known)
        client: Redis = sentinel.master_for(master, **kwargs)
        return client

    return connect


def _cluster(url: str, timeout: float, connect_timeout: float) -> Servers:
    """Return the servers of a cluster, for a URL `redis+cluster://user:password@host:port,host:port`."""
    hosts, path, kwargs = _several(url, 6379)
    if path.strip("/") not in ("", "0"):
        raise ValueError("a cluster has only database 0")
    kwargs = {**PLAIN, **kwargs, **_options()}
    _refuse_decoding(redacted(url), kwargs)
    return Cluster(_node(kwargs), hosts, timeout, connect_timeout)


def _node(kwargs: dict[str, Any]) -> Callable[[str, int], Redis]:
    """Return a function that makes the client of one node of a cluster."""

    def connect(host: str, port: int) -> Redis:
        return Redis.from_pool(ConnectionPool(host=host, port=port, **kwargs))

    connect("", 0).connection_pool.make_connection()
    return connect


def _several(url: str, port: int) -> tuple[list[Address], str, dict[str, Any]]:
    """Return the hosts of a URL, its path, and the arguments that redis-py reads from the rest.

    Parameters:
        port: the port of hosts without one.
    """
    scheme, location, path, query, _ = urlsplit(url)
    account, at, hosts = location.rpartition("@")
    found = []
    for host in hosts.split(","):
        parts = urlsplit(f"//{host}")
        if not parts.hostname:
            raise ValueError(f"{host!r} must be a host, or host:port")
        found.append((parts.hostname, parts.port or port))
    kwargs = dict(parse_url(urlunsplit((scheme.partition("+")[0], f"{account}{at}host", "", query, ""))))
    del kwargs["host"]
    return found, path, {**_verified(kwargs), **kwargs}


def _verified(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the option that makes TLS check the server's name in its certificate, as redis-py 6 does by default."""
    is_verified = kwargs.get("connection_class") is SSLConnection and kwargs.get("ssl_cert_reqs") != "none"
    return {"ssl_check_hostname": True} if is_verified else {}


def _of_client(redis: object, timeout: float, connect_timeout: float) -> Servers:
    if isinstance(redis, RedisCluster):
        kwargs = redis.connection_kwargs
        _refuse_decoding("redis=", kwargs)
        seeds = [(node.host, int(node.port)) for node in redis.nodes_manager.startup_nodes.values()]
        own = {name: value for name, value in kwargs.items() if name not in _CLUSTERS}
        return Cluster(_node({**own, **_options()}), seeds, timeout, connect_timeout)
    if not isinstance(redis, Redis):
        raise ConfigurationError(
            f"redis= is a {type(redis).__module__}.{type(redis).__qualname__}, "
            "not a redis.asyncio.Redis or RedisCluster: give one of these, or a URL"
        )
    _refuse_decoding("redis=", redis.connection_pool.connection_kwargs)
    return Single(lambda: redis, timeout, False, connect_timeout)


def _refuse_decoding(where: str, kwargs: dict[str, Any]) -> None:
    # In a URL the value is text, and redis-py takes any text as true.
    if kwargs.get("decode_responses"):
        raise ConfigurationError(
            f"{where} has decode_responses={kwargs['decode_responses']}; entries are bytes: leave it out"
        )
