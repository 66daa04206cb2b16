"""Parts that all strategies of a refresher share: the schedule, the groups, and the limit of concurrent loads. Private.

Imports: `swr.engine` and below. Offers: `schedule.Rounds`, `groups` (reads the user's `keys`), `load_limiter` (loads
under way, and free slots), and `report`, which publishes the end of each round.
"""
