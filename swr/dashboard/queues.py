"""The refreshers' queues in the form of the dashboard's messages."""

from typing import Final

from swr.dashboard.keys import Keys
from swr.dashboard.parts import DeadLetter, Queue
from swr.refreshers.queue.queue import known
from swr.refreshers.queue.status import QueueStatus
from swr.refreshers.queue.tasks import DeadLetter as Letter
from swr.reports.reporter import cleaned
from swr.stores.redis.store import RedisStore

_MOST_QUEUES: Final = 20
_MOST_LETTERS: Final = 100
# With more dead letters, the dashboard reads none of them, because each has about a kilobyte.
_MOST_ASKED: Final = 2000


async def queues_of(store: RedisStore, keys: Keys) -> list[Queue]:
    """Return the queues of the namespace.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    found = []
    for _, queue in sorted((await known(store)).items())[:_MOST_QUEUES]:
        status = await queue.status()
        letters = await queue.dead() if 0 < status.dead <= _MOST_ASKED else []
        found.append(_queue(status, letters, keys))
    return found


def _queue(status: QueueStatus, letters: list[Letter], keys: Keys) -> Queue:
    newest = sorted(letters, key=lambda letter: -letter.at)[:_MOST_LETTERS]
    return {
        "name": status.name,
        "strategy": status.backend,
        "leader": status.leads_for > 0,
        "leads_for": status.leads_for,
        "consumers": len(status.consumers),
        "round_at": status.round,
        "backlog": status.queued,
        "in_hand": status.running,
        "waiting": status.waiting,
        "dead": status.dead,
        "letters": [_letter(letter, keys) for letter in newest],
    }


def _letter(letter: Letter, keys: Keys) -> DeadLetter:
    return {
        "key": keys.shown(letter.key),
        "error": cleaned(letter.why),
        "attempts": letter.tries,
        "at": letter.at,
    }
