"""Types that Redis cannot hold are refused where a loader is decorated, with either store; the part is named."""

import collections
import dataclasses
import enum
import functools
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import msgspec
import pydantic
import pytest

from swr import Cache, ConfigurationError, Fresh, NotModified, Policy
from tests.servers import Server

pytestmark = pytest.mark.anyio
T = TypeVar("T")


class Own:
    pass


@dataclasses.dataclass
class Holder:
    owner: Own


@dataclasses.dataclass
class Tree:
    children: "list[Tree]"
    owner: Own | None = None


class Named(NamedTuple):
    number: int
    owner: Own


class Typed(TypedDict):
    owner: Own


class Struct(msgspec.Struct):
    holder: Holder


@dataclasses.dataclass
class Box(Generic[T]):
    value: T


@dataclasses.dataclass(frozen=True)
class Point:
    x: int


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"


@dataclasses.dataclass
class Left:
    x: int


@dataclasses.dataclass
class Right:
    x: int


class Mixed(enum.Enum):
    A = 1
    B = "b"


class User(pydantic.BaseModel):
    name: str
    password: pydantic.SecretStr


class Excluded(pydantic.BaseModel):
    token: str = pydantic.Field(exclude=True)


class Team(pydantic.BaseModel):
    users: list[User]


class Arbitrary(pydantic.BaseModel, arbitrary_types_allowed=True):
    owner: Own


REFUSED = [
    (Own, r"Own"),
    (list[Own], r"\[\] is of type .*Own"),
    (Own | None, r"Own"),
    (Holder, r"\.owner is of type .*Own"),
    (dict[str, list[Holder]], r"\[\]\[\]\.owner"),
    (Tree, r"\.owner"),
    (Named, r"\.owner"),
    (Typed, r"\.owner"),
    (Struct, r"\.holder\.owner"),
    (Box[Own], r"\.value"),
    (tuple[int, Own], r"\[\]"),
    (Annotated[list[Own], msgspec.Meta(max_length=3)], r"\[\]"),
    (Iterable[int], "Iterable"),
    (AsyncIterator[int], "AsyncIterator"),
    (collections.OrderedDict[str, int], "OrderedDict"),
    (collections.defaultdict[str, int], "defaultdict"),
    (complex, "complex"),
    (dict[Point, int], r"keys that are objects"),
    (list[dict[Point, int]], r"\[\] has keys that are objects"),
    (Mixed, "Mixed"),
    (Cat | Dog, r"RootModel"),
    (list[Cat | Dog], r"RootModel"),
    (dict[str, Cat | Dog | None], r"RootModel"),
    (Annotated[Cat | Dog, pydantic.Field(discriminator="kind")], r"RootModel"),
    (Cat | int, "Cat"),
    (Left | Right, "Left"),
    (Left | dict[str, int], "Left"),
    (str | bytes, "bytes"),
    (User, r"\.password is a secret"),
    (list[User], r"\[\]\.password is a secret"),
    (Team, r"\.users\.password is a secret"),
    (Excluded, r"\.token has exclude=True"),
    (pydantic.SecretStr, "SecretStr"),
    (pydantic.BaseModel, "any model"),
    (Arbitrary, r"\.owner"),
]  # fmt: skip


@pytest.fixture(params=["memory", "redis"])
def cache(request):
    # Nothing connects before the first use.
    return Cache() if request.param == "memory" else Cache("redis://127.0.0.1:1/0")


@pytest.mark.parametrize(("kind", "complaint"), REFUSED, ids=[str(kind)[:60] for kind, _ in REFUSED])
def test_return_type_that_redis_cannot_hold_is_rejected_at_decoration(cache, kind, complaint):
    async def load(group: str): ...

    load.__annotations__["return"] = kind
    with pytest.raises(ConfigurationError, match=rf"test_shapes\..*load: .*{complaint}"):
        cache.cached("k:{group}", fresh_for=60)(load)

    async def load_many(groups: list[str]): ...

    load_many.__annotations__["return"] = dict[str, kind]
    with pytest.raises(ConfigurationError, match=rf"load_many: .*{complaint}"):
        cache.cached_many("many:{group}", fresh_for=60)(load_many)
    load.__annotations__["return"] = kind | Fresh[kind] | NotModified
    with pytest.raises(ConfigurationError, match=complaint):
        cache.cached("k:{group}", fresh_for=60)(load)


@pytest.mark.parametrize(("kind", "complaint"), REFUSED, ids=[str(kind)[:60] for kind, _ in REFUSED])
async def test_type_that_redis_cannot_hold_is_rejected_by_the_first_get_or_load(kind, complaint):
    async with Cache() as cache:
        with pytest.raises(ConfigurationError, match=complaint):
            await cache.get_or_load("k", lambda: None, Policy(60), returns=kind)


class Serialized(pydantic.BaseModel):
    password: pydantic.SecretStr

    @pydantic.field_serializer("password")
    def write(self, value: pydantic.SecretStr) -> str:
        return value.get_secret_value()


class Marked(pydantic.BaseModel):
    password: Annotated[
        pydantic.SecretStr, pydantic.PlainSerializer(lambda value: value.get_secret_value(), return_type=str)
    ]


class Whole(pydantic.BaseModel):
    password: pydantic.SecretStr

    @pydantic.model_serializer
    def write(self) -> dict[str, str]:
        return {"password": self.password.get_secret_value()}


