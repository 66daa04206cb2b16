"""The benchmarks run and print their rows. What they measure is never asserted: machines differ, clocks lie."""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.processes import workers

ROOT = Path(__file__).parent.parent


def printed_by(name: str, *, arguments: tuple[str, ...] = (), **environment: str) -> str:
    """What a benchmark prints in its tiny mode."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def row(printed: str, name: str) -> list[str]:
    """The cells after `name` in a printed table."""
    (found,) = [line for line in printed.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in found.strip("|").split("|")[1:]]


def test_decorator_benchmark_compares_hits_in_memory_and_in_redis() -> None:
    """Hits in memory and in Redis are compared."""
    printed = printed_by("decorator")
    for name in ("swr, Cache()", "swr, Cache(redis), L1"):
        assert float(row(printed, name)[0]) > 0
    # Once for each event loop that is installed.
    for name in ("redis-py GET + json.loads", "swr, list[dict]", "swr, list[dataclass]"):
        assert f"| {name} " in printed


@pytest.mark.parametrize("has_wrk", [True, False] if shutil.which("wrk") else [False])
def test_middleware_benchmark_counts_requests_per_second_or_asks_for_wrk(has_wrk: bool) -> None:
    """Without wrk it says what to install, and measures without a server."""
    printed = printed_by("middleware") if has_wrk else printed_by("middleware", PATH=str(Path(sys.executable).parent))
    assert "One call without a server" in printed
    for name in ("bare ASGI function", "swr middleware, fresh hit", "Starlette route, ready bytes"):
        assert f"| {name} " in printed
    assert ("Requests per second" in printed) is not ("apt install wrk" in printed)
    assert has_wrk or "apt install wrk" in printed


def test_misses_benchmark_measures_the_middleware_and_slow_connections() -> None:
    """A miss through the middleware, and misses with a slow connection to Redis."""
    printed = printed_by("misses")
    assert float(row(printed, "swr middleware, miss")[0]) > 0
    assert len(row(printed, "+ 2 ms")) == len(row(printed, "1 ms")) == 4


def test_parsers_benchmark_reads_the_same_replies_with_both_parsers() -> None:
    """Both parsers read the same replies, each in a process of its own."""
    printed = printed_by("parsers")
    assert len(row(printed, "16 values of 5 kB, as swr reads them")) == 3
    for name in ("hiredis", "redis-py's own"):
        assert row(printed, name)[0] in ("on", "off")


def test_compression_benchmark_compresses_every_value_and_measures_decryption() -> None:
    """Every way to compress is tried on every value."""
    printed = printed_by("compression")
    assert printed.count("| zlib, level 1 ") == printed.count("| µs to read |") > 5
    assert float(row(printed, "decrypting")[0]) > 0


# Most of their time they wait: all at once they take as long as one.
SIDE_BY_SIDE = (
    "stampede",
    "fleet",
    "outage",
    "cancellation",
    "reads",
    "memory",
    "loop",
    "architectures",
    "queues",
    "sizes",
    "starts",
    "rounds",
    "hostile",
)


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What each of these prints."""
    with ThreadPoolExecutor(len(SIDE_BY_SIDE)) as pool:
        return dict(zip(SIDE_BY_SIDE, pool.map(printed_by, SIDE_BY_SIDE), strict=True))


def test_stampede_benchmark_counts_one_load_for_a_missing_and_a_stale_key(printed: dict[str, str]) -> None:
    """A crowd on a missing key, then on a stale one, causes one load each."""
    loads_cold, loads_stale, *_ = row(printed["stampede"], "swr")
    assert (loads_cold, loads_stale) == ("1", "1")


def test_starts_benchmark_counts_loads_of_processes_that_start_together(printed: dict[str, str]) -> None:
    """Loads of processes that start together are counted, cold and stale."""
    for name, comes_again in (("2 processes x 10", True), ("2 processes x 1, a round trip of 30 ms", False)):
        _, cold, stale, *_ = row(printed["starts"], name)
        assert (int(cold) > 0, stale != "") == (True, comes_again)


def test_rounds_benchmark_counts_loads_and_requests_to_redis(printed: dict[str, str]) -> None:
    """Each group is loaded, and the requests to Redis are counted."""
    for name in ("queue, 200 groups, 4 workers", "locks, 200 groups, 2 workers"):
        loads, requests, *_ = row(printed["rounds"], name)
        assert float(loads) >= 1
        assert float(requests) > 0


