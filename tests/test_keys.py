"""Keys: two calls share one only if they are the same."""

import datetime
import decimal
import enum
import subprocess
import sys
import uuid
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swr import ConfigurationError
from swr.core.canonical import canonical
from swr.core.keys import CallKeys, storage_name
from swr.core.template import Template


class Colour(enum.Enum):
    RED = "red"


class Word(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


def one(a): ...


def two(a, b=1): ...


def test_values_of_different_types_or_shapes_have_different_keys():
    values = [
        1, "1", True, "True", None, "None", 1.0, "1.0", 0.0, -0.0, float("inf"), "inf", "", "''", "'1'", "~x",
        "a:b", ("a:b",), ("a", "b"), ["a", "b"], ("a,b",), ("a", ("b",)), (("a",), "b"), {"a": "b"}, {"a=b"}, {"a", "b"},
        b"a", "a", "~bytes(61)", 10**30, Colour.RED, "red", decimal.Decimal("1.0"), decimal.Decimal("1.00"),
        datetime.date(2020, 1, 1), "2020-01-01", datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 1, fold=1),
        datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(1), datetime.time(1),
        uuid.UUID(int=1), str(uuid.UUID(int=1)), (), [], {}, frozenset(), ("",), (None,), ("None",), {1: "a"}, {"1": "a"},
    ]  # fmt: skip
    keys = CallKeys(one, "k:{a}")
    texts = {}
    for value in values:
        key = keys.key((value,), {})
        assert texts.setdefault(key, value) is value, f"{value!r} and {texts[key]!r} share {key}"


simple = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False)
nested = st.recursive(simple, lambda inner: st.lists(inner).map(tuple) | st.lists(inner), max_leaves=5)


def typed(value):
    """A value that is equal only to what is of the same types throughout."""
    if isinstance(value, (list, tuple)):
        return (type(value), tuple(map(typed, value)))
    return (type(value), repr(value))


@pytest.mark.uncounted
@given(nested, nested, nested, nested)
def test_two_keys_are_equal_exactly_if_their_calls_are_equal(a, b, c, d):
    for template in ("k:{a}:{b}", "{a}-{b}", "{a}/x/{b}", "{a}.{b}:", None):
        keys = CallKeys(two, template)
        same = keys.key((a, b), {}) == keys.key((c, d), {})
        assert same == (typed((a, b)) == typed((c, d)))


@pytest.mark.uncounted
@given(st.text(alphabet="a:-'~%{}()1,=", max_size=6), st.text(alphabet="a:-'~%{}()1,=", max_size=6))
def test_strings_with_separator_characters_have_different_keys(a, b):
    keys = CallKeys(two, "{a}-{b}")
    swapped = keys.key((a + "-", b), {}) == keys.key((a, "-" + b), {})
    assert not swapped
    assert (canonical((a, b)) == canonical((b, a))) == (a == b)


class Right(enum.Flag, boundary=enum.KEEP):
    READ = 1


class Without(set[int]):
    """The same items as those of a set, and another meaning."""


@pytest.mark.parametrize(("one", "other"), [(Right(8), Right(16)), (Right(8), Right(0)), (Without([1]), {1})])
def test_unnamed_flags_and_set_subclasses_have_distinct_canonical_forms(one, other):
    assert canonical(one) != canonical(other)
    assert canonical({1}) == canonical(frozenset({1}))


def test_str_and_int_enum_members_share_the_key_of_their_value():
    keys = CallKeys(one, "k:{a}")
    assert keys.key((Word.RED,), {}) == keys.key(("red",), {}) == "k:red"
    assert keys.key((Number.ONE,), {}) == keys.key((1,), {}) == "k:1"


@pytest.mark.parametrize("order", [(1, True, 1.0), (True, 1, 1.0), (1.0, 1, True)])
def test_remembered_key_is_not_reused_for_an_equal_value_of_another_type(order):
    keys = CallKeys(two, "k:{a}:{b}")
    for _ in range(2):
        assert len({keys.key((value, "x"), {}) for value in order}) == 3
        assert len({keys.key(("x",), {"b": value}) for value in order}) == 3


