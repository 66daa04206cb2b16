"""A load that fails for many callers: what each raises, what is logged of it, and what it keeps alive."""

import gc
import json
import logging
import traceback
import weakref
from dataclasses import dataclass

import anyio
import anyio.lowlevel
import attrs
import httpx
import pydantic
import pydantic_core
import pytest
from fastapi import FastAPI

from swr import Cache, LoadTimeout
from swr.engine.failure_log import FailureLog
from swr.engine.failures import another, for_caller, for_later, of_loader, shortened, text_of
from swr.testing import FakeClock
from tests.fleet import settle

pytestmark = pytest.mark.anyio

CALLERS = 300


class Refused(Exception):
    """Keeps what it is given and hands a sentence on, as many an error of an application does."""

    def __init__(self, group, limit=100):
        super().__init__(f"no ranking of {group}")
        self.group, self.limit = group, limit


class Slotted(Exception):
    __slots__ = ("code",)


class Unreachable(ConnectionError):
    def __init__(self, host):
        super().__init__(111, f"{host} refused", host)
        self.host = host


@attrs.define
class Attrs(Exception):
    code: int


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Statement(Exception):
    """Says how it is pickled, as many an error of a database driver does."""

    def __init__(self, text, cause):
        super().__init__(text)
        self.cause = cause

    def __reduce__(self):
        return type(self), (self.args[0], self.cause)


class Grouped(ExceptionGroup):
    """What a task group of a loader raises."""


def make(kind, group):
    """Return an exception of a kind, about a group."""
    if kind is Statement:
        return Statement(group, OSError(1))
    return Grouped(group, [KeyError(1), OSError(2)]) if kind is Grouped else kind(group)


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("keep it here")


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("it says nothing")


class Itself(pydantic_core.PydanticCustomError):
    """Has state that nothing shows, and no copy."""

    def __copy__(self):
        return self


class Other(Itself):
    def __copy__(self):
        return Itself("a", "b")


class Unmakeable(Exception):
    def __new__(cls, *args):
        if not args:
            raise TypeError("give it something")
        return super().__new__(cls)


class Row(pydantic.BaseModel):
    miles: int


def raised(call):
    try:
        call()
    except Exception as error:
        return error.with_traceback(None)


def slotted():
    error = Slotted("x")
    error.code = 3
    return error


def unmakeable():
    error = Unmakeable(1)
    error.args = ()
    return error


ERRORS = [
    slotted(),
    Slotted("without a code"),
    Attrs(3),
    Frozen(3),
    Statement("SELECT", OSError(1)),
    Unpicklable(1),
    unmakeable(),
    raised(lambda: Row(miles="far")),
    raised(lambda: json.loads("{")),
    raised(lambda: compile("1 +", "x", "exec")),
    raised(lambda: b"\xff".decode()),
    raised(lambda: None.x),
    ImportError("no", name="x", path="y"),
    SystemExit(3),
    KeyboardInterrupt(),
    StopAsyncIteration(3),
    httpx.ReadTimeout("slow", request=httpx.Request("GET", "http://x")),
    Refused("ATL"),
    KeyError("ATL"),
    OSError(2, "No such file", "/ranking"),
    Unreachable("db.example"),
    ConnectionRefusedError(111, "refused"),
    LoadTimeout("k", 3),
    ValueError(),
]


def parts(error):
    """Return what an exception says, other than where it was raised."""
    names = ("filename", "errno", "code", "reason", "object", "start", "text", "name", "path", "value", "obj", "lineno")
    return (
        type(error),
        error.args,
        str(error),
        error.__dict__,
        [getattr(error, name, None) for name in names],
    )


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_copy_of_an_exception_has_the_same_content_without_traceback(error):
    if not isinstance(error, (pydantic.ValidationError, Frozen)):
        error.add_note("while it was asked for")
    copied = another(error)
    assert copied is not error
    assert parts(copied) == parts(error)
    assert (copied.__traceback__, copied.__cause__, copied.__context__) == (None, None, None)


