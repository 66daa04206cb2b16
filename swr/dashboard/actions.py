"""Actions of the dashboard on a cache. Each action is logged with the user who asked for it."""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

from swr.cache import Cache
from swr.dashboard.hub import Hub
from swr.dashboard.keys import Keys
from swr.errors import ConfigurationError, StoreUnavailable
from swr.http.request import tag_of_url
from swr.refreshers.queue.queue import Queue, known
from swr.reports.digest import Fault, decode_faults, encode
from swr.reports.faults import FAIL_NEXT, HANG, MOST
from swr.reports.reporter import cleaned
from swr.stores.tag_versions import ALL, Name, OfLoader, Soft

log = logging.getLogger("swr")

_TARGETS: Final = ("id", "key", "tag", "url", "loader", "all")
_LONGEST: Final = 4096
_LONGEST_ROW: Final = 200
# Seconds: how long a failure stays pending, the most that a load hangs, and the default.
_FAILS_WITHIN: Final = 60.0
_LONGEST_HANG: Final = 60.0
_HANGS_FOR: Final = 10.0


class Refused(Exception):
    """Raised if an action is refused.

    Parameters:
        text: says why.
        status: the status of the response.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Actions:
    """The actions on one cache.

    Parameters:
        cache: the cache.
        hub: has the store in Redis.
        keys: finds the key of an id.
        simulates: whether faults may be simulated.
    """

    def __init__(self, cache: Cache, hub: Hub, keys: Keys, *, simulates: bool) -> None:
        self._cache = cache
        self._hub = hub
        self._keys = keys
        self._simulates = simulates
        self._actions: dict[str, Callable[[dict[str, Any]], Awaitable[str]]] = {
            "refresh": self._refresh,
            "invalidate": self.invalidate,
            "mark-stale": self._mark_stale,
            FAIL_NEXT: self._fail_next,
            HANG: self._hang,
            "retry-dead": self._retry_dead,
            "purge-dead": self._purge_dead,
        }

    async def run(self, name: str, target: dict[str, Any], who: str) -> str:
        """Carry out an action; return a sentence that says what was done.

        Parameters:
            name: the name of the action.
            target: the target as the client sent it, unchecked; see `swr.dashboard.targets.Target`.
            who: the user who asks for the action, for the log.

        Raises:
            Refused: the action cannot be carried out.
        """
        action = self._actions.get(name)
        if action is None:
            raise Refused(f"there is no action {name[:40]!r}; there are {', '.join(self._actions)}", 404)
        return await self.logged(name, action, target, who)

    async def logged(
        self, name: str, action: Callable[[dict[str, Any]], Awaitable[str]], target: dict[str, Any], who: str
    ) -> str:
        """Carry out an action and log it; for the parameters see `run`."""
        try:
            await self._cache.engine.ready()
            done = await action(target)
        except (ConfigurationError, Refused) as error:
            status = error.status if isinstance(error, Refused) else 400
            log.warning("dashboard: %r asked for %r and was refused: %s", who, name, _in_one_line(cleaned(str(error))))
            raise Refused(str(error), status) from None
        except StoreUnavailable as error:
            log.warning("dashboard: %r asked for %r, and Redis did not confirm it: %s", who, name, error)
            raise Refused(f"Redis did not confirm it: {error}", 503) from None
        log.warning("dashboard: %r asked for %r: %s", who, name, _in_one_line(done))
        return done

    # -- entries ----------------------------------------------------------------------------------------------

    async def invalidate(self, target: dict[str, Any]) -> str:
        """Invalidate the entries of a target, or mark them stale if the target has `soft`."""
        soft = _is_true(target, "soft")
        done = "marked stale" if soft else "invalidated"
        kind, value = _only(target, _TARGETS)
        engine = self._cache.engine
        name: Name
        if kind in ("id", "key"):
            key = self._key(kind, value)
            await (engine.entries.mark_stale(key) if soft else engine.invalidate(key))
            return f"The key {self._keys.shown(key)['text']} was {done}."
        if kind == "tag":
            name, said = value, f"All that carries the tag {cleaned(value)} was {done}."
        elif kind == "url":
            name, said = tag_of_url(value), f"The responses to {self._shown_url(value)} were {done}."
        elif kind == "loader":
            name, said = OfLoader(value), f"All that the loader {value} has stored was {done}."
        else:
            name, said = ALL, f"Everything in the namespace {self._cache.namespace} was {done}."
        await engine.invalidate_tag(Soft(name) if soft else name)
        return said

    async def _mark_stale(self, target: dict[str, Any]) -> str:
        return await self.invalidate({**target, "soft": True})

    async def _refresh(self, target: dict[str, Any]) -> str:
        """Load a key again if swr can find its call in its text; otherwise mark it stale for the next read."""
        kind, value = _only(target, _TARGETS)
        if kind in ("id", "key") and not self._cache.engine.switch.is_off:
            key = self._key(kind, value)
            refresh = self._cache.refresh_of(key)
            if refresh is not None:
                self._cache.engine.start(_load, key, refresh)
                return f"The key {self._keys.shown(key)['text']} is being loaded."
        said = await self._mark_stale(target)
        return f"{said} The next read refreshes it."

    def _key(self, kind: str, value: str) -> str:
        key = self._keys.key_of(value) if kind == "id" else value
        if key is None:
            raise Refused("there is no key with this id any more: reload the page")
        return key

    def _shown_url(self, url: str) -> str:
        path, _, query = url.partition("?")
        return self._keys.url_text(path, query)

    # -- faults -----------------------------------------------------------------------------------------------

    async def _fail_next(self, target: dict[str, Any]) -> str:
        row = await self._simulate(FAIL_NEXT, target, 0.0, _FAILS_WITHIN)
        return f"The next load of {row} within {_FAILS_WITHIN:.0f} s fails."

    async def _hang(self, target: dict[str, Any]) -> str:
        seconds = target.get("seconds", _HANGS_FOR)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= _LONGEST_HANG:
            raise Refused(f"seconds must be a number above 0 and up to {_LONGEST_HANG:.0f}")
        row = await self._simulate(HANG, target, float(seconds), float(seconds))
        return f"Loads of {row} hang for the next {seconds:g} s."

    async def _simulate(self, kind: str, target: dict[str, Any], seconds: float, lasts: float) -> str:
        if not self._simulates:
            raise Refused("faults are not simulated here: swr.dashboard(..., simulate=True) allows it", 403)
        _, row = _only(target, ("row",), beside=("seconds",))
        if len(row) > _LONGEST_ROW or not row.isprintable():
            raise Refused("no loader and no route has such a name")
        fault = Fault(secrets.token_hex(8), kind, row, seconds, time.time() + lasts)
        store, reporter = self._hub.store, self._cache.report()
        before: Collection[Fault] = reporter.faults.pending()
        if store is not None:
            before = decode_faults(await store.digests.faults())
        faults = (*(one for one in before if one.until > time.time()), fault)
        if len(faults) > MOST:
            raise Refused(f"{MOST} faults are simulated already: wait until they have happened or expired", 409)
        if store is not None:
            await store.digests.simulate(encode(faults), max(one.until for one in faults) - time.time())
        reporter.faults.order(faults)
        return row

    # -- dead letters -----------------------------------------------------------------------------------------

    async def _retry_dead(self, target: dict[str, Any]) -> str:
        queue, keys = await self._letters(target)
        count = await queue.retry(keys)
        return f"{_letters(count)} of {queue.name} went back into it."

    async def _purge_dead(self, target: dict[str, Any]) -> str:
        queue, keys = await self._letters(target)
        count = await queue.purge(keys)
        return f"The dashboard threw away {_letters(count)} of {queue.name}."

    async def _letters(self, target: dict[str, Any]) -> tuple[Queue, list[str]]:
        name = target.get("queue")
        if not isinstance(name, str) or not {*target} <= {"queue", "id", "key"}:
            raise Refused("give the name of the queue, and the id of a dead letter; without an id, all are meant")
        store = self._hub.store
        queues = {} if store is None else await known(store)
        if name not in queues:
            raise Refused(f"there is no queue {name[:100]!r}", 404)
        if "id" not in target and "key" not in target:
            return queues[name], []
        kind, value = _only(target, ("id", "key"), beside=("queue",))
        return queues[name], [self._key(kind, value)]


def _in_one_line(text: str) -> str:
    """Return a text for the log, in which no character of a tag or a key can begin a new line."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


