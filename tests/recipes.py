"""The programs on a page of the documentation, as modules that a test can drive."""

import sys
from types import ModuleType

from swr.testing import FakeClock
from tests.snippets import ROOT, snippets

DOCS = ROOT / "docs"


def programs(name: str) -> list[str]:
    """Return the programs on a page, "recipes/jwt" for docs/recipes/jwt.md."""
    return [snippet for _, _, snippet in snippets([DOCS / f"{name}.md"])]


def recipe(name: str, clock: FakeClock, url: str = "", number: int = 0) -> ModuleType:
    """Run a program on the page `name`, on a clock and a server of the test, and return its module.

    Parameters:
        clock: the clock of its cache, instead of the wall clock.
        url: the URL of a server, instead of the one that the page names.
        number: which program of the page.
    """
    text = programs(name)[number]
    text = text.replace("Cache()", "Cache(clock=clock)").replace('"redis://127.0.0.1:6379/0"', f'"{url}", clock=clock')
    # pydantic, strawberry and SQLAlchemy look up annotations in the module, which must therefore be importable.
    module = ModuleType(f"{name.replace('/', '_')}_{number}")
    module.__dict__["clock"] = clock
    sys.modules[module.__name__] = module
    exec(compile(text, f"docs/{name}.md", "exec"), module.__dict__)
    return module
