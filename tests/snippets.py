"""The Python snippets of the documentation: test_docs and test_recipes run them, scripts/check gives them to the type checkers.

`python -m tests.snippets FOLDER` writes each into a file of its own.
"""

import ast
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Libraries without type hints: the type checkers do not get snippets about them.
_UNTYPED = ("django", "celery")
_IMPORTS_UNTYPED = re.compile(rf"^(from|import) ({'|'.join(_UNTYPED)})\b", re.MULTILINE)
# The first line of a snippet that is a file of an example, from which others import.
_FILE = re.compile(r"# (\w+\.py)\n")


def snippets(pages: Iterable[Path] = PAGES) -> Iterator[tuple[str, int, str]]:
    """Yield each snippet of `pages` with the name of its page and the line before it."""
    for page in pages:
        text = page.read_text()
        for found in re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M):
            yield page.stem, text.count("\n", 0, found.start(1)), found[1]


def as_module(snippet: str, line: int) -> str:
    """Return a snippet as a module, in which it has the line numbers of its page.

    Parameters:
        line: the line before it; an `async def` is there if the snippet awaits outside a function.
    """
    try:
        ast.parse(snippet)
        compile(snippet, "snippet", "exec")
    except SyntaxError:
        return "\n" * (line - 1) + "async def main() -> None:\n" + textwrap.indent(snippet, "    ")
    return "\n" * line + snippet


def write(folder: Path) -> None:
    """Write each snippet into a file of its own, named by its first line, or else after its page and line."""
    # A pyright project of its own, in which snippets can import each other. Its settings are as in pyproject.toml.
    settings = {"typeCheckingMode": "standard", "enableTypeIgnoreComments": False}
    places = {"extraPaths": [str(ROOT)], "venvPath": str(ROOT), "venv": ".venv"}
    (folder / "pyrightconfig.json").write_text(json.dumps({**settings, **places}))
    for page, line, snippet in snippets((*PAGES, *RECIPES)):
        if page not in _UNTYPED and not _IMPORTS_UNTYPED.search(snippet):
            named = _FILE.match(snippet)
            (folder / (named[1] if named else f"{page}_{line}.py")).write_text(as_module(snippet, line))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