def test_copy_of_an_exception_group_has_copies_of_its_members():
    group = ExceptionGroup("two", [Slotted("x"), ExceptionGroup("inner", [Refused("ATL")])])
    try:
        raise group.exceptions[0] from LookupError("why")
    except Slotted as error:
        frame = error.__traceback__
    copied = another(group)
    assert (type(copied), copied.message, str(copied)) == (ExceptionGroup, "two", str(group))
    assert copied.exceptions[0].__traceback__ is None
    assert copied.exceptions[1].exceptions[0].group == "ATL"
    for_one = for_caller(group, None, is_last=False)
    assert for_one.exceptions[0] is not group.exceptions[0]
    assert for_one.exceptions[0].__traceback__ is frame
    assert isinstance(for_one.exceptions[0].__cause__, LookupError)


def test_note_added_by_one_caller_is_not_seen_by_others():
    error = ValueError("x")
    error.add_note("of the loader")
    first, second = (for_caller(error, None, is_last=False) for _ in range(2))
    first.add_note("of the first")
    assert second.__notes__ == error.__notes__ == ["of the loader"]


@pytest.mark.parametrize(
    "error",
    [Itself("a", "b"), Other("a", "b"), ExceptionGroup("two", [Itself("a", "b")])],
    ids=lambda error: type(error).__name__,
)
def test_exception_that_a_copy_might_change_is_not_copied(error):
    assert another(error) is None
    assert for_caller(error, None, is_last=False) is error
    assert "swr.errors" in type(for_later(error)).__module__


async def caught(call):
    """Return what a call raises, through a few frames of the caller's own that wait in between."""

    async def frame(depth):
        try:
            return await (frame(depth - 1) if depth else call())
        finally:
            await anyio.lowlevel.checkpoint()

    try:
        await frame(8)
    except BaseException as error:
        return error


async def all_caught(number, call):
    """Return what each of so many callers raises that call at once."""
    errors = []

    async def one():
        errors.append(await caught(call))

    async with anyio.create_task_group() as group:
        for _ in range(number):
            group.start_soon(one)
    return errors


def lines(error):
    """Return how many frames the tracebacks of an exception have. (In the text, equal ones are one line.)"""
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return len(list(traceback.walk_tb(error.__traceback__))) + sum(map(lines, inner))


@pytest.mark.uncounted
@pytest.mark.parametrize("kind", [Refused, Slotted, Statement, Frozen, Grouped, KeyboardInterrupt])
async def test_hundred_callers_of_a_failing_load_get_tracebacks_as_long_as_for_one(kind):
    async with Cache() as cache:

        @cache.cached("top:{group}", fresh_for=60)
        async def top(group):
            await anyio.sleep(0.01)
            raise make(kind, group) from LookupError("no table")

        one = await caught(lambda: top("ATL"))
        errors = await all_caught(100, lambda: top("ATL"))
    assert len(errors) == 100
    assert {str(error) for error in errors} == {str(one)}
    assert {(type(error), type(error.__cause__)) for error in errors} == {(type(one), LookupError)}
    # The frames of the loader are there, and those of one caller.
    assert all("raise make(kind, group)" in "".join(traceback.format_exception(error)) for error in errors)
    assert {lines(error) for error in errors} == {lines(one)}


async def test_large_exception_group_is_not_copied_in_full_for_each_caller():
    """A loader that calls a hundred services in a task group raises such a group."""
    async with Cache() as cache:

        @cache.cached("k", fresh_for=60)
        async def load():
            await anyio.sleep(0.01)
            raise ExceptionGroup("all", [ValueError(number) for number in range(100)])

        errors = await all_caught(20, load)
    assert len({id(error) for error in errors}) == 20
    assert len({id(error.exceptions[0]) for error in errors}) == 20
    # That of the one who raises the failure itself, and that of all others.
    assert len({id(error.exceptions[99]) for error in errors}) == 2
    assert {len(error.exceptions) for error in errors} == {100}
    # What is kept for later leads to nothing that the load worked with.
    kept = for_later(errors[0])
    assert not {id(member) for member in kept.exceptions} & {id(member) for member in errors[0].exceptions}


def fallen(error, depth=1):
    """Return an exception that has passed so many functions, which do not call themselves."""

    def fall(depth):
        if not depth:
            raise error
        fall_on(depth - 1)

    def fall_on(depth):
        fall(depth)

    try:
        fall(depth)
    except Exception:
        return error


