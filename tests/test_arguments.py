"""A load sees its arguments as the key saw them, whatever its caller does to them afterwards."""

import collections
import inspect
import threading
import types
from typing import NamedTuple

import anyio
import pytest

from swr import ConfigurationError, LoadContext
from swr.core.canonical import canonical, snapshot
from tests.fleet import settle

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """What decides here is the same on every event loop; test_http and test_guarded run on both."""
    return "asyncio"


class Point(NamedTuple):
    x: int
    tags: list


class Celsius(NamedTuple):
    degrees: int


class Fahrenheit(NamedTuple):
    degrees: int


class User:
    def __init__(self, id):
        self.id = id
        self.group = "a"


async def no_flights(cache):
    with anyio.fail_after(30):
        while cache.engine.flights:
            await anyio.sleep(0.001)


def change(value):
    """Change an argument, or what is inside it, as a caller might who builds the next page's query in the same object."""
    if isinstance(value, (tuple, frozenset)):
        value[-1].clear()
    elif isinstance(value, bytearray):
        value[:] = b"changed"
    else:
        value.clear()


CHANGING = {
    "dict": lambda: {"page": 1},
    "dict in a dict": lambda: {"where": {"page": 1}},
    "list": lambda: [1, 2],
    "set": lambda: {1, 2},
    "tuple of a list": lambda: (1, [2]),
    "bytearray": lambda: bytearray(b"first"),
    "named tuple": lambda: Point(1, ["a"]),
    "defaultdict": lambda: collections.defaultdict(list, {"a": [1]}),
    "OrderedDict": lambda: collections.OrderedDict(a=1, b=2),
    "Counter": lambda: collections.Counter("aab"),
    "deque in a tuple": lambda: (1, [collections.Counter("ab")]),
}


@pytest.mark.parametrize("make", CHANGING.values(), ids=CHANGING)
@pytest.mark.parametrize("threaded", [False, True], ids=["async", "def"])
@pytest.mark.parametrize("how", ["positional", "keyword", "var"])
async def test_background_refresh_uses_arguments_as_they_were_when_called(cache, clock, make, threaded, how):
    seen = []
    options = {"fresh_for": 60, "stale_for": 600}
    if how == "var":

        def rows(*rest):
            seen.append(rest[0])
            return canonical(rest[0])

        cached = cache.cached("rows:{rest}", **options)
    else:

        def rows(q):
            seen.append(q)
            return canonical(q)

        cached = cache.cached("rows:{q}", **options)

    async def later(*args, **kwargs):
        return rows(*args, **kwargs)

    later.__signature__ = inspect.signature(rows)
    loader = cached(rows if threaded else later)

    def call(value):
        return loader(q=value) if how == "keyword" else loader(value)

    first = canonical(make())
    value = make()
    assert await call(value) == first
    clock.advance(61)
    assert await call(value) == first
    change(value)
    await no_flights(cache)
    assert seen[-1] == make()
    assert await call(make()) == first
    assert len(seen) == 2


async def test_load_uses_arguments_as_they_were_although_caller_changes_them_meanwhile(cache):
    gate = anyio.Event()

    @cache.cached("rows:{q}", fresh_for=60)
    async def rows(q: dict) -> int:
        await gate.wait()
        return q["page"]

    q = {"page": 1}
    answers = []

    async def read():
        answers.append(await rows(q))

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await settle()
        q["page"] = 4
        gate.set()
    assert answers == [1]
    assert await rows({"page": 1}) == 1
    assert await rows(q) == 4


@pytest.mark.parametrize("verb", ["refresh", "outcome", "call"])
async def test_loader_that_changes_its_argument_does_not_change_the_callers_object(cache, verb):
    """Neither its caller nor a second run of the same load sees it."""

    @cache.cached("rows:{q}", fresh_for=60)
    async def rows(q: dict) -> int:
        return q.pop("page")

    q = {"page": 1}
    await {"refresh": rows.refresh, "outcome": rows.outcome, "call": rows}[verb](q)
    assert q == {"page": 1}


