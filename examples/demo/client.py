"""The clients of the demo: readers that replay requests, and a writer that adds flights."""

import asyncio
import math
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Final

import httpx

TIMEOUT: Final = httpx.Timeout(30)
# How long a request waits for a free client, in seconds.
_PATIENCE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Parameters:
        request: the path, or the method and path, of the request.
        state: the state of the answer: fresh, stale, missing or added.
        worker: the process that answered.
        milliseconds: the time from the request to its answer.
        due: when the request was due, in seconds since the replay began; infinite outside of a replay.
        waited: the time from then to the answer, in milliseconds.
    """

    request: str
    state: str
    worker: str
    milliseconds: float
    due: float = math.inf
    waited: float = 0


async def connect(url: str, readers: int, workers: int, stack: AsyncExitStack) -> list[httpx.AsyncClient]:
    """Return clients with one open connection each, the same number to every worker process.

    The kernel gives a new connection to the process that accepts it first, so this opens connections until each process
    has its share, as a load balancer does.
    """
    clients: list[httpx.AsyncClient] = []
    taken: Counter[str] = Counter()
    context = ssl.create_default_context()
    until = time.monotonic() + 10
    while len(clients) < readers:
        client = httpx.AsyncClient(base_url=url, timeout=TIMEOUT, verify=context, trust_env=False)
        stack.push_async_callback(client.aclose)
        worker = (await client.get("/docs")).headers["Worker"]
        if taken[worker] < readers // workers or time.monotonic() > until:
            taken[worker] += 1
            clients.append(client)
        else:
            await client.aclose()
            await asyncio.sleep(0.02)
    return clients


async def ask(client: httpx.AsyncClient, path: str) -> tuple[Answer, httpx.Response]:
    """Ask for a ranking, and ask again if the worker died meanwhile, as a load balancer does."""
    began = time.monotonic()
    try:
        response = await client.get(path)
    except httpx.TransportError:
        response = await client.get(path)
    milliseconds = (time.monotonic() - began) * 1000
    response.raise_for_status()
    # If only the loader is cached and not the response, the endpoint itself sends the state.
    state = response.headers.get("Loader-State") or response.headers["SWR-State"]
    return Answer(path, state, response.headers["Worker"], milliseconds), response


async def replay(
    clients: list[httpx.AsyncClient],
    paths: Iterator[str],
    seconds: float,
    on_answer: Callable[[Answer], None],
    rate: float,
) -> None:
    """Have the clients work through `paths` together.

    Requests are due at a constant rate, however long the answers take, as from independent clients. A request waits for
    a free client, and this wait counts; after a second it is dropped.

    Parameters:
        clients: the clients that send the requests.
        paths: the paths to request.
        seconds: how long to send requests.
        on_answer: called with each answer.
        rate: requests a second.
    """
    start = time.monotonic()
    plan = enumerate(paths)

    async def read(client: httpx.AsyncClient) -> None:
        for number, path in plan:
            due = number / rate
            if max(start + due, time.monotonic()) >= start + seconds:
                return
            if time.monotonic() > start + due + _PATIENCE:
                continue
            await asyncio.sleep(start + due - time.monotonic())
            answer, _ = await ask(client, path)
            on_answer(replace(answer, due=due, waited=(time.monotonic() - start - due) * 1000))

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(read(client))


async def add_late_flight(client: httpx.AsyncClient, airport: str, on_answer: Callable[[Answer], None]) -> bool:
    """Make the last aircraft of a ranking so late that it leads; return whether the next answer shows this."""
    path = f"/rankings/{airport}"
    answer, response = await ask(client, path)
    on_answer(answer)
    aircraft = response.json()["aircraft"]
    first, last = aircraft[0], aircraft[-1]
    flight = {"tailnum": last["tailnum"], "arr_delay": first["total"] - last["total"] + 60}
    began = time.perf_counter()
    added = (await client.post(f"/flights/{airport}", json=[flight])).raise_for_status()
    milliseconds = (time.perf_counter() - began) * 1000
    on_answer(Answer(f"POST /flights/{airport}", "added", added.headers["Worker"], milliseconds))
    answer, response = await ask(client, path)
    on_answer(answer)
    return bool(response.json()["aircraft"][0]["tailnum"] == last["tailnum"])
