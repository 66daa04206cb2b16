"""Checks built packages: `python -m tests.package dist/*` says what is wrong with them and ends with 1.

`--extras` prints the names of the extras. `--imports EXTRA` imports the modules that an installation with this extra
offers. It needs only swr, not this repository.
"""

import email
import importlib
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

EXTRAS = {
    "": ["swr", "swr.middleware", "swr.refreshers", "swr.events", "swr.dashboard", "swr.testing", "swr.cli.main"],
    # Modules that `swr top` and `swr dashboard` import only when they run.
    "dashboard": ["swr.cli.dashboard", "swr.cli.top", "rich.live", "uvicorn"],
    "encryption": ["swr.encryption"],
    # Modules that `swr proxy --server granian` needs besides the extra `proxy`.
    "granian": ["granian.server.embed", "uvloop"],
    "otel": ["swr.otel"],
    "prometheus": ["swr.prometheus"],
    "proxy": ["swr.proxy"],
    "testing": ["swr.testing.pytest_plugin"],
}
# Data, tests and tools that have licences of their own, or are of no use in an installation of swr.
_OUTSIDE = ("examples/", "tests/", "benchmarks/", "docs/", ".github/")


def problems(package: Path) -> list[str]:
    """Return what is wrong with a wheel or an sdist, a sentence each."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            names = wheel.namelist()
            metadata = wheel.read(next(name for name in names if name.endswith(".dist-info/METADATA")))
            wanted = ["swr/__init__.py", "swr/py.typed"]
    else:
        with tarfile.open(package) as sdist:
            root = package.name.removesuffix(".tar.gz") + "/"
            names = [name.removeprefix(root) for name in sdist.getnames()]
            read = sdist.extractfile(root + "PKG-INFO")
            assert read is not None
            metadata = read.read()
            wanted = ["swr/__init__.py", "swr/py.typed", "LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"]
    found = [f"{package.name} holds {name}" for name in names if name.startswith(_OUTSIDE)]
    found += [f"{package.name} lacks {name}" for name in wanted if name not in names]
    fields = email.message_from_bytes(metadata)
    found += [f"{package.name} says no {field}" for field in ("License-Expression", "Project-URL") if not fields[field]]
    offered = fields.get_all("Provides-Extra") or []
    found += [f"{package.name} has the extra {name}, which is not tried" for name in set(offered) - set(EXTRAS)]
    return found


def _extras() -> list[str]:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    return sorted(project["optional-dependencies"])


def main(arguments: list[str]) -> int:
    if arguments == ["--extras"]:
        print("\n".join(_extras()))
        return 0
    if arguments[:1] == ["--imports"]:
        for name in [*EXTRAS[""], *EXTRAS[arguments[1]]]:
            importlib.import_module(name)
        return 0
    found = [problem for package in arguments for problem in problems(Path(package))]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found or not arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
