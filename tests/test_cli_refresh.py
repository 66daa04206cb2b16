"""`swr refresh`: real worker processes, what they say of their rounds, and how they leave."""

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swr.cli.main import main
from swr.cli.rounds import Rounds, read, written
from swr.cli.workers import Workers
from swr.events import RoundEnded, RoundQueued
from tests.servers import Server, until
from tests.test_proxy import PATIENCE

ENOUGH = 3


@pytest.fixture
def warmed(any_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have `tests.warmed` imported again, on an empty server; the folder where it says what it does."""
    any_server.command("FLUSHALL")
    monkeypatch.setenv("WARMED_URL", any_server.url)
    monkeypatch.setenv("WARMED_FOLDER", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("tests.warmed", None)
    log = logging.getLogger("swr")
    before = log.level, [*log.handlers]
    yield tmp_path
    assert (log.level, log.handlers) == before
    sys.modules.pop("tests.warmed", None)


def running(
    monkeypatch: pytest.MonkeyPatch,
    *arguments: str,
    enough: Callable[[list[str]], bool] = lambda lines: len(lines) == ENOUGH,
    then: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM),
) -> tuple[int, list[str]]:
    """Run the command here until it has said `enough`; return its exit code and what it has said."""
    there, here = os.pipe()
    lines: list[str] = []

    def listen() -> None:
        said = False
        with os.fdopen(there) as out:
            for line in out:
                lines.append(line.removesuffix("\n"))
                if not said and enough(lines):
                    # Once: a second signal might come when nobody listens any more.
                    said = True
                    then()

    subscriber = threading.Thread(target=listen)
    with os.fdopen(here, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        subscriber.start()
        code = main(["refresh", *arguments])
        monkeypatch.undo()
    subscriber.join(PATIENCE)
    return code, lines


@pytest.mark.parametrize("strategy", ["locks", "queue"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_prints_a_line_per_round_until_a_signal_ends_it(strategy, number, warmed, monkeypatch, capsys):
    def all_loaded(lines: list[str]) -> bool:
        # On a busy machine the first rounds may end before any load begins.
        return len(lines) >= ENOUGH and sum(map(int, re.findall(r"(\d+) loaded", "".join(lines)))) >= 20

    code, lines = running(
        monkeypatch,
        f"tests.warmed:Refreshers.{strategy}",
        enough=all_loaded,
        then=lambda: os.kill(os.getpid(), number),
    )
    name = {"locks": "top:group", "queue": "top"}[strategy]
    assert code == 0
    assert lines[0] == f"swr: refreshing {name!r} every 0.5 s, strategy {strategy!r}, in 1 process"
    assert " UTC, round " in lines[1]
    assert lines[1].endswith(" Redis commands, 1 worker")
    # What the module and its loaders print is elsewhere.
    error = capsys.readouterr().err
    assert "a module that prints\n" in error
    assert "a loader that prints\n" in error
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert len((warmed / "loads").read_text().split()) >= 20


@pytest.mark.parametrize("strategy", ["locks", "queue"])
def test_two_workers_share_the_rounds(strategy, warmed, monkeypatch):
    def both(lines: list[str]) -> bool:
        rounds = [json.loads(line) for line in lines]
        return rounds[-1]["workers"] == 2 and sum(this["loaded"] for this in rounds) >= 40

    code, lines = running(monkeypatch, f"tests.warmed:Refreshers.{strategy}", "--workers", "2", "--json", enough=both)
    assert code == 0
    rounds = [json.loads(line) for line in lines]
    assert [this["round"] for this in rounds] == sorted({this["round"] for this in rounds})
    assert all(this["workers"] in (1, 2) and this["failed"] == 0 for this in rounds)
    assert sum(this["commands"] for this in rounds) > 0
    if strategy == "locks":
        # Each has looked at all.
        assert {this["groups"] for this in rounds} == {20}
    else:
        assert sum(this["queued"] for this in rounds) >= 40
    # This process, and two.
    assert len((warmed / "processes").read_text().split()) == 3


def test_killed_worker_is_replaced(warmed, monkeypatch, capsys):
    killed: list[int] = []

    def again(lines: list[str]) -> bool:
        pids = [int(pid) for pid in (warmed / "processes").read_text().split() if int(pid) != os.getpid()]
        if not killed and lines[-1].endswith("2 workers"):
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)
            return False
        return len(pids) == 3 and lines[-1].endswith("2 workers")

    code, lines = running(monkeypatch, "tests.warmed:Refreshers.locks", "--workers", "2", enough=again)
    assert code == 0
    assert lines[0].endswith("in 2 processes")
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("swr: ")]
    assert said.endswith(f", process {killed[0]}, was killed by SIGKILL; another is started in 1 s")


def test_shutdown_waits_for_queued_loads_under_way(warmed, monkeypatch):
    """Nothing is left in the queue that somebody would have to take back."""
    monkeypatch.setenv("WARMED_SECONDS", "0.5")
    process = subprocess.Popen([sys.executable, "-m", "swr", "refresh", "tests.warmed:Refreshers.queue"])
    until(lambda: (warmed / "loads").exists())
    process.terminate()
    assert process.wait(PATIENCE) == 0
    from swr.refreshers.queue.queue import known
    from tests.warmed import cache

    async def left() -> tuple[int, int]:
        async with cache:
            status = await (await known(cache.engine.store.store))["top"].status()
            return status.running, status.counts["done"]

    assert asyncio.run(left()) == (0, len((warmed / "loads").read_text().split()))


def test_shutdown_stores_loads_that_the_refresher_does_not_wait_for(warmed, any_server, capsys, monkeypatch):
    """What the refresher does not wait for, the cache does."""
    monkeypatch.setenv("WARMED_SECONDS", "0.5")
    process = subprocess.Popen([sys.executable, "-m", "swr", "refresh", "tests.warmed:Refreshers.hasty"])
    until(lambda: (warmed / "loads").exists())
    process.terminate()
    assert process.wait(PATIENCE) == 0
    for group in (warmed / "loads").read_text().split():
        assert main(["inspect", f"top:{group}", "--redis", any_server.url, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["state"], found["lease"]) == ("fresh", None)


def test_control_c_ends_command_without_keyboard_interrupt_in_workers(warmed, monkeypatch):
    """A terminal sends it to every process of the group, workers that have hardly begun to run included."""
    monkeypatch.setenv("WARMED_IMPORT", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "swr", "refresh", "tests.warmed:Refreshers.locks", "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    processes = warmed / "processes"
    until(lambda: processes.exists() and len(processes.read_text().split()) >= 2)
    [worker] = {int(pid) for pid in processes.read_text().split()[:2]} - {process.pid}
    group = os.getpgid(worker)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=PATIENCE)
    assert group != process.pid
    assert process.returncode == 0
    assert b"KeyboardInterrupt" not in error


def test_workers_end_when_the_parent_process_is_killed(warmed):
    process = subprocess.Popen(
        [sys.executable, "-m", "swr", "refresh", "tests.warmed:Refreshers.locks", "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    while not process.stdout.readline().endswith(b"2 workers\n"):
        assert process.poll() is None
    process.kill()
    # The pipe is theirs, too, and ends with them.
    _, error = process.communicate(timeout=PATIENCE)
    assert error.count(b"swr: the program that read the rounds has ended\n") == 2


def test_command_exits_with_1_when_nobody_reads_its_output(warmed, monkeypatch, capsys):
    there, here = os.pipe()
    os.close(there)
    with os.fdopen(here, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert main(["refresh", "tests.warmed:Refreshers.locks"]) == 1
        monkeypatch.undo()
    assert capsys.readouterr().err.endswith("swr: the program that read the rounds has ended\n")


def test_events_option_prints_each_event_as_a_line(warmed, monkeypatch):
    _, lines = running(
        monkeypatch,
        "tests.warmed:Refreshers.queue",
        "--events",
        enough=lambda lines: {type(read(line.encode())) for line in lines} == {RoundQueued, RoundEnded},
    )
    events = [read(line.encode()) for line in lines]
    assert [written(event) for event in events if event is not None] == lines
    queued = next(event for event in events if isinstance(event, RoundQueued))
    assert (queued.name, queued.new) == ("top", 20)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["tests.warmed"], 2, "swr: 'tests.warmed' must be MODULE:NAME, such as examples.ranking:refresher"),
        (["tests.warmed:"], 2, "must be MODULE:NAME"),
        (["tests.warmed:nobody"], 2, "cannot find 'tests.warmed:nobody': module 'tests.warmed' has no attribute"),
        (["no.such:refresher"], 2, "there is no module 'no'"),
        (["tests.no_such:refresher"], 2, "there is no module 'tests.no_such'"),
        (["tests.warmed:top"], 2, ", not a swr.Refresher"),
        (["tests.warmed:Refreshers.read"], 2, 'has strategy="read"'),
        (["tests.warmed:Refreshers.alone"], 2, "is in the memory of one process"),
        (["tests.warmed:Refreshers.locks", "--workers", "0"], 2, "--workers 0 is too low: give 1 or more"),
        (["broken:refresher"], 1, "swr: importing 'broken' failed: ModuleNotFoundError: No module named 'absent'"),
        (["wrong:refresher"], 1, "swr: importing 'wrong' failed: ValueError: two lines"),
        (["misused:refresher"], 2, "swr: url="),
    ],
)
def test_unusable_refresher_is_refused_in_one_line(arguments, code, says, warmed, monkeypatch, capsys):
    (warmed / "broken.py").write_text("import absent\n")
    (warmed / "wrong.py").write_text('raise ValueError("two\\nlines")\n')
    (warmed / "misused.py").write_text('import swr\nraise swr.ConfigurationError("url=1 is none")\n')
    sys.path.insert(0, str(warmed))
    assert main(["refresh", *arguments]) == code
    out, error = capsys.readouterr()
    last = error.splitlines()[-1]
    assert out == ""
    assert last.startswith("swr: ")
    assert says in last
    assert error.count("\n") == 1 + ("a module that prints" in error)


def test_refresher_module_is_found_in_the_current_directory(warmed, monkeypatch, capsys):
    (warmed / "found_here.py").write_text("refresher = 1\n")
    monkeypatch.chdir(warmed)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert main(["refresh", "found_here:refresher"]) == 2
    assert "'found_here:refresher' is 1, not a swr.Refresher" in capsys.readouterr().err
    # Once.
    assert main(["refresh", "found_here:refresher"]) == 2
    assert sys.path.count("") == 1
    del sys.modules["found_here"]


def test_help_shows_an_example_and_hides_the_events_option(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["refresh", "--help"])
    said = capsys.readouterr().out
    assert "swr refresh examples.ranking:refresher --workers 4" in said
    assert "--events" not in said


# -- rounds of several workers --------------------------------------------------------------------------------


def ended(number: int, loaded: int = 1, *, groups: int = 20, missed: int = 0, name: str = "top") -> RoundEnded:
    return RoundEnded(name, number, 0.5 * loaded, groups, loaded, 2, 3, 4, missed, 10)


def gathering(strategy: str = "locks", workers: int = 2) -> tuple[Rounds, list[dict]]:
    shown: list[dict] = []
    rounds = Rounds("top", 60, strategy, lambda line: shown.append(json.loads(line)), as_json=True)
    for worker in range(workers):
        rounds.begin(worker)
    return rounds, shown


@pytest.mark.parametrize(("strategy", "groups"), [("locks", 20), ("queue", 40)])
def test_round_is_shown_once_all_workers_have_reported(strategy, groups):
    rounds, shown = gathering(strategy)
    rounds.on_event(0, RoundQueued("top", 7, 5, 1, 3))
    rounds.on_event(0, ended(7, 1))
    assert shown == []
    rounds.on_event(1, ended(7, 2))
    assert shown == [
        {
            "name": "top", "round": 7, "workers": 2, "groups": groups, "loaded": 3, "current": 4, "held": 6, "failed": 8,
            "commands": 20, "seconds": 1.0, "queued": 5, "merged": 1, "missed": 3,
        }
    ]  # fmt: skip


def test_round_is_shown_without_a_worker_that_is_two_rounds_behind():
    rounds, shown = gathering()
    for number in (7, 8):
        rounds.on_event(0, ended(number))
    assert shown == []
    rounds.on_event(0, ended(9))
    assert [(this["round"], this["workers"]) for this in shown] == [(7, 1)]
    # It is there again: what it says of an old round is a line of its own.
    rounds.on_event(1, ended(7))
    rounds.on_event(1, ended(9))
    assert [(this["round"], this["workers"]) for this in shown] == [(7, 1), (7, 1), (8, 1), (9, 2)]


def test_round_is_shown_without_a_worker_that_has_ended():
    rounds, shown = gathering()
    rounds.on_event(0, ended(7))
    rounds.on_event(0, RoundQueued("top", 8, 5, 0, 0))
    rounds.end(1)
    assert [(this["round"], this["workers"]) for this in shown] == [(7, 1)]
    # One that was only enqueued is none that was done.
    rounds.end(0)
    assert len(shown) == 1


def test_rounds_of_another_refresher_are_not_shown():
    rounds, shown = gathering(workers=1)
    rounds.on_event(0, ended(7, name="other"))
    assert shown == []


def test_rounds_are_written_as_readable_lines_without_json():
    shown: list[str] = []
    rounds = Rounds("top", 60, "queue", shown.append, as_json=False)
    rounds.begin(0)
    rounds.on_event(0, RoundQueued("top", 1000, 1500, 2, 3))
    rounds.on_event(0, ended(1000, 1))
    rounds.on_event(0, ended(1001, 1))
    assert shown == [
        "16:40:00 UTC, round 1000: 20 groups, 1,500 queued, 2 still queued, 1 loaded, 2 current, 3 held, 4 failed, "
        "0.50 s, 10 Redis commands, 1 worker, 3 rounds missed before",
        "16:41:00 UTC, round 1001: 20 groups, 0 queued, 1 loaded, 2 current, 3 held, 4 failed, "
        "0.50 s, 10 Redis commands, 1 worker",
    ]


@pytest.mark.parametrize("line", [b"", b"x", b"[]", b"{}", b'{"event": "Hit"}', b'{"event": "RoundEnded"}', b"\xff"])
def test_read_ignores_lines_that_are_not_events(line):
    assert read(line) is None


# -- processes ------------------------------------------------------------------------------------------------


def work(code: str, stop: asyncio.Event, grace: float) -> tuple[Workers, Rounds]:
    rounds = Rounds("top", 60, "locks", lambda line: stop.set(), as_json=True)
    return Workers((sys.executable, "-c", code), 1, rounds), rounds


SAYS = f"print({written(ended(7))!r}, flush=True)"


@pytest.mark.parametrize(
    ("code", "failed", "says"),
    [
        (f"import time; print('junk', flush=True); {SAYS}; time.sleep(600)", 0, "junk\n"),
        (
            f"import signal, time; signal.signal(15, signal.SIG_IGN); {SAYS}; time.sleep(600)",
            1,
            "was killed by SIGKILL while it was stopping\n",
        ),
        (
            f"import signal, time; signal.signal(15, lambda *_: exit(3)); {SAYS}; time.sleep(600)",
            1,
            "ended with 3 while it was stopping\n",
        ),
    ],
)
def test_run_counts_workers_that_did_not_stop_cleanly_and_says_why(code, failed, says, capsys):
    async def run() -> int:
        stop = asyncio.Event()
        workers, _ = work(code, stop, 1.0)
        return await workers.run(stop, PATIENCE if "SIG_IGN" not in code else 0.2)

    assert asyncio.run(run()) == failed
    assert capsys.readouterr().err.endswith(says)


def test_worker_is_replaced_and_stopped_although_its_children_live_on(capfd):
    """The children have its standard output, too: its end does not end the pipe."""
    code = f"import subprocess, time; subprocess.Popen(['sleep', '600']); {SAYS}; time.sleep(600)"
    died: list[int] = []

    async def run() -> int:
        stop = asyncio.Event()

        def show(line: str) -> None:
            [process] = workers._running.values()
            died.append(process.pid)
            if len(died) == 1:
                process.kill()
            else:
                stop.set()

        workers = Workers((sys.executable, "-c", code), 1, Rounds("top", 60, "locks", show, as_json=True))
        return await asyncio.wait_for(workers.run(stop, PATIENCE), PATIENCE)

    try:
        assert asyncio.run(run()) == 0
    finally:
        for pid in died:
            os.killpg(pid, signal.SIGKILL)
    assert capfd.readouterr().err == (
        f"swr: worker 1, process {died[0]}, was killed by SIGKILL; another is started in 1 s\n"
    )


def test_overlong_line_is_skipped_and_next_lines_are_read(capfd):
    code = f"import time; print('x' * 2**26, flush=True); print('junk', flush=True); {SAYS}; time.sleep(600)"

    async def run() -> int:
        stop = asyncio.Event()
        workers, _ = work(code, stop, 1.0)
        return await asyncio.wait_for(workers.run(stop, PATIENCE), PATIENCE)

    assert asyncio.run(run()) == 0
    assert capfd.readouterr().err.endswith("junk\n")


def test_worker_still_starting_is_stopped_too():
    async def run() -> int:
        stop = asyncio.Event()
        workers, _ = work("import time; time.sleep(600)", stop, 1.0)
        loop = asyncio.get_running_loop()
        # When its start is under way.
        loop.call_soon(loop.call_soon, stop.set)
        return await workers.run(stop, PATIENCE)

    assert asyncio.run(run()) == 0


def test_worker_that_cannot_start_is_reported_and_tried_again(capsys):
    async def run() -> int:
        stop = asyncio.Event()
        workers = Workers(("/no/such/command",), 1, Rounds("top", 60, "locks", print, as_json=True))
        asyncio.get_running_loop().call_later(1.5, stop.set)
        return await workers.run(stop, PATIENCE)

    assert asyncio.run(run()) == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) >= 1
    assert said[0].startswith("swr: worker 1 cannot be started ([Errno 2]")
    assert said[0].endswith("; another is started in 1 s")
