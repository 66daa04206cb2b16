"""A queue on a cluster that loses a master under load, and no mark: `python -m examples.cluster`."""
