"""Durations, policies, limits: what is accepted and what is refused, by name."""

from datetime import timedelta

import pytest

from swr import ConfigurationError, Policy
from swr.policy import seconds


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0, 0),
        (60, 60),
        (0.5, 0.5),
        (timedelta(minutes=2), 120),
        ("500ms", 0.5),
        ("90s", 90),
        ("10m", 600),
        ("12h", 43200),
        ("1d", 86400),
        ("2w", 1209600),
        (" 1.5 h ", 5400),
    ],
)
def test_duration_may_be_seconds_or_timedelta_or_text(given, expected):
    assert seconds(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        -1,
        True,
        None,
        "",
        "10",
        "ten minutes",
        "-5s",
        "1y",
        float("nan"),
        float("inf"),
        10**11,
        timedelta(-1),
        b"5s",
        "١s",
    ],
)
def test_invalid_duration_is_refused_with_its_name_and_the_remedy(given):
    with pytest.raises(ConfigurationError, match=r'fresh_for=.*"10m"'):
        Policy(given)


def test_policy_converts_durations_to_seconds():
    policy = Policy("1m", "10m", timedelta(days=1), ["a", "b"])
    assert (policy.fresh_for, policy.stale_for, policy.stale_if_error, policy.tags) == (60, 600, 86400, ("a", "b"))
    assert policy == Policy(60, 600, 86400, ("a", "b"))


@pytest.mark.parametrize("tags", ["group", b"group", [""], [1], [None]])
def test_tags_other_than_non_empty_strings_are_refused(tags):
    with pytest.raises(ConfigurationError, match="tags="):
        Policy(1, tags=tags)
