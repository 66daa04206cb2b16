"""The map names modules and functions that exist, so that it leads where it says."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
PATHS = sorted(set(re.findall(r"`((?:swr|tests|docs|scripts)/[\w./]*\w/?)`", TEXT)))
NAMES = sorted(set(re.findall(r"`(swr/[\w/]+)\.py`\s+`([\w.]+)`", TEXT)))


@pytest.mark.parametrize("path", PATHS)
def test_every_path_on_the_map_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("module", "name"), [pair for pair in NAMES if not pair[1].endswith(".py")])
def test_every_function_on_the_map_exists(module, name):
    found = importlib.import_module(module.replace("/", "."))
    for part in name.split("."):
        found = getattr(found, part)


def test_every_folder_appears_on_the_map_once():
    folders = {str(path.parent.relative_to(ROOT)) + "/" for path in (ROOT / "swr").rglob("__init__.py")}
    described = re.findall(r"^\| `(swr/[\w/]*/)`", TEXT, re.MULTILINE)
    inside_others = {"swr/", "swr/refreshers/queue/", "swr/refreshers/rounds/"}
    assert sorted(described) == sorted(folders - inside_others)


def test_map_names_more_than_30_paths_and_25_functions():
    assert len(PATHS) > 30
    assert len(NAMES) > 25