class Pet(pydantic.RootModel[Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]]):
    pass


class Tagged(msgspec.Struct, tag=True):
    x: int


class TaggedToo(msgspec.Struct, tag=True):
    x: int


class Node(pydantic.BaseModel):
    children: "list[Node]" = []
    note: str = pydantic.Field("", exclude=True)
    secret: pydantic.SecretStr | None = None


class Key(msgspec.Struct, frozen=True, array_like=True):
    x: int


class Wrapped(pydantic.BaseModel, arbitrary_types_allowed=True):
    owner: Own

    @pydantic.field_serializer("owner")
    def write(self, value: Own) -> int:
        return 1

    @pydantic.field_validator("owner", mode="wrap")
    @classmethod
    def read(cls, value: Any, handler: Any) -> Own:
        return Own()


ACCEPTED = [
    (Any, None), (object, {"a": 1}), (list[object], [1, "a", None]), (list, [1]), (dict[str, object], {"a": [1]}),
    (Serialized, Serialized(password="x")), (Marked, Marked(password="x")), (Whole, Whole(password="x")),
    (Pet, Pet(Dog())), (list[Pet], [Pet(Cat()), Pet(Dog())]), (Tagged | TaggedToo, TaggedToo(1)),
    (list[Tagged | TaggedToo], [TaggedToo(1), Tagged(2)]), (Node, Node(children=[Node()])), (Cat | None, None),
    (dict[Key, int], {Key(1): 1}), (Box[int], Box(1)), (int | str | None, "a"), (Left | int | None, Left(1)),
]  # fmt: skip


class TestRedis:
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    @pytest.mark.parametrize(("kind", "value"), ACCEPTED, ids=[str(kind)[:60] for kind, _ in ACCEPTED])
    async def test_accepted_return_type_survives_the_round_trip_through_redis(self, server: Server, kind, value):
        def define(cache):
            async def load():
                return value

            load.__annotations__["return"] = kind
            return cache.cached("k", fresh_for=60)(load)

        async with Cache(server.url) as cache, Cache(server.url) as other:
            await define(cache)()
            outcome = await define(other).outcome()
            assert outcome.state.value == "fresh"
            assert outcome.value == value
            assert type(outcome.value) is type(value)


def test_model_with_its_own_serializer_and_validator_is_accepted(cache):
    @cache.cached("k", fresh_for=60)
    async def load() -> Wrapped: ...


async def test_type_defined_after_decoration_is_resolved_at_the_first_call():
    async with Cache() as cache:

        @cache.cached("k", fresh_for=60)
        async def load() -> "Later":
            return Later(5)

        @dataclasses.dataclass
        class Later:
            x: int

        load.__wrapped__.__globals__["Later"] = Later
        try:
            assert await load() == Later(5)
        finally:
            del load.__wrapped__.__globals__["Later"]


async def test_model_with_undefined_parts_raises_until_it_is_rebuilt():
    class Forward(pydantic.BaseModel):
        part: "Part | None" = None  # noqa: F821  # the name is missing on purpose

    async with Cache() as cache:

        @cache.cached("k", fresh_for=60)
        async def load() -> Forward:
            return Forward(part=Cat())

        with pytest.raises(ConfigurationError, match=r"load cannot be resolved: .*Forward is not fully defined"):
            await load()
        Forward.model_rebuild(_types_namespace={"Part": Cat})
        assert await load() == Forward(part=Cat())


async def test_undefined_annotation_raises_at_the_first_call():
    async with Cache() as cache:

        @cache.cached("k", fresh_for=60)
        async def load() -> "Nowhere":  # noqa: F821  # the name is missing on purpose
            return 5

        with pytest.raises(ConfigurationError, match=r"load cannot be resolved: .*Nowhere.*TYPE_CHECKING"):
            await load()
        with pytest.raises(ConfigurationError, match="cannot be resolved"):
            await cache.get_or_load("x", lambda: None, Policy(60), returns=list[Unfinished])


class Unfinished(msgspec.Struct):
    part: "Nowhere"  # noqa: F821  # the name is missing on purpose


def test_annotation_that_is_not_a_type_raises_at_decoration(cache):
    with pytest.raises(ConfigurationError, match="is not a type"):

        @cache.cached("k", fresh_for=60)
        async def load() -> "int | 'str'": ...


@functools.cache
def tables():
    """Two tables, one of which refers to the other."""
    sqlmodel = pytest.importorskip("sqlmodel")

    class City(sqlmodel.SQLModel, table=True):
        id: int | None = sqlmodel.Field(default=None, primary_key=True)

    class Street(sqlmodel.SQLModel, table=True):
        id: int | None = sqlmodel.Field(default=None, primary_key=True)
        city_id: int | None = sqlmodel.Field(default=None, foreign_key="city.id")
        city: City | None = sqlmodel.Relationship()

    return City, Street


def test_rejection_of_a_model_with_a_relationship_names_its_field(cache):
    City, Street = tables()
    with pytest.raises(ConfigurationError, match=r"\[\]\.city is a relationship"):

        @cache.cached("streets", fresh_for=60)
        async def streets() -> list[Street]: ...

    @cache.cached("cities", fresh_for=60)
    async def cities() -> list[City]: ...
