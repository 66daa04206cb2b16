"""`swr warm`: what it loads, what it leaves alone, and what it says of failures."""

import asyncio
import io
import json
import logging
import sys
import threading
import types
from collections.abc import Callable, Iterator

import pytest

from swr import Cache
from swr.cli.main import main
from swr.events import LeaseHeld
from tests.servers import Server, free_port, kinds
from tests.test_cli import unfolded
from tests.test_proxy import PATIENCE


class Made:
    """What the module `made` holds: loaders, and what they were called with."""

    def __init__(self, url: str | None) -> None:
        self.cache = cache = Cache(url, timeout=5)
        self.called: list[object] = []
        self.fails: set[str] = set()

        @cache.cached("top:{group}", fresh_for=60, stale_for=600, stale_if_error=600)
        async def top(group: str) -> str:
            print("a loader that prints")
            self.called.append(group)
            if group in self.fails:
                raise ValueError(f"no\n{group}")
            return group

        @cache.cached("two:{group}:{limit}", fresh_for=60)
        def two(group: str, limit: int) -> str:
            self.called.append((group, limit))
            return group

        @cache.cached_many("many:{group}", fresh_for=60)
        async def many(groups: list[str]) -> dict[str, str]:
            self.called.append(sorted(groups))
            return {group: group for group in groups}

        @cache.cached("brief", fresh_for=0.001, stale_for=600)
        async def brief() -> str:
            self.called.append("brief")
            return "brief"

        @cache.cached("here", fresh_for=60, shared=False)
        async def here() -> object:
            return object()

        self.top, self.two, self.many, self.brief, self.here = top, two, many, brief, here

    def groups(self) -> Iterator[str]:
        yield from ("ATL", "JFK")

    async def pairs(self) -> list[tuple[str, int]]:
        return [("ATL", 1), ("JFK", 2)]

    def no_groups(self) -> list[str]:
        raise LookupError("the database is away")


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], Made]]:
    log = logging.getLogger("swr")
    before = log.level, [*log.handlers]

    def made(url: str | None) -> Made:
        module = types.ModuleType("made")
        it = module.it = Made(url)  # type: ignore[attr-defined]  # a module gets a name
        monkeypatch.setitem(sys.modules, "made", module)
        monkeypatch.setattr(sys, "path", [*sys.path])
        return it

    yield made
    assert (log.level, log.handlers) == before


@pytest.fixture
def made(any_server: Server, make: Callable[[str | None], Made]) -> Made:
    any_server.command("FLUSHALL")
    return make(any_server.url)


