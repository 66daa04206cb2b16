"""Each folder imports its own modules and what is below it; the core knows nothing of loops, servers and the web."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom to the top. A folder is one layer, and so is a module beside the folders.
LAYERS = [
    "errors",
    "encryption",
    "policy",
    "settings",
    "entry",
    "events",
    "stats",
    "core",
    "http",
    "stores",
    "stores.redis",
    "engine",
    "reports",
    "lifecycle",
    "loaders",
    "endpoints",
    "cache",
    "middleware",
    "metrics",
    "prometheus",
    "otel",
    "refreshers.rounds",
    "refreshers.queue",
    "refreshers",
    "dashboard",
    "proxy",
    "testing",
    "",
    "cli",
    "__main__",
]
PURE = {"errors", "encryption", "policy", "settings", "entry", "core", "http"}
PURE_MAY_NOT_IMPORT = {"asyncio", "anyio", "trio", "redis", "starlette", "httpx", "socket", "threading"}
PUBLIC = {
    "swr",
    "swr.dashboard",
    "swr.encryption",
    "swr.events",
    "swr.middleware",
    "swr.otel",
    "swr.prometheus",
    "swr.proxy",
    "swr.refreshers",
    "swr.stats",
    "swr.testing",
}


def name_of(path: Path) -> str:
    """Return a module's name without `swr.`; that of swr itself is empty."""
    return ".".join(path.relative_to(ROOT / "swr").with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def layer_of(name: str) -> str:
    """Return the folder of a module, or the module itself where it is beside the folders."""
    return max((layer for layer in LAYERS if f"{name}.".startswith(f"{layer}.") or layer == name), key=len)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> frozenset[str]:
    """Return every module that a file imports, inside functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            submodules = {name for name in names if is_module(name)}
            found |= submodules
            if submodules != names:
                found.add(module)
    return frozenset(found)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


FILES = sorted((ROOT / "swr").rglob("*.py"))
IMPORTS = {
    name_of(path): {
        module.removeprefix("swr").removeprefix(".") for module in imports(path) if module.partition(".")[0] == "swr"
    }
    for path in FILES
}


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_module_imports_only_its_own_folder_and_lower_layers(name):
    own = LAYERS.index(layer_of(name))
    for imported in IMPORTS[name]:
        assert LAYERS.index(layer_of(imported)) <= own, f"swr.{name} imports swr.{imported} from a higher layer"


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the largest sets of modules that import one another, by way of others too."""

    def reached_from(start: str) -> set[str]:
        reached: set[str] = set()
        ahead = [start]
        while ahead:
            new = graph.get(ahead.pop(), set()) - reached
            reached |= new
            ahead += new
        return reached

    reached = {name: reached_from(name) for name in graph}
    found = []
    for name in sorted(graph):
        circle = {other for other in reached[name] if name in reached.get(other, set())}
        if circle and circle not in found:
            found.append(circle)
    return found


def test_import_circle_excludes_modules_that_only_lead_to_it():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}, "g": set(), "h": {"h"}}
    assert circles(graph) == [{"a", "b", "c"}, {"d", "e"}, {"h"}]


def test_modules_have_no_import_circles():
    """Imports under TYPE_CHECKING and inside functions count; that of a module's own package, which Python adds, does not."""
    assert circles(IMPORTS) == []


# A file has at most so many lines, a function so many branches, and a class so many attributes that change; what has
# more says why.
MOST_LINES = 400
MOST_BRANCHES = 12
MOST_CHANGING = 12
LARGER_CLASSES: dict[str, str] = {}
LONGER_FILES: dict[str, str] = {}
LARGER_FUNCTIONS: dict[str, str] = {}
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def branches(node: ast.AST) -> int:
    """Return how many branches a function has, without those of functions inside it.

    Counted are `if` and `elif`, `for`, `while`, `except` and `case`; not `else`, conditional expressions, boolean
    operators and comprehensions.
    """
    inside = [child for child in ast.iter_child_nodes(node) if not isinstance(child, SCOPES)]
    return sum(isinstance(child, BRANCHES) + branches(child) for child in inside)


def test_branch_count_includes_statements_but_no_expressions_or_inner_functions():
    code = """
async def outer():
    if a or b:
        pass
    elif c:
        x = 1 if d else 2
    else:
        pass
    for e in f:
        while g:
            pass
    async for h in i:
        pass
    try:
        pass
    except ValueError:
        pass
    match j:
        case 1:
            pass
        case _:
            pass
    def inner():
        if k:
            pass
    return [m for m in n if m]
"""
    assert branches(ast.parse(code).body[0]) == 8


def test_files_stay_within_the_line_limit_unless_a_reason_is_given():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    longer = {name for name, number in lines.items() if number > MOST_LINES}
    assert longer == set(LONGER_FILES), "split the file; where one is short by now, take it out of LONGER_FILES"


