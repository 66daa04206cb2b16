"""The strategy "queue": a leader enqueues each round in Redis, and every worker consumes tasks. Private.

Imports: `swr.refreshers` beside it, `swr.engine`, `swr.stores.redis`. Offers: `strategy.QueueStrategy`, `queue.Queue`
(tasks, dead letters and statistics, for the commands), and the types that its methods return, in `tasks` and `status`.
`scripts` run in Redis, on `streams` or `lists`. `wakes` decides which idle consumers they wake for new tasks, and
`looks` when a consumer looks for tasks by itself.
"""
