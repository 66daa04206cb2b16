"""A header that names the worker process."""

import os

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class WorkerHeader:
    """Puts `Worker: <process id>` on every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._worker = str(os.getpid())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""

        async def name(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Worker"] = self._worker
            await send(message)

        await self._app(scope, receive, name)
