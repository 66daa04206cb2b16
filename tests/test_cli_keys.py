"""`swr keys`, `swr invalidate --soft`, and what `swr inspect` says of a mark: of what really is there."""

import asyncio
import base64
import json
import re
import time

import pytest
from fastapi import FastAPI

from swr import Cache, Policy
from swr.cli.main import main
from swr.core import frames
from swr.core.packing import PLAIN
from swr.middleware import SWRMiddleware
from tests.servers import ClusterOfSix, Server, kinds
from tests.web import client

LONG = "x" * 300


def said(capsys, *arguments: str, code: int = 0) -> dict:
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def all_keys(capsys, *arguments: str) -> tuple[list[dict], int]:
    """Follow the cursors to the end; return the entries, and how many steps that took."""
    found, cursor, steps = [], "0.0", 0
    while cursor is not None:
        page = said(capsys, "keys", *arguments, "--cursor", cursor)
        found, cursor, steps = found + page["keys"], page["cursor"], steps + 1
    return found, steps


def fill(cache: Cache, groups: list[str]) -> list[str]:
    """Store some entries, and return the keys of those of one loader."""

    @cache.cached("top:{group}", fresh_for=60, stale_for=600, tags=["group:{group}"])
    async def top(group: str) -> str:
        return group

    @cache.cached("other:{n}", fresh_for=60)
    async def other(n: int) -> int:
        return n

    app = FastAPI()

    @app.get("/rankings/{group}")
    @cache.response(fresh_for=60)
    def rankings(group: str) -> str:
        return group

    async def within() -> None:
        async with cache:
            await asyncio.gather(*map(top, groups), other(1))
            async with client(SWRMiddleware(app, cache)) as http:
                await http.get("/rankings/ATL")

    asyncio.run(within())
    return [top.key(group) for group in groups]


@pytest.mark.parametrize("start", [Server, ClusterOfSix])
def test_keys_command_lists_each_entry_once_by_loader_and_route(capsys, start):
    with start(kinds()[0]) as servers:
        list_all(servers.url, capsys, is_cluster=start is ClusterOfSix)


def list_all(url: str, capsys, *, is_cluster: bool) -> None:
    groups = [*(f"g{n}" for n in range(60)), "a b}{", "ü\n", LONG]
    where = ("--redis", url, "--namespace", "we[ird]*")
    keys = fill(Cache(url, namespace="we[ird]*", timeout=5), groups)
    fill(Cache(url, namespace="another", timeout=5), ["not mine"])
    found, steps = all_keys(capsys, *where, "--loader", "top:{group}", "--limit", "10")
    assert sorted(one["key"] for one in found) == sorted(keys)
    # A cluster is gone through one master after the other.
    assert steps >= (3 if is_cluster else 1)
    assert {one["state"] for one in found} == {"fresh"}
    assert all(one["age"] >= 0 and one["bytes"] > 0 and one["tags"][0].startswith("group:") for one in found)
    found, _ = all_keys(capsys, *where, "--route", "/rankings/{group}")
    assert [one["key"] for one in found] == ["GET http://test\n/rankings/ATL?"]
    found, _ = all_keys(capsys, *where)
    assert len(found) == len(groups) + 2
    assert main(["keys", *where, "--loader", "none:{x}"]) == 0
    assert capsys.readouterr().out == "no such entries in the namespace 'we[ird]*'\n"


