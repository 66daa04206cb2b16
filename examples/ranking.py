"""The ranking API: the Top 100 aircraft of New York's flights in 2013, answered from a cache.

    python -m examples.flights flights.db
    REDIS_URL=redis://127.0.0.1:6379/0 python -m uvicorn examples.ranking:app --workers 2

Both faces of swr are here: `@cache.response` on an endpoint, whose whole response is cached and which then costs
nothing but sending bytes, and `@cache.cached` on a loader, whose value any endpoint may use.
"""

import os
import pathlib
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Path, Response
from starlette.concurrency import run_in_threadpool

from examples.flights import Aircraft, Flight, Flights
from examples.worker import WorkerHeader
from swr import Cache
from swr.middleware import SWRMiddleware

FRESH_FOR = os.environ.get("FRESH_FOR", "60s")
STALE_FOR = os.environ.get("STALE_FOR", "10m")

flights = Flights(pathlib.Path(os.environ.get("FLIGHTS_DB", "flights.db")))
cache = Cache(os.environ.get("REDIS_URL"))  # without a URL: in the memory of each process

app = FastAPI(title="Top 100 aircraft")
app.add_middleware(SWRMiddleware, cache=cache)
app.add_middleware(WorkerHeader)  # added last, it stands outside the cache and names the process that answers

Airport = Annotated[str, Path(pattern="^[A-Z]{3}$", description="where the flights went: ATL, ORD, LAX ...")]


@dataclass(frozen=True)
class Ranking:
    """The Top 100, and the process that loaded it."""

    title: str
    aircraft: list[Aircraft]
    loaded_by: int = field(default_factory=os.getpid)


@app.get("/rankings/{airport}")
@cache.response(fresh_for=FRESH_FOR, stale_for=STALE_FOR, tags=("airport:{airport}",))
def by_delay(airport: Airport) -> Ranking:
    """The aircraft with the most minutes of arrival delay at one airport."""
    return Ranking(f"minutes late at {airport}", flights.by_delay(airport))


@cache.cached("miles", fresh_for=FRESH_FOR, stale_for=STALE_FOR)
def load_miles() -> Ranking:
    """Ask the database, in a thread; the endpoint below awaits it like any coroutine."""
    return Ranking("miles flown", flights.by_miles())


@app.get("/rankings")
async def by_miles(response: Response) -> Ranking:
    """The aircraft that flew the most miles, over all airports."""
    outcome = await load_miles.outcome()  # or simply: return await load_miles()
    response.headers["Loader-State"] = outcome.state
    return outcome.value


@app.post("/flights/{airport}", status_code=204)
async def add(airport: Airport, arrived: list[Flight]) -> None:
    """Add flights; whoever asks for this airport's ranking from now on finds them in it."""
    await run_in_threadpool(flights.add, airport, arrived)
    # The ranking over all airports hardly moves with one flight: it is left to grow stale in its own time.
    await cache.invalidate_tag(f"airport:{airport}")


# -- the same without the cache, to compare --------------------------------------------------------------------


def no_store(response: Response) -> None:
    """Keep a response out of every cache, the middleware's too."""
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
