"""The example on a cluster as a newcomer runs it: a master killed under load, and an account that says what came of it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.cluster.account import lost_of
from swr import Cache
from swr.refreshers import Refresher
from tests.test_demo import ROOT, marked

COMMAND = [sys.executable, "-m", "examples.cluster", "--seconds", "6"]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment that marks the example and all its children; nothing marked may be left, nor any file."""
    mark = uuid.uuid4().hex
    yield {**os.environ, "SWR_EXAMPLE_MARK": mark, "TMPDIR": str(tmp_path)}
    assert marked(mark) == []
    assert at_work_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def at_work_in(folder: Path) -> list[str]:
    """The processes whose working directory is in `folder`: nodes, which overwrite their environment with a title."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((process / "cwd").readlink()).startswith(f"{folder}/"):
                found.append(process.name)
    return found


def test_no_acknowledged_mark_is_lost_when_a_master_is_killed(environment: dict[str, str]) -> None:
    done = subprocess.run(
        COMMAND, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900
    )
    account = dict(re.findall(r"^(\w[\w ,]*?)  +([\d,.]+)(?: s)?$", done.stdout, re.MULTILINE))
    figures = {what: float(figure.replace(",", "")) for what, figure in account.items()}
    assert figures.pop("lost") == figures.pop("left in the queue") == 0, done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill -9" in done.stdout
    # Nobody could acknowledge a mark of a third of the groups meanwhile.
    assert figures.pop("marks refused, and repeated") > 0, done.stdout
    assert figures["slowest mark"] > figures.pop("failover") / 2 > 0
    assert figures.pop("marks acknowledged") > 100
    # All groups once, and then those that were marked.
    assert figures.pop("loads") > 2000
    assert set(figures) == {"slowest mark", "loads that failed"}


def test_ctrl_c_ends_every_child_process(environment: dict[str, str], tmp_path: Path) -> None:
    with subprocess.Popen(COMMAND, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as example:
        assert example.stdout is not None
        assert any("are warm" in line for line in example.stdout)
        if Path("/proc").exists():
            # The example and three consumers.
            assert len(marked(environment["SWR_EXAMPLE_MARK"])) >= 4
            assert len(at_work_in(tmp_path)) == 6
        example.send_signal(signal.SIGINT)
        example.send_signal(signal.SIGINT)
        assert example.wait(300) == 128 + signal.SIGINT


@pytest.mark.anyio
async def test_value_that_is_missing_or_older_than_acknowledged_counts_as_lost() -> None:
    async with Cache() as cache:

        @cache.cached("number:{group}", fresh_for=60)
        async def number(group: str) -> int:
            return 2

        for group in ("older", "as new", "newer"):
            await number(group)
        acknowledged = {"older": 3, "as new": 2, "newer": 1, "missing": 1}
        found = await lost_of(cache, Refresher(number, [], every=60), acknowledged)
        assert found == {"older": (3, 2), "missing": (1, None)}
