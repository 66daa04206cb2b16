"""`swr inspect` and `swr invalidate`: what they say of what really lies there, and how they fail."""

import asyncio
import json

import pytest

from swr import Cache, Fresh
from swr.cli.main import main
from tests.servers import ClusterOfSix, Sentinels, Server, free_port, kinds


def said(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def run(cache: Cache, do) -> None:
    async def within() -> None:
        async with cache:
            await do()

    asyncio.run(within())


def test_an_entry(server: Server, capsys):
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
def test_one_that_is_fresh_no_more(server: Server, capsys, seconds, state, why):
    cache = Cache(server.url, timeout=5)

    @cache.cached("k", **seconds)
    async def load() -> int:
        await asyncio.sleep(0.01)
        return 1

    run(cache, load)
    found = said(capsys, "inspect", "k", "--redis", server.url)
    assert found["state"] == state
    assert found["why"] is None if why is None else why in found["why"]


def test_one_that_is_absent(server: Server, capsys):
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
def test_something_else(server: Server, capsys, there, why):
    if there:
        server.command("SET", "swr:{k}", there)
    found = said(capsys, "inspect", "k", "--redis", server.url)
    assert (found["state"], found["version"]) == ("missing", None)
    assert found["why"] is None if why is None else why in found["why"]


def test_who_loads(server: Server, capsys):
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


def test_who_keeps_off(server: Server, capsys, monkeypatch):
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
def test_invalidating(server: Server, capsys, what, gone, shown):
    """A process that runs hears of it, and what it has in memory counts no more."""
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


def test_the_key_of_a_response_has_a_line_break(server: Server, capsys):
    done = said(capsys, "invalidate", r"GET http://x\n/top?", "--redis", server.url)
    assert done["invalidated"] == {"key": "GET http://x\n/top?"}


@pytest.mark.parametrize("start", [ClusterOfSix, Sentinels])
def test_any_topology(start, capsys):
    with start(kinds()[0]) as group:
        for number in range(3):
            assert said(capsys, "inspect", f"k{number}", "--redis", group.url, "--timeout", "5")["state"] == "missing"
            assert main(["invalidate", f"k{number}", "--redis", group.url, "--timeout", "5"]) == 0
            capsys.readouterr()
            found = said(capsys, "inspect", f"k{number}", "--redis", group.url, "--timeout", "5")
            assert found["why"] == "it was invalidated"


def test_unreachable_server_is_one_line_and_a_failure(capsys):
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
def test_what_is_asked_wrongly(capsys, arguments, says):
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    out, error = capsys.readouterr()
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert says in error
