"""`swr inspect` and `swr invalidate`: what they say of what really is there, and how they fail."""

import asyncio
import json
import operator
import sys
from datetime import date
from uuid import UUID

import pytest

from swr import Cache, Fresh
from swr.cli.main import main
from swr.middleware import SWRMiddleware
from tests.servers import ClusterOfSix, Sentinels, Server, free_port, kinds
from tests.web import App, client


def said(capsys, *arguments: str, code: int = 0) -> dict:
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def run(cache: Cache, do) -> None:
    async def within() -> None:
        async with cache:
            await do()

    asyncio.run(within())


def test_inspect_shows_state_times_tags_and_validator_of_a_fresh_entry(server: Server, capsys):
    cache = Cache(server.url, timeout=5)

    @cache.cached("top:{group}", fresh_for=60, stale_for=600, tags=["group:{group}"], keep_for=60)
    async def top(group: str) -> list[int] | Fresh[list[int]]:
        return Fresh([1, 2, 3], validator="v1")

    run(cache, lambda: top("ATL"))
    found = said(capsys, "inspect", "top:ATL", "--redis", server.url)
    assert (found["key"], found["state"], found["why"], found["lease"]) == ("top:ATL", "fresh", None, None)
    assert (found["tags"], found["validator"], found["bytes"]) == (["group:ATL"], "v1", 4)
    assert found["fresh_until"] - found["created_at"] == pytest.approx(60)
    assert found["stale_until"] - found["fresh_until"] == pytest.approx(600)
    assert found["created_at"] * 1e6 == pytest.approx(found["version"], abs=60e6)
    assert main(["inspect", "top:ATL", "--redis", server.url]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert (lines["state"], lines["tags"], lines["lease"]) == ("fresh", "group:ATL", "none")
    assert lines["fresh"].startswith("until ")
    assert " UTC, in " in lines["fresh"]
    assert lines["created"].endswith(" s ago")


@pytest.mark.parametrize(
    ("seconds", "state", "why"),
    [
        ({"fresh_for": 0.001, "stale_for": 600}, "stale", None),
        ({"fresh_for": 0.001, "stale_if_error": 600}, "missing", "only if its loader fails"),
        ({"fresh_for": 0.001}, "missing", "its time is over"),
    ],
)
def test_inspect_shows_state_and_reason_once_an_entry_is_no_longer_fresh(server: Server, capsys, seconds, state, why):
    cache = Cache(server.url, timeout=5)

    @cache.cached("k", **seconds)
    async def load() -> int:
        await asyncio.sleep(0.01)
        return 1

    run(cache, load)
    found = said(capsys, "inspect", "k", "--redis", server.url)
    assert found["state"] == state
    assert found["why"] is None if why is None else why in found["why"]


def test_inspect_says_that_a_batch_loader_found_no_item(server: Server, capsys):
    cache = Cache(server.url, timeout=5)

    @cache.cached_many("row:{n}", fresh_for=60, absent_for=60)
    async def rows(numbers: list[int]) -> dict[int, int]:
        return {}

    run(cache, lambda: rows([7]))
    found = said(capsys, "inspect", "row:7", "--redis", server.url)
    assert found["state"] == "missing"
    assert "there is none" in found["why"]


@pytest.mark.parametrize(
    ("there", "why"), [("x", "not swr's"), ("0000000000000001exxxx", "cannot be read"), ("", None)]
)
def test_inspect_reports_foreign_or_unreadable_data_as_missing(server: Server, capsys, there, why):
    if there:
        server.command("SET", "swr:{k}", there)
    found = said(capsys, "inspect", "k", "--redis", server.url, code=not there)
    assert (found["state"], found["version"]) == ("missing", None)
    assert found["why"] is None if why is None else why in found["why"]


def test_inspect_shows_the_holder_of_the_lease_during_a_load(server: Server, capsys):
    cache = Cache(server.url, timeout=5)

    @cache.cached("k", fresh_for=60)
    async def load() -> int:
        found = await asyncio.to_thread(said, capsys, "inspect", "k", "--redis", server.url)
        assert found["lease"]["holder"]
        assert found["lease"]["version"] > 0
        assert 0 < found["lease"]["ends_in"] <= 30
        assert await asyncio.to_thread(main, ["inspect", "k", "--redis", server.url]) == 0
        assert "held by " in capsys.readouterr().out
        return 1

    run(cache, load)


def test_inspect_shows_failures_and_backoff_after_a_failed_load(server: Server, capsys, monkeypatch):
    # The backoff must not end meanwhile.
    monkeypatch.setattr("swr.engine.endings.backoff_after", lambda failures, uniform: 60.0)
    cache = Cache(server.url, timeout=5)
    fails = False

    @cache.cached("k", fresh_for=0.001, stale_if_error=600)
    async def load() -> int:
        if fails:
            raise ValueError("mine")
        return 1

    async def twice() -> None:
        nonlocal fails
        await load()
        await asyncio.sleep(0.01)
        fails = True
        assert await load() == 1

    run(cache, twice)
    found = said(capsys, "inspect", "k", "--redis", server.url)
    assert found["lease"]["failures"] == 1
    assert 0 < found["lease"]["ends_in"] <= 60
    assert main(["inspect", "k", "--redis", server.url]) == 0
    assert "loads have failed: 1;" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "gone", "shown"),
    [
        (["top:ATL"], {"top:ATL"}, "'top:ATL'"),
        (["--tag", "group:JFK"], {"top:JFK"}, "all that carries the tag 'group:JFK'"),
        (["--all"], {"top:ATL", "top:JFK"}, "everything"),
    ],
)
def test_invalidate_removes_matching_entries_here_and_in_running_processes(server: Server, capsys, what, gone, shown):
    """A running process gets the notification and drops its local copy."""
    cache = Cache(server.url, timeout=5)

    @cache.cached("top:{group}", fresh_for=60, tags=["group:{group}"])
    async def top(group: str) -> str:
        return group

    async def do() -> None:
        for group in ("ATL", "JFK"):
            await top(group)
        assert await asyncio.to_thread(main, ["invalidate", *what, "--redis", server.url]) == 0
        async with asyncio.timeout(60):
            while {key for key in ("top:ATL", "top:JFK") if cache.engine.store.peek(key) is None} != gone:
                await asyncio.sleep(0.005)

    run(cache, do)
    assert capsys.readouterr().out == f"invalidated {shown} in the namespace 'swr'\n"
    for key in ("top:ATL", "top:JFK"):
        found = said(capsys, "inspect", key, "--redis", server.url)
        assert (found["state"] == "missing") == (key in gone)
        assert ("invalidated" in (found["why"] or "")) == (key in gone)
    done = said(capsys, "invalidate", *what, "--redis", server.url)
    assert done["namespace"] == "swr"
    assert list(done["invalidated"]) == [what[0].lstrip("-") if what[0].startswith("--") else "key"]


