"""Reports of a process to dashboards: a digest of its numbers once a second, and its events while one is open.

Private. Imports: the engine, the statistics and what is below them; no decorator and no middleware.
Offers: `reporter.Reporter`, which makes the digests of one cache, and `digest.Digest`, which dashboards read.
"""
