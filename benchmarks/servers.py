"""A fresh hit on one core: `swr proxy` on uvicorn and on granian, a bare app on granian, Varnish and nginx.

    scripts/bench servers [--quick]

Each server runs alone on one core, and `wrk -t1 -c32` on another. All answer with the same 5 kB and header fields. The
proxies, Varnish and nginx ask one bare app under uvicorn, once. What is not installed is left out.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import installed, print_machine, ratio, table, verdict
from benchmarks.middleware import PATH, uvicorn, wrk
from tests.servers import free_port

BARE = "granian, bare ASGI function"
MIDDLEWARE = "granian, swr middleware"
GRANIAN = "swr proxy --server granian"
UVICORN = "swr proxy"
VARNISH = "Varnish"
NGINX = "nginx, proxy_cache"
# Seconds until a server answers.
_PATIENCE = 60

_NGINX = """\
{user}daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000;
  proxy_cache_path {folder}/cache keys_zone=c:10m; proxy_temp_path {folder}/proxy;
  client_body_temp_path {folder}/client; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{origin}; proxy_cache c; add_header X-Cache $upstream_cache_status; }}
  }}
}}
"""


def commands(origin: int, folder: Path) -> dict[str, tuple[int, list[str]]]:
    """Return the port and the command of each server, by name.

    Parameters:
        origin: the port of the app behind the proxies.
        folder: for what Varnish and nginx write.
    """
    ports = {name: free_port() for name in (BARE, MIDDLEWARE, GRANIAN, UVICORN, VARNISH, NGINX)}
    python = [sys.executable, "-m"]
    proxy = [*python, "swr", "proxy", f"http://127.0.0.1:{origin}", "--listen"]
    found = {UVICORN: [*proxy, f"127.0.0.1:{ports[UVICORN]}"]}
    if installed("granian"):
        granian = [*python, "granian", "--interface", "asgi", "--http", "1", "--no-ws", "--loop", "uvloop", "--factory"]
        granian += ["--log-level", "error", "--port"]
        found[BARE] = [*granian, str(ports[BARE]), "benchmarks.middleware:bare"]
        found[MIDDLEWARE] = [*granian, str(ports[MIDDLEWARE]), "benchmarks.middleware:swr_memory"]
        found[GRANIAN] = [*proxy, f"127.0.0.1:{ports[GRANIAN]}", "--server", "granian"]
    if varnish := shutil.which("varnishd", path=f"{os.environ['PATH']}:/usr/sbin"):
        work = folder / "varnish"
        found[VARNISH] = [varnish, "-j", "none", "-F", "-n", str(work), "-a", f"127.0.0.1:{ports[VARNISH]}"]
        found[VARNISH] += ["-b", f"127.0.0.1:{origin}", "-s", "malloc,64m"]
    if nginx := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
        config = folder / "nginx.conf"
        # Otherwise its worker is another user, who may not read this folder.
        user = "user root; " if os.geteuid() == 0 else ""
        config.write_text(_NGINX.format(user=user, folder=folder, port=ports[NGINX], origin=origin))
        found[NGINX] = [nginx, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    return {name: (ports[name], command) for name, command in found.items()}


@contextlib.contextmanager
def serving(port: int, command: list[str], core: int) -> Iterator[None]:
    """Run a server on one core until it is no longer needed."""
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{PATH}") as answer:
                    answer.read()
                break
            except OSError as error:
                if isinstance(error, urllib.error.HTTPError) or process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def compare(rounds: int, seconds: int) -> None:
    """Print the table."""
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        origin = stack.enter_context(uvicorn("bare", "", 0))
        servers = commands(origin, folder)
        for port, command in servers.values():
            stack.enter_context(serving(port, command, cores[0]))
        os.sched_setaffinity(0, {cores[-1]})
        taken: dict[str, list[float]] = {name: [] for name in servers}
        names = list(servers)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                taken[name].append(1 / wrk(servers[name][0], seconds, [])[0])
    rows = []
    for name in names:
        cells = [name, f"{1 / statistics.median(taken[name]):,.0f}"]
        for other in (BARE, VARNISH, NGINX):
            cells.append(f"{ratio(taken[other], taken[name]):.2f}" if other in taken else "")
        goal = ""
        if name == GRANIAN:
            goal = verdict(ratio(taken[BARE], taken[name]), at_least=0.95)
        rows.append([*cells, goal])
    columns = ["one core, wrk -t1 -c32", "requests/s", "to bare granian", "to Varnish", "to nginx", "goal (to bare)"]
    table(f"Fresh hits (median of {rounds} rounds of {seconds} s)", columns, rows)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: to see that it runs, not to measure")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="of all servers (%(default)s)")
    options = parser.parse_args()
    print_machine("swr", "granian", "uvicorn", "httptools", "uvloop")
    missing = [tool for tool in ("wrk", "taskset") if shutil.which(tool) is None]
    if missing or not hasattr(os, "sched_setaffinity"):
        print(f"\nIt needs Linux, wrk and taskset; missing: {', '.join(missing) or 'Linux'}")
        return
    compare(1 if options.quick else options.rounds, 1 if options.quick else 2)


if __name__ == "__main__":
    main()
