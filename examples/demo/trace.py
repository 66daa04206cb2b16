"""Requests in the order and with the skew of a real trace."""

import lzma
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle

from examples.flights import DATA


def keys() -> tuple[int, ...]:
    """Return the keys of the trace in their order, one for each request; the file has big-endian 4-byte integers."""
    data = lzma.decompress((DATA / "web12.trace.xz").read_bytes())
    return struct.unpack(f">{len(data) // 4}i", data)


def requests(paths: Sequence[str]) -> Iterator[str]:
    """Yield the paths in the order in which the trace asks for its hottest keys, over and over.

    Parameters:
        paths: the most popular first; the first takes the place of the trace's hottest key, and so on.
    """
    trace = keys()
    path_of = {key: path for path, (key, _) in zip(paths, Counter(trace).most_common(), strict=False)}
    return cycle([path_of[key] for key in trace if key in path_of])
