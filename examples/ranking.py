"""The ranking API: the Top 100 aircraft of New York's flights in 2013, answered from a cache.

    python -m examples.flights flights.db
    REDIS_URL=redis://127.0.0.1:6379/0 python -m uvicorn examples.ranking:app --workers 2

It uses both decorators of swr. `@cache.cached` caches the value of a loader, which any endpoint may use and a
`Refresher` can keep warm. `@cache.response` caches the whole response of an endpoint, so a hit only sends bytes.

A stale entry is refreshed when somebody reads it. With `STRATEGY=locks` or `STRATEGY=queue` the workers also load all
airports every `EVERY`, even without readers. `swr refresh examples.ranking:refresher` does the same in processes of its
own.
"""

import os
import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Response
from starlette.concurrency import run_in_threadpool

from examples.flights import Aircraft, Flight, Flights
from examples.worker import WorkerHeader
from swr import Cache, Refresher, StoreUnavailable
from swr.middleware import SWRMiddleware

FRESH_FOR = os.environ.get("FRESH_FOR", "60s")
STALE_FOR = os.environ.get("STALE_FOR", "10m")
# Well below FRESH_FOR: a round takes some time, and until it loads an airport, readers get the value of the last round.
EVERY = os.environ.get("EVERY", "20s")
# When a process dies, another one takes over its loads and tasks after this time, in seconds.
SILENT_FOR = 2
STRATEGY: Any = os.environ.get("STRATEGY", "read")  # read, locks or queue

flights = Flights(pathlib.Path(os.environ.get("FLIGHTS_DB", "flights.db")))
# Without a URL the cache is in the memory of each process.
cache = Cache(os.environ.get("REDIS_URL"), lease_for=SILENT_FOR)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the refresher as long as the app runs."""
    async with refresher:
        yield


app = FastAPI(title="Top 100 aircraft", lifespan=lifespan)
app.add_middleware(SWRMiddleware, cache=cache)
app.add_middleware(WorkerHeader)  # added last, so it is outside of the cache and names the process that answers

Airport = Annotated[str, Path(pattern="^[A-Z]{3}$", description="where the flights went: ATL, ORD, LAX ...")]


@dataclass(frozen=True)
class Ranking:
    """The Top 100, and the process that loaded it."""

    title: str
    aircraft: list[Aircraft]
    loaded_by: int = field(default_factory=os.getpid)


@cache.cached("delay:{airport}", fresh_for=FRESH_FOR, stale_for=STALE_FOR)
def load_by_delay(airport: str) -> Ranking:
    """Ask the database. swr runs this in a thread, and the endpoint below awaits it like any coroutine."""
    return Ranking(f"minutes late at {airport}", flights.by_delay(airport))


refresher = Refresher(
    load_by_delay,
    keys=flights.airports,
    every=EVERY,
    strategy=STRATEGY,
    at_once=4,  # leaves the database time for other queries
    lead_for=SILENT_FOR,
    reclaim_after=SILENT_FOR,
)


@app.get("/rankings/{airport}")
async def by_delay(airport: Airport, response: Response) -> Ranking:
    """The aircraft with the most minutes of arrival delay at one airport."""
    outcome = await load_by_delay.outcome(airport)  # or simply: return await load_by_delay(airport)
    response.headers["Loader-State"] = outcome.state
    return outcome.value


@app.get("/rankings")
@cache.response(fresh_for=FRESH_FOR, stale_for=STALE_FOR)
def by_miles() -> Ranking:
    """The aircraft that flew the most miles, over all airports."""
    return Ranking("miles flown", flights.by_miles())


@app.post("/flights/{airport}", status_code=204)
async def add(airport: Airport, arrived: list[Flight]) -> None:
    """Add flights; from now on this airport's ranking includes them."""
    await run_in_threadpool(flights.add, airport, arrived)
    # One flight hardly changes the ranking over all airports, so that entry stays until it is stale.
    await load_by_delay.invalidate(airport)
    # If nobody reads the ranking, the next round of the queue loads it. While Redis is unreachable, a mark fails; but
    # without `dirty_only` a round also loads groups without a mark.
    with suppress(StoreUnavailable):
        await refresher.mark_dirty(airport)


# -- the same without the cache, to compare --------------------------------------------------------------------


def no_store(response: Response) -> None:
    """Keep a response out of every cache, including the middleware."""
    response.headers["Cache-Control"] = "no-store"


uncached = APIRouter(prefix="/uncached", dependencies=[Depends(no_store)])


@uncached.get("/rankings/{airport}")
def uncached_by_delay(airport: Airport) -> Ranking:
    """`/rankings/{airport}`, from the database every time."""
    return Ranking(f"minutes late at {airport}", flights.by_delay(airport))


@uncached.get("/rankings")
def uncached_by_miles() -> Ranking:
    """`/rankings`, from the database every time."""
    return Ranking("miles flown", flights.by_miles())


app.include_router(uncached)
