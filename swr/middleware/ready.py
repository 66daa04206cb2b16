"""The fast path of a hit: local entries whose messages are ready, found by the request as it was sent."""

import functools
import logging
from collections.abc import Callable, Container
from typing import Any, Final

from swr.core.decision import is_fresh
from swr.engine.engine import Engine
from swr.entry import State
from swr.events import Answered
from swr.http.clients import Told
from swr.http.fields import Headers, is_too_long
from swr.http.request import MOST_FIELDS, URL, Fields, is_long, shown, url_key
from swr.http.request_fields import FIELD_NAMES, FIELD_VALUES, SELECTING
from swr.http.selecting import fields_of, variant_key
from swr.http.stored_response import StoredResponse, Varies, make_ready
from swr.middleware.messages import REFRESHES_ALREADY
from swr.middleware.rules import Rule, first_match
from swr.middleware.selection import Selection
from swr.middleware.telling import told_of
from swr.stats.counts import Layer
from swr.stores.local import LocalCache, Slot

log = logging.getLogger("swr")

# A URL that varies, the names by which it varies, and the fields of a request that select beside those of the URL.
Choice = tuple[URL, tuple[str, ...], Fields]

# Selecting names that read all fields of a request.
_OF_ALL_FIELDS: Final = frozenset({FIELD_NAMES, FIELD_VALUES})

# How many lists of names are remembered so that URLs with equal ones share one object.
_MOST_SHARED: Final = 256


class ReadySlots:
    """The slots of one app with ready messages.

    A slot is found by the URL as it was sent. If the URL varies, it is found by the URL and the fields that select.

    Parameters:
        engine: the engine of the cache.
        local: the local cache.
        rules: the rules for GET.
        selection: what selects responses.
        use: notes that a request was answered with the variant of a key; see `Variants.use`.

    Attributes:
        slots: the slots by URL or by `Choice`.
    """

    def __init__(
        self,
        engine: Engine,
        local: LocalCache,
        rules: list[Rule],
        selection: Selection,
        use: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._local = local
        self._rules = rules
        self._reads_query = any(rule.reads_query for rule in rules)
        self._selection = selection
        self._use = use
        self.slots: dict[Any, Slot] = local.aliases_of(selection.version)
        # The slots of the fields that URLs vary by. Their `ready` is what `_selecting` returns.
        self._varying: dict[URL, Slot] = local.aliases_of((selection.version, Varies))

    def find(self, url: URL, condition: bytes | None, headers: Headers) -> Slot | None:
        """Return the slot that answers a plain request, with ready messages; None if none can be sent as it is.

        Parameters:
            url, condition: see `swr.http.request.plain_url`.
            headers: the fields of the request.
        """
        if len(headers) > MOST_FIELDS:
            return None
        varying = self._varying.get(url)
        if varying is not None and varying.ready is not None:
            now, (names, fields) = self._local.clock.time(), varying.ready
            slot = self.slots.get((url, names, _chosen(headers, fields)))
            if slot is not None and now < slot.fresh_until and now < slot.trust.until and now < varying.trust.until:
                varying.is_used = True
                return slot
        return self._prepare(url, condition, headers)

    def _prepare(self, url: URL, condition: bytes | None, headers: Headers) -> Slot | None:
        """Make the messages of a response ready, and return its slot; None if the response cannot be sent as it is."""
        if self._reads_query and is_too_long([], url[3], url[5]):
            # swr reads no such target. But a rule may shorten its query to that of a stored response.
            return None
        selection, key = self._selection, self._key_of(url)
        slot, now = self._local.get(key), self._local.clock.time()
        if slot is None or now >= slot.trust.until:
            return None
        alias: URL | Choice | None = None if is_long(url) else url
        varying = slot if type(slot.value) is Varies else None
        if varying is not None:
            if not _OF_ALL_FIELDS.isdisjoint(varying.value.names) or is_too_long(headers):
                return None
            varying.is_used, varying.ready = True, _selecting(varying.value.names)
            names, fields = varying.ready
            chosen = _chosen(headers, fields)
            alias = None if is_long(url, chosen) else (url, names, chosen)
            # No field of a plain request is a credential.
            key = variant_key(key, names, headers, (), selection.ignored, selection.digest)
            slot = self._local.get(key)
            if slot is None or now >= slot.trust.until:
                return None
        if type(slot.value) is not StoredResponse or slot.value.validate:
            return None
        if is_fresh(slot.entry, now) and alias is not None:
            # Of the ways to write a request, one is the alias: each second swr takes the one that comes first.
            is_due = now >= slot.fresh_until
            self._local.alias(slot, alias, self.slots, replaces=is_due)
            if varying is not None:
                self._local.alias(varying, url, self._varying, replaces=is_due)
        found = self._with_messages(slot, url, condition, now)
        if varying is not None and found is not None:
            self._use(key)
        return found

    def _with_messages(self, slot: Slot, url: URL, condition: bytes | None, now: float) -> Slot | None:
        """Make the messages of a slot ready, and return the slot; None if it cannot be sent as it is."""
        fresh = is_fresh(slot.entry, now)
        # While a refresh is under way or the key backs off, a stale hit can use ready messages, too.
        if not (fresh or (now < slot.entry.stale_until and self._engine.backs_off(slot.key))):
            return None
        if slot.ready is None or now >= slot.ready.until:
            slot.ready = make_ready(slot.entry, now, self._told(url, slot.value), slot.ready)
        if fresh:
            slot.fresh_until, slot.hits = slot.ready.until, slot.origin.tally.fresh
            return slot
        slot.hits = slot.origin.tally.stale
        if condition in (None, slot.ready.etag):
            self._engine.publish_read(slot.key, slot.entry, State.STALE, None, Layer.L1)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("GET %r: answer (stale) from the local cache; %s", shown(url), REFRESHES_ALREADY)
        return slot

    def _key_of(self, url: URL) -> str:
        """Return the key of a URL, of whose query the rule that applies may select a part."""
        query = url[5]
        if query and self._reads_query:
            rule, _ = first_match(self._rules, url[3], url[2])
            url = url if rule is None else (*url[:5], rule.keyed_query(query), url[6])
        return url_key(url, self._selection.digest, self._selection.version)

    def _told(self, url: URL, stored: StoredResponse) -> Told | None:
        """Return what to tell clients about a response in the fast path, which is used only without `key=`."""
        rule, _ = first_match(self._rules, url[3], url[2])
        return told_of(stored, rule, has_key=False)

    def tell(self, url: URL | None, slot: Slot, status: int) -> None:
        """Publish the events of a ready answer; `find` has already published the read of a stale one."""
        assert url is not None
        state = State.STALE
        if slot.hits is slot.origin.tally.fresh:
            state = State.FRESH
            self._engine.publish_read(slot.key, slot.entry, state, None, Layer.L1)
        self._engine.events.publish(Answered, "GET", self._key_of(url), state.value, "l1", status, "hit", None)


@functools.lru_cache(_MOST_SHARED)
def _selecting(names: tuple[str, ...]) -> tuple[tuple[str, ...], frozenset[bytes]]:
    """Return names by which URLs vary, and those of the fields that select, apart from fields that are in each `URL`.

    Parameters:
        names: see `Varies`, without those of `_OF_ALL_FIELDS`.
    """
    return names, fields_of(names) - SELECTING


def _chosen(headers: Headers, names: Container[bytes]) -> Fields:
    """Return the fields of a request that have one of these names."""
    fields: Fields = ()
    for name, value in headers:
        if name in names:
            fields = fields, name, value
    return fields