def warm(capsys, loader: str, *arguments: str, code: int = 0) -> dict:
    assert main(["warm", f"made:it.{loader}", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def counts(loaded: int, fresh: int, failed: int = 0) -> dict:
    return {"loaded": loaded, "fresh": fresh, "failed": failed, "errors": {}}


def test_fresh_entries_are_loaded_only_with_force(made, capsys):
    assert warm(capsys, "top", "--keys", "ATL", "JFK", "ATL") == counts(2, 0)
    assert warm(capsys, "top", "--keys", "ATL", "JFK", "ORD") == counts(1, 2)
    assert sorted(made.called) == ["ATL", "JFK", "ORD"]
    assert warm(capsys, "top", "--keys", "ATL", "--force") == counts(1, 0)
    assert made.called[3:] == ["ATL"]


def test_stale_entry_is_loaded(made, capsys):
    for _ in range(2):
        assert warm(capsys, "brief", "--keys", "[]") == counts(1, 0)


def test_invalidated_entry_is_loaded_and_others_stay_fresh(made, any_server, capsys):
    warm(capsys, "top", "--keys", "ATL", "JFK")
    assert main(["invalidate", "top:ATL", "--redis", any_server.url]) == 0
    capsys.readouterr()
    assert warm(capsys, "top", "--keys", "ATL", "JFK") == counts(1, 1)


def test_batch_loader_is_called_once_with_all_missing_keys(made, capsys):
    assert warm(capsys, "many", "--keys", "a", "b", "c") == counts(3, 0)
    assert warm(capsys, "many", "--keys", "a", "b", "c", "d", "e") == counts(2, 3)
    assert made.called == [["a", "b", "c"], ["d", "e"]]


def test_at_once_limits_the_size_of_batches(made, capsys):
    assert warm(capsys, "many", "--keys", *"abcdefg", "--at-once", "3") == counts(7, 0)
    assert all(len(groups) <= 3 for groups in made.called)
    assert sorted(group for groups in made.called for group in groups) == [*"abcdefg"]


@pytest.mark.parametrize(
    ("loader", "keys", "called"),
    [
        ("two", ["--keys", '["ATL", 1]', '["JFK", 2]'], [("ATL", 1), ("JFK", 2)]),
        ("two", ["--keys-from", "made:it.pairs"], [("ATL", 1), ("JFK", 2)]),
        ("top", ["--keys-from", "made:it.groups"], ["ATL", "JFK"]),
        ("top", ["--keys", "[ATL", '{"a": 1}'], ["[ATL", '{"a": 1}']),
    ],
)
def test_json_keys_text_keys_and_keys_from_a_function_reach_the_loader(loader, keys, called, made, capsys):
    assert warm(capsys, loader, *keys) == counts(2, 0)
    assert sorted(made.called) == called


def test_keys_are_read_from_a_file_or_stdin(made, capsys, tmp_path, monkeypatch):
    file = tmp_path / "groups.txt"
    file.write_text('["ATL", 1]\n\n["Zürich", 2]\n', "utf-8")
    assert warm(capsys, "two", "--keys-file", str(file)) == counts(2, 0)
    assert sorted(made.called) == [("ATL", 1), ("Zürich", 2)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("ATL\nJFK\n"))
    assert warm(capsys, "top", "--keys-file", "-") == counts(2, 0)


def test_failed_loads_are_named_with_their_errors_and_exit_with_1(made, capsys):
    made.fails = {"JFK", "ORD"}
    found = warm(capsys, "top", "--keys", "ATL", "JFK", "ORD", code=1)
    assert found["errors"] == {"top:JFK": "ValueError: no JFK", "top:ORD": "ValueError: no ORD"}
    made.fails = {"SFO"}
    assert main(["warm", "made:it.top", "--keys", "ATL", "SFO"]) == 1
    out, error = capsys.readouterr()
    assert out == "loaded 0, fresh 1, failed 1\n"
    assert error.splitlines() == [
        "a loader that prints",
        "swr: 1 of 2 could not be loaded; the first, 'top:SFO': ValueError: no SFO",
    ]


def test_load_of_another_process_is_awaited_and_counted_as_fresh(made, any_server, capsys):
    """Nothing is loaded twice."""
    begun, asked = threading.Event(), threading.Event()
    elsewhere = Cache(any_server.url, timeout=5)

    @elsewhere.cached("top:{group}", fresh_for=60)
    def top(group: str) -> str:
        begun.set()
        assert asked.wait(PATIENCE)
        return group

    async def load() -> None:
        async with elsewhere:
            await top("ATL")

    other = threading.Thread(target=lambda: asyncio.run(load()))
    other.start()
    assert begun.wait(PATIENCE)
    made.cache.subscribe(lambda event: asked.set(), LeaseHeld)
    assert warm(capsys, "top", "--keys", "ATL", "JFK") == counts(1, 1)
    other.join(PATIENCE)
    assert made.called == ["JFK"]


def test_value_that_does_not_reach_redis_counts_as_failed(make, capsys):
    with Server(kinds()[0]) as server:
        made = make(server.url)

        @made.cache.cached("lost", fresh_for=60)
        async def lost() -> str:
            server.kill()
            return "lost"

        made.lost = lost
        found = warm(capsys, "lost", "--keys", "[]", code=1)
    assert (found["loaded"], found["failed"]) == (0, 1)
    assert list(found["errors"]) == ["lost"]


def test_progress_bar_is_shown_in_a_terminal(made, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert warm(capsys, "two", "--keys", '["a", 1]', '["b", 1]', "--at-once", "1") == counts(2, 0)
    assert terminal.getvalue() == (f"\r[{' ' * 30}] 0 of 2\r[{'#' * 15}{' ' * 15}] 1 of 2\r[{'#' * 30}] 2 of 2\n")


def test_empty_list_of_keys_loads_nothing_and_succeeds(made, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert warm(capsys, "top", "--keys-file", "-") == counts(0, 0)


def test_unreachable_server_prints_one_line_and_exits_with_1(make, capsys):
    make(f"redis://127.0.0.1:{free_port()}/0")
    for force in ([], ["--force"]):
        assert main(["warm", "made:it.top", "--keys", "ATL", *force]) == 1
        out, error = capsys.readouterr()
        assert (out, error.count("\n")) == ("", 1)
        assert error.startswith("swr: Redis did not carry out the command: ")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["made:it.top"], 2, "one of the arguments --keys --keys-from --keys-file is required (swr warm --help)"),
        (["made:it.groups", "--keys", "a"], 2, "and not a loader that @cache.cached or @cache.cached_many made"),
        (["made:it.top", "--keys", "a", "--at-once", "0"], 2, "--at-once 0 is too low: give 1 or more"),
        (
            ["made:it.two", "--keys", "a"],
            2,
            "two() missing a required argument: 'limit'",
        ),
        (["made:it.top", "--keys-from", "made:it.none"], 2, "has no attribute 'none'"),
        (["made:it.top", "--keys-from", "made:__name__"], 2, "--keys-from='made': give a list of groups"),
        (["made:it.top", "--keys-from", "made:it.no_groups"], 1, "gave no keys: LookupError: the database is away"),
        (["made:it.top", "--keys-file", "/no/such/file"], 1, "--keys-file '/no/such/file' cannot be read: FileNotF"),
    ],
)
def test_invalid_arguments_print_one_line_and_exit_with_an_error(arguments, code, says, made, capsys):
    try:
        ended = main(["warm", *arguments])
    except SystemExit as end:
        ended = end.code
    out, error = capsys.readouterr()
    assert (ended, out, error.count("\n")) == (code, "", 1)
    assert says in error


def test_cache_in_memory_cannot_be_warmed(make, capsys):
    make(None)
    assert main(["warm", "made:it.top", "--keys", "a"]) == 2
    error = capsys.readouterr().err
    assert "the cache of 'made:it.top' is in the memory of one process" in error
    assert "or name a module that calls its configure(...) when it is imported" in error


def test_loader_is_warmed_in_the_cache_that_its_module_configures(make, any_server, capsys, tmp_path, monkeypatch):
    """For instance for an app with `create_app(settings)`: its cache has no URL when its module is imported."""
    any_server.command("FLUSHALL")
    make(None)
    (tmp_path / "tools.py").write_text(f"from made import it\nit.cache.configure({any_server.url!r})\ntop = it.top\n")
    monkeypatch.syspath_prepend(tmp_path)
    ended = main(["warm", "tools:top", "--keys", "a"])
    del sys.modules["tools"]
    assert (ended, capsys.readouterr().out) == (0, "loaded 1, fresh 0, failed 0\n")


def test_loader_with_shared_false_cannot_be_warmed(made, capsys):
    assert main(["warm", "made:it.here", "--keys", ""]) == 2
    assert "'made:it.here' has shared=False" in capsys.readouterr().err


def test_help_shows_an_example_with_keys_from(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["warm", "--help"])
    assert "--keys-from examples.ranking:flights.airports" in unfolded(capsys.readouterr().out)
