"""Lookup of a batch loader's items: which items the cache answers, and which must be loaded or refreshed."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from swr.core.codec import Codec
from swr.core.decision import FRESH, Revalidate, decide, is_absent, is_due_early
from swr.engine.engine import Engine
from swr.engine.read_log import log_read
from swr.entry import Entry, State
from swr.loaders.items import all_at_once
from swr.loaders.many_keys import ManyCall
from swr.stats.counts import Layer

log = logging.getLogger("swr")
# The answer for one item: the entry, its state, and the failure of its load, if the entry is a fallback.
Answer = tuple[Entry[Any], State, BaseException | None]


class LookedUp(NamedTuple):
    """The result of a lookup of the items of one call.

    Parameters:
        found: the answers to items that have a value.
        absent: the entries of items that are known not to exist.
        missing: the items that must be loaded, each with its stored entry or None.
        behind: the entries of items that were found and need a refresh in the background.
        layers: the layer that answered, for each item that was found or is absent.
    """

    found: dict[Any, Answer]
    absent: dict[Any, Entry[Any]]
    missing: dict[Any, Entry[Any] | None]
    behind: dict[Any, Entry[Any]]
    layers: dict[Any, Layer]


async def look_up(
    engine: Engine, call: ManyCall, items: list[Any], codec: Callable[[], Codec], early: float
) -> LookedUp:
    """Look each item up in this process's memory, and, if it has no answer there, in the store.

    Parameters:
        codec: returns the codec of the values.
        early: see `Policy`.
    """
    entries, asked = await _entries(engine, call, items, codec)
    now = engine.clock()
    looked = LookedUp({}, {}, {}, {}, {})
    for item, entry in entries.items():
        decision = decide(entry, now)
        if entry is not None and decision.serve:
            looked.found[item] = entry, decision.state, None
            may_be_early = decision is FRESH and early
            if decision.revalidate is Revalidate.BACKGROUND or (
                may_be_early and is_due_early(entry, now, early, engine.runtime.uniform(0.0, 1.0))
            ):
                looked.behind[item] = entry
        elif entry is not None and is_absent(entry, now):
            looked.absent[item] = entry
        else:
            looked.missing[item] = entry
            continue
        looked.layers[item] = Layer.REDIS if item in asked else Layer.L1
    if log.isEnabledFor(logging.DEBUG):
        _log(engine, call, looked)
    return looked


async def _entries(
    engine: Engine, call: ManyCall, items: list[Any], codec: Callable[[], Codec]
) -> tuple[dict[Any, Entry[Any] | None], set[Any]]:
    """Return the stored entry of each item, and the items for which the store was asked."""
    store = engine.store
    entries = {item: store.peek(call.keys[item]) for item in items}
    now = engine.clock()
    unsure = [item for item, entry in entries.items() if not (decide(entry, now).serve or is_absent(entry, now))]
    if unsure:
        await engine.ready()
        of_values = codec()

        async def read(item: Any) -> None:
            entries[item] = await store.read(call.keys[item], of_values)

        # All in one round trip: the store sends the commands of one turn of the event loop in one write.
        await all_at_once(read, unsure)
    return entries, set(unsure)


def _log(engine: Engine, call: ManyCall, looked: LookedUp) -> None:
    """Write a line for each item that is answered from the cache; none for a fresh hit of the local cache."""
    states = {item: state for item, (_, state, _) in looked.found.items()}
    for item, state in {**states, **dict.fromkeys(looked.absent, State.FRESH)}.items():
        is_asked = looked.layers[item] is Layer.REDIS
        if is_asked or state is not State.FRESH:
            log_read(engine.backoffs, call.keys[item], True, is_asked, state, None)
