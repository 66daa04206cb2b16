"""The benchmarks run and print their rows. What they measure is never asserted: machines differ, clocks lie."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def printed_by(name: str, **environment: str) -> str:
    """What a benchmark prints in its tiny mode."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def row(printed: str, name: str) -> list[str]:
    """The cells after `name` in a printed table."""
    (found,) = [line for line in printed.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in found.strip("|").split("|")[1:]]


def test_decorator() -> None:
    """Hits in memory and in Redis are compared."""
    printed = printed_by("decorator")
    for name in ("swr, Cache()", "swr, Cache(redis), L1"):
        assert float(row(printed, name)[0]) > 0
    # Once for each event loop that is installed.
    for name in ("redis-py GET + json.loads", "swr, list[dict]", "swr, list[dataclass]"):
        assert f"| {name} " in printed


@pytest.mark.parametrize("has_wrk", [True, False])
def test_middleware(has_wrk: bool) -> None:
    """Without wrk it says what to install, and measures without a server."""
    printed = printed_by("middleware") if has_wrk else printed_by("middleware", PATH=str(Path(sys.executable).parent))
    assert "One call without a server" in printed
    for name in ("bare ASGI function", "swr middleware, fresh hit", "Starlette route, ready bytes"):
        assert f"| {name} " in printed
    assert ("Requests per second" in printed) is not ("apt install wrk" in printed)
    assert has_wrk or "apt install wrk" in printed


def test_stampede() -> None:
    """A crowd on a missing key, then on a stale one, causes one load each."""
    loads_cold, loads_stale, *_ = row(printed_by("stampede"), "swr")
    assert (loads_cold, loads_stale) == ("1", "1")
