"""Reports of a process to dashboards: a digest once a second, with its numbers, its events and, if wanted, its calls.

Private. Imports: the engine, the statistics and the folders below them; no decorator and no middleware.
Offers: `reporter.Reporter`, which makes the digests of one cache, and `digest.Digest`, which dashboards read.
"""
