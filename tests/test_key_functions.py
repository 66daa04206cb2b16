"""`key=` as a function: the same loader by the same arguments, and no key that another call or loader may have."""

import contextvars
import enum
import functools
import uuid

import anyio
import pytest

from swr import Cache, ConfigurationError, State
from swr.testing import FakeClock
from tests.fleet import until

pytestmark = pytest.mark.anyio


class User:
    def __init__(self, id: int) -> None:
        self.id = id


@pytest.fixture
def anyio_backend(request):
    """That of a place, for tests of what is the same everywhere."""
    if "place" not in request.fixturenames:
        return "asyncio"
    return request.getfixturevalue("place").rpartition(" ")[2]


@pytest.fixture
async def cache(place_url):
    async with Cache(place_url) as cache:
        yield cache


@pytest.fixture
def memory():
    return Cache()


def define(cache, **options):
    @cache.cached(**{"key": lambda user, page=1: f"user:{user.id}:{page}", "fresh_for": 60, **options})
    async def timeline(user: User, page: int = 10) -> list[int]:
        loads.append(page)
        return [user.id, page]

    loads = timeline.loads = []
    return timeline


async def test_key_function_gives_the_key_for_every_method_of_a_loader(cache):
    timeline = define(cache)
    assert await timeline(User(3)) == await timeline(user=User(3), page=10) == [3, 10]
    assert await timeline(User(3), 1) == [3, 1]
    assert timeline.loads == [10, 1]
    assert timeline.key(User(3)).endswith(".timeline:user:3:10")
    assert (await timeline.outcome(User(3))).state is State.FRESH
    await timeline.invalidate(User(3))
    assert await timeline.peek(User(3)) is None
    assert await timeline.set([0], User(3))
    assert await timeline(User(3)) == [0]
    assert await timeline.refresh(User(3)) == [3, 10]
    await timeline.mark_stale(User(3))
    await timeline.invalidate_all()
    assert [await timeline.peek(User(3)), await timeline.peek(User(3), 1)] == [None, None]
    assert await anyio.to_thread.run_sync(timeline.sync, User(4)) == [4, 10]


async def test_key_function_of_a_batch_loader_makes_one_key_per_item(cache):
    asked = []

    @cache.cached_many(key=lambda group, limit: f"{group.upper()}:{limit}", fresh_for=60)
    async def top(groups: list[str], limit: int = 5) -> dict[str, int]:
        asked.append(groups)
        return dict.fromkeys(groups, limit)

    assert await top(["a", "b"]) == {"a": 5, "b": 5}
    assert await top(["b", "c"]) == {"b": 5, "c": 5}
    assert asked == [["a", "b"], ["c"]]
    assert top.key("a", 6).endswith(".top:A:6")
    await top.invalidate(["a"])
    assert list(await top.peek(["a", "b"])) == ["b"]
    assert await top.set({"a": 1}, ["a"])
    assert await top(["a"]) == {"a": 1}


async def test_key_function_of_a_method_takes_self_or_ignores_it(cache):
    class Service:
        def __init__(self, region: str) -> None:
            self.region = region

        @cache.cached(key=lambda self, group: f"{self.region}:{group}", fresh_for=60)
        async def top(self, group: str) -> str:
            return self.region + group

        @cache.cached(key=lambda group: group, fresh_for=60, ignore=("self",))
        async def all(self, group: str) -> str:
            return self.region + group

    assert [await Service(region).top("x") for region in "ab"] == ["ax", "bx"]
    assert [await Service(region).all("x") for region in "ab"] == ["ax", "ax"]


@pytest.mark.parametrize(
    "key",
    [
        lambda a, /, b, *, c: f"{a}{b}{c}",
        lambda **named: "".join(str(named[name]) for name in "abc"),
        lambda *, c, **rest: f"{rest['a']}{rest['b']}{c}",
        lambda a, b, c, _form="{}{}{}".format: _form(a, b, c),
        functools.partial(lambda form, a, b, c: form.format(a, b, c), "{}{}{}"),
    ],
)
async def test_key_function_may_declare_its_parameters_in_any_form(memory, key):
    @memory.cached(key=key, fresh_for=60)
    async def load(a: int, b: int, c: int = 3) -> int:
        return a

    assert load.key(1, 2).endswith(":123")
    assert load.key(1, b=5, c=4).endswith(":154")


async def test_key_function_gets_variadic_arguments_as_the_loader_does(memory):
    @memory.cached(key=lambda *groups, **options: f"{groups}{options}", fresh_for=60)
    async def load(*groups: str, **options: int) -> int:
        return 1

    assert load.key("a", "b", limit=5).endswith(":('a', 'b'){'limit': 5}")


tenant = contextvars.ContextVar("tenant", default="nobody")


async def test_key_that_reads_a_context_variable_is_computed_on_each_call(cache):
    """If swr remembered the key by its arguments, one tenant would get another's answer."""

    @cache.cached(key=lambda group: f"{tenant.get()}:{group}", fresh_for=60)
    async def top(group: str) -> str:
        return tenant.get() + group

    answers = []
    for name in ("a", "b", "a"):
        tenant.set(name)
        answers.append(await top("x"))
    assert answers == ["ax", "bx", "ax"]


async def test_key_of_plain_arguments_is_computed_once(memory, monkeypatch):
    @memory.cached(key=lambda group, limit: str(group) + f":{limit}", fresh_for=60)
    async def top(group: str, limit: int = 1) -> str:
        return group

    first = await top("x")
    monkeypatch.setattr("swr.core.key_functions.KeyFunction.fill", None)
    assert await top("x") is first
    assert top.key("x").endswith(":x:1")


