"""A short run of the long one (`scripts/chaos --minutes 5`), and what its oracle finds where something is wrong."""

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from tests.chaos.oracle import AFTER, Life, Oracle, Story
from tests.chaos.run import chaos, judge
from tests.servers import kinds

SECONDS = 5.0
# Whatever is in the local cache counts as confirmed: what was said while the link was broken is never asked for.
TRUSTING = """
from swr.stores.tiered import TieredStore
TieredStore._trust = lambda self, key, slot: True
"""


def test_short_run_reports_no_violation_except_extra_loads():
    verdict = chaos(SECONDS, kinds()[0], processes=3, seed=1)
    # On a machine that is busy with other tests a server may answer too late; then a key is loaded twice.
    assert [text for text in verdict.violations if not text.startswith("(d)")] == [], verdict.folder
    assert verdict.folder.exists() == bool(verdict.violations)
    figures = "\n".join(verdict.summary)
    for what in ("answers by their own process's", "by any", "at the end", "loads and", "invalidations, "):
        assert re.search(rf"[1-9]\d* {what}", figures), figures


def test_short_run_detects_a_local_cache_that_trusts_unconfirmed_entries():
    verdict = chaos(SECONDS, kinds()[0], processes=3, seed=1, sabotage=TRUSTING)
    assert any(text.startswith("(a)") for text in verdict.violations)
    assert judge(verdict.folder).violations == verdict.violations
    shutil.rmtree(verdict.folder)


# A key is fresh for 0.5 s (0, 4, ...), 2 s (1, 5, ...), 5 s (2, 6, ...) or 30 s (3, 7, ...).
LOAD = ["load", 3, 1, "w1:1", 10.0, 10.1]
ANSWER = ["answer", 3, [3, 1, "w1:1"], "fresh", 1.0, False, 11.0, 11.001]


def judged(
    tmp_path: Path, *lines: list[object], others: list[list[object]] | None = None, **known: object
) -> list[str]:
    """What the oracle says of lines of one process, and of another's."""
    story = Story(**{"lives": {"w1": Life(0, 0.0), "w2": Life(1, 0.0)}, "writes": {3: [1.0, 12.0]}, **known})  # type: ignore[arg-type]  # fields of several types
    for name, of in (("w1", lines), ("w2", others or [])):
        (tmp_path / f"{name}.log").write_bytes(b"\n".join(msgspec.json.encode(line) for line in of) + b"\n")
    oracle = Oracle(story, tmp_path)
    violations = oracle.judge()
    assert oracle.summary()[-1] == f"{len(violations)} violations"
    return violations


def after(line: list[object], **changes: object) -> list[object]:
    names = {"row": 2, "value": 2, "state": 3, "age": 4, "failed": 5, "began": 6, "ended": 7}
    line = list(line)
    for name, value in changes.items():
        line[names[name]] = value
    return line


def test_fresh_answer_after_its_load_is_no_violation(tmp_path):
    assert judged(tmp_path, LOAD, ANSWER) == []


INVALIDATED = ["invalidated", "key", 3, 12.5, 12.6]
LATE = after(ANSWER, age=3.0, began=13.0, ended=13.001)
LATER = after(ANSWER, age=11.0, began=21.0, ended=21.001)


@pytest.mark.parametrize("what", [["key", 3], ["tag", "group:3"], ["tag", "low"], ["all", ""]])
def test_outdated_answer_after_an_invalidation_by_the_same_process_is_a_violation(tmp_path, what):
    line = ["invalidated", *what, 12.5, 12.6]
    (found,) = judged(tmp_path, LOAD, line, LATE)
    assert found.startswith("(a) w1.log:3: key 3")
    assert "w1.log:2" in found
    assert judged(tmp_path, LOAD, ["invalidated", "tag", "group:4", 12.5, 12.6], LATE) == []


def test_other_process_may_answer_an_outdated_value_for_some_seconds_only(tmp_path):
    assert judged(tmp_path, LOAD, LATE, others=[INVALIDATED]) == []
    (found,) = judged(tmp_path, LOAD, LATER, others=[INVALIDATED])
    assert found.startswith("(b) w1.log:2: key 3")
    assert "w2.log:1" in found


@pytest.mark.parametrize("number", [0, 1])
def test_broken_link_excuses_an_outdated_answer_until_it_is_restored(tmp_path, number):
    link = {"links": {number: [(12.0, 20.0)]}}
    assert judged(tmp_path, LOAD, LATER, others=[INVALIDATED], **link) == []
    whole = after(ANSWER, age=20.0, began=20.1 + 2 * AFTER, ended=20.2 + 2 * AFTER)
    assert judged(tmp_path, LOAD, whole, others=[INVALIDATED], **link) != []


def test_release_may_load_a_fresh_key_but_not_answer_from_another_release(tmp_path):
    loads = {"others": [["load", 3, 1, "w2:1", 11.0, 11.1]]}
    (found,) = judged(tmp_path, LOAD, ANSWER, **loads)
    assert "although" in found
    lives = {"w1": Life(0, 0.0), "w2": Life(1, 0.0, release=1)}
    assert judged(tmp_path, LOAD, ANSWER, lives=lives, **loads) == []
    (found,) = judged(tmp_path, LOAD, after(ANSWER, value=[3, 1, "w2:1"], age=0.0, began=11.2), lives=lives, **loads)
    assert "another release" in found


