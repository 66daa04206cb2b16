"""Rankings that are warm before anyone asks: groups that are refreshed on a schedule.

Public names: `Refresher`, and `QueueStatus`, which its `status` returns; the modules are private.
Imports: `swr.engine`, `swr.stores` and below, not `swr.cache`.
`refresher` checks what a user says, `locks` and `queue/` are the strategies, `rounds/` is what both need.
"""

from swr.refreshers.queue.status import QueueStatus
from swr.refreshers.refresher import Refresher

__all__ = ["QueueStatus", "Refresher"]
