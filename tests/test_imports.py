"""What `import swr` and its public names bring into a process."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import swr

INIT = Path(swr.__file__)


def modules_after(code):
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout
    return set(printed.split())


def test_lazy_import_table_matches_the_imports_for_type_checkers():
    (guarded,) = [node for node in ast.parse(INIT.read_text()).body if isinstance(node, ast.If) and not node.orelse][:1]
    told = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert told == swr._MODULES
    assert sorted(told) == sorted(swr.__all__)


def test_import_swr_loads_no_submodule_before_a_name_is_used():
    found = modules_after("import swr")
    assert {name for name in found if name.startswith("swr")} == {"swr"}
    assert not found & {"starlette", "redis", "msgspec", "anyio", "asyncio"}


@pytest.mark.parametrize(
    "code",
    [
        "from swr import Cache, Policy\ncache = Cache()\n@cache.cached('k', fresh_for=1)\nasync def load() -> int: ...",
        "from swr import *",
    ],
)
def test_memory_cache_imports_neither_starlette_nor_redis(code):
    assert not modules_after(code) & {"starlette", "redis", "httpx", "email"}


def test_redis_cache_imports_all_its_modules_when_it_is_created():
    """The first reader must not wait for it, nor hold up the event loop."""
    before = modules_after("from swr import Cache\ncache = Cache('redis://127.0.0.1:1')")
    code = """
import anyio
from swr import Cache
cache = Cache('redis://127.0.0.1:1')
async def main():
    async with cache:
        assert (await cache.get_or_load('k', lambda: 1, __import__('swr').Policy(1))).value == 1
anyio.run(main)
"""
    late = {name for name in modules_after(code) - before if name.partition(".")[0] in {"swr", "redis", "starlette"}}
    assert late == set()


def test_every_public_name_is_importable_and_an_unknown_name_raises():
    for name in swr.__all__:
        found = getattr(swr, name)
        # Once a module of the package `swr.dashboard` is imported, that package has the name; it can be called, too.
        assert found in (getattr(sys.modules[swr._MODULES[name]], name), sys.modules.get(f"swr.{name}"))
        assert callable(found) or name == "NOT_MODIFIED"
    assert set(swr.__all__) <= set(dir(swr))
    with pytest.raises(AttributeError, match="module 'swr' has no attribute 'Cahce'"):
        swr.Cahce  # noqa: B018  # looking it up is the test


def test_swr_dashboard_stays_callable_when_its_package_is_imported_first():
    code = "import swr.dashboard.mount\nimport swr\nfrom swr import dashboard\nassert dashboard is swr.dashboard\nprint(callable(dashboard))"
    assert "True" in modules_after(code)