def test_keys_command_prints_lines_of_at_most_80_columns(server: Server, capsys):
    fill(Cache(server.url, namespace="lines", timeout=5), ["ATL"])
    where = ("--redis", server.url, "--namespace", "lines")
    assert main(["keys", *where, "--tags", "--loader", "top:{group}"]) == 0
    head, line, tags = capsys.readouterr().out.splitlines()
    assert (head.split(), line.split()[0], line.split()[-1], tags.strip()) == (
        ["state", "age", "bytes", "key"],
        "fresh",
        "top:ATL",
        "group:ATL",
    )
    assert main(["keys", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(len(line) <= 80 for line in lines)
    # The line break of a response's key is shown as `swr inspect` takes it.
    assert any(line.endswith("GET http://test\\n/rankings/ATL?") for line in lines)


def test_control_characters_in_keys_are_escaped_for_the_terminal(server: Server, capsys):
    [key] = fill(Cache(server.url, namespace="tty", timeout=5), ["\x1b[2J\r\x9b\u202e"])[:1]
    where = ("--redis", server.url, "--namespace", "tty")
    for command in (["keys", *where, "--tags"], ["inspect", key, *where]):
        assert main(command) == 0
        out = capsys.readouterr().out
        assert out.replace("\n", "").isprintable()
        assert r"top:\x1b[2J\r\x9b\u202e" in out


def test_cursors_visit_1000_entries_with_scan_and_never_with_redis_keys(server: Server, capsys):
    """A thousand entries take several steps, and the server has seen SCAN and never KEYS."""

    async def fill_many() -> None:
        async with Cache(server.url, namespace="many", timeout=5) as cache:
            await asyncio.gather(*(cache.set(f"k{number}", number, Policy(60), returns=int) for number in range(1000)))

    asyncio.run(fill_many())
    where = ("--redis", server.url, "--namespace", "many")
    # What other tests have sent to this server counts there, too.
    server.command("CONFIG", "RESETSTAT")
    assert main(["keys", *where, "--limit", "3"]) == 0
    *lines, more = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"more: --cursor 0\.[1-9]\d*", more)
    # A server answers with whole buckets of its table; below the head there are a few keys more than three.
    assert 3 <= len(lines) - 1 < 60
    found, steps = all_keys(capsys, *where, "--limit", "200")
    assert {one["key"] for one in found} == {f"k{number}" for number in range(1000)}
    assert steps >= 4
    statistics = server.command("INFO", "commandstats").decode()
    assert "cmdstat_scan" in statistics
    assert "cmdstat_keys" not in statistics


def test_hidden_key_names_are_shown_only_with_the_right_secret(server: Server, capsys, monkeypatch):
    monkeypatch.setenv("SWR_ENCRYPTION_KEYS", f"one={base64.urlsafe_b64encode(bytes(32)).decode()}")
    monkeypatch.setenv("SWR_SECRET", "a secret that is long enough for everybody")
    fill(Cache.from_env(server.url, namespace="hidden", timeout=5), ["ATL", LONG])
    where = ("--redis", server.url, "--namespace", "hidden")
    found, _ = all_keys(capsys, *where, "--loader", "top:{group}")
    assert [one["key"] for one in found] == ["top:ATL"]
    assert main(["keys", *where]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith("1 of them: it cannot be read: the name is a digest of a")
    )
    # With another secret nobody can tell what they are.
    monkeypatch.setenv("SWR_SECRET", "another secret that is long enough for everybody")
    found, _ = all_keys(capsys, *where)
    assert len(found) == 4
    assert all("top" not in one["key"] and one["state"] == "missing" for one in found)
    assert all_keys(capsys, *where, "--loader", "top:{group}")[0] == []


def test_keys_command_shows_short_ages_and_an_unreadable_entry_as_missing(server: Server, capsys):
    seconds = {"s": 100, "min": 600, "h": 7200, "d": 500_000}
    for unit, age in seconds.items():

        async def fill_old(unit=unit, age=age) -> None:
            async with Cache(server.url, namespace="ages", timeout=5, clock=lambda: time.time() - age) as cache:
                await cache.set(unit, 1, Policy("30d", tags=["t"] if unit == "s" else []), returns=int)

        asyncio.run(fill_old())
    # Another key's frame, which somebody has written over.
    server.command("COPY", "ages:{d}", "ages:{spoilt}")
    server.command("SETRANGE", "ages:{spoilt}", "80", "spoilt")
    assert main(["keys", "--redis", server.url, "--namespace", "ages", "--tags"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[-1]: line.split()[2] for line in lines if line.startswith("fresh")} == {
        unit: unit for unit in seconds
    }
    assert [line.split() for line in lines if line.startswith("missing")] == [["missing", "spoilt"]]
    assert lines[-1].startswith("1 of them: it cannot be read: ")


def test_key_in_returns_none_for_an_invalid_frame():
    assert frames.key_in(b"", PLAIN) is None
    assert frames.key_in(b"x" * 500, PLAIN) is None


def test_keys_command_omits_foreign_data_and_invalidated_entries(server: Server, capsys):
    cache = Cache(server.url, namespace="odd", timeout=5)
    fill(cache, ["ATL", "JFK"])
    server.command("SET", "odd:{foreign}", "something")
    server.command("LPUSH", "odd:{list}", "something")
    where = ("--redis", server.url, "--namespace", "odd")
    assert main(["invalidate", "top:JFK", *where]) == 0
    capsys.readouterr()
    found, _ = all_keys(capsys, *where)
    assert sorted(one["key"] for one in found) == ["GET http://test\n/rankings/ATL?", "other:1", "top:ATL"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cursor", "x"], "--cursor 'x' must be a cursor that swr keys showed"),
        (["--cursor", "7.0"], "belongs to a server that is gone"),
        (["--limit", "0"], "--limit 0 is too low: give 1 or more"),
        (["--loader", "a", "--route", "/b"], "give one of --loader and --route"),
    ],
)
def test_invalid_arguments_exit_2_with_one_line_on_stderr(server: Server, capsys, arguments, says):
    assert main(["keys", "--redis", server.url, *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["keys"], ["inspect", "k"], ["invalidate", "k", "--soft"]])
def test_wrong_password_prints_the_server_address_but_not_the_password(own_server: Server, capsys, arguments):
    own_server.command("CONFIG", "SET", "requirepass", "right")
    url = own_server.url.replace("redis://", "redis://:guessed@")
    assert main([*arguments, "--redis", url]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert f"127.0.0.1:{own_server.port} (the server refuses this user name or password" in output.err
    assert "guessed" not in output.err
    assert output.err.count("\n") == 1


def test_keys_command_reports_an_unreachable_redis_in_one_line(capsys):
    assert main(["keys", "--redis", "redis://127.0.0.1:1/0"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "127.0.0.1:1" in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("what", "shown"),
    [
        (["--key", "top:ATL"], "'top:ATL'"),
        (["--tag", "group:ATL"], "all that carries the tag 'group:ATL'"),
        (["--all"], "everything"),
    ],
)
def test_soft_invalidation_marks_entries_stale_and_inspect_and_keys_show_it(server: Server, capsys, what, shown):
    fill(Cache(server.url, namespace="soft", timeout=5), ["ATL"])
    where = ("--redis", server.url, "--namespace", "soft")
    assert main(["invalidate", *what, "--soft", *where]) == 0
    assert capsys.readouterr().out == f"marked stale {shown} in the namespace 'soft'\n"
    found = said(capsys, "inspect", "top:ATL", *where)
    assert (found["state"], found["why"]) == ("stale", "it was marked stale")
    assert found["marked_at"] >= found["created_at"]
    assert main(["inspect", "top:ATL", *where]) == 0
    assert "marked stale" in capsys.readouterr().out
    (listed,), _ = all_keys(capsys, *where, "--loader", "top:{group}")
    assert (listed["state"], listed["marked_at"]) == ("stale", found["marked_at"])
    assert "marked_stale" in said(capsys, "invalidate", *what, "--soft", *where)


def test_soft_invalidation_by_url_marks_responses_stale(server: Server, capsys):
    fill(Cache(server.url, namespace="url", timeout=5), ["ATL"])
    where = ("--redis", server.url, "--namespace", "url")
    assert main(["invalidate", "--url", "/rankings/ATL", "--soft", *where]) == 0
    capsys.readouterr()
    (found,), _ = all_keys(capsys, *where, "--route", "/rankings/{group}")
    assert found["marked_at"] is not None


def test_soft_invalidation_by_loader_uses_redis_and_namespace_of_its_cache(
    server: Server, capsys, tmp_path, monkeypatch
):
    (tmp_path / "shop_soft.py").write_text(
        f"""
from swr import Cache, Policy
cache = Cache({server.url!r}, namespace="calls", timeout=5)

@cache.cached("top:{{group}}", fresh_for=60, stale_for=600)
async def top(group: str) -> str:
    return group
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    fill(Cache(server.url, namespace="calls", timeout=5), ["ATL"])
    where = ("--redis", server.url, "--namespace", "calls")
    assert main(["invalidate", "--loader", "shop_soft:top", "ATL", "--soft"]) == 0
    assert capsys.readouterr().out == "marked stale 'top:ATL'\n"
    assert said(capsys, "inspect", "top:ATL", *where)["state"] == "stale"
    assert main(["inspect", "top:ATL", *where]) == 0
    # Without a stale_if_error there is no such time.
    assert "error until  never\n" in capsys.readouterr().out


def test_invalidate_loader_all_affects_only_entries_of_that_loader(server: Server, capsys, tmp_path, monkeypatch):
    (tmp_path / "shop_all.py").write_text(
        f"""
from swr import Cache
cache = Cache({server.url!r}, namespace="whole", timeout=5)

@cache.cached("top:{{group}}", fresh_for=60, stale_for=600)
async def top(group: str) -> str:
    return group
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    fill(Cache(server.url, namespace="whole", timeout=5), ["ATL", "JFK"])
    where = ("--redis", server.url, "--namespace", "whole")

    def states() -> list[str]:
        return [said(capsys, "inspect", key, *where)["state"] for key in ("top:ATL", "top:JFK", "other:1")]

    assert main(["invalidate", "--loader", "shop_all:top", "--all", "--soft"]) == 0
    assert capsys.readouterr().out == "marked stale all that the loader of 'top:{group}' has stored\n"
    assert states() == ["stale", "stale", "fresh"]
    assert said(capsys, "invalidate", "--loader", "shop_all:top", "--all") == {"invalidated": {"loader": "top:{group}"}}
    assert states() == ["missing", "missing", "fresh"]
    assert main(["invalidate", "--loader", "shop_all:top", "--all", "ATL"]) == 2
