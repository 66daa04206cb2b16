"""`swr queue`: what it says of queues that refreshers really fill, and what it does with their dead letters."""

import asyncio
import json
from datetime import UTC, datetime

import pytest

from swr import Cache, Refresher
from swr.cli.main import main
from tests.refreshing import FOR_GOOD
from tests.servers import ClusterOfSix, Sentinels, Server, free_port, kinds
from tests.test_cli import unfolded

GROUPS = ["ATL", "JFK", "ORD"]


def said(capsys, *arguments: str) -> dict:
    assert main(["queue", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fail_twice(url: str, of: str = "top", *, shards: int = 1) -> None:
    """Run a refresher once; ATL is loaded, and the others are given up."""
    cache = Cache(url, timeout=5)

    @cache.cached(f"{of}:{{group}}", fresh_for=60)
    async def top(group: str) -> str:
        if group != "ATL":
            raise ValueError(f"no\n{group}")
        return group

    refresher = Refresher(top, GROUPS, every=FOR_GOOD, strategy="queue", deliveries=1, shards=shards)

    async def run() -> None:
        async with cache, refresher:
            assert refresher._queue() is not None
            async with asyncio.timeout(60):
                while True:
                    status = await refresher._queue().status()
                    if status.dead == 2 and status.counts.get("done") == 1:
                        return
                    await asyncio.sleep(0.02)

    asyncio.run(run())


@pytest.fixture
def url(any_server: Server) -> str:
    """A server with the queue "top:group", and two dead letters in it."""
    any_server.command("FLUSHALL")
    fail_twice(any_server.url)
    return any_server.url


def test_status_shows_counts_round_and_leader_of_each_queue(url, capsys):
    fail_twice(url, "late")
    queues = said(capsys, "status", "--redis", url)["queues"]
    assert [queue["name"] for queue in queues] == ["late:group", "top:group"]
    [queue] = said(capsys, "status", "top:group", "--redis", url)["queues"]
    assert queue["backend"] == "streams"
    assert [queue[name] for name in ("queued", "running", "waiting", "dirty", "dead")] == [0, 0, 0, 0, 2]
    assert (queue["counts"]["enqueued"], queue["counts"]["failed"], queue["consumers"]) == (3, 2, {})
    assert main(["queue", "status", "--redis", url]) == 0
    one, other = capsys.readouterr().out.split("\n\n")
    assert one.startswith("queue        late:group (streams)\n")
    lines = dict(line.split(None, 1) for line in other.splitlines())
    assert (lines["queue"], lines["dead"], lines["leader"]) == ("top:group (streams)", "2", "none")
    assert lines["consumers"] == "none"
    assert lines["round"].startswith(f"{datetime.fromtimestamp(queue['round'], UTC):%Y-%m-%d %H:%M:%S} UTC, ")
    assert "3 enqueued" in lines["so"]


def test_status_shows_leader_and_consumers_of_a_running_refresher(any_server, capsys):
    any_server.command("FLUSHALL")
    cache = Cache(any_server.url, timeout=5)

    @cache.cached("top:{group}", fresh_for=60)
    async def top(group: str) -> str:
        return group

    async def run() -> None:
        async with cache, Refresher(top, GROUPS, every=FOR_GOOD, strategy="queue"):
            async with asyncio.timeout(60):
                while True:
                    assert await asyncio.to_thread(main, ["queue", "status", "--redis", any_server.url]) == 0
                    out = capsys.readouterr().out
                    if "unless it renews its lease" in out and "s ago)" in out:
                        return

    asyncio.run(run())


def test_dead_lists_key_arguments_tries_and_error_of_each_dead_letter(url, capsys):
    fail_twice(url, "late")
    assert [(letter["queue"], letter["key"]) for letter in said(capsys, "dead", "--redis", url)["dead"]] == [
        ("late:group", "late:JFK"),
        ("late:group", "late:ORD"),
        ("top:group", "top:JFK"),
        ("top:group", "top:ORD"),
    ]
    [letter, _] = said(capsys, "dead", "late:group", "--redis", url)["dead"]
    assert (letter["args"], letter["tries"], letter["why"]) == (["JFK"], 1, "ValueError: no\nJFK")
    assert main(["queue", "dead", "late:group", "--redis", url]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("late:group  late:JFK  tries 1, ")
    assert line.endswith(" s ago: ValueError: no JFK")


@pytest.mark.parametrize(("action", "queued"), [("retry", 1), ("purge", 0)])
def test_retry_and_purge_remove_named_or_all_dead_letters(action, queued, url, capsys):
    done = {"retry": "retried", "purge": "purged"}[action]
    assert said(capsys, action, "top:group", "top:JFK", "--redis", url) == {done: 1, "queue": "top:group"}
    [status] = said(capsys, "status", "--redis", url)["queues"]
    assert (status["queued"], status["dead"]) == (queued, 1)
    # Not twice, and then nothing else is done either.
    assert main(["queue", action, "top:group", "top:ORD", "top:JFK", "--redis", url]) == 1
    said_so = f"swr: 'top:JFK' is not a dead letter of 'top:group': nothing was {done}. `swr queue dead` lists "
    assert capsys.readouterr().err == f"{said_so}the dead letters\n"
    assert main(["queue", action, "top:group", "--all", "--redis", url]) == 0
    assert capsys.readouterr().out == f"{done} 1 dead letter of 'top:group'\n"
    [status] = said(capsys, "status", "--redis", url)["queues"]
    assert (status["queued"], status["dead"]) == (2 * queued, 0)
    assert main(["queue", "dead", "--redis", url]) == 0
    assert capsys.readouterr().out == "no dead letters\n"


def test_status_without_queues_says_there_are_none(any_server, capsys):
    any_server.command("FLUSHALL")
    assert main(["queue", "status", "--redis", any_server.url]) == 0
    assert capsys.readouterr().out == "no queues in the namespace 'swr'\n"
    assert main(["queue", "status", "top", "--redis", any_server.url]) == 2
    assert capsys.readouterr().err == "swr: there is no queue 'top' in the namespace 'swr'; there is none at all\n"


def test_unknown_queue_name_is_refused_with_the_known_names(url, capsys):
    for command in (["status", "top"], ["dead", "top"], ["retry", "top", "--all"], ["purge", "top", "k"]):
        assert main(["queue", *command, "--redis", url]) == 2
        error = capsys.readouterr().err
        assert error == "swr: there is no queue 'top' in the namespace 'swr'; there are 'top:group'\n"


@pytest.mark.parametrize("start", [ClusterOfSix, Sentinels])
def test_commands_work_on_cluster_and_sentinels(start, capsys):
    with start(kinds()[0]) as group:
        fail_twice(group.url, shards=3)
        where = ("--redis", group.url, "--timeout", "5")
        assert said(capsys, "status", *where)["queues"][0]["dead"] == 2
        assert [letter["key"] for letter in said(capsys, "dead", *where)["dead"]] == ["top:JFK", "top:ORD"]
        assert said(capsys, "retry", "top:group", "top:JFK", *where)["retried"] == 1
        assert said(capsys, "purge", "top:group", "--all", *where)["purged"] == 1
        [status] = said(capsys, "status", *where)["queues"]
        assert (status["queued"], status["dead"]) == (1, 0)


def test_unreachable_server_prints_one_line_and_exits_with_1(capsys):
    url = f"redis://127.0.0.1:{free_port()}/0"
    for command in (["status"], ["dead"], ["retry", "top", "--all"], ["purge", "top", "k"]):
        assert main(["queue", *command, "--redis", url, "--timeout", "500ms"]) == 1
        out, error = capsys.readouterr()
        assert (out, error.count("\n")) == ("", 1)
        assert error.startswith("swr: Redis did not carry out the command: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: command (swr queue --help)"),
        (["status"], "--redis"),
        (["retry", "--redis", "redis://x"], "name (swr queue retry --help)"),
        (["retry", "top", "--redis", "redis://x"], "name the keys of dead letters, or give --all, and not both"),
        (["purge", "top", "k", "--all", "--redis", "redis://x"], "and not both"),
    ],
)
def test_wrong_arguments_print_one_line_and_exit_with_2(arguments, says, capsys):
    try:
        code = main(["queue", *arguments])
    except SystemExit as ended:
        code = ended.code
    out, error = capsys.readouterr()
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert says in error


def test_help_of_each_command_shows_an_example(capsys):
    for command in ([], ["status"], ["dead"], ["retry"], ["purge"]):
        with pytest.raises(SystemExit, match="0"):
            main(["queue", *command, "--help"])
        assert "swr queue retry ranking:group ranking:ATL ranking:JFK" in unfolded(capsys.readouterr().out)
