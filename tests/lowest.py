"""Writes constraints for pip: the lowest releases of swr's runtime dependencies that pyproject.toml allows.

`python -m tests.lowest`. Tools that only the tests use, such as pytest, are not among them.
"""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
# The dependency group of libraries that swr supports without depending on them.
_BESIDE = "demo"
# The lowest uvicorn uses functions that newer releases of websockets deprecate.
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