async def _load(key: str, refresh: Callable[[], Awaitable[Any]]) -> None:
    try:
        await refresh()
    except Exception as error:
        log.warning(
            "dashboard: the load of %r failed (%s: %s); the stored entry stays", key, type(error).__name__, error
        )


def _letters(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count} dead letters"


def _only(target: dict[str, Any], kinds: Collection[str], beside: Collection[str] = ("soft",)) -> tuple[str, str]:
    """Return the field that a target has of `kinds`, and its value.

    Parameters:
        target: the target.
        kinds: the names of fields, of which the target must have exactly one.
        beside: the names of further fields that it may have.

    Raises:
        Refused: the target has none or several of `kinds`, an unknown field, or an invalid value.
    """
    strange = sorted(target.keys() - {*kinds, *beside})
    if strange:
        raise Refused(f"{strange[0][:40]!r} is not known here; there are {', '.join((*kinds, *beside))}")
    named = [kind for kind in kinds if kind in target]
    if len(named) != 1:
        raise Refused(f"name one of {', '.join(kinds)}, and not {' and '.join(named) or 'none'}")
    (kind,) = named
    if kind == "all":
        if not _is_true(target, "all"):
            raise Refused("all must be true; or name one of " + ", ".join(kinds))
        return kind, ""
    value = target[kind]
    if not isinstance(value, str) or not value or len(value) > _LONGEST:
        raise Refused(f"{kind} must be text of 1 to {_LONGEST} characters")
    return kind, value


def _is_true(target: dict[str, Any], name: str) -> bool:
    """Return the boolean value of a field, which is text in a form.

    Raises:
        Refused: the value is not a boolean.
    """
    value = target.get(name, False)
    if value in ("true", "1", "yes", True):
        return True
    if value in ("false", "0", "no", False):
        return False
    raise Refused(f"{name} must be true or false")
