"""A queue on a cluster that loses a master under load but no mark: `python -m examples.cluster`."""