def chained(error, times, *, by="__cause__"):
    """Return the last of so many exceptions, each raised from the one before."""
    for number in range(times):
        after = fallen(Refused(number))
        setattr(after, by, error)
        error = after
    return error


def nested(error, times):
    for _ in range(times):
        error = ExceptionGroup("inner", [error])
    return error


def group_of(errors):
    return ExceptionGroup("all", list(errors))


LONG = {
    "a chain of causes": lambda: chained(OSError(1), 100),
    "a chain of contexts": lambda: chained(OSError(1), 100, by="__context__"),
    "a cause without a copy": lambda: chained(chained(Itself("a", "b"), 100).with_traceback(None), 2),
    "a group of failures": lambda: group_of(fallen(Refused(number)) for number in range(100)),
    "a group of chains": lambda: group_of(chained(OSError(number), 20) for number in range(8)),
    "groups in groups": lambda: nested(fallen(Refused("ATL")), 100),
    "a group as the cause": lambda: chained(group_of(chained(OSError(1), 9) for _ in range(30)), 1),
    "functions that call one another": lambda: fallen(Refused("ATL"), 200),
    "a cause that has passed many functions": lambda: chained(fallen(OSError(1), 200), 1),
}


def reached(error):
    """Return what is found from an exception: its causes and contexts, and members of groups."""
    found, waiting = {}, [error]
    while waiting:
        if (each := waiting.pop()) is not None and id(each) not in found:
            found[id(each)] = each
            waiting += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
    return list(found.values())


@pytest.mark.parametrize("failure", LONG.values(), ids=LONG)
async def test_one_caller_gets_a_long_exception_in_full_and_others_a_bounded_part(failure):
    error = failure()
    frames = len(list(traceback.walk_tb(error.__traceback__)))
    whole = reached(error)
    async with Cache() as cache:

        @cache.cached("k", fresh_for=60)
        async def load():
            await anyio.sleep(0.01)
            raise error

        *others, last = sorted(await all_caught(20, load), key=lambda each: hasattr(each, "__notes__"), reverse=True)
    assert last is error
    assert set(map(id, whole)) <= set(map(id, reached(last)))
    assert len(list(traceback.walk_tb(last.__traceback__))) > frames
    assert {(type(each), str(each)) for each in others} == {(type(error), str(error))}
    assert {len(getattr(each, "exceptions", ())) for each in others} == {len(getattr(error, "exceptions", ()))}
    assert all("one of the callers" in each.__notes__[-1] for each in others)
    # Each has at most five of its own, and frames of five. The others have in common what else they have.
    assert len({id(each) for other in others for each in reached(other)}) <= 19 * 5 + len(whole)
    for other in others:
        with_frames = [each for each in reached(other) if each.__traceback__ is not None]
        assert len(with_frames) <= 5
        assert max(len(list(traceback.walk_tb(each.__traceback__))) for each in with_frames) < 64 + 40


def test_short_exception_is_not_shortened():
    error = chained(ExceptionGroup("two", [Refused("ATL"), Refused("JFK")]), 1)
    error.__cause__.__cause__ = OSError(1)
    assert shortened(error, error.__traceback__) is None


def test_shortened_exception_keeps_its_notes_and_whether_its_context_is_suppressed():
    error = chained(chained(OSError(1), 9), 1, by="__context__")
    error.add_note("of the loader")
    short, _ = shortened(error, error.__traceback__)
    assert (short.__cause__, short.__suppress_context__) == (None, False)
    assert str(short.__context__) == str(error.__context__)
    assert short.__notes__[0] == "of the loader"
    assert error.__notes__ == ["of the loader"]
    hidden = group_of(chained(OSError(1), 9) for _ in range(2))
    hidden.__context__, hidden.__suppress_context__ = OSError(2), True
    short, _ = shortened(hidden, None)
    assert (short.__cause__, short.__context__, short.__suppress_context__) == (None, None, True)


def test_long_exception_that_cannot_be_copied_is_not_shortened():
    assert shortened(group_of([fallen(OSError(1)) for _ in range(9)] + [Itself("a", "b")]), None) is None


