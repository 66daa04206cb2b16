"""What compressing values for Redis saves, and what it costs: zstd, zlib and lz4 on real data.

    scripts/bench compression [--quick]

The rankings are those of `examples/data/flights2013.csv.gz`, the flights of New York in 2013: a Top 100 of aircraft by
delay as JSON (7 kB), as the rows that an API sends, as an HTML page, and its first rows for smaller values. A part of
the file itself, which is gzip, represents images and whatever else is compressed already. Each contestant writes and
reads all of them; the figures are medians, in one process, the contestants in turn. The last table is of encryption.
"""

import argparse
import csv
import gzip
import html
import importlib
import json
import statistics
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import installed, print_machine, table

_DATA = Path(__file__).parent.parent / "examples" / "data" / "flights2013.csv.gz"
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


class Contestant(NamedTuple):
    """A way to compress, and back."""

    name: str
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes], bytes]


def contestant(
    name: str, compress: Callable[..., bytes], decompress: Callable[[bytes], bytes], *args: int
) -> Contestant:
    """Return a way to compress, with further arguments for `compress`."""
    return Contestant(name, lambda data: compress(data, *args), decompress)


def contestants() -> list[Contestant]:
    """Return those that are installed."""
    found = [contestant(f"zlib, level {level}", zlib.compress, zlib.decompress, level) for level in (1, 6)]
    if installed(_ZSTD):
        zstd = importlib.import_module(_ZSTD)
        found += [contestant(f"zstd, level {level}", zstd.compress, zstd.decompress, level) for level in (1, 3, 6)]
    if installed("lz4"):
        lz4 = importlib.import_module("lz4.block")
        found.append(contestant("lz4", lz4.compress, lz4.decompress))
    return found


def top100() -> list[dict[str, Any]]:
    """Return the aircraft with the most minutes of delay on flights to Atlanta."""
    minutes: Counter[str] = Counter()
    flights: Counter[str] = Counter()
    with gzip.open(_DATA, "rt", newline="") as file:
        for row in csv.DictReader(file):
            if row["dest"] == "ATL" and row["arr_delay"] not in ("", "NA") and row["tailnum"] not in ("", "NA"):
                minutes[row["tailnum"]] += int(float(row["arr_delay"]))
                flights[row["tailnum"]] += 1
    return [
        {"rank": rank, "tailnum": tailnum, "flights": flights[tailnum], "minutes": delay}
        for rank, (tailnum, delay) in enumerate(minutes.most_common(100), start=1)
    ]


def values() -> dict[str, bytes]:
    """Return what is compressed, by name."""
    rows = top100()
    rest = [{"rank": row["rank"], "tailnum": row["tailnum"], "minutes": row["minutes"]} for row in rows]
    cells = "\n".join(
        f"<tr><td>{row['rank']}</td><td><a href='/aircraft/{row['tailnum']}'>{html.escape(row['tailnum'])}</a></td>"
        f"<td>{row['flights']}</td><td>{row['minutes']}</td></tr>"
        for row in rows
    )
    head = "<!doctype html><title>Top 100</title><table><tr><th>#<th>Aircraft<th>Flights<th>Minutes</tr>"
    return {
        "2 rows, JSON": json.dumps(rows[:2]).encode(),
        "5 rows, JSON": json.dumps(rows[:5]).encode(),
        "15 rows, JSON": json.dumps(rows[:15]).encode(),
        "Top 100, JSON": json.dumps(rows).encode(),
        "Top 100, rows of an API": json.dumps(rest, separators=(",", ":")).encode(),
        "Top 100, HTML": f"{head}{cells}</table>".encode(),
        "200 copies of it, JSON": json.dumps(rows * 200).encode(),
        "gzip, 5 kB": _DATA.read_bytes()[5_000:10_000],
        "gzip, 200 kB": _DATA.read_bytes()[:200_000],
    }


def microseconds(call: Callable[[bytes], bytes], data: bytes, rounds: int) -> float:
    """Return the median of the times of a call."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        call(data)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


def encryption(data: bytes, rounds: int) -> None:
    """Print what `swr.encryption.Encryption` costs, if cryptography is installed."""
    if not installed("cryptography"):
        return
    codec = importlib.import_module("swr.encryption").Encryption({"2026-11": bytes(32)}, secret=bytes(32))
    name, context = b"ranking:ATL:100", b"a place"
    sealed = codec.encode(data, context)
    calls: dict[str, tuple[Callable[[bytes], bytes], bytes]] = {
        "encrypting": (lambda plain: codec.encode(plain, context), data),
        "decrypting": (lambda encrypted: codec.decode(encrypted, context), sealed),
        "hiding a name": (lambda plain: codec.encode_name(plain, context), name),
    }
    rows = [[what, f"{microseconds(call, given, rounds):.1f}"] for what, (call, given) in calls.items()]
    table("Encryption", [f"a value of {len(data):,} bytes", "µs"], rows)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it runs, not to measure")
    rounds = 3 if parser.parse_args().quick else 301
    print_machine("backports.zstd", "lz4")
    for name, data in values().items():
        rows = []
        for one in contestants():
            packed = one.compress(data)
            assert one.decompress(packed) == data
            few = max(3, rounds if len(data) < 100_000 else rounds // 20)
            rows.append(
                [
                    one.name,
                    f"{len(packed):,}",
                    f"{len(packed) / len(data):.2f}",
                    f"{microseconds(one.compress, data, few):.1f}",
                    f"{microseconds(one.decompress, packed, few):.1f}",
                ]
            )
        table(name, [f"{name}: {len(data):,} bytes", "bytes", "of them", "µs to write", "µs to read"], rows)
    encryption(bytes(5000), rounds)


if __name__ == "__main__":
    main()
