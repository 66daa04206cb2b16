"""The lifecycle of a cache: it is configured, opened and closed.

Imports the engine, the stores and the folders below them; no decorator and no middleware.
Private: users call these methods on `swr.Cache`, which inherits them.
"""