def test_fleet_benchmark_delivers_invalidations_and_recovers_from_kills(printed: dict[str, str]) -> None:
    """Every invalidation arrives, and refreshes resume after every kill, with no error."""
    for how in ("by key", "by tag"):
        assert 0 < float(row(printed["fleet"], how)[4]) < math.inf
    for servers in ("cluster, node_timeout 0.3 s", "sentinels, down_after 0.3 s"):
        answers, errors, *seconds, _ = row(printed["fleet"], servers)
        assert int(answers.replace(",", "")) > 0
        assert errors == "0"
        assert all(0 < float(taken) < math.inf for taken in seconds)


def test_outage_benchmark_answers_readers_while_redis_is_unreachable(printed: dict[str, str]) -> None:
    """Readers are answered while Redis is unreachable, and stale hits are stale."""
    for fault in ("hung", "refused"):
        assert row(printed["outage"], f"{fault}: errors and wrong answers")[0] == "0"
        for reader in ("fresh in L1", "stale in L1", "nowhere"):
            assert int(row(printed["outage"], f"{fault}, at first: {reader}")[0]) > 0
    for answers in ("in time", "a second late", "a second late, time-out 0.2 s"):
        assert float(row(printed["outage"], answers)[2]) > 0


def test_cancellation_benchmark_leaves_no_leases_and_no_wrong_answers(printed: dict[str, str]) -> None:
    """Cancelled requests leave nothing behind, and no answer is wrong."""
    for name in ("swr, 10 keys, L1 off", "swr, 10 keys, L1 in front", "swr, 100 keys, L1 off"):
        requests, cancelled, _, wrong, left, leases, *_ = row(printed["cancellation"], name)
        assert int(requests) >= int(cancelled) > 0
        assert (wrong, left, leases) == ("0", "0, 0", "0")


def test_reads_benchmark_compares_parallel_reads_of_bytes_and_lists(printed: dict[str, str]) -> None:
    """Many reads at once are compared."""
    for loop in ("asyncio: bytes", "asyncio: list[dict]"):
        assert f"| {loop} " in printed["reads"]


def test_memory_benchmark_holds_a_thousand_keys_or_more(printed: dict[str, str]) -> None:
    """A few keys and many go through two processes."""
    for keys in ("1,000", "2,500"):
        held, *_ = row(printed["memory"], keys)
        assert int(held.replace(",", "")) >= 1_000


def test_loop_benchmark_measures_the_event_loop_with_and_without_redis(printed: dict[str, str]) -> None:
    """Turns of the event loop are measured, with Redis and without."""
    for name in ("load: 20,000 integers, memory", "read: 2,000 rows, Redis", "load: cached_many of 400, Redis"):
        wall, own, _ = row(printed["loop"], name)
        assert float(wall) >= 0 <= float(own)


def test_architectures_benchmark_measures_every_strategy_and_prints_goals(printed: dict[str, str]) -> None:
    """Each strategy is measured while it is read, left alone, and after a kill."""
    said = printed["architectures"]
    for strategy in ("no cache", "read", "locks", "queue"):
        name = f"{strategy}, 6 groups, 2 workers"
        rows = [line for line in said.splitlines() if line.startswith(f"| {name} ")]
        assert len(rows) == (1 if strategy == "no cache" else 2)
        queries, *_, late = [cell.strip() for cell in rows[0].strip("|").split("|")[1:]]
        assert float(queries) > 0
        assert (late == "") is (strategy == "no cache")
    assert "Goals: locks" in said


def test_postgresql_gives_the_same_groups_as_sqlite(tmp_path: Path) -> None:
    """Where PostgreSQL is installed, it gives the same rows as SQLite."""
    from benchmarks.databases import has_postgresql, index_days, postgresql, querying
    from examples.flights import build

    if not has_postgresql():
        pytest.skip("PostgreSQL, or psycopg, is not installed")
    path = tmp_path / "flights.db"
    build(path)
    index_days(path)
    with postgresql(path) as url, querying(url) as there, querying(str(path)) as here:
        for group in ("ATL", "JAC", "ORD 2 14"):
            assert there(group) == here(group) != []