def test_invalidate_reads_backslash_n_in_a_key_as_a_line_break(server: Server, capsys):
    done = said(capsys, "invalidate", r"GET http://x\n/top?", "--redis", server.url)
    assert done["invalidated"] == {"key": "GET http://x\n/top?"}


@pytest.mark.uncounted
@pytest.mark.parametrize("start", [ClusterOfSix, Sentinels])
def test_inspect_and_invalidate_work_on_cluster_and_sentinels(start, capsys):
    with start(kinds()[0]) as group:
        for number in range(3):
            where = ("--redis", group.url, "--timeout", "5")
            assert said(capsys, "inspect", f"k{number}", *where, code=1)["state"] == "missing"
            assert main(["invalidate", f"k{number}", "--redis", group.url, "--timeout", "5"]) == 0
            capsys.readouterr()
            found = said(capsys, "inspect", f"k{number}", "--redis", group.url, "--timeout", "5")
            assert found["why"] == "it was invalidated"


def test_unreachable_server_gives_one_error_line_and_code_1(capsys):
    url = f"redis://127.0.0.1:{free_port()}/0"
    for command in (["inspect", "k"], ["invalidate", "k"], ["invalidate", "--tag", "t"], ["invalidate", "--all"]):
        assert main([*command, "--redis", url, "--timeout", "500ms"]) == 1
        out, error = capsys.readouterr()
        assert (out, error.count("\n")) == ("", 1)
        assert error.startswith("swr: Redis did not carry out the command: ")
        assert "refused" in error or "Connect call failed" in error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "k"], "--redis"),
        (["inspect", "k", "--redis", "http://x"], "redis+cluster://"),
        (["invalidate", "--redis", "redis://x"], "--tag"),
        (["invalidate", "k", "--all", "--redis", "redis://x"], "--all"),
        (["invalidate", "--tag", "", "--redis", "redis://x"], "--all"),
        (["inspect", "k", "--redis", "redis://x", "--timeout", "soon"], "timeout"),
    ],
)
def test_invalid_arguments_give_one_error_line_and_code_2(capsys, arguments, says):
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    out, error = capsys.readouterr()
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert says in error