def test_positional_keyword_and_default_arguments_give_one_key():
    keys = CallKeys(two, "k:{a}:{b}")
    calls = [(("ATL",), {}), (("ATL", 1), {}), ((), {"a": "ATL"}), ((), {"b": 1, "a": "ATL"}), (("ATL",), {"b": 1})]
    for _ in range(2):
        assert {keys.key(*call) for call in calls} == {"k:ATL:1"}


def test_number_and_size_of_remembered_keys_are_bounded(monkeypatch):
    monkeypatch.setattr("swr.core.keys._REMEMBERED", 10)
    keys = CallKeys(one, "k:{a}")
    for number in range(100):
        assert keys.key((str(number) + "x",), {}) == f"k:{number}x"
    assert len(keys.remembered) <= 10
    keys.key(("x" * 10_000,), {})
    assert all(len(key) < 1000 for key, _ in keys.remembered.values())


def test_default_key_contains_the_function_and_all_arguments():
    def f(a, /, b, *rest, c=3, **more): ...

    keys = CallKeys(f)
    assert keys.key((1, 2, 3), {"c": 4, "d": "5"}) != keys.key((1, 2), {"c": 4, "d": "5"})
    assert keys.key((1, 2), {}) == keys.key((1,), {"b": 2}) == keys.key((1, 2), {"c": 3})
    assert "test_keys" in keys.key((1, 2), {})
    assert CallKeys(f).key((1, 2), {}) != CallKeys(two).key((1, 2), {})


def test_keys_are_the_same_in_every_process():
    """Python salts `hash()`: a set or a str must not depend on it."""
    code = "from swr.core.canonical import canonical; print(canonical({'a', 'b', 'c', 1, None}), canonical({'x': {2, 'y'}}))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("value", [object(), (1, object()), {"a": [object()]}, {object()}, Exception(), len])
def test_argument_unusable_in_a_key_raises_an_error_with_the_remedy(value):
    keys = CallKeys(two, "k:{a}:{b}")
    with pytest.raises(ConfigurationError, match=r"argument 'b' of .*two.*ignore=\(\"b\",\)"):
        keys.key(("x", value), {})


def holding_itself():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "why"),
    [(10**5000, "digits"), ([10**5000], "digits"), (holding_itself(), "holds itself"), ({"a": holding_itself()}, "itself")],
    ids=["integer", "integer in a list", "list in itself", "list in itself in a dict"],
)  # fmt: skip
def test_argument_too_large_or_recursive_for_a_key_raises_an_error_naming_it(value, why):
    with pytest.raises(ConfigurationError, match=rf"argument 'b' of .*two.*{why}"):
        CallKeys(two, "k:{a}:{b}").key(("x", value), {})


def test_equal_times_in_different_time_zones_have_different_keys():
    offset = datetime.timezone(datetime.timedelta(hours=-5))
    moments = [
        datetime.datetime(2013, 11, 1, tzinfo=zone)
        for zone in (offset, ZoneInfo("Etc/GMT+5"), ZoneInfo("America/Lima"), ZoneInfo("America/Bogota"), None)
    ]
    assert len(set(map(canonical, moments))) == 5
    assert len({canonical(moment.timetz()) for moment in moments}) == 5


