"""A tour of the ranking API under real requests: `python -m examples.demo`."""
