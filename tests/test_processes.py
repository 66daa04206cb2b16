"""The promises that are about several processes, with several processes: started, paused and killed for real.

The counts here are reduced; SWR_FULL=1 (scripts/chaos) runs those of the promises.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count as counting
from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest

from tests.proxy import Proxy
from tests.servers import Server

FULL = os.environ.get("SWR_FULL") == "1"
ROUNDS = 20 if FULL else 3
PROCESSES = 32 if FULL else 8
# What is tried so often: losses, pauses and invalidations in the middle of a load.
TIMES = 100 if FULL else 3
PATIENCE = 60

pytestmark = [pytest.mark.promise, pytest.mark.uncounted]


class Process:
    """A `tests.worker` and the pipe to it."""

    def __init__(self, url: str, loads: Path, **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.worker", url, str(loads), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def tell(self, do: str, **what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        assert ready, "no answer"
        answer = json.loads(self._process.stdout.readline())
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def read_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def ask(self, do: str, **what: Any) -> Any:
        self.tell(do, **what)
        return self.answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def __enter__(self) -> "Process":
        assert self.answer() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.signal(signal.SIGCONT)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(60)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Loads:
    """The file in which every load leaves a line, and the truth that loads read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self.now("0")

    def now(self, truth: str) -> None:
        new = Path(f"{self.path}.new")
        new.write_text(truth)
        new.rename(f"{self.path}.truth")

    @contextmanager
    def held(self) -> Iterator[str]:
        """No load of a gated process ends meanwhile; the name of a file for the processes to write to."""
        gate, says = Path(f"{self.path}.gate"), Path(f"{self.path}.says")
        gate.touch()
        says.write_text("")
        try:
            yield str(says)
        finally:
            gate.unlink()

    def lines(self) -> list[tuple[int, float]]:
        return [(int(line.split()[0]), float(line.split()[1])) for line in self.path.read_text().splitlines()]


@pytest.fixture
def loads(tmp_path: Path) -> Loads:
    return Loads(tmp_path / "loads")


@pytest.fixture
def start(server: Server, loads: Loads) -> Iterator[Any]:
    with ExitStack() as stack:

        def start(number: int, of: Loads = loads, url: str = server.url, **options: Any) -> list[Process]:
            # Patient, for all processes share what may be two cores; what waits for a hung server is tried elsewhere.
            made = [Process(url, of.path, **{"timeout": 2, **options}) for _ in range(number)]
            return [stack.enter_context(process) for process in made]

        yield start


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    deadline = time.time() + PATIENCE
    while not condition():
        assert time.time() < deadline, "it did not come true"
        time.sleep(0.002)


def together(processes: list[Process], do: str, **what: Any) -> list[Any]:
    for process in processes:
        process.tell(do, at=time.time() + 0.1, **what)
    return [process.answer() for process in processes]


def test_fleet_loads_each_missing_or_stale_key_once(start, loads):
    """Promise 1: 8 processes x 250 readers (in full 32), cold and stale, again and again: exactly 1 load each."""
    processes = start(PROCESSES)
    fresh_for = 1.0
    for round_ in range(ROUNDS):
        key, before = f"k{round_}", len(loads.lines())
        for process in processes:
            process.ask("set", gated=True, policy=[fresh_for, 600])
        # No load ends before all readers of all processes wait for it.
        with loads.held() as says:
            for process in processes:
                process.tell("read", key=key, readers=250, at=time.time() + 0.1, says=says)
            wait_until(lambda says=says: len(Path(says).read_text().splitlines()) == PROCESSES)
        for process in processes:
            assert process.answer()["states"] == {"missing": 250}
        assert len(loads.lines()) - before == 1
        for process in processes:
            process.ask("set", policy=[600, 600])
        time.sleep(max(0.0, fresh_for + 0.1 - (time.time() - loads.lines()[-1][1])))
        with loads.held():
            answers = together(processes, "read", key=key, readers=250)
            assert [answer["states"] for answer in answers] == [{"stale": 250}] * PROCESSES
        for process in processes:
            wait_until(
                lambda process=process, key=key: process.ask("read", key=key, readers=1)["states"] == {"fresh": 1}
            )
        assert len(loads.lines()) - before == 2