async def test_superseded_load_runs_again_with_the_same_arguments(cache):
    begun, seen = anyio.Event(), []

    @cache.cached("rows:{q}", fresh_for=60)
    async def rows(q: dict) -> int:
        seen.append(dict(q))
        q.clear()
        begun.set()
        await settle()
        return len(seen)

    q = {"page": 1}
    async with anyio.create_task_group() as group:
        group.start_soon(rows, q)
        await begun.wait()
        q["page"] = 2
        await rows.invalidate({"page": 1})
    assert seen == [{"page": 1}, {"page": 1}]


async def test_background_refresh_uses_default_argument_as_it_was_when_called(cache, clock):
    default = {"page": 1}

    @cache.cached("rows:{q}", fresh_for=60, stale_for=600)
    async def rows(q: dict = default) -> int:
        return q["page"]

    assert await rows() == 1
    clock.advance(61)
    assert await rows() == 1
    default["page"] = 4
    await no_flights(cache)
    assert await rows({"page": 1}) == 1


async def test_loader_with_context_is_refreshed_with_arguments_as_they_were_when_called(cache, clock):
    @cache.cached("rows:{q}", fresh_for=60, stale_for=600)
    async def rows(context: LoadContext[int], q: dict) -> int:
        return q["page"]

    q = {"page": 1}
    assert await rows(q) == 1
    clock.advance(61)
    assert await rows(q) == 1
    q["page"] = 4
    await no_flights(cache)
    assert await rows({"page": 1}) == 1


async def test_ignored_argument_reaches_the_loader_uncopied(cache):
    session = User(1)

    @cache.cached("rows:{q}", fresh_for=60, ignore=("db",))
    async def rows(q: dict, db: object) -> bool:
        return db is session

    assert await rows({"page": 1}, session)
    assert await rows({"page": 2}, db=session)


class Uncopied(list):
    def __deepcopy__(self, memo):
        raise TypeError("no copies")


class Miscopied(list):
    def __deepcopy__(self, memo):
        return Miscopied()


@pytest.mark.parametrize(("value", "why"), [(Uncopied([1]), "no copies"), (Miscopied([1]), "copy differs")])
async def test_argument_that_cannot_be_copied_is_refused_by_name(cache, value, why):
    @cache.cached("rows:{q}", fresh_for=60)
    async def rows(q: list) -> int:
        return len(q)

    with pytest.raises(ConfigurationError, match=f"argument 'q' of .*rows holds a .*copied.*{why}"):
        await rows(value)


async def test_load_fails_when_keyed_attribute_changes_during_it(cache, clock):
    gate = anyio.Event()
    gate.set()

    @cache.cached("orders:{user.id}", fresh_for=60, stale_for=600)
    async def orders(user: User) -> int:
        await gate.wait()
        return user.id

    user = User(1)
    assert await orders(user) == 1
    clock.advance(61)
    gate = anyio.Event()
    assert await orders(user) == 1
    await settle()
    user.id = 2
    gate.set()
    await no_flights(cache)
    # Nothing of user 2 is under the key of user 1, and the refresh failed by name.
    assert (await orders.outcome(User(1))).value == 1
    user = User(5)
    gate = anyio.Event()

    async def read():
        with pytest.raises(ConfigurationError, match=r"argument 'user\.id' of .*orders changed from 5 to 6"):
            await orders(user)

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await settle()
        user.id = 6
        gate.set()


async def test_background_refresh_does_not_run_when_keyed_attribute_changed_before_it(cache, clock):
    seen = []

    class Orders:
        region = "eu"

        @cache.cached("orders:{self.region}", fresh_for=60, stale_for=600)
        async def top(self) -> str:
            seen.append(self.region)
            return self.region

    orders = Orders()
    assert await orders.top() == "eu"
    clock.advance(61)
    assert await orders.top() == "eu"
    orders.region = "us"
    await no_flights(cache)
    assert seen == ["eu"]
    assert await orders.top() == "us"


