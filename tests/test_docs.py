"""Every snippet of Python in the README and the documentation runs, and does what the text says."""

import ast
import asyncio
import importlib
import inspect
import os
import re

import httpx
import pytest

from tests.servers import Server
from tests.snippets import ROOT, as_module, snippets

SNIPPETS = [
    pytest.param(snippet, id=f"{page}-{line}")
    for page, line, snippet in snippets()
    # What begins with the name of a file is a part of an example: tests of its own run it.
    if not re.match(r"# [\w/]+\.py\n", snippet)
]


async def run(snippet: str, server: Server) -> dict[str, object]:
    """Run a snippet, top-level await included; return its names."""
    names: dict[str, object] = {"__name__": "snippet"}
    code = compile(
        snippet.replace("redis://127.0.0.1:6379/0", server.url), "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    )
    if code.co_flags & inspect.CO_COROUTINE:
        await eval(code, names)
    else:
        exec(code, names)
    return names


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs_and_its_app_caches_responses(
    snippet: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some set environment variables.
    monkeypatch.setattr(os, "environ", os.environ.copy())

    async def main() -> None:
        names = await run(snippet, server)
        app = names.get("app")
        if app is not None:
            path = "/rankings/ATL" if "/rankings" in snippet else "/top"
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                states = [(await client.get(path)).headers["swr-state"] for _ in range(2)]
                assert states == ["missing", "fresh"]
                if "@app.post" in snippet:
                    await client.post(path)
                    assert (await client.get(path)).headers["swr-state"] == "missing"
        if "cache" in names:
            await names["cache"].aclose()

    asyncio.run(main())


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_as_module_keeps_the_line_numbers_of_its_page(snippet: str) -> None:
    """So that a type checker's message leads to the page."""
    lines = as_module(snippet, 20).splitlines()
    compile("\n".join(lines), "snippet", "exec")
    shown = snippet.replace("    global ", "    nonlocal ") if lines[19] else snippet
    assert [line.strip() for line in lines[20:]] == [line.strip() for line in shown.splitlines()]


@pytest.mark.uncounted
def test_each_row_of_failures_page_names_existing_tests() -> None:
    """Each line of the page names tests that there are."""
    rows = re.findall(r"^\| (?!when|---)(.*) \|$", (ROOT / "docs" / "failures.md").read_text(), re.MULTILINE)
    assert len(rows) > 25
    for row in rows:
        named = re.findall(r"`(test_\w+)\.py::([\w:]+)`", row.rpartition("|")[2])
        assert named, row
        for module, path in named:
            found = importlib.import_module(f"tests.{module}")
            for name in path.split("::"):
                found = getattr(found, name)
            assert callable(found)


def test_each_diagram_is_on_a_page() -> None:
    shown = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    drawn = {path.name for path in (ROOT / "docs/diagrams").iterdir()}
    assert {name for name in drawn if f'--8<-- "docs/diagrams/{name}"' not in shown} == set()


def test_readme_snippets_are_shorter_than_30_lines() -> None:
    for snippet in re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M):
        assert len(snippet.splitlines()) < 30
