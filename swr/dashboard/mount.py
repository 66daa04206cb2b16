"""`swr.dashboard`: the app that an application mounts."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from swr.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.requests import Request

    from swr.cache import Cache


class ASGIApp(Protocol):
    """An app for `app.mount`."""

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        """Answer one connection."""


def dashboard(
    cache: "Cache",
    *,
    auth: "str | tuple[str, str] | Callable[[Request], bool] | Callable[[Request], Awaitable[bool]] | None" = None,
    actions: bool = False,
    simulate: bool = False,
    token: str | None = None,
    show_queries: bool = False,
) -> ASGIApp:
    """Return an ASGI app that shows what a fleet of caches does: `app.mount("/swr", swr.dashboard(cache, auth=…))`.

    From now on this process reports to dashboards, as with `Cache(reports=True)`.

    Parameters:
        cache: the cache of this process. The dashboard also shows all caches that report and share its namespace.
        auth: who may look. A token: clients send it by `Authorization: Bearer`, or a browser's user types it as the
            password of any user name. A tuple: user name and password. A function (`def` or `async def`) of the
            request: True lets the request in. None: only browsers on this machine that ask for localhost, and have
            opened the address with the token that the process logs.
        actions: whether users who may look may also invalidate, mark stale, and retry or purge dead letters. swr logs
            each action.
        simulate: whether these users may also make loads fail and hang, for demonstrations.
        token: the secret with which programs may invalidate, by `POST invalidate` with `Authorization: Bearer`; None:
            no program may.
        show_queries: whether to show the values of URL queries, which may be secrets.

    Raises:
        ConfigurationError: an option cannot work.
    """
    from swr.cache import Cache
    from swr.dashboard.access import gate_of, secret_of
    from swr.dashboard.keys import Keys
    from swr.dashboard.server import Server

    if not isinstance(cache, Cache):
        raise ConfigurationError(f"cache={cache!r}: give a swr.Cache")
    for name, value in (("actions", actions), ("simulate", simulate), ("show_queries", show_queries)):
        if not isinstance(value, bool):
            raise ConfigurationError(f"{name}={value!r}: give True or False")
    if simulate and not actions:
        raise ConfigurationError("simulate=True needs actions=True, because a simulated fault is an action")
    secret = None if token is None else secret_of(token, "token")
    gate = gate_of(auth)
    keys = Keys(shows_queries=show_queries)
    server = Server(cache, gate, keys, actions=actions, simulate=simulate, token=secret, beside=False)
    reporter = cache.report()
    reporter.faults.is_allowed = reporter.faults.is_allowed or simulate
    return server