@pytest.mark.parametrize("is_plain", [False, True])
async def test_traceback_of_a_failed_load_omits_the_engines_frames(is_plain):
    async with Cache() as cache:

        def fail():
            raise ValueError("wrong")

        async def fail_later():
            fail()

        load = cache.cached("k", fresh_for=60)(fail if is_plain else fail_later)
        error = await caught(load)
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    # Between the caller and the loader there is what the caller has called, and nothing that has run the load.
    assert frames[-1] == "fail"
    assert not {"_fly", "_ask_and_load"} & set(frames)
    assert "run_sync" not in frames


def test_traceback_without_a_loader_is_kept_whole():
    assert of_loader(None) is None
    namespace = {"__name__": "swr.somewhere"}
    exec("def fail():\n    raise ValueError", namespace)
    try:
        namespace["fail"]()
    except ValueError as error:
        inner = error.__traceback__.tb_next
    assert of_loader(inner) is inner


@pytest.mark.uncounted
async def test_callers_that_raise_the_only_member_of_a_group_have_separate_tracebacks():
    """Starlette's BaseHTTPMiddleware unwraps a loader's exception group in this way."""
    async with Cache() as cache:

        @cache.cached("top:{group}", fresh_for=60)
        async def top(group):
            async with anyio.create_task_group():
                await anyio.sleep(0.01)
                raise Refused(group)

        async def unwrapped():
            try:
                await top("ATL")
            except ExceptionGroup as group:
                raise group.exceptions[0] from None

        one = await caught(unwrapped)
        errors = await all_caught(CALLERS, unwrapped)
    assert {lines(error) for error in errors} == {lines(one)}


async def test_exception_whose_str_fails_still_leads_to_the_fallback():
    clock = FakeClock()
    async with Cache(clock=clock) as cache:
        is_down = False

        @cache.cached("top", fresh_for=60, stale_if_error=600)
        async def top():
            if is_down:
                raise Mute
            return 1

        await top()
        is_down = True
        clock.advance(61)
        for _ in range(2):
            outcome = await top.outcome()
            assert (outcome.value, type(outcome.error)) == (1, Mute)
        assert text_of(outcome.error) == "Mute"
        assert text_of(ValueError(1)) == "ValueError: 1"


@pytest.mark.uncounted
async def test_callers_that_raise_the_error_of_a_fallback_have_separate_tracebacks():
    clock = FakeClock()
    async with Cache(clock=clock) as cache:
        is_down = False

        @cache.cached("top:{group}", fresh_for=60, stale_if_error=600)
        async def top(group):
            await anyio.sleep(0.01)
            if is_down:
                raise Refused(group)
            return group

        @cache.cached_many("tops:{group}", fresh_for=60, stale_if_error=600)
        async def tops(groups):
            await anyio.sleep(0.01)
            if is_down:
                raise Refused("ATL")
            return dict.fromkeys(groups, 1)

        async def strict():
            outcome = await top.outcome("ATL")
            if outcome.error is not None:
                raise outcome.error

        async def strict_of_many():
            outcome = (await tops.outcome(["ATL"]))["ATL"]
            if outcome.error is not None:
                raise outcome.error

        for call in (strict, strict_of_many):
            is_down = False
            await call()
            is_down = True
            clock.advance(61)
            errors = await all_caught(CALLERS, call)
            assert {str(error) for error in errors} == {"no ranking of ATL"}
            assert max(map(lines, errors)) < 40


@pytest.mark.uncounted
async def test_failing_batch_load_gives_each_caller_a_separate_traceback():
    async with Cache() as cache:

        @cache.cached_many("top:{group}", fresh_for=60)
        async def top(groups):
            await anyio.sleep(0.01)
            raise Refused(len(groups))

        groups = [str(number) for number in range(CALLERS)]

        async def all_of_them():
            return await top(groups)

        one = await caught(all_of_them)
        errors = await all_caught(20, all_of_them)
    assert {lines(error) for error in errors} == {lines(one)}