async def test_load_fails_when_attribute_named_only_in_a_tag_changes_during_it(cache):
    """Else the value of group b carried the tag of group a, and outlived the invalidation of b."""

    @cache.cached("orders:{user.id}", fresh_for=60, tags=("group:{user.group}",))
    def orders(user: User) -> str:
        started.set()
        assert go.wait(30)
        return user.group

    started, go = threading.Event(), threading.Event()
    user = User(1)

    async def read():
        with pytest.raises(ConfigurationError, match=r"'user\.group'"):
            await orders(user)

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await anyio.to_thread.run_sync(started.wait, 30)
        user.group = "b"
        go.set()


class TestCachedMany:
    async def test_batch_refresh_uses_arguments_as_they_were_when_called(self, cache, clock):
        seen = []

        @cache.cached_many("top:{item}:{q}", fresh_for=60, stale_for=600)
        async def top(items: list[str], q: dict) -> dict[str, int]:
            seen.append(dict(q))
            page = q.pop("page")
            return dict.fromkeys(items, page)

        q = {"page": 1}
        assert await top(["a", "b"], q) == {"a": 1, "b": 1}
        clock.advance(61)
        assert await top(["a", "b"], q) == {"a": 1, "b": 1}
        q["page"] = 4
        await no_flights(cache)
        assert await top(["a", "b"], {"page": 1}) == {"a": 1, "b": 1}
        assert seen == [{"page": 1}, {"page": 1}]

    async def test_batch_load_fails_when_keyed_attribute_of_item_or_argument_changes(self, cache):
        gate = anyio.Event()

        @cache.cached_many("top:{item.id}:{user.id}", fresh_for=60)
        async def top(items: list[User], user: User) -> dict[User, int]:
            await gate.wait()
            return {item: item.id for item in items}

        for changed in ("item", "user"):
            gate = anyio.Event()
            item, user = User(1), User(2)

            async def read(item=item, user=user, changed=changed):
                with pytest.raises(ConfigurationError, match=rf"'{changed}\.id'"):
                    await top([item], user)

            async with anyio.create_task_group() as group:
                group.start_soon(read)
                await settle()
                {"item": item, "user": user}[changed].id = 3
                gate.set()

    async def test_refreshes_with_equal_arguments_of_different_types_run_separately(self, cache):
        seen = []

        @cache.cached_many("top:{item}:{limit}", fresh_for=60)
        async def top(items: list[str], limit: int) -> dict[str, str]:
            seen.append(items)
            return {item: repr(limit) for item in items}

        await cache.engine.ready()
        top.begin([(("a", 1), 0), (("b", 1), 0), (("a", True), 0)])
        await no_flights(cache)
        assert sorted(seen) == [["a"], ["a", "b"]]
        assert await top(["a"], 1) == {"a": "1"}
        assert await top(["a"], True) == {"a": "True"}


@pytest.mark.parametrize("make", CHANGING.values(), ids=CHANGING)
def test_snapshot_equals_original_has_same_type_and_ignores_later_changes(make):
    value = make()
    copied = snapshot(value)
    assert type(copied) is type(value)
    assert copied == value == make()
    change(value)
    assert copied == make() != value


def test_snapshot_of_mapping_proxy_copies_the_dict_behind_it():
    inner = {"page": [1]}
    copied = snapshot(types.MappingProxyType(inner))
    inner["page"].append(2)
    assert copied == {"page": [1]}


def test_canonical_refuses_query_params_whose_items_hide_repeated_names():
    """`?tag=a&tag=b` and `?tag=b` have the same items."""
    from starlette.datastructures import QueryParams

    with pytest.raises(TypeError, match="QueryParams"):
        canonical(QueryParams("tag=a&tag=b"))


def test_canonical_distinguishes_tuple_classes_and_order_of_ordered_dicts():
    assert canonical(Celsius(20)) != canonical(Fahrenheit(20)) != canonical((20,))
    first, other = collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1)
    assert canonical(first) != canonical(other)
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})
