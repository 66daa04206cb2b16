"""Writes constraints for pip: the lowest releases that pyproject.toml allows of what swr needs where it runs.

`python -m tests.lowest`. Tools of the tests alone, pytest for one, are not among them.
"""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
# What users bring along: swr supports it, and does not depend on it.
_BESIDE = "demo"
# The lowest uvicorn uses what newer ones deprecate.
_OF_THEIR_TIME = ("websockets==13.1",)


def lowest(project: Path = PROJECT) -> list[str]:
    """Return a constraint for each requirement that names a lowest release, with its condition."""
    read = tomllib.loads(project.read_text())
    requirements = [
        *read["project"]["dependencies"],
        *(name for extra in read["project"]["optional-dependencies"].values() for name in extra),
        *read["dependency-groups"][_BESIDE],
    ]
    found = (re.match(r"([\w.-]+)(?:\[[\w,]*\])?>=([\w.]+)(;.*)?", requirement) for requirement in requirements)
    return sorted({*_OF_THEIR_TIME, *(f"{one[1]}=={one[2]}{one[3] or ''}" for one in found if one is not None)})


if __name__ == "__main__":
    print("\n".join(lowest()))