async def test_one_item_of_a_failed_batch_gets_the_long_exception_in_full():
    clock = FakeClock()
    async with Cache(clock=clock) as cache:
        is_down = False

        @cache.cached_many("top:{group}", fresh_for=60, stale_if_error=600)
        async def top(groups):
            if is_down:
                raise chained(OSError(1), 50)
            return dict.fromkeys(groups, 1)

        groups = list("abcdefgh")
        await top(groups)
        is_down = True
        clock.advance(61)
        errors = [outcome.error for outcome in (await top.outcome(groups)).values()]
    assert sorted(len(reached(error)) for error in errors) == [*[5] * 7, 51]
    assert sum(hasattr(error, "__notes__") for error in errors) == 7


@pytest.mark.uncounted
async def test_traceback_of_a_failing_endpoint_is_as_long_for_200_requests_as_for_one():
    cache = Cache()
    app = FastAPI()

    @cache.cached("top:{group}", fresh_for=60)
    async def load(group):
        await anyio.sleep(0.01)
        raise Refused(group)

    @app.get("/top/{group}")
    async def top(group: str):
        return await load(group)

    async with cache, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        one = await caught(lambda: client.get("/top/ATL"))
        errors = await all_caught(200, lambda: client.get("/top/ATL"))
    assert max(map(lines, errors)) == lines(one)


@pytest.mark.uncounted
async def test_exception_kept_for_backoff_keeps_no_object_of_the_load_alive(caplog):
    class Session:
        pass

    sessions = weakref.WeakSet()
    # The records of the log would hold the failures, too.
    caplog.set_level(logging.ERROR, "swr")
    is_down = False
    clock = FakeClock()

    async with Cache(clock=clock) as cache:

        @cache.cached("top:{group}", fresh_for=60, stale_if_error=600)
        async def top(group):
            session = Session()
            sessions.add(session)
            if is_down:
                raise Slotted(group) if group == "slotted" else Refused(group)
            return group

        groups = ["slotted", *map(str, range(50))]
        for group in groups:
            await top(group)
        is_down = True
        clock.advance(61)
        for group in groups:
            outcome = await top.outcome(group)
            assert isinstance(outcome.error, (Refused, Slotted))
            if group in groups[:2]:
                # What was kept for the backoff says the same. Who is told of it once more takes the frames out of it.
                again = await top.outcome(group)
                assert str(outcome.error) in str(again.error)
                assert again.error.__traceback__ is None
        del outcome, again
        await settle()
        gc.collect()
        assert not sessions


@pytest.mark.uncounted
async def test_failed_load_keeps_no_object_alive_after_its_error_is_caught():
    class Session:
        pass

    sessions = weakref.WeakSet()
    async with Cache() as cache:

        @cache.cached("top:{group}", fresh_for=60)
        async def top(group):
            session = Session()
            sessions.add(session)
            await anyio.lowlevel.checkpoint()
            raise Refused(group)

        for number in range(10):
            with pytest.raises(Refused):
                await top(number)
        await settle()
        gc.collect()
        assert not sessions


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_loader_that_fails_for_thousands_of_keys_logs_ten_warnings(caplog):
    clock = FakeClock()
    async with Cache(clock=clock, drain_for=300) as cache:

        @cache.cached_many("rank:{group}", fresh_for=60, stale_for=600)
        async def rank(groups: list[int]) -> dict[int, int]:
            if clock() > began + 60:
                raise Refused("all")
            return {group: group for group in groups}

        began = clock()
        groups = list(range(3000))
        await rank(groups)
        clock.advance(61)
        assert await rank(groups) == {group: group for group in groups}
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 10
    assert "further failures of 'rank:{group}'" in lines[-1]


def test_log_limit_for_failures_holds_per_loader_and_minute(caplog):
    failures = FailureLog()
    for _ in range(20):
        failures.write("a", "loader", ValueError("broken"), "then", 1000.0)
    failures.write("b", "/route", ValueError("broken"), "then", 1001.0)
    assert len(caplog.records) == 11
    failures.write("a", "loader", ValueError("broken"), "then", 1060.0)
    assert len(caplog.records) == 12
    assert caplog.records[9].getMessage().endswith("no further failures of 'loader' for 60 s")
