"""A module imports its own layer or a lower one; the core knows nothing of loops, servers and the web."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"errors", "policy", "entry", "decision", "events", "loading"},
    {"codec", "conditions", "fields", "keys", "semantics", "weigh"},
    {"stores", "stores.barriers", "stores.base", "stores.cluster", "stores.connect", "stores.link", "stores.memory", "stores.redis", "stores.replicas", "stores.scripts", "stores.servers", "stores.shared", "stores.shelf", "stores.tiered", "stores.together", "stores.wire"},
    {"flag", "flight", "load", "renewal", "tasks", "revalidator", "waiting", "engine"},
    {"inspection", "loader", "decorator", "batch", "many", "response", "rules", "answer", "request", "forward", "fill", "cache", "metrics", "middleware", "otel", "prometheus", "proxy"},
    {"refreshers", "refreshers.consumer", "refreshers.groups", "refreshers.leader", "refreshers.locks", "refreshers.queue", "refreshers.queued", "refreshers.refresher", "refreshers.report", "refreshers.rounds", "refreshers.scripts", "refreshers.window"},
    {"testing", "testing.clock", "testing.conformance", "testing.flaky", "testing.oracle", "testing.simulate", "testing.world"},
    {"cli", "__main__", "commands", "commands.entries", "commands.proxy", "commands.queue", "commands.refresh", "commands.rounds", "commands.shared", "commands.warm", "commands.workers"},
    {""},
]  # fmt: skip
CORE_MAY_NOT = {"asyncio", "anyio", "trio", "redis", "starlette", "httpx", "socket", "threading"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "swr").with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def layer_of(name: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if name in names)


def imports(path: Path) -> set[str]:
    """Every module that a file imports at run time, with those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for inner in ast.walk(node):
                inner.__dict__["skipped"] = True
        if "skipped" in node.__dict__:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted((ROOT / "swr").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_imports_its_own_layer_or_a_lower_one(path):
    own = layer_of(name_of(path))
    for module in imports(path):
        name = module.removeprefix("swr").removeprefix(".")
        if module.partition(".")[0] == "swr" and any(name in names for names in LAYERS[:-1]):
            assert layer_of(name) <= own, f"swr.{name_of(path)} imports swr.{name} from a higher layer"


@pytest.mark.parametrize("path", [path for path in FILES if layer_of(name_of(path)) <= 1], ids=name_of)
def test_the_core_does_no_io(path):
    assert not {module.partition(".")[0] for module in imports(path)} & CORE_MAY_NOT


def test_every_module_has_a_layer_and_every_layer_its_modules():
    assert {name_of(path) for path in FILES} == set().union(*LAYERS)


def test_importing_starts_nothing_and_brings_no_redis():
    code = "import sys, threading, swr, swr.middleware; print('redis' in sys.modules, threading.active_count())"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert output.split() == ["False", "1"]


def test_the_public_names_are_these():
    import swr

    assert swr.__all__ == [
        "NOT_MODIFIED", "Cache", "Cached", "CachedMany", "CodecError", "ConfigurationError", "Fresh", "LeaseLost", "Limits", "LoadContext",
        "LoadTimeout", "NotModified", "Outcome", "Policy", "Refresher", "SWRError", "State", "StoreError",
        "StoreUnavailable",
    ]  # fmt: skip
    assert all(hasattr(swr, name) for name in swr.__all__)
    from swr.middleware import __all__ as names

    assert names == ["Rule", "SWRMiddleware"]
    from swr.otel import __all__ as names_of_otel
    from swr.prometheus import __all__ as names_of_prometheus

    assert names_of_otel == names_of_prometheus == ["export"]
