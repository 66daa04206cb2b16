"""Measures how soon each panel of the dashboard shows what has happened: `python -m tests.page_lag [times]`.

A fleet of three processes is under load, and Chromium checks each frame. The process that serves the page is not the one
in which things happen. On an idle machine no figure is above three seconds.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.page_fleet import Fleet, browser, let_in, started

# Returns whether the text is in a visible element, or is in none, as wanted.
_SHOWN = """([selector, text, wanted]) => [...document.querySelectorAll(selector)].some(
    (one) => one.checkVisibility() && one.textContent.includes(text)) === wanted"""


class Lags:
    """The measured times.

    Parameters:
        fleet: the fleet in which things happen.
        page: the page that shows them.
    """

    def __init__(self, fleet: Fleet, page: Any) -> None:
        self.figures: dict[str, list[float]] = {}
        self._fleet = fleet
        self._page = page

    def take(self, what: str, cause: Callable[[], object], selector: str, text: str, wanted: bool = True) -> None:
        """Call `cause`, and measure until an element contains a text, or no longer contains it."""
        began = time.monotonic()
        cause()
        # The measured time includes the call of `cause`.
        self._page.wait_for_function(_SHOWN, arg=[selector, text, wanted], timeout=60_000)
        self.figures.setdefault(what, []).append(time.monotonic() - began)

    def fleet_view(self, number: int) -> None:
        """Measure the panels in the view of the fleet."""
        fleet, page, ask = self._fleet, self._page, self._fleet.ask
        page.goto(f"{fleet.url}#/fleet")
        page.locator("swr-loaders tbody tr").first.wait_for()
        page.wait_for_function(_SHOWN, arg=["swr-problems .fine", "Nothing is wrong", True], timeout=90_000)
        tag = f"lag-{number}"
        self.take(
            "an invalidation: Events", lambda: ask("/invalidate", 1, "POST", params={"tag": tag}), "swr-events li", tag
        )
        failing = f"fail-{number}"
        self.take("a load fails: the top", lambda: ask("/any", 1, params={"text": failing}), ".alarms", failing)
        self.take(
            "another fails: Loaders",
            lambda: ask("/any", 2, params={"text": f"{failing}b"}),
            "swr-loaders tr.is-wrong",
            f"{failing}b",
        )
        self.take(
            "a third fails: Events",
            lambda: ask("/any", 1, params={"text": f"{failing}c"}),
            "swr-events li",
            f"{failing}c",
        )
        nodes, top = "swr-processes .nodes", ".alarms"
        self.take("Redis hangs: the top", fleet.server.pause, top, "cannot reach Redis")
        page.wait_for_function(_SHOWN, arg=[nodes, "unreachable", True])
        self.take("Redis answers again: Redis", fleet.server.resume, nodes, "unreachable", False)
        page.wait_for_function(_SHOWN, arg=[top, "cannot reach Redis", False])
        page.wait_for_function(_SHOWN, arg=["swr-queues", "yes", True], timeout=60_000)
        (fleet.faults / "report").touch()
        page.wait_for_function(_SHOWN, arg=["swr-queues .letters", "dead letter", True], timeout=60_000)
        (fleet.faults / "report").unlink()
        button = page.get_by_role("button", name="Retry all")
        self.take("dead letters retried: Queue", button.click, "swr-queues .letters", "dead letter", False)
        with fleet.held_up(0):
            self.take("the server of the page stops: the top", lambda: None, top, "no longer hears")

    def requests_view(self, number: int) -> None:
        """Measure the panel in the view of the requests."""
        fleet, page = self._fleet, self._page
        page.goto(f"{fleet.url}#/requests")
        page.get_by_role("searchbox", name="Filter by path, loader or key").fill("any:")
        time.sleep(3)
        text = f"call-{number}"
        self.take("a call: Requests", lambda: fleet.ask("/any", 1, params={"text": text}), "swr-calls tbody tr", text)


def main(times: int) -> None:
    """Measure `times` times, and print the figures."""
    with browser() as chromium:
        figures: dict[str, list[float]] = {}
        for number in range(times):
            with started() as fleet:
                context = chromium.new_context(viewport={"width": 1280, "height": 800})
                let_in(context)
                lags = Lags(fleet, context.new_page())
                fleet.ask("/any", params={"text": "first"})
                for part in (lags.fleet_view, lags.requests_view):
                    part(number)
                lags._page.goto(f"{fleet.url}#/fleet")
                time.sleep(5)
                lags.take(
                    "a process is killed: Processes",
                    lambda fleet=fleet: fleet.kill(2),
                    "swr-processes li",
                    "silent for",
                )
                lags.take("and it counts as gone: the top", lambda: None, ".alarms", "does not report")
                context.close()
            for what, taken in lags.figures.items():
                figures.setdefault(what, []).extend(taken)
    print(f"{'':40} {'median':>7} {'most':>7}")
    for what, taken in figures.items():
        print(f"{what:40} {statistics.median(taken):6.2f}s {max(taken):6.2f}s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
