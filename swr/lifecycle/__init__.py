"""The life of a cache: it is configured, opened and closed.

Imports the engine, the stores and what is below them; no decorator and no middleware.
Private: users call the methods of `swr.Cache`, which come from here.
"""
