"""Parts of every strategy of a refresher: when a round is due, which groups it has, and how many loads run. Private.

Imports: `swr.engine` and below. Offers: `schedule.Rounds`, `groups` (what a user gives as `keys`),
`load_limiter` (the loads under way, and the free slots), and `report`, which publishes the end of each round.
"""
