"""`swr dashboard`: serves the page of a fleet from a process that is not part of the fleet."""

import argparse
import asyncio
import ipaddress
import logging
import os
from typing import Final

from swr.cli.listening import address, listener_at
from swr.cli.shared import FAILURE, Commands, add_store, cache_of, command, say
from swr.errors import ConfigurationError

AUTH: Final = "SWR_DASHBOARD_AUTH"
TOKEN: Final = "SWR_DASHBOARD_TOKEN"
_EXAMPLES: Final = f"""\
examples:
  swr dashboard --redis redis://127.0.0.1:6379/0
      Serves a page that shows all processes that report: those with Cache(reports=True),
      SWR_REPORTS=1, or a dashboard of their own. The command prints the address to open,
      which contains the token that this user's dashboards share.
  {AUTH}=user:password swr dashboard --listen :8010 --actions
      Listens on all interfaces, asks for this user and password, and shows buttons that
      invalidate.
  {TOKEN}=secret swr dashboard
      Lets programs invalidate: curl -H 'Authorization: Bearer secret' \\
          -d tag=group:ATL http://127.0.0.1:8010/invalidate
"""


def add(commands: Commands) -> None:
    """Add `dashboard`."""
    dashboard = command(
        commands,
        "dashboard",
        _dashboard,
        "serve a page that shows what a fleet does now",
        "Serve a page that shows what the processes of a namespace do now, and what is wrong.",
        _EXAMPLES,
    )
    option = dashboard.add_argument
    option(
        "--listen",
        type=address,
        default="127.0.0.1:8010",
        metavar="ADDRESS",
        help=f"host:port, [::1]:port or :port; needs {AUTH} if other machines can reach it (%(default)s)",
    )
    option(
        "--actions", action="store_true", help="also let viewers of the page invalidate entries and retry dead letters"
    )
    option("--show-queries", action="store_true", help="show the values in URL queries, which may be secrets")
    add_store(dashboard)


def _dashboard(options: argparse.Namespace) -> int:
    """Serve the page until a signal ends the process."""
    try:
        import uvicorn
    except ImportError as error:
        return say(f"dashboard needs uvicorn ({error}): pip install 'swr[dashboard]'", FAILURE)
    from swr.dashboard.access import gate_of, secret_of
    from swr.dashboard.keys import Keys
    from swr.dashboard.loopback import link
    from swr.dashboard.own_token import own_token
    from swr.dashboard.server import Server

    cache = cache_of(options)
    auth, token = os.environ.get(AUTH), os.environ.get(TOKEN)
    if auth is None and not _is_loopback(options.listen[0]):
        raise ConfigurationError(f"other machines could reach the page: set {AUTH} to user:password")
    user, colon, password = (auth or "").partition(":")
    gate = gate_of((user, secret_of(password, AUTH)) if colon else auth)
    app = Server(
        cache,
        gate,
        Keys(shows_queries=options.show_queries),
        actions=options.actions,
        simulate=False,
        token=None if token is None else secret_of(token, TOKEN),
        beside=True,
    )
    listener, shown = listener_at(options.listen)
    page = f"http://{shown}/" if auth is not None else link(f"http://{shown}/", own_token())
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        # With True, uvicorn would take the client's address from a header field. The gate must check the real address.
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )

    async def serve() -> None:
        async with cache:
            print(f"swr: {page} shows the namespace {cache.namespace!r}", flush=True)
            await uvicorn.Server(config).serve([listener])

    asyncio.run(serve())
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
