"""What is released, and how: the workflows, the containers, the units, and what they say of each other."""

import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import swr
from examples.demo.servers import free_port
from swr.cli.main import _parser
from tests.package import EXTRAS
from tests.simulation.simulate import SCENARIOS

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def steps(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_script_that_a_workflow_runs_is_executable(path):
    commands = [line for step in steps(path) for line in step.get("run", "").splitlines()]
    scripts = {word for line in commands for word in line.split() if word.startswith("scripts/")}
    assert scripts or path.name == "release.yml"
    for script in scripts:
        assert os.access(ROOT / script, os.X_OK), script


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_has_write_permission_only_in_publish_and_deploy_jobs(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    writing = {name for name, job in workflow["jobs"].items() if "write" in job.get("permissions", {}).values()}
    assert writing <= {"publish", "deploy"}
    assert all(not step.get("with", {}).get("persist-credentials") for step in steps(path))


def test_workflow_tests_every_python_version_of_the_classifiers():
    named = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)}
    matrix = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert set(matrix["python"]) == named


def test_nightly_workflow_runs_every_scenario_of_the_simulation():
    jobs = yaml.safe_load((ROOT / ".github/workflows/nightly.yml").read_text())["jobs"]
    assert set(jobs["simulation"]["strategy"]["matrix"]["scenario"]) == set(SCENARIOS)


def test_docker_image_installs_the_extras_that_its_commands_need():
    (extras,) = re.findall(r'"/source\[([\w,]*)\]"', (ROOT / "Dockerfile").read_text())
    # `swr proxy`, `swr dashboard` and `swr top`, and reading what is encrypted.
    assert set(extras.split(",")) == {"proxy", "dashboard", "encryption"}


def test_package_check_covers_every_extra():
    assert set(EXTRAS) == {"", *PROJECT["optional-dependencies"]}


def test_changelog_begins_with_the_current_version():
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == swr.__version__


def units():
    for path in (ROOT / "examples/systemd").glob("*.service"):
        [line] = re.findall(r"^ExecStart=(.*)$", path.read_text(), re.M)
        [seconds] = re.findall(r"^TimeoutStopSec=(\d+)$", path.read_text(), re.M)
        yield pytest.param(shlex.split(line), int(seconds), id=path.name)
    for path in (ROOT / "examples/kubernetes").glob("*.yaml"):
        for resource in yaml.safe_load_all(path.read_text()):
            if resource["kind"] == "Deployment":
                spec = resource["spec"]["template"]["spec"]
                [container] = spec["containers"]
                # The image's entry point is `swr`.
                words = container.get("command", ["swr"]) + container.get("args", [])
                yield pytest.param(words, spec["terminationGracePeriodSeconds"], id=path.name)


@pytest.mark.parametrize(("words", "seconds"), list(units()))
def test_unit_runs_an_existing_command_and_leaves_it_time_to_stop(words, seconds):
    assert Path(words[0]).name == "swr"
    options = _parser().parse_args(words[1:])
    assert callable(options.run)
    # The default of `drain_for`, 10 s, and what is written to Redis after that.
    assert seconds > 10 + 2


@pytest.mark.parametrize(("words", "seconds"), list(units()))
def test_unit_starts_and_stops_on_sigterm(words, seconds, server, tmp_path):
    (tmp_path / "rankings.py").write_text(
        "from swr import Cache, Refresher\n"
        "cache = Cache.from_env()\n"
        "@cache.cached('ranking:{group}', fresh_for=60)\n"
        "async def ranking(group: str) -> str:\n    return group\n"
        "refresher = Refresher(ranking, keys=['ATL'], every=0.5)\n"
    )
    if "--listen" in words:
        words[words.index("--listen") + 1] = f"127.0.0.1:{free_port()}"
    unit = subprocess.Popen(
        [sys.executable, "-m", "swr", *words[1:]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SWR_REDIS_URL": server.url, "SWR_NAMESPACE": "units"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert unit.stdout is not None
    # The proxy says where it listens, the refresher its name or its first round. A refusal names neither.
    first = unit.stdout.readline()
    unit.terminate()
    unit.communicate(timeout=60)
    assert re.search(r"-> http|ranking:", first)
    assert unit.returncode in (0, -signal.SIGTERM)


def test_readme_links_work_outside_the_repository():
    links = re.findall(r"\]\(([^)]*)\)", (ROOT / "README.md").read_text())
    site, source = PROJECT["urls"]["Documentation"], PROJECT["urls"]["Source"]
    assert len(links) > 10
    for link in links:
        assert link.startswith((site, f"{source}/blob/main/", f"{source}/raw/main/")), link
        path, _, anchor = link.removeprefix(site).partition("#")
        if link.startswith(site):
            page = ROOT / "docs" / f"{path.strip('/') or 'index'}.md"
            assert page.is_file(), link
            headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
            assert not anchor or anchor in [re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in headings]
        else:
            assert (ROOT / link.split("/main/")[1]).is_file(), link


def test_social_card_of_the_site_exists_with_the_stated_size():
    head = (ROOT / "theme" / "main.html").read_text()
    assert '"og:image" content="{{ config.site_url }}card.png"' in head
    assert f"site_url: {PROJECT['urls']['Documentation']}\n" in (ROOT / "mkdocs.yml").read_text()
    card = (ROOT / "docs" / "card.png").read_bytes()
    for side, at in (("width", 16), ("height", 20)):
        assert f'"og:image:{side}" content="{int.from_bytes(card[at : at + 4], "big")}"' in head
