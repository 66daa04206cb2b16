"""Scheduled refreshes of groups of entries, so that the entries are warm before the first reader asks.

Public names: `Refresher`, and `QueueStatus`, which `Refresher.status` returns; the modules are private.
Imports: `swr.engine`, `swr.stores` and below, not `swr.cache`.
`refresher` checks the user's options, `locks` and `queue/` are the strategies, and both use `rounds/`.
"""

from swr.refreshers.queue.status import QueueStatus
from swr.refreshers.refresher import Refresher

__all__ = ["QueueStatus", "Refresher"]