def test_server_out_of_memory_excuses_an_extra_load_but_not_an_outdated_answer(tmp_path):
    refusals = [(10.5, 20.9)]
    load = ["load", 3, 2, "w1:2", 14.0, 14.1]
    assert judged(tmp_path, LOAD, load) != []
    assert judged(tmp_path, LOAD, load, refusals=refusals) == []
    assert judged(tmp_path, LOAD, LATER, others=[INVALIDATED], refusals=refusals) != []


@pytest.mark.parametrize("known", [{"server": [(20.5, 20.9)]}, {"stops": {"w1": [(20.5, 20.9)]}}])
def test_server_outage_or_stopped_process_just_before_excuses_an_outdated_answer(tmp_path, known):
    assert judged(tmp_path, LOAD, LATER, others=[INVALIDATED], **known) == []


def test_invalidation_lost_with_its_process_is_excused_only_if_its_link_was_broken(tmp_path):
    lives = {"w1": Life(0, 0.0), "w2": Life(1, 0.0, 13.0)}
    links = {1: [(12.0, 13.0)]}
    assert judged(tmp_path, LOAD, LATER, others=[INVALIDATED], lives=lives, links=links) == []
    assert judged(tmp_path, LOAD, LATER, others=[INVALIDATED], lives=lives) != []


@pytest.mark.parametrize(
    ("line", "about"),
    [
        (after(ANSWER, value=[3, 2, "w1:1"]), "no load has brought that"),
        (after(ANSWER, value=[3, 1, "w1:2"]), "no load has brought that"),
        (after(ANSWER, age=30.2, began=11.0), "fresh past 30 s"),
        (after(ANSWER, began=41.0, ended=41.1), "fresh past 30 s"),
        (after(ANSWER, state="stale"), "stale before 30 s"),
        (after(ANSWER, state="stale", age=95.0, began=105.0, ended=105.1), "stale past 30 + 60 s"),
        (after(ANSWER, state="stale", age=95.0, failed=True, began=105.0, ended=105.1), "stale past 30 + 60 s"),
        (after(ANSWER, failed=True), "a fallback is stale"),
        (after(ANSWER, state="missing", age=35.0, began=45.0, ended=45.1), "missing, and loaded long before"),
        (["raised", [3], "", 11.0, 11.1, "one", "StoreUnavailable()"], "raised 11.100 StoreUnavailable()"),
        (["raised", [3], "w1:1", 11.0, 11.1, "one", "LoadFailed()"], "raised 11.100 LoadFailed()"),
        (["refreshed", 3, [3, 1, "w1:1"], 13.0, 13.1], "loaded before it was asked for"),
        (["raised", [3], "", 11.0, 15.0, "one", "LoadTimeout()"], "raised 15.000 LoadTimeout()"),
        (["shared", 200], "of 200 failures some were one object"),
        (["load", 3, 3, "w1:2", 41.0, 41.1], "row 3 of 3 was never written"),
        (["load", 3, 1, "w1:2", 11.0, 11.1], "although Load(worker='w1', number=3, row=1, name='w1:1'"),
    ],
)
def test_each_kind_of_violation_is_found(tmp_path, line, about):
    (found,) = judged(tmp_path, LOAD, line)
    assert about in found


@pytest.mark.parametrize(
    "lines",
    [
        [after(ANSWER, state="stale", age=35.0, began=45.0, ended=45.1)],
        [["failed", 3, 1, "w1:2", 11.0, 11.2], ["raised", [3], "w1:2", 11.0, 11.2, "one", "LoadFailed()"]],
        [["load", 3, 2, "w1:2", 13.0, 13.1], ["refreshing", 3, 12.9], ["refreshed", 3, [3, 2, "w1:2"], 12.9, 13.1]],
        [["load", 3, 2, "w1:2", 13.0, 13.1], INVALIDATED],
        [["load", 3, 2, "w1:2", 13.0, 13.1], ["invalidating", "key", 3, 12.9]],
        [["load", 3, 2, "w1:2", 13.0, 13.1], ["stalled", 12.0, 12.5]],
        [["hung", 3, 11.0], ["raised", [3], "", 11.0, 15.0, "one", "LoadTimeout()"]],
        [["load", 3, 2, "w1:2", 40.0, 40.1]],
    ],
)
def test_allowed_behaviour_is_no_violation(tmp_path, lines):
    assert judged(tmp_path, LOAD, *lines) == []


def test_more_than_four_loads_of_a_key_behind_a_broken_link_are_violations(tmp_path):
    links = {0: [(5.0, 60.0)]}
    loads = [["load", 3, 1, f"w1:{number}", 10.0 + number, 10.1 + number] for number in range(8)]
    assert judged(tmp_path, *loads[:4], links=links) == []
    assert all(text.startswith("(d)") for text in judged(tmp_path, *loads, links=links))
    assert len(judged(tmp_path, *loads, links=links)) == 4


def test_outdated_answer_or_left_over_lease_at_the_end_is_a_violation(tmp_path):
    (found,) = judged(tmp_path, LOAD, LATE, healed=12.9)
    assert found.startswith("(f)")
    (found,) = judged(tmp_path, LOAD, leases_left=["swr:{row:3}:l"])
    assert found == "(left) a lease is left over at the end: swr:{row:3}:l"


def test_torn_last_line_of_a_log_is_ignored(tmp_path):
    judged(tmp_path, LOAD)
    with open(tmp_path / "w1.log", "ab") as file:
        file.write(b'["answer",3,[3,')
    story = Story(lives={"w1": Life(0, 0.0)}, writes={3: [1.0]})
    assert Oracle(story, tmp_path).judge() == []
