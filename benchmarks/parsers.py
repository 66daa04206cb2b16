"""What parsing Redis' replies costs: by hiredis, which swr uses, and by the parser that redis-py has itself.

    scripts/bench parsers [--quick]

A free-threaded Python enables its GIL again when it imports hiredis, and redis-py's own parser does without hiredis.
Each parser runs in a process of its own, where the other one's module is out of reach. First it parses in one thread,
in CPU time. Then two threads parse at once, each its own replies: the pace of both, to that of one, on the wall.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from benchmarks.measure import print_machine, ratio, table

HIREDIS, OWN = "hiredis", "redis-py's own"
_BODY = b"$5000\r\n" + b"x" * 5000 + b"\r\n"
# By name: the bytes of one reply, how many replies come at once, and how many values they have.
REPLIES = {
    "one number": (b":1\r\n", 16, 16),
    "one value of 5 kB": (_BODY, 16, 16),
    "16 values of 5 kB, as swr reads them": (b"*16\r\n" + 16 * _BODY, 4, 64),
}
_AT_ONCE = 131_072


def by_hiredis() -> Callable[[bytes, int, int], None]:
    """Return what parses bytes with as many replies, so many times, as `swr` does."""
    import hiredis

    def parse(data: bytes, replies: int, times: int) -> None:
        reader, view = hiredis.Reader(), memoryview(data)
        for _ in range(times):
            found = 0
            for first in range(0, len(data), _AT_ONCE):
                reader.feed(view[first : first + _AT_ONCE].tobytes())
                while reader.gets(False) is not False:
                    found += 1
            assert found == replies

    return parse


def by_redis_py() -> Callable[[bytes, int, int], None]:
    """Return what parses bytes with as many replies, so many times, from a stream of asyncio."""
    # What cannot be imported does not enable the GIL.
    modules: dict[str, Any] = sys.modules
    modules["hiredis"] = None
    import redis._parsers as parsers

    async def parse(data: bytes, replies: int, times: int) -> None:
        parser, stream = parsers._AsyncRESP2Parser(_AT_ONCE), asyncio.StreamReader()
        connection: Any = SimpleNamespace(_reader=stream, encoder=parsers.Encoder("utf-8", "strict", False))
        parser.on_connect(connection)
        for _ in range(times):
            stream.feed_data(data)
            for _ in range(replies):
                await parser.read_response(disable_decoding=True)

    return lambda data, replies, times: asyncio.run(parse(data, replies, times))


def measure_here(name: str, times: int) -> dict[str, Any]:
    """Return the CPU time of a value in microseconds for each kind of reply, the pace of two threads, and the GIL."""
    parse = by_hiredis() if name == HIREDIS else by_redis_py()
    taken = {}
    for kind, (reply, count, values) in REPLIES.items():
        parse(reply * count, count, 1)
        began = time.thread_time()
        parse(reply * count, count, times)
        taken[kind] = 1e6 * (time.thread_time() - began) / times / values
    reply, count, _ = REPLIES["16 values of 5 kB, as swr reads them"]
    alone = _wall(parse, reply * count, count, 4 * times, 1)
    together = _wall(parse, reply * count, count, 4 * times, 2)
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return {"taken": taken, "pace": 2 * alone / together, "gil": has_gil}


def _wall(parse: Callable[[bytes, int, int], None], data: bytes, replies: int, times: int, threads: int) -> float:
    """Return the seconds until as many threads have parsed."""
    running = [threading.Thread(target=parse, args=(data, replies, times)) for _ in range(threads)]
    began = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return time.perf_counter() - began


def measure(name: str, times: int) -> dict[str, Any]:
    """Return what `measure_here` returns in a new process."""
    command = [sys.executable, "-m", "benchmarks.parsers", "--parser", name, "--times", str(times)]
    measured: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return measured


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few replies: to see that it runs, not to measure")
    parser.add_argument("--parser", choices=(HIREDIS, OWN), help="measure this one here, and print JSON")
    parser.add_argument("--times", type=int, default=0, help="how often the replies are parsed")
    chosen = parser.parse_args()
    if chosen.parser:
        print(json.dumps(measure_here(chosen.parser, chosen.times)))
        return
    rounds, times = (1, 2) if chosen.quick else (9, 250)
    print_machine("redis", "hiredis")
    measured: dict[str, list[dict[str, Any]]] = {HIREDIS: [], OWN: []}
    for _ in range(rounds):
        for name, results in measured.items():
            results.append(measure(name, times))
    rows = []
    for kind in REPLIES:
        by_parser = {name: [result["taken"][kind] for result in results] for name, results in measured.items()}
        medians = [f"{statistics.median(microseconds):.2f}" for microseconds in by_parser.values()]
        rows.append([kind, *medians, f"{ratio(by_parser[OWN], by_parser[HIREDIS]):.1f}"])
    columns = ["a reply of", "hiredis, µs a value", "redis-py's own, µs a value", "own to hiredis"]
    table(f"Parsing (median of {rounds} rounds)", columns, rows)
    rows = []
    for name, results in measured.items():
        pace = statistics.median(result["pace"] for result in results)
        rows.append([name, "on" if results[0]["gil"] else "off", f"{pace:.2f}"])
    table("Two threads at once", ["two threads", "GIL", "pace to one thread's"], rows)


if __name__ == "__main__":
    main()
