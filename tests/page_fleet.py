"""A fleet of three processes under load, whose dashboard a browser looks at.

`python -m tests.page_fleet docs` takes the pictures of the documentation. It needs Pillow, which makes them small.
"""

import contextlib
import io
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from examples.demo.servers import exchange, free_port, running
from swr.dashboard.loopback import link
from swr.dashboard.own_token import own_token
from tests.servers import Server, kinds, until

CHROMIUM = "/usr/bin/chromium"
PROCESSES = 3
TOKEN = {"Authorization": f"Bearer {own_token()}"}
GROUPS = ("ATL", "ORD", "LAX", "DFW", "DEN", "SFO")


class Fleet:
    """Three processes on one Valkey, and requests to them without end.

    Attributes:
        server: the Valkey.
        faults: a folder; a file in it makes the loader of its name fail.
        ports: of the processes.
        url: of the dashboard in the first of them.
        link: its address with the token of this user.
    """

    def __init__(
        self, server: Server, faults: Path, ports: list[int], processes: list[subprocess.Popen[bytes]], pause: float
    ) -> None:
        self.server = server
        self.faults = faults
        self.ports = ports
        self.url = f"http://127.0.0.1:{ports[0]}/swr/"
        self.link = link(self.url, own_token())
        self._processes = processes
        self._pause = pause
        self._ended = threading.Event()

    def stop(self, number: int) -> int:
        """Stop a process as a deploy does; return its process id."""
        process = self._processes[number]
        process.terminate()
        process.wait()
        return process.pid

    def kill(self, number: int) -> int:
        """Kill a process, as a loss of power does; return its process id."""
        self._processes[number].send_signal(signal.SIGKILL)
        self._processes[number].wait()
        return self._processes[number].pid

    @contextlib.contextmanager
    def held_up(self, number: int) -> Iterator[None]:
        """Suspend a process during the `with` block."""
        self._processes[number].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._processes[number].send_signal(signal.SIGCONT)

    def log(self, number: int) -> str:
        """Return what a process has logged."""
        return (self.faults / f"{self.ports[number]}.log").read_text()

    def ask(self, path: str, number: int = 0, method: str = "GET", **parameters: Any) -> None:
        """Send a request, and ignore its failure."""
        with contextlib.suppress(httpx.HTTPError):
            httpx.request(
                method, f"http://127.0.0.1:{self.ports[number]}{path}", timeout=60, trust_env=False, **parameters
            )

    def state(self) -> dict[str, Any]:
        """Return the state that the dashboard serves as JSON."""
        return httpx.get(f"{self.url}state", headers=TOKEN, timeout=60, trust_env=False).json()

    @contextlib.contextmanager
    def under_load(self) -> Iterator[None]:
        """Send requests to each process during the `with` block."""
        threads = [threading.Thread(target=self._read, args=(port,)) for port in self.ports]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def _read(self, port: int) -> None:
        paths = [f"/rankings/{group}" for group in GROUPS for _ in range(3)] + ["/price/north", "/price/south"]
        # All processes get requests for the same host, as behind a load balancer.
        headers = {"Host": "shop.example"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=10, trust_env=False) as client:
            for number in count():
                began = time.monotonic()
                with contextlib.suppress(httpx.HTTPError):
                    client.get(paths[number % len(paths)])
                # A slow machine gets fewer requests, so that it has time left for the page.
                took = time.monotonic() - began
                if self._ended.wait(max(self._pause, min(5 * took, 2.0)) * (1 + math.sin(time.monotonic() / 5) / 2)):
                    return


@contextlib.contextmanager
def started(pause: float = 0.03) -> Iterator[Fleet]:
    """Run a fleet under load.

    Parameters:
        pause: seconds between two requests to one process; longer if answers are slow.
    """
    with (
        tempfile.TemporaryDirectory(prefix="swr-page-") as name,
        Server(kinds()[0]) as server,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        ports = [free_port() for _ in range(PROCESSES)]
        environment = {"REDIS_URL": server.url, "FAULTS": name}
        processes = [
            stack.enter_context(
                running(
                    [
                        sys.executable,
                        "-m",
                        "uvicorn",
                        "tests.page_app:app",
                        "--port",
                        str(port),
                        "--log-level",
                        "warning",
                    ],
                    environment,
                    folder / f"{port}.log",
                    lambda: True,
                )
            )
            for port in ports
        ]
        fields = f"Host: localhost\r\nAuthorization: {TOKEN['Authorization']}\r\nConnection: close\r\n\r\n"
        request = f"GET /swr/state HTTP/1.1\r\n{fields}".encode()
        try:
            for port in ports:
                until(lambda port=port: exchange(port, request).startswith(b"HTTP/1.1 200"))
        except AssertionError:
            sys.stderr.write("".join((folder / f"{port}.log").read_text() for port in ports))
            raise
        fleet = Fleet(server, folder, ports, processes, pause)
        with fleet.under_load():
            yield fleet


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Run Debian's Chromium, and yield it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def let_in(context: Any) -> None:
    """Give a browser the cookie that the link to this user's dashboards would set."""
    cookie = {"name": "swr-dashboard", "value": own_token(), "url": "http://127.0.0.1/swr/", "httpOnly": True}
    context.add_cookies([cookie])


def missing() -> str:
    """Return what this machine lacks to show the page in a browser; "" if nothing."""
    try:
        import playwright.sync_api  # noqa: F401  # imported to see whether it is there
    except ImportError:
        return "playwright is not installed"
    return "" if os.access(CHROMIUM, os.X_OK) else f"there is no Chromium at {CHROMIUM}"


def picture(page: Any, path: Path) -> None:
    """Save a picture of a page, with few colours."""
    from PIL import Image

    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)


def pictures(folder: Path) -> None:
    """Take the pictures of the documentation: a healthy fleet, its requests, and a fleet with problems."""
    wide, narrow = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
    with started() as fleet, browser() as chromium:
        page = chromium.new_page(viewport=wide, color_scheme="light")
        page.goto(fleet.link)
        time.sleep(30)
        fleet.ask("/invalidate", method="POST", params={"tag": "group:ATL"})
        time.sleep(35)
        picture(page, folder / "dashboard-fleet.png")
        page.goto(f"{fleet.url}#/requests/key/ranking:ATL")
        time.sleep(5)
        page.get_by_role("button", name="Pause").click()
        picture(page, folder / "dashboard-requests.png")
        page.goto(fleet.url)
        fleet.server.pause()
        time.sleep(8)
        fleet.server.resume()
        time.sleep(8)
        for name in ("price", "report"):
            (fleet.faults / name).touch()
        fleet.kill(2)
        time.sleep(12)
        for name, options in (
            ("dashboard-incident.png", {"viewport": wide, "color_scheme": "dark"}),
            ("dashboard-mobile.png", {"viewport": narrow, "color_scheme": "light"}),
        ):
            other = chromium.new_page(**options)
            other.goto(fleet.link)
            time.sleep(4)
            picture(other, folder / name)


if __name__ == "__main__":
    pictures(Path(sys.argv[1]))
