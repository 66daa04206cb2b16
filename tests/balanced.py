"""One of the instances behind tests/test_balancer.py: an app with the middleware and a cached loader over one Redis.

Every load appends a line to the file `loads` in the folder LOADS and returns the group's number, from a file beside it.
"""

import asyncio
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from examples.worker import WorkerHeader
from swr import Cache
from swr.events import Invalidated
from swr.middleware import Rule, SWRMiddleware

FOLDER = Path(os.environ["LOADS"])
NO_STORE = {"Cache-Control": "no-store"}

# A long timeout, because all instances and a thousand clients may share two cores.
cache = Cache(os.environ["REDIS_URL"], timeout=10)
heard: Counter[bool] = Counter()


def hear(event: Invalidated) -> None:
    # A POST also invalidates its own URL.
    if event.tag is not None and event.tag.startswith("group:"):
        heard[event.elsewhere] += 1


cache.subscribe(hear, Invalidated)


async def load(kind: str, group: str) -> dict[str, Any]:
    number = 0
    with suppress(FileNotFoundError):
        number = int((FOLDER / group).read_text())
    with (FOLDER / "loads").open("a") as loads:
        loads.write(f"{kind} {group} {number}\n")
    # Long enough for other readers to come during the load.
    await asyncio.sleep(0.02)
    return {"group": group, "number": number}


@cache.cached("value:{group}", fresh_for=3600, tags=("group:{group}",))
async def value(group: str) -> dict[str, Any]:
    return await load("values", group)


async def show_value(request: Request) -> Response:
    return JSONResponse(await value(request.path_params["group"]), headers=NO_STORE)


async def show_response(request: Request) -> Response:
    return JSONResponse(await load("responses", request.path_params["group"]))


async def change(request: Request) -> Response:
    group = request.path_params["group"]
    new = FOLDER / f"{group}.new"
    new.write_bytes(await request.body())
    new.rename(FOLDER / group)
    await cache.invalidate_tag(f"group:{group}")
    return Response(status_code=204)


async def show_heard(request: Request) -> Response:
    return JSONResponse({"here": heard[False], "elsewhere": heard[True]}, headers=NO_STORE)


app = Starlette(
    routes=[
        Route("/values/{group}", show_value),
        Route("/responses/{group}", show_response),
        Route("/numbers/{group}", change, methods=["POST"]),
        Route("/heard", show_heard),
    ],
    middleware=[
        # Outside the cache, so that it names the instance that answers.
        Middleware(WorkerHeader),
        Middleware(
            SWRMiddleware, cache=cache, rules=[Rule("/responses/{group}", fresh_for=3600, tags=("group:{group}",))]
        ),
    ],
)