# -- what is asked for ---------------------------------------------------------------------------------------------


def test_inspect_and_invalidate_report_a_key_without_an_entry(server: Server, capsys):
    assert main(["inspect", "top:XXX", "--redis", server.url, "--namespace", "shop"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "swr: nothing stored under 'top:XXX' in the namespace 'shop'\n")
    assert main(["inspect", "/rankings/ATL", "--redis", server.url]) == 1
    assert "the key of a response is like 'GET http://host\\n/path?'" in capsys.readouterr().err
    assert main(["invalidate", "top:XXX", "--redis", server.url]) == 0
    assert "under which nothing was stored" in capsys.readouterr().out


def test_environment_variables_give_server_and_namespace(server: Server, capsys, monkeypatch):
    cache = Cache(server.url, namespace="shop", timeout=5)

    @cache.cached("k", fresh_for=60)
    async def load() -> int:
        return 1

    run(cache, load)
    monkeypatch.setenv("SWR_REDIS_URL", server.url)
    monkeypatch.setenv("SWR_NAMESPACE", "shop")
    assert said(capsys, "inspect", "k")["state"] == "fresh"
    assert said(capsys, "queue", "status") == {"queues": []}
    assert said(capsys, "inspect", "k", "--namespace", "other", code=1)["state"] == "missing"
    assert said(capsys, "invalidate", "--key", "k") == {"invalidated": {"key": "k"}, "namespace": "shop"}
    monkeypatch.setenv("SWR_REDIS_URL", "redis://app:pass@word@127.0.0.1:1/0")
    assert main(["inspect", "k", "--timeout", "0.2"]) == 1
    assert "word" not in capsys.readouterr().err
    monkeypatch.setenv("SWR_REDIS_URL", "http://app:pass@word@127.0.0.1:1/0")
    assert main(["inspect", "k"]) == 2
    err = capsys.readouterr().err
    assert "SWR_REDIS_URL" in err
    assert "word" not in err
    monkeypatch.delenv("SWR_REDIS_URL")
    assert main(["inspect", "k"]) == 2
    assert capsys.readouterr().err == "swr: where is Redis? Give --redis URL, or set SWR_REDIS_URL\n"


async def _ask(cache: Cache, url: str) -> list[str]:
    async with client(SWRMiddleware(App([(b"swr-cache-control", b"max-age=60")], body=b"c"), cache)) as http:
        return [(await http.get(url)).headers["swr-state"] for _ in range(2)]


@pytest.mark.parametrize("url", ["/rankings/ATL?limit=10", "http://test/rankings/ATL?limit=10"])
def test_invalidate_url_removes_the_responses_to_it(server: Server, capsys, url):
    states = []

    async def ask() -> None:
        async with Cache(server.url, timeout=5) as cache:
            states.extend(await _ask(cache, "/rankings/ATL?limit=10"))

    asyncio.run(ask())
    assert said(capsys, "invalidate", "--url", url, "--redis", server.url)["invalidated"] == {"url": url}
    asyncio.run(ask())
    assert states == ["missing", "fresh", "missing", "fresh"]
    assert main(["invalidate", "--url", url, "--redis", server.url]) == 0
    assert "invalidated the responses to" in capsys.readouterr().out


def test_invalidate_refuses_a_url_given_as_a_key(server: Server, capsys):
    for path in ("/rankings/ATL", "https://app:pass@word/x"):
        assert main(["invalidate", path, "--redis", server.url]) == 2
        said = capsys.readouterr().err
        assert "is a URL, not a key: swr invalidate --url" in said
        assert "pass" not in said


@pytest.mark.parametrize(
    "wrong",
    [[], ["a", "b"], ["a", "--tag", "t"], ["--key", "a", "--url", "/x"], ["--tag", ""], ["--all", "--loader", "a:b", "c"], ["a", "--all"], [""]],
)  # fmt: skip
def test_invalidate_refuses_a_missing_or_empty_target_and_two_targets(capsys, wrong):
    assert main(["invalidate", *wrong, "--redis", "redis://127.0.0.1:1/0"]) == 2
    assert capsys.readouterr().out == ""


def test_invalidate_loader_removes_the_entries_of_the_given_calls(server: Server, capsys, tmp_path, monkeypatch):
    (tmp_path / "shop.py").write_text(
        f"""
from swr import Cache

print("imported")
cache = Cache({server.url!r}, namespace="shop", timeout=5)
memory = Cache()
plain = 5


@cache.cached("top:{{group}}:{{limit}}", fresh_for=60)
async def top(group: str, limit: int = 100) -> int:
    return 1


@memory.cached("top:{{group}}", fresh_for=60)
async def here(group: str) -> int:
    return 1
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    import shop

    run(shop.cache, lambda: shop.top("ATL"))
    run(shop.cache, lambda: shop.top("JFK", 10))
    capsys.readouterr()
    done = said(capsys, "invalidate", "--loader", "shop:top", "ATL", '["JFK", 10]')
    assert done == {"invalidated": {"keys": ["top:ATL:100", "top:JFK:10"]}}
    where = ("--redis", server.url, "--namespace", "shop")
    for key in ("top:ATL:100", "top:JFK:10"):
        assert said(capsys, "inspect", key, *where)["why"] == "it was invalidated"
    assert main(["invalidate", "--loader", "shop:top", "ATL"]) == 0
    assert capsys.readouterr().out == "invalidated 'top:ATL:100'\n"
    for wrong, text in (
        (["shop:top"], "for which calls of 'shop:top'?"),
        (["shop:top", '["ATL", 1, 2]'], "cannot be called with ('ATL', 1, 2)"),
        (["shop:plain", "ATL"], "not a loader"),
        (["shop:here", "ATL"], "is in the memory of one process"),
    ):
        assert main(["invalidate", "--loader", *wrong]) == 2
        assert text in capsys.readouterr().err
    del sys.modules["shop"]


def test_invalidate_loader_converts_arguments_to_the_declared_types(server: Server, capsys, tmp_path, monkeypatch):
    """The key of 1 differs from the key of "1". Left as text, the argument would invalidate nothing."""
    (tmp_path / "typed.py").write_text(
        f"""
from __future__ import annotations

from datetime import date
from enum import Enum
from typing import TYPE_CHECKING, Optional
from uuid import UUID

from swr import Cache, LoadContext

if TYPE_CHECKING:
    from nowhere import Unknown

cache = Cache({server.url!r}, namespace="typed", timeout=5)
off = Cache(enabled=False)


class Kind(Enum):
    A = "a"


class Service:
    @cache.cached("method:{{number}}", fresh_for=60, ignore=("self",))
    async def method(self, number: int) -> int:
        return number


service = Service()


@cache.cached("one:{{number}}", fresh_for=60)
async def one(context: LoadContext[int], number: int) -> int:
    return number


@cache.cached("several:{{number}}:{{day}}:{{identity}}:{{kind}}:{{text}}:{{either}}", fresh_for=60)
async def several(
    number: float | None, day: date, identity: UUID, kind: Kind, text: Optional[str], either: int | str
) -> int:
    return 1


@cache.cached_many("item:{{item}}:{{factor}}", fresh_for=60)
async def many(factor: int, items: list[int]) -> dict[int, int]:
    return {{item: item * factor for item in items}}


@cache.cached_many("bare:{{item}}", fresh_for=60)
async def bare(items: list) -> dict[str, int]:
    return {{item: 1 for item in items}}


@cache.cached("unknown:{{what}}:{{number}}", fresh_for=60)
async def unknown(what: Unknown, number) -> int:
    return 1


@off.cached("nothing:{{group}}", fresh_for=60)
async def nothing(group: str) -> int:
    return 1
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    import typed

    run(typed.cache, lambda: typed.one(7))
    capsys.readouterr()
    identity = "0e7c1c0e-7d1c-4d1c-8d1c-0e7c1c0e7d1c"
    for name, text, args in (
        ("one", "7", (7,)),
        ("service.method", "7", (7,)),
        ("many", "[2, 3]", (2, 3)),
        ("many", '["2", "3"]', (2, 3)),
        ("bare", "3", ("3",)),
        ("unknown", '["7", "8"]', ("7", "8")),
        (
            "several",
            f'["1.5", "2030-01-01", "{identity}", "a", "7", "7"]',
            (1.5, date(2030, 1, 1), UUID(identity), typed.Kind.A, "7", "7"),
        ),
    ):
        key = operator.attrgetter(name)(typed).key(*args)
        assert said(capsys, "invalidate", "--loader", f"typed:{name}", text) == {"invalidated": {"keys": [key]}}
    where = ("--redis", server.url, "--namespace", "typed")
    assert said(capsys, "inspect", "one:7", *where)["why"] == "it was invalidated"
    assert said(capsys, "warm", "typed:one", "--keys", "7")["loaded"] == 1
    assert said(capsys, "inspect", "one:7", *where)["state"] == "fresh"
    for wrong, text in (
        (["typed:one", "x"], "does not take 'x': Expected `int`, got `str`"),
        (["typed:one", "7", *where], "works where the loader's own cache is"),
        (["typed:nothing", "x"], "the cache of 'typed:nothing' is off"),
    ):
        assert main(["invalidate", "--loader", *wrong]) == 2
        assert text in capsys.readouterr().err
    del sys.modules["typed"]


class Enough(Exception):
    """The test has seen enough."""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_watch_repeats_the_command_after_each_pause(server: Server, capsys, monkeypatch, is_terminal):
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            # Meanwhile somebody stores it.
            cache = Cache(server.url, timeout=5)
            run(cache, cache.cached("k", fresh_for=60)(load))
        elif len(pauses) == 2:
            monkeypatch.setenv("SWR_REDIS_URL", "redis://127.0.0.1:1/0")
        else:
            raise Enough

    async def load() -> int:
        return 1

    monkeypatch.setattr("swr.cli.shared.time.sleep", pause)
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    monkeypatch.setenv("SWR_REDIS_URL", server.url)
    with pytest.raises(Enough):
        main(["inspect", "k", "--watch", "--timeout", "5"])
    out, err = capsys.readouterr()
    assert pauses == [2.0] * 3
    assert "state        fresh" in out
    assert out.startswith("\x1b[H") is is_terminal
    assert "nothing stored under 'k'" in err
    pauses.clear()
    monkeypatch.setenv("SWR_REDIS_URL", server.url)
    with pytest.raises(Enough):
        main(["queue", "status", "--watch", "7"])
    assert pauses == [7.0] * 3
    assert main(["queue", "dead", "--watch", "0", "--redis", server.url]) == 2
