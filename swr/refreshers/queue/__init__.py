"""Refreshing through a queue in Redis: a leader enqueues each round, and every worker consumes. Private.

Imports: `swr.refreshers` beside it, `swr.engine`, `swr.stores.redis`. Offers: `strategy.QueueStrategy`, `queue.Queue`
(tasks, dead letters and statistics, for the commands), and what it returns: `tasks` and `status`. `scripts` run on the
server, over `streams` or `lists`; `wakes` says whom they tell of tasks, `looks` when a consumer looks.
"""