@pytest.mark.parametrize("readers_have", ["something stale", "nothing"])
def test_another_process_loads_after_the_lease_holder_is_killed(start, tmp_path, readers_have):
    """Promise 2: the next refresh begins within the lease's time-to-live + 250 ms; readers keep getting stale.

    In full 200 times, half of them with something stale: several fleets side by side, for each waits for its lease.
    """
    fleets, rounds = (4, 25) if FULL else (1, 1)
    with ThreadPoolExecutor(fleets) as threads:
        for done in [threads.submit(kill_refreshers, start, tmp_path, n, rounds, readers_have) for n in range(fleets)]:
            done.result()


def kill_refreshers(start: Any, folder: Path, fleet: int, rounds: int, readers_have: str) -> None:
    lease_for = 1.0
    loads = Loads(folder / f"loads of {fleet}")
    dying, other = start(2, loads, lease_for=lease_for)
    for round_ in range(rounds):
        key = f"k{fleet}-{round_}"
        if readers_have == "something stale":
            dying.ask("set", load_for=0, policy=[0.05, 600])
            dying.ask("read", key=key, readers=1)
            time.sleep(0.06)
        for process in (dying, other):
            process.ask("set", load_for=60 if process is dying else 0, policy=[30, 600])
        before = len(loads.lines())
        dying.tell("read", key=key, readers=1)
        wait_until(lambda before=before: len(loads.lines()) > before)
        dying.signal(signal.SIGKILL)
        killed = time.time()
        loads.now(f"new {round_}")
        if readers_have == "something stale":
            assert len(other.ask("watch", key=key, last=f"new {round_}")) == 2
        else:
            assert other.ask("read", key=key, readers=5)["values"] == {f"new {round_}": 5}
        pid, taken_over = loads.lines()[-1]
        assert pid == other.pid
        # The lease may have been renewed just before the kill. A busy machine promises no time.
        assert taken_over - killed < lease_for + 0.25 or not FULL
        (dying,) = start(1, loads, lease_for=lease_for)


def test_paused_lease_holder_does_not_overwrite_a_newer_value(start, loads):
    """Promise 3: a process is stopped past its lease and continued; no reader gets its value."""
    paused, other = start(2, lease_for=0.5)
    for round_ in range(TIMES):
        key = f"k{round_}"
        loads.now("old")
        before = len(loads.lines())
        paused.ask("set", gated=True)
        with loads.held():
            paused.tell("read", key=key, readers=1)
            wait_until(lambda before=before: len(loads.lines()) > before)
            paused.signal(signal.SIGSTOP)
            loads.now("new")
            assert other.ask("read", key=key, readers=1)["values"] == {"new": 1}
        paused.signal(signal.SIGCONT)
        # Its commit is rejected: it looks again and finds the newer one.
        assert paused.answer()["values"] == {"new": 1}
        for process in (paused, other):
            assert process.ask("read", key=key, readers=1)["values"] == {"new": 1}


