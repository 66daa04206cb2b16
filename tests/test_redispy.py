"""What differs between the releases of redis-py, and what of it is not a promise of redis-py's."""

import asyncio
import inspect

import pytest
from redis import exceptions
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, ConnectionPool

from swr.stores.redis.reasons import CLOSED, reason_of
from swr.stores.redis.releases import arguments_of, close_sentinels, connection_of, plain_options
from swr.stores.redis.replies import error_of
from swr.stores.redis.urls import servers_of
from tests.lowest import lowest
from tests.servers import Server

_CALLED = "ERR Error running script (call to f_0a9f75e9): @user_script:56: "
_NO_RIGHT = "The user executing the script can't run this command or subcommand"


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        ("ERR unknown command", exceptions.ResponseError, "unknown command"),
        ("ERR max number of clients reached", exceptions.ConnectionError, "max number of clients reached"),
        ("WRONGTYPE Operation", exceptions.ResponseError, "WRONGTYPE Operation"),
        ("MOVED 5 10.0.0.1:7000", exceptions.MovedError, "5 10.0.0.1:7000"),
        ("ASK 5 :7000", exceptions.AskError, "5 :7000"),
        ("TRYAGAIN Multiple keys", exceptions.TryAgainError, "Multiple keys"),
        ("CLUSTERDOWN Hash slot not served", exceptions.ClusterDownError, "Hash slot not served"),
        ("MASTERDOWN Link down", exceptions.MasterDownError, "Link down"),
        ("READONLY You can't write", exceptions.ReadOnlyError, "You can't write"),
        ("NOPERM this user", exceptions.NoPermissionError, "this user"),
        ("OOM command not allowed", exceptions.OutOfMemoryError, "command not allowed"),
        ("LOADING dataset", exceptions.BusyLoadingError, "dataset"),
        ("NOAUTH Authentication required.", exceptions.AuthenticationError, "Authentication required."),
        ("WRONGPASS invalid", exceptions.AuthenticationError, "invalid"),
        ("", exceptions.ResponseError, ""),
        # Of a command in a script, as Redis 6.2 says it.
        (f"{_CALLED}@user_script: 56: -OOM command not allowed", exceptions.OutOfMemoryError, "command not allowed"),
        (f"{_CALLED}@user_script: 56: -READONLY You can't write", exceptions.ReadOnlyError, "You can't write"),
        (f"{_CALLED}WRONGTYPE Operation", exceptions.ResponseError, "WRONGTYPE Operation"),
        (
            "OOM command not allowed when used memory > 'maxmemory'. script: 9d5c, on @user_script:56.",
            exceptions.OutOfMemoryError,
            "command not allowed when used memory > 'maxmemory'",
        ),
        (f"NOPERM {_NO_RIGHT} script: on @user_script:3.", exceptions.NoPermissionError, _NO_RIGHT),
        ("@user_script: 83: -OOM command not allowed\r\n", exceptions.OutOfMemoryError, "command not allowed"),
        (f"{_CALLED}@user_script: 56: {_NO_RIGHT}", exceptions.NoPermissionError, _NO_RIGHT),
        # And as later servers do.
        ("ERR ACL failure in script: No right", exceptions.NoPermissionError, "ACL failure in script: No right"),
    ],
)
def test_error_reply_becomes_the_same_exception_with_every_release(reply, kind, text):
    error = error_of(reply)
    assert (type(error), str(error)) == (kind, text)


def test_connection_closed_by_the_server_has_the_reason_closed():
    assert str(reason_of(exceptions.ConnectionError("Connection closed by server."))) == CLOSED


def test_moved_error_has_the_slot_and_the_target_address():
    moved = error_of("MOVED 5 10.0.0.1:7000")
    assert (moved.slot_id, moved.host, moved.port) == (5, "10.0.0.1", 7000)


def test_connection_options_leave_out_the_library_name_in_each_release():
    assert plain_options({"protocol", "driver_info"}) == {"protocol": 2, "driver_info": None}
    assert plain_options({"protocol"}) == {"protocol": 2, "lib_name": None, "lib_version": None}


def test_get_connection_gets_a_command_name_only_if_it_requires_one():
    def until_5_2(self, command_name, *keys, **options): ...
    def from_5_3(self, command_name=None, *keys, **options): ...
    def of_ones_own(self): ...

    assert arguments_of(until_5_2) == ("_",)
    assert arguments_of(from_5_3) == arguments_of(of_ones_own) == ()


def test_pool_connection_has_a_writer_with_a_transport(server: Server):
    """redis-py does not promise it: `Connection` takes over the transport of `_writer`."""

    async def main() -> None:
        client = Redis.from_url(server.url)
        raw = await connection_of(client.connection_pool)
        assert raw.is_connected
        assert isinstance(raw._writer.transport, asyncio.Transport)
        await client.connection_pool.release(raw)
        await client.aclose()

    asyncio.run(main())


def test_cluster_client_has_startup_nodes_and_connection_kwargs():
    """redis-py does not promise `nodes_manager.startup_nodes` and `connection_kwargs`."""
    client = RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", 7000), ClusterNode("127.0.0.1", 7001)], username="a")
    assert client.connection_kwargs["username"] == "a"
    assert servers_of(None, client, 1).name == "127.0.0.1:7000,127.0.0.1:7001"


def test_connection_signatures_have_the_parameters_that_swr_looks_for():
    """redis-py does not promise the names of parameters."""
    assert {"protocol", "retry", "socket_timeout"} < inspect.signature(AbstractConnection.__init__).parameters.keys()
    assert inspect.signature(ConnectionPool.get_connection).parameters.keys() >= {"self"}


def test_closing_sentinels_of_a_pool_without_any_raises_nothing():
    asyncio.run(close_sentinels(ConnectionPool()))


def test_lowest_releases_cover_the_dependencies_with_their_conditions():
    """`scripts/lowest` runs all tests on them."""
    lines = lowest()
    constraints = dict(line.partition(";")[0].split("==") for line in lines)
    assert constraints.keys() >= {"anyio", "cachetools", "fastapi", "hiredis", "httpx", "msgspec", "pydantic", "redis"}
    assert constraints.keys() >= {"starlette", "uvicorn", "httptools", "xxhash"}
    assert all(release[0].isdigit() for release in constraints.values())
    # Of what has a floor of its own for newer Pythons, both, each with its condition.
    conditions = [line.partition(";")[2].strip() for line in lines if line.startswith("msgspec==")]
    assert conditions == ["python_version < '3.14'", "python_version >= '3.14'"]