async def test_load_that_changes_the_arguments_of_its_key_is_refused(cache):
    timeline = define(cache)
    changed = User(5)

    @cache.cached(key=lambda user, filters: f"{user.id}:{filters}", fresh_for=60)
    async def load(user: User, filters: list[object]) -> int:
        user.id += 1
        filters.append(1)
        return user.id

    with pytest.raises(ConfigurationError, match=r"the key of a call of .*load changed from"):
        await load(changed, [])
    assert await load.peek(User(6), []) is None
    assert await timeline(User(7)) == [7, 10]


async def test_background_refresh_gets_the_arguments_as_they_were_at_the_read(place_url):
    clock = FakeClock()
    async with Cache(place_url, clock=clock) as cache:
        seen = []

        @cache.cached(key=lambda filters: ",".join(filters), fresh_for=60, stale_for=600)
        async def load(filters: list[str]) -> int:
            seen.append(list(filters))
            return 1

        await load(["a"])
        clock.advance(61)
        asked = ["a"]
        await load(asked)
        asked.append("b")
        await until(lambda: len(seen) == 2)
        assert seen == [["a"], ["a"]]


async def test_arguments_that_swr_cannot_snapshot_reach_the_loader(memory):
    @memory.cached(key=lambda users: ",".join(str(user.id) for user in users), fresh_for=60)
    async def load(users: list[User]) -> int:
        return len(users)

    assert await load([User(1), User(2)]) == 2
    assert load.key([User(1), User(2)]).endswith(":1,2")


class Region(str, enum.Enum):  # noqa: UP042  # its text is another one in an f-string
    """Not a StrEnum, so that an f-string writes its name."""

    EU = "eu"


def test_string_enum_gives_the_same_key_as_its_string(memory):
    @memory.cached(key=lambda region: region, fresh_for=60)
    async def top(region: str) -> int:
        return 1

    assert top.key(Region.EU) == top.key("eu")


async def returns_later() -> str:
    return "k"


class AsyncKey:
    async def __call__(self, group: str) -> str:
        return group


class KeyOfProcess:
    def make(self, group: str) -> str:
        return ",".join(str(hash(part)) for part in group)


class CallsHash:
    def __call__(self, group: str) -> str:
        return str(hash(group))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"key": lambda group: ",".join(str(hash(part)) for part in group)}, r"calls hash\(\)"),
        ({"key": functools.partial(lambda prefix, group: f"{prefix}{hash(group)}", "a")}, r"calls hash\(\)"),
        ({"key": functools.lru_cache(lambda group: f"{id(group)}")}, r"calls id\(\)"),
        ({"key": KeyOfProcess().make}, r"calls hash\(\)"),
        ({"key": CallsHash()}, r"calls hash\(\)"),
        ({"key": lambda group: str(group.__hash__())}, r"calls __hash__\(\)"),
        ({"key": "group:{group}"}, "is not a function"),
        ({"template": "t:{group}", "key": lambda group: group}, "give one of them"),
        ({"key": lambda: "k"}, "leaves out group"),
        ({"key": lambda group, limt: group}, "no parameter 'limt'"),
        ({"key": lambda group: str(hash(group))}, r"calls hash\(\), whose result differs"),
        ({"key": lambda group: f"{id}:{group}"}, r"calls id\(\), whose result differs"),
        ({"key": AsyncKey()}, "is async"),
        ({"key": dict.get}, "no parameter|does not say"),
        ({"key": type}, "does not say which parameters it takes"),
    ],
)
def test_key_function_that_cannot_work_is_refused_at_decoration(memory, options, reason):
    template = options.pop("template", None)
    with pytest.raises(ConfigurationError, match=reason):

        @memory.cached(template, fresh_for=60, **options)
        async def load(group: str) -> int:
            return 1


@pytest.mark.parametrize(
    "options", [{}, {"key": lambda groups: "k"}, {"template": "t:{group}", "key": lambda group: ""}]
)
def test_batch_loader_without_one_valid_key_or_template_is_refused(memory, options):
    with pytest.raises(ConfigurationError):

        @memory.cached_many(options.pop("template", None), fresh_for=60, **options)
        async def load(groups: list[str]) -> dict[str, int]:
            return {}


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (lambda user: user.id, "returned 5: a key is a string"),
        (lambda user: "", "returned '': a key is a string"),
        (lambda user: returns_later(), "returned <coroutine"),
        (lambda user: user.name, "raised AttributeError: .*name"),
        (lambda user: f"{user}", "returned .* the address of an object"),
    ],
)
async def test_key_function_without_a_valid_result_raises_an_error_naming_the_loader(memory, key, reason):
    @memory.cached(key=key, fresh_for=60)
    async def of_user(user: User) -> int:
        return 1

    with pytest.raises(ConfigurationError, match=rf"(?s)the key function of .*of_user {reason}"):
        await of_user(User(5))


def test_text_that_looks_like_an_object_address_is_a_valid_key(memory):
    @memory.cached(key=lambda text: text, fresh_for=60)
    async def search(text: str) -> int:
        return 1

    assert search.key("<a at 0x1>").endswith(":<a at 0x1>")


def test_template_that_could_make_keys_of_a_key_function_is_refused(memory):
    @memory.cached(key=lambda n: f"{n}", fresh_for=60)
    async def one(n: uuid.UUID) -> int:
        return 1

    with pytest.raises(ConfigurationError, match="would share their answers"):

        @memory.cached(one.template.replace("{key}", "a:b:{n}"), fresh_for=60)
        async def two(n: int) -> int:
            return 2


def test_second_key_function_loader_of_the_same_name_is_refused(memory):
    def make():
        @memory.cached(key=lambda n: f"{n}", fresh_for=60)
        async def load(n: int) -> int:
            return 1

    make()
    with pytest.raises(ConfigurationError, match="give each a template"):
        make()