@pytest.fixture
def proxy(server: Server) -> Iterator[Any]:
    """A proxy in front of the server, on an event loop of its own: called with a function of it."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Proxy(server.port)) as made,
    ):
        yield lambda function: portal.call(function, made)


@pytest.mark.parametrize("fault", ["unsent", "unanswered"])
def test_lost_reply_blocks_no_reader_and_causes_no_second_load(start, loads, proxy, fault):
    """Promise 7: the connection breaks at any command of a load, before it gets through or before its reply."""
    (unlucky,) = start(1, url=proxy(lambda proxy: proxy.url))
    (other,) = start(1)
    numbers = counting()
    struck = 0
    while struck < TIMES:
        key = f"k{(round_ := next(numbers))}"
        before = len(loads.lines())
        # A link that breaks again at once is given time; until it is back nobody's load is the only one.
        wait_until(lambda: unlucky.ask("reachable"))
        time.sleep(0.5)
        proxy(lambda proxy, number=1 + round_ % 3: proxy.arm(fault, number))
        assert unlucky.ask("read", key=key, readers=5)["values"] == {"0": 5}
        struck += proxy(lambda proxy: (proxy.struck, proxy.heal())[0])
        assert other.ask("read", key=key, readers=5)["values"] == {"0": 5}
        assert len(loads.lines()) - before == 1
        assert round_ < 3 * TIMES


@pytest.mark.parametrize("how", ["invalidate", "invalidate_tag", "clear"])
def test_key_invalidated_during_its_load_is_loaded_again(start, loads, how):
    """Promise 4: waiting readers and later ones get a value that was loaded after the invalidation, in each process."""
    what = {"invalidate": lambda key: {"key": key}, "invalidate_tag": lambda _: {"tag": "t"}, "clear": lambda _: {}}[
        how
    ]
    loading, other = start(2)
    for process in (loading, other):
        process.ask("set", gated=process is loading, tags=["t"])
    for round_ in range(TIMES):
        key, before = f"k{round_}", len(loads.lines())
        loads.now(f"old {round_}")
        with loads.held():
            loading.tell("read", key=key, readers=5)
            wait_until(lambda before=before: len(loads.lines()) > before)
            loads.now(f"new {round_}")
            other.ask(how, **what(key))
            other.tell("read", key=key, readers=5)
        assert other.answer()["values"] == {f"new {round_}": 5}
        assert loading.answer()["values"] == {f"new {round_}": 5}
        assert loading.ask("read", key=key, readers=5)["values"] == {f"new {round_}": 5}


@pytest.mark.parametrize("how", ["invalidate", "invalidate_tag", "clear"])
def test_invalidated_value_is_read_nowhere_after_the_notification(start, loads, how):
    """Promise 4: no reader gets it in the process after the call returns, none elsewhere after the notification."""
    what = {"invalidate": {"key": "k"}, "invalidate_tag": {"tag": "t"}, "clear": {}}[how]
    processes = start(4)
    for process in processes:
        process.ask("set", load_for=0.02, tags=["t"])
    for number in range(100 if FULL else 10):
        for process in processes:
            process.ask("read", key="k", readers=3)
        loads.now(str(number))
        processes[0].ask(how, **what)
        assert processes[0].ask("read", key="k", readers=3)["values"] == {str(number): 3}
        deadline = time.time() + PATIENCE
        for process in processes[1:]:
            while process.ask("read", key="k", readers=1)["values"] != {str(number): 1}:
                assert time.time() < deadline
        for process in processes:
            assert process.ask("read", key="k", readers=3)["values"] == {str(number): 3}


def test_paused_process_stops_serving_a_value_invalidated_meanwhile(start, loads):
    """A process that was stopped gets the notifications that it missed before it answers, or soon after."""
    paused, other = start(2)
    for process in (paused, other):
        process.ask("read", key="k", readers=1)
    paused.signal(signal.SIGSTOP)
    loads.now("new")
    other.ask("invalidate", key="k")
    paused.signal(signal.SIGCONT)
    deadline = time.time() + PATIENCE
    while paused.ask("read", key="k", readers=1)["values"] != {"new": 1}:
        assert time.time() < deadline


def test_processes_that_start_together_far_from_redis_load_once(server: Server, loads: Loads, proxy):
    """Promise 1, at a deploy: the first readers of all processes wait until they are connected, and load once."""
    url = proxy(lambda proxy: proxy.url)
    proxy(lambda proxy: setattr(proxy, "latency", 0.015))
    with ExitStack() as stack:
        # Nothing depends on how busy the machine is.
        processes = [Process(url, loads.path, timeout=PATIENCE, connect_timeout=PATIENCE) for _ in range(4)]
        for process in processes:
            stack.push(process.__exit__)
            process.tell("set", load_for=0.3)
            process.tell("read", key="k", readers=50)
        for process in processes:
            # It is told before it is ready, so that its answers may come together.
            assert [json.loads(process.read_line()) for _ in range(2)] == ["ready", None]
            assert json.loads(process.read_line())["values"] == {"0": 50}
    assert len(loads.lines()) == 1