def test_measurements_are_plotted_and_compared_with_the_simulation(tmp_path: Path) -> None:
    """The results are plotted, and compared with a simulation."""
    pytest.importorskip("matplotlib")
    from benchmarks.architectures import STRATEGIES, Result, Run, Window, plot, save

    def made(strategy: str, workers: int, groups: int) -> Result:
        one = Window(5.0, [groups], 2 * groups, 9 * groups, 10_000, 0.1, 1.0, [0.001], [1.0], [1.5])
        return Result(Run(strategy, workers, groups, 5.0, 100, 1, False), one, one, None)

    results = [made(strategy, workers, 105) for strategy in STRATEGIES for workers in (1, 8)]
    plot(results, tmp_path)
    for across in ("workers", "groups"):
        drawing = (tmp_path / f"architectures-{across}.svg").read_text()
        assert drawing.startswith("<svg")
        assert drawing.count("<svg") == 1
        # A page shows it in its own font and colours, light or dark, and keeps its own styles.
        assert "currentColor" in drawing
        assert not re.search("#fff|#000|<style|font-family: |\n\n", drawing)
    save(results, tmp_path / "saved.json")
    said = printed_by("sizes", arguments=("--measured", str(tmp_path / "saved.json")))
    for strategy in ("read", "locks", "queue"):
        simulated, measured, *_ = row(said, f"{strategy}, 105 groups, 8 workers")
        assert int(simulated.replace(",", "")) > 0
        assert measured == "210"


def test_queues_benchmark_loses_no_task_when_a_worker_is_killed(printed: dict[str, str]) -> None:
    """Tasks are drained, and none is lost when a worker is killed."""
    for name in ("swr, streams", "swr, list", "swr, streams, batch loader", "swr, list, batch loader"):
        assert float(row(printed["queues"], name)[0].replace(",", "")) > 0
    for backend in ("streams", "list"):
        tasks, kills, lost, *_ = row(printed["queues"], f"{backend}, kill -9")
        assert (tasks, kills, lost) == ("200", "1", "0")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="it reads /proc")
def test_hostile_benchmark_answers_good_clients_and_leaks_no_sockets_or_tasks(printed: dict[str, str]) -> None:
    """The good clients are answered, and nothing is left of the others."""
    said = printed["hostile"]
    for name in ("alone", "among 26 hostile"):
        answers, errors, *_ = row(said, name)
        assert int(answers) > 0
        assert errors == "0"
    _, sockets, tasks = map(float, row(said, "before"))
    _, sockets_left, tasks_left = map(float, row(said, "when they have gone"))
    assert sockets_left <= sockets
    assert tasks_left <= tasks


def test_sizes_simulation_refreshes_every_group_and_repeats_its_figures(printed: dict[str, str]) -> None:
    """Every group is refreshed, by a lease and an entry; the same seed gives the same figures."""
    from benchmarks.sizes import MEASURED, locks, queue

    for strategy in ("read", "locks", "queue"):
        assert int(row(printed["sizes"], f"{strategy}, 1,000 groups, 4 workers")[0].replace(",", "")) > 0
    for simulate in (locks, queue):
        one = simulate(5_000, 16, 16, MEASURED)
        assert one == simulate(5_000, 16, 16, MEASURED)
        assert sum(number for _, number in one.ended) == 5_000
        # Those of eight leave together.
        assert 5_000 / 8 < one.requests < 5_000


def test_benchmark_worker_that_fails_raises_runtime_error() -> None:
    """The benchmark does not wait for it."""
    with (
        pytest.raises(RuntimeError, match="a worker ended"),
        workers(1, "benchmarks.fleet", "--work", "redis://wrong:x"),
    ):
        pass


def test_local_benchmark_measures_hits_and_compares_hit_ratios() -> None:
    """Hits among many keys, the hit ratio of a trace, and the memory of an entry."""
    printed = printed_by("local")
    assert float(row(printed, "loaded and read again")[0]) > 0
    # Contestants that are not installed are left out.
    assert printed.count("| 100 ") == (2 if importlib.util.find_spec("async_lru") else 0)
    assert "| S3-FIFO |" in printed


def test_dashboard_benchmark_measures_digests_and_hits_with_reports() -> None:
    """The bytes of digests in Redis are printed, and the time of a hit with reports."""
    printed = printed_by("dashboard")
    assert int(row(printed, "with digests")[3]) > 100
    assert float(row(printed, "reports=True")[0]) > 0


def test_idle_benchmark_measures_imports_and_digests_of_an_idle_process() -> None:
    """The time of imports is printed, and the work of an idle process."""
    printed = printed_by("idle")
    assert "| swr " in printed
    assert float(row(printed, "idle, with a digest for dashboards")[0]) > 0
