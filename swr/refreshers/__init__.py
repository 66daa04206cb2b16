"""What keeps groups warm before anyone asks: by locks, or through a queue."""

from swr.refreshers.refresher import Refresher

__all__ = ["Refresher"]
