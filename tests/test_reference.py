"""The reference shows each public method that the guides use, and no method that swr keeps for itself."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [path for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")] if path.name != "reference.md"]
BLOCKS = re.findall(r"^::: (\S+)\n((?:    .*\n)*)", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)


def _resolve(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return importlib.import_module(path)


def _shown_methods(shown: type, options: dict[str, Any]) -> list[str]:
    if "members" in options:
        return list(options["members"])
    hidden = [pattern.removeprefix("!") for pattern in options.get("filters", [])]
    names = dir(shown) if options.get("inherited_members") else vars(shown)
    methods = [name for name in names if inspect.isroutine(getattr(shown, name)) and not name.startswith("_")]
    return [name for name in methods if not any(re.search(pattern, name) for pattern in hidden)]


CLASSES = [(path, text) for path, text in BLOCKS if inspect.isclass(_resolve(path))]


@pytest.mark.parametrize(("path", "text"), CLASSES, ids=[path for path, _ in CLASSES])
def test_each_method_in_the_reference_exists_and_is_used_in_a_guide(path: str, text: str) -> None:
    shown = _resolve(path)
    options = (yaml.safe_load(text) or {}).get("options", {}) if text else {}
    prose = "\n".join(page.read_text() for page in PAGES)
    for name in _shown_methods(shown, options):
        assert hasattr(shown, name)
        is_used = "members" in options or re.search(rf"[.`@]{name}\b", prose)
        assert is_used, f"no guide uses {path}.{name}: hide it in docs/reference.md, or write about it"