def test_functions_stay_within_the_branch_limit_unless_a_reason_is_given():
    larger = {
        f"{name_of(path)}:{node.name}"
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and branches(node) > MOST_BRANCHES
    }
    assert larger == set(LARGER_FUNCTIONS), "split it; where one has few by now, take it out of LARGER_FUNCTIONS"


def assigned(tree: ast.AST) -> set[tuple[bool, str]]:
    """Return the attributes that code sets or deletes, each with whether it is one of `self`."""
    return {
        (isinstance(node.value, ast.Name) and node.value.id == "self", node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del))
    }


def changing(trees: list[ast.Module]) -> dict[str, set[str]]:
    """Return, for each class, which of its attributes change after `__init__`.

    An attribute of its own that any code sets on another object than `self` counts, too: that may be one of this class.
    """
    elsewhere = {name for tree in trees for is_own, name in assigned(tree) if not is_own}
    found = {}
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        made = {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
        changed = set()
        for part in node.body:
            if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
                own = {name for is_own, name in assigned(part) if is_own}
                made |= own
                changed |= own if part.name != "__init__" else set()
        # Of two classes of one name the larger counts.
        found[node.name] = max(found.get(node.name, set()), changed | (made & elsewhere), key=len)
    return found


def test_changing_attributes_are_those_set_after_init_or_from_outside():
    code = """
class Example:
    declared: int = 0
    untouched: int = 0
    def __init__(self):
        self.fixed, self.reset, self.set_by_others = 1, 2, 3
    async def work(self):
        self.reset = 0
        self.counted += 1
        for self.item in []:
            pass
        with open("x") as self.file:
            del self.gone
        self.slot[0] = self.read

def use(example):
    example.set_by_others = example.declared = example.unknown = 1
"""
    assert changing([ast.parse(code)]) == {
        "Example": {"reset", "counted", "item", "file", "gone", "set_by_others", "declared"}
    }


def test_classes_have_few_changing_attributes_unless_a_reason_is_given():
    found = changing([tree_of(path) for path in FILES])
    larger = {name for name, attributes in found.items() if len(attributes) > MOST_CHANGING}
    assert larger == set(LARGER_CLASSES), "split it; where one has few by now, take it out of LARGER_CLASSES"


@pytest.mark.parametrize("path", [path for path in FILES if layer_of(name_of(path)) in PURE], ids=name_of)
def test_pure_module_imports_nothing_that_does_io_or_reads_a_clock(path):
    assert not {module.partition(".")[0] for module in imports(path)} & PURE_MAY_NOT_IMPORT


def test_swr_has_at_most_ten_modules_beside_its_folders():
    assert len([path for path in FILES if path.parent == ROOT / "swr"]) <= 10


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda path: path.name)
def test_folder_docstring_says_what_it_imports_and_offers(folder):
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    if folder != ROOT / "swr":
        assert len(text.splitlines()) >= 3
        assert "Import" in text
        # What is private says so; a public folder names what users import from it.
        public = f"swr.{name_of(folder / '__init__.py')}" in PUBLIC
        assert ("Public name" in text) if public else ("Private" in text)


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]), ids=str
)
def test_examples_and_benchmarks_import_only_public_modules(path):
    assert {module for module in imports(path) if module.partition(".")[0] == "swr"} <= PUBLIC


def test_importing_swr_starts_no_thread_and_does_not_import_redis():
    code = "import sys, threading, swr, swr.middleware; print('redis' in sys.modules, threading.active_count())"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert output.split() == ["False", "1"]


def test_public_names_match_the_expected_lists():
    import swr
    import swr.encryption
    import swr.middleware
    import swr.otel
    import swr.prometheus
    import swr.proxy
    import swr.refreshers
    import swr.testing

    assert swr.__all__ == [
        "NOT_MODIFIED", "ByteCodec", "Cache", "Cached", "CachedMany", "CodecError", "ConfigurationError", "Fresh", "LeaseLost",
        "LoadContext", "LoadTimeout", "NameCodec", "NotModified", "Outcome", "Policy", "Refresher", "SWRError", "State", "StoreError",
        "StoreUnavailable", "dashboard",
    ]  # fmt: skip
    assert all(hasattr(swr, name) for name in swr.__all__)
    assert swr.encryption.__all__ == ["Encryption"]
    assert swr.middleware.__all__ == ["Content", "Rule", "SWRMiddleware", "is_graphql_query"]
    assert swr.prometheus.__all__ == ["export"]
    assert swr.otel.__all__ == ["export", "trace_loads"]
    assert swr.proxy.__all__ == ["Proxy", "caching_proxy"]
    assert swr.refreshers.__all__ == ["QueueStatus", "Refresher"]
    assert swr.testing.__all__ == ["FakeClock", "Isolate", "isolated"]