def test_wrong_arguments_raise_the_type_error_of_the_function():
    with pytest.raises(TypeError, match=r"^tests\.test_keys\.two\(\) missing a required argument: 'a'"):
        CallKeys(two, "k:{a}:{b}").key((), {})
    with pytest.raises(TypeError, match="unexpected keyword"):
        CallKeys(two, "k:{a}:{b}").key((1,), {"c": 1})


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("k:{a}", "leaves out b"),
        ("k:{a}{b}", "has no separator before the slot"),
        ("k:{a}x{b}", "has no separator before the slot"),
        ("k:{a}:{b}:{c}", "no parameter 'c'"),
        ("k:{a!r}:{b}", "a slot has only a parameter's name"),
        ("k:{a:>3}:{b}", "a slot has only a parameter's name"),
        ("k:{}:{b}", "a slot has only a parameter's name"),
        ("k:{a[0]}:{b}", "a slot has only a parameter's name"),
        ("k:{a", "cannot be read"),
    ],
)
def test_template_that_cannot_work_is_refused_at_definition(template, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        CallKeys(two, template)


def test_ignored_parameters_are_left_out_of_the_key_and_must_exist():
    keys = CallKeys(two, "k:{a}", ignore=("b",))
    assert keys.key(("x", object()), {}) == "k:x"
    assert CallKeys(two, ignore=("a", "b")).key((1,), {}) == "tests.test_keys.two"
    with pytest.raises(ConfigurationError, match="no parameter 'db'"):
        CallKeys(two, "k:{a}:{b}", ignore=("db",))
    with pytest.raises(ConfigurationError, match="one string"):
        CallKeys(two, "k:{a}", ignore="b")


def test_template_keeps_literal_braces_and_reads_attributes():
    class Region:
        name = "eu:west"

    assert CallKeys(one, "k:{{x}}:{a.name}").key((Region(),), {}) == "k:{x}:eu%3Awest"


def test_tag_templates_are_filled_like_f_strings():
    keys = CallKeys(two, "k:{a}:{b}", tags=("group:{a}", "all"))
    assert keys.tags(("7",), {}) == ("group:7", "all")
    assert CallKeys(two, "k:{a}:{b}", tags=("all", "more")).tags(("7",), {}) == ("all", "more")
    with pytest.raises(ConfigurationError, match="no parameter 'z'"):
        CallKeys(two, "k:{a}:{b}", tags=("{z}",))
    with pytest.raises(ConfigurationError, match="one string"):
        CallKeys(two, "k:{a}:{b}", tags="all")


@given(st.text(alphabet=st.characters(codec=None)))
def test_storage_name_has_no_braces_and_at_most_200_bytes(key):
    name = storage_name(key)
    assert not set(name) & set("{}")
    assert len(name.encode()) <= 200


@pytest.mark.uncounted
@given(st.text(), st.text())
def test_storage_names_of_different_keys_differ(a, b):
    assert (storage_name(a) == storage_name(b)) == (a == b)
    assert storage_name(a + "x" * 300) != storage_name(b + "x" * 300) or a == b


def test_template_lists_the_names_of_its_parameters():
    assert Template("a:{b}", "key", "f").names == ["b"]


def overlap(one, other):
    answers = {Template(one, "key", "f").overlaps(Template(other, "key", "g"))}
    answers.add(Template(other, "key", "g").overlaps(Template(one, "key", "f")))
    assert len(answers) == 1
    return answers.pop()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("user:{id}", "user:{user_id}"), ("user:{id}:{limit}", "user:{limit}:{id}"), ("user:{user.id}", "user:{id}"),
        ("user:{id}", "user:me"), ("{a}", "{b}"), ("{a}", "k"), ("k", "k"), ("k:{{x}}", "k:{{x}}"),
        ("user-{id}", "user-{id}-posts"), ("a-{x}", "a-{x}-{y}"), ("a{x}", "ab{y}"), ("{x}.png", "{y}g"),
        ("{a}:{b}", "user:{id}"), ("x{a}", "{b}x"),
    ],
)  # fmt: skip
def test_templates_that_can_make_the_same_key_overlap(one, other):
    assert overlap(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("user:{id}", "users:{id}"), ("user:{id}", "user:{id}:posts"), ("user:{id}", "user:{id}:{limit}"), ("user:{id}", "user:"),
        ("{a}", "k:{b}"), ("k", "kk"), ("user:{id}:a", "user:{id}:b"), ("a-{x}-{y}", "a-{x}-{y}-{z}"), ("user:{id}", "user:{{id}}"),
        ("{x}.png", "{y}.jpg"), ("", "{a}"),
    ],
)  # fmt: skip
def test_templates_that_cannot_make_the_same_key_do_not_overlap(one, other):
    assert not overlap(one, other)


@given(st.text(alphabet="a:-{}%'1", max_size=4), st.text(alphabet="a:-{}%'1", max_size=4), st.integers(0, 20))
def test_templates_that_have_made_the_same_key_overlap(a, b, number):
    texts = ["{a}", "k:{a}", "a-{a}", "a-{a}-{b}", "{a}:{b}", "a:{a}", "{a}a", "{a}-1", "1:{a}:a"]
    one, other = texts[number % len(texts)], texts[number // 3]
    made = [
        Template(text, "key", "f").fill({"a": first, "b": second})
        for text, first, second in ((one, a, b), (other, b, a))
    ]
    assert made[0] != made[1] or overlap(one, other)
