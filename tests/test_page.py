"""The dashboard's page in a real browser, in front of a fleet of three processes under load; and what it is made of."""

import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.demo.servers import free_port, running
from swr.dashboard.loopback import link
from swr.dashboard.own_token import own_token
from tests.page_fleet import Fleet, browser, let_in, missing, started

STATIC = Path(__file__).parents[1] / "swr" / "dashboard" / "static"
PATIENCE = 120_000.0
LACKING = missing()
in_a_browser = pytest.mark.skipif(bool(LACKING), reason=f"the page is not looked at in a browser: {LACKING}")


# -- what it is made of --------------------------------------------------------------------------------------------


def test_page_weighs_less_than_150_kb() -> None:
    assert 0 < sum(path.stat().st_size for path in STATIC.iterdir()) < 150_000


def test_each_module_is_under_15_kb_and_imports_only_its_neighbours() -> None:
    for module in STATIC.glob("*.js"):
        text = module.read_text()
        assert len(text) < 15_000, module
        for imported in re.findall(r'(?:from|import) "([^"]+)"', text):
            assert imported.startswith("./"), (module, imported)
            assert (STATIC / imported).is_file(), (module, imported)


def test_every_module_is_used() -> None:
    used, todo = set[str](), ["app.js"]
    while todo:
        name = todo.pop()
        if name not in used:
            used.add(name)
            todo += re.findall(r'(?:from|import) "\./([^"]+)"', (STATIC / name).read_text())
    assert used == {path.name for path in STATIC.glob("*.js")}


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_no_file_turns_data_into_markup_or_code_or_names_another_host(path: Path) -> None:
    text = path.read_text()
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "style=",
        "onclick=",
    ):
        assert word not in text
    assert (
        not set(re.findall(r"(?:https?:)?//[\w.-]+", text)) - {"http://www.w3.org"} - set(re.findall(r"// \w+", text))
    )


# -- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with started(pause=0.4) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@contextlib.contextmanager
def opened(chromium: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page that notes what a browser complains about; none may."""
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    options = {"viewport": {"width": 1280, "height": 800}, **options}
    context = chromium.new_context(**options)
    context.add_init_script(
        "window.violations = [];"
        "document.addEventListener('securitypolicyviolation', (event) => violations.push(event.violatedDirective));"
    )
    let_in(context)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(f"{error}"))
    page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
    page.on(
        "request",
        lambda request: complaints.append(request.url) if not request.url.startswith("http://127.0.0.1:") else None,
    )
    page.goto(url)
    yield page
    assert page.evaluate("violations") == []
    assert complaints == []
    context.close()


def expect_text(locator: Any, text: str | re.Pattern[str]) -> None:
    from playwright.sync_api import expect

    expect(locator).to_contain_text(text)


def happen(page: Any, shown: Any, happening: Callable[[], None]) -> None:
    """Make something happen until the page shows it: a busy fleet displaces it before a slow browser has looked."""
    end = time.monotonic() + PATIENCE / 1000
    while not shown.count():
        assert time.monotonic() < end, f"it is not shown: {shown}"
        happening()
        page.wait_for_timeout(200)


def expect_nothing_wrong(page: Any) -> None:
    expect_text(
        page.locator("swr-problems .fine:visible"),
        re.compile(r"Nothing is wrong\. \d process(es)? alive(, \d silent)?; Redis answers at 127\.0\.0\.1:"),
    )


@in_a_browser
def test_browser_needs_the_address_with_the_token_only_once(fleet: Fleet, chromium: Any) -> None:
    with opened(chromium, "about:blank") as page:
        page.context.clear_cookies()
        assert page.goto(fleet.url).status == 403
        expect_text(page.locator("main"), "an address that ends in ?token=…")
        (link,) = set(re.findall(r"http://\S+/swr/\?token=\S+", fleet.log(0)))
        assert link == fleet.link
        page.goto(f"{link}#/requests")
        assert page.url == f"{fleet.url}#/requests"
        page.locator(".is-live").wait_for()
        page.locator("swr-calls tbody tr").first.wait_for()
        # A page of another port is of the same site, but not of the same origin.
        other = page.context.new_page()
        other.goto(f"http://127.0.0.1:{fleet.ports[1]}/any?text=other")
        asked = f"fetch('{fleet.url}state', {{credentials: 'include', mode: 'no-cors'}}).then(() => 'read', () => 'refused')"
        assert other.evaluate(asked) == "refused"


@in_a_browser
def test_each_panel_shows_the_fleet(fleet: Fleet, chromium: Any) -> None:
    with opened(chromium, fleet.url) as page:
        expect_nothing_wrong(page)
        tiles = page.locator(".tile")
        expect_text(tiles.filter(has_text="Without waiting"), re.compile(r"[\d.]+ %"))
        expect_text(tiles.filter(has_text="Reads"), re.compile(r"[1-9][\d.]* /s"))
        expect_text(tiles.filter(has_text="Processes"), "3")
        rows = page.locator("swr-loaders tbody tr")
        expect_text(
            rows.filter(has_text="ranking:{group}").filter(has_text="loader"), re.compile(r"\d % (fresh|stale)")
        )
        expect_text(
            rows.filter(has_text="/rankings/{group}").filter(has_text="route"), re.compile(r"\d % (fresh|stale)")
        )
        expect_text(page.locator("swr-keys ol"), "/rankings/")
        for process in fleet.state()["processes"]:
            expect_text(
                page.locator("swr-processes li").filter(has_text=f":{process['pid']}"), re.compile("alive|silent")
            )
        queue = page.locator("swr-queues section")
        expect_text(queue, re.compile(r"Leader\s*yes"))
        expect_text(queue, re.compile(r"Last round\s*[\d.]+ s ago"))
        happen(
            page,
            page.locator("swr-events li").filter(has_text="group:ATL"),
            lambda: fleet.ask("/invalidate", method="POST", params={"tag": "group:ATL"}),
        )
        assert re.match(
            r"Reads a second by state\. \d\d:\d\d:\d\d: missing",
            page.locator("swr-reads .surface").get_attribute("aria-label"),
        )


@in_a_browser
def test_failing_loader_raises_an_alarm_until_it_works_again(fleet: Fleet, chromium: Any) -> None:
    with opened(chromium, fleet.url) as page:
        expect_nothing_wrong(page)
        (fleet.faults / "price").touch()
        expect_text(page.locator(".alarms"), "the price service refuses connections")
        row = page.locator("swr-loaders tr.is-wrong").filter(has_text="price:{region}")
        expect_text(row, re.compile(r"\d+ failed"))
        expect_text(row, "ConnectionError: the price service refuses connections")
        expect_text(page.locator(".tile.is-wrong"), "Failing")
        assert re.match(r"\([1-9]\d*\) swr", page.title())
        (fleet.faults / "price").unlink()
        page.locator(".alarms").wait_for(state="hidden", timeout=3 * PATIENCE)


@in_a_browser
def test_stopped_redis_raises_an_alarm_until_it_continues(fleet: Fleet, chromium: Any) -> None:
    with beside(fleet) as other, opened(chromium, fleet.url) as page, opened(chromium, other) as page_beside:
        expect_nothing_wrong(page)
        expect_nothing_wrong(page_beside)
        fleet.server.pause()
        try:
            expect_text(page.locator(".alarms"), f"Redis at 127.0.0.1:{fleet.server.port}")
            expect_text(page.locator(".alarms .since").first, "since")
            expect_text(page.locator(".tile.is-wrong").filter(has_text="Redis"), "unreachable")
            expect_text(page.locator("swr-processes .nodes .is-wrong"), "unreachable")
            expect_text(page.locator(".tile.is-wrong").filter(has_text="Processes"), "others unseen")
            expect_text(page.locator("swr-queues .is-wrong:visible"), "These are the last known numbers")
            expect_text(page.locator("swr-events"), re.compile("unreachable|cannot reach"))
            # Who sees no process says so: they read, and report, all the same.
            for panel in ("swr-loaders", "swr-keys", "swr-processes"):
                expect_text(page_beside.locator(panel), "No process can be seen.")
            expect_text(page_beside.locator(".tile").filter(has_text="Reads"), re.compile("–.*unseen"))
        finally:
            fleet.server.resume()
        expect_nothing_wrong(page)
        expect_text(page.locator("swr-processes .nodes"), "reachable")
        expect_text(page_beside.locator(".tile").filter(has_text="Reads"), "/s")


@contextlib.contextmanager
def beside(fleet: Fleet) -> Iterator[str]:
    """Run `swr dashboard` beside a fleet, and return its address."""
    port = free_port()
    command = ["-m", "swr", "dashboard", "--redis", fleet.server.url, "--namespace", "shop", "--listen"]
    log = fleet.faults / "beside.log"
    ready = lambda: "shows the namespace" in log.read_text()  # noqa: E731  # it is no more than that
    with running([sys.executable, "-u", *command, f"127.0.0.1:{port}"], {}, log, ready):
        yield link(f"http://127.0.0.1:{port}/", own_token())


@in_a_browser
def test_address_with_a_key_in_plain_or_escaped_form_shows_the_key(fleet: Fleet, chromium: Any) -> None:
    for written, key in (("any:100%", "any:100%"), ("any:a/b", "any:a/b"), ("any:c%2Fd", "any:c/d")):
        with opened(chromium, f"{fleet.url}#/requests/key/{written}") as page:
            expect_text(page.locator("swr-life .life-key"), key)


@in_a_browser
def test_dead_letters_are_shown_and_retried(fleet: Fleet, chromium: Any) -> None:
    with opened(chromium, fleet.url) as page:
        expect_nothing_wrong(page)
        (fleet.faults / "report").touch()
        fleet.ask("/invalidate", method="POST", params={"tag": "none"})
        letters = page.locator("swr-queues .letters")
        expect_text(letters, "dead letter")
        expect_text(letters.locator("li").first, "takes too long")
        expect_text(page.locator(".alarms"), "dead letter")
        (fleet.faults / "report").unlink()
        page.get_by_role("button", name="Retry all").click()
        expect_text(page.locator("swr-queues .outcome"), re.compile(r"\w"))
        letters.wait_for(state="hidden")


@in_a_browser
def test_request_shows_why_it_is_not_cached_and_its_key_can_be_managed(fleet: Fleet, chromium: Any) -> None:
    from playwright.sync_api import expect

    with opened(chromium, f"{fleet.url}#/requests") as page:
        rows = page.locator("swr-calls tbody tr")
        expect_text(rows.filter(has_text="GET /price/").first, "no freshness")
        assert rows.filter(has_text="GET /price/").first.locator(".why a").get_attribute("href").startswith("http")
        page.get_by_role("searchbox", name="Filter by path, loader or key").fill("ranking:ATL")
        expect(rows.first.locator("a").first).to_have_text("ranking:ATL")
        page.get_by_label("Key", exact=True).fill("ranking:ATL")
        page.keyboard.press("Enter")
        life = page.locator("swr-life")
        expect_text(life.locator(".life-key"), "ranking:ATL")
        expect_text(life.locator(".facts"), "group:ATL")
        assert re.match(r"Loaded at .* fresh until", life.locator(".lifeline").get_attribute("aria-label"))
        life.get_by_role("button", name="Refresh").click()
        expect_text(life.locator(".outcome"), "ranking:ATL")
        # A key that nobody reads stays invalidated, and one that fails stays as it was.
        fleet.ask("/any", params={"text": "quiet"})
        page.get_by_label("Key", exact=True).fill("any:quiet")
        page.keyboard.press("Enter")
        expect(life.locator(".life-state")).to_have_attribute("data-state", "fresh")
        life.get_by_role("button", name="Fail the next load").click()
        expect_text(life.locator(".outcome"), "any:{text}")
        life.get_by_role("button", name="Mark stale").click()
        expect_text(life.locator(".outcome"), "marked stale")
        expect(life.locator(".life-state")).to_have_attribute("data-state", "stale")
        fleet.ask("/any", params={"text": "quiet"})
        expect_text(life.locator(".log .is-wrong").first, "failed")
        life.get_by_role("button", name="Invalidate").click()
        expect(life.locator(".life-state")).to_have_attribute("data-state", "missing")


MARKUP = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "</code></td><svg onload=alert(1)>",
    "\"'><a href=javascript:alert(1)>x</a>",
    "{{7*7}}${alert(1)}",
    "fail<iframe srcdoc='<script>alert(1)</script>'>",
    "fail</script><script>alert(1)</script>",
    "‮<b>turned</b>\u0000\u0007",
    "fail‮<b>turned</b>\u0000\u0007",
]
TURNING = """[...document.querySelectorAll("*")].flatMap((element) =>
    [...[...element.attributes].map(({ value }) => value), ...[...element.childNodes].map(({ nodeValue }) => nodeValue ?? "")])
    .filter((text) => /[\\u0000-\\u0009\\u007f-\\u009f\\u202a-\\u202e\\u2066-\\u2069]/.test(text))"""


@in_a_browser
def test_markup_in_keys_tags_and_errors_is_shown_as_text(fleet: Fleet, chromium: Any) -> None:
    with opened(chromium, f"{fleet.url}#/requests") as page:
        page.locator("swr-calls tbody tr").first.wait_for()
        page.get_by_role("searchbox", name="Filter by path, loader or key").fill("any:")
        for text in MARKUP:
            for _ in range(3):
                fleet.ask("/any", params={"text": text})
            fleet.ask("/invalidate", method="POST", params={"tag": text})
        # More calls than a busy process reports are counted and left out.
        happen(
            page,
            page.locator("swr-calls tbody tr").filter(has_text=f"any:{MARKUP[1]}"),
            lambda: fleet.ask("/any", params={"text": MARKUP[1]}),
        )
        page.get_by_label("Key", exact=True).fill(f"any:{MARKUP[0]}")
        page.keyboard.press("Enter")
        expect_text(page.locator("swr-life .life-key"), MARKUP[0])
        for view in ("#/fleet", "#/requests"):
            page.goto(fleet.url + view)
            page.evaluate("new Promise((done) => setTimeout(done, 300))")
            made = "[...document.querySelectorAll('body :is(script, iframe, svg[onload], img:not(.brand img), b:empty + script, [onerror])')]"
            assert page.evaluate(f"{made}.map((element) => element.outerHTML)") == []
            assert page.evaluate(TURNING) == []
            hrefs = page.evaluate("[...document.links].map((link) => link.protocol)")
            assert set(hrefs) <= {"http:", "https:"}
        page.goto(f"{fleet.url}#/fleet")
        happen(
            page,
            page.locator("swr-events li").filter(has_text=MARKUP[1]),
            lambda: fleet.ask("/invalidate", method="POST", params={"tag": MARKUP[1]}),
        )
        fleet.ask("/any", params={"text": "fail<b>again</b>"})
        expect_text(page.locator(".alarms"), "fail<b>again</b>")
        expect_text(page.locator("swr-loaders tr.is-wrong").filter(has_text="any:{text}"), "fail<b>again</b>")


@in_a_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_page_fits_its_screen_and_is_accessible(fleet: Fleet, chromium: Any, scheme: str, width: int) -> None:
    """By the rules of axe-core: names, roles, landmarks, contrast."""
    from axe_playwright_python.sync_playwright import Axe

    height = 800 if width == 1280 else 844
    options: dict[str, Any] = {
        "viewport": {"width": width, "height": height},
        "color_scheme": scheme,
        "reduced_motion": "reduce",
    }
    with opened(chromium, fleet.url, **options) as page:
        for view in ("fleet", "requests"):
            page.goto(f"{fleet.url}#/{view}")
            page.locator(f"#{view} .scroll").first.wait_for()
            page.locator("swr-loaders tbody tr" if view == "fleet" else "swr-calls tbody tr").first.wait_for()
            found = Axe().run(page).response["violations"]
            assert [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found] == []
            size = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
            assert size[0] <= width
            assert width == 390 or size[1] <= height
            assert page.evaluate("document.getAnimations().length") == 0


# Shows what the page knows with some of it changed. All of that happens before the server says something new.
STAGED = """async () => {
    const { source, processName } = await import("./static/source.js");
    const text = (selector) => [...document.querySelectorAll(selector)].map((one) => one.textContent.trim());
    const ends = [];
    const draw = CanvasRenderingContext2D.prototype.fillText;
    CanvasRenderingContext2D.prototype.fillText = function (words, x, y) {
        if (words === "invalidated") ends.push([x + this.measureText(words).width, this.canvas.clientWidth]);
        draw.call(this, words, x, y);
    };
    const live = { ...source.live, fleet: true, note: "", processes: source.live.processes.map((one, index) => ({ ...one, gone: false, silent: index ? null : 2 })) };
    source.refused = null;
    source.silent = false;
    source.live = { ...live, problems: [] };
    source.marks = [{ t: source.points.at(-1).t, kind: "invalidation", text: "All" }];
    source.tell();
    const quiet = [...text(".tile:nth-child(6)"), ...text(".fine")];
    const problem = { level: "error", kind: "failing", text: "Loads fail ".repeat(80), remedy: "", since: null };
    const counts = [1, 12].map((many) => {
        source.live = { ...live, problems: Array.from({ length: many }, (_, target) => ({ ...problem, target })) };
        source.tell();
        return text(".alarms-count")[0];
    });
    const lengths = text(".problems .told span").map((words) => words.length);
    source.live = { ...live, processes: [] };
    source.tell();
    CanvasRenderingContext2D.prototype.fillText = draw;
    return { quiet, ends, counts, lengths, name: processName(live.processes[0].id) };
}"""


@in_a_browser
def test_silent_process_is_not_counted_as_alive_and_long_problems_are_shortened(fleet: Fleet, chromium: Any) -> None:
    with opened(chromium, fleet.url) as page:
        page.locator("swr-loaders tbody tr").first.wait_for()
        shown = page.evaluate(STAGED)
    assert shown["quiet"][0] == "Processes21 silent"
    assert "2 processes alive, 1 silent;" in shown["quiet"][1]
    assert shown["ends"]
    assert all(end <= width for end, width in shown["ends"])
    assert shown["counts"] == ["1 thing is wrong", "12 things are wrongscroll to see all"]
    # An error with a whole statement of SQL in it hides no other problem.
    assert shown["lengths"] == [241] * 12
    # Events tell of processes that the state lacks while Redis is unreachable.
    assert re.search(r":\d+$", shown["name"])


@in_a_browser
def test_narrow_screen_shows_each_request_in_full(fleet: Fleet, chromium: Any) -> None:
    with opened(chromium, f"{fleet.url}#/requests", viewport={"width": 390, "height": 844}) as page:
        page.locator("swr-calls tbody tr").first.wait_for()
        cut = "[...document.querySelectorAll('.calls .call > *')].filter((one) => one.scrollWidth > one.clientWidth)"
        assert page.evaluate(f"{cut}.map((one) => one.textContent)") == []


REORDERED = """async () => {
    const { h, keep } = await import("./static/dom.js");
    const list = h("ul");
    document.body.append(h("div", { tabindex: "0", id: "outside" }, list));
    const show = (names) => keep(list, names, (name) => name, (name) => h("li", null, h("a", { href: "#/fleet" }, name)), () => {});
    const focused = () => document.activeElement.id || document.activeElement.textContent;
    show(["one", "two", "three"]);
    list.lastElementChild.firstElementChild.focus();
    const seen = [];
    for (const names of [["three", "one", "two"], ["two", "new", "three", "three"], ["new"]]) {
        show(names);
        seen.push([focused(), [...list.children].map((item) => item.textContent).join()]);
    }
    return seen;
}"""
FOCUSED = """(() => {
    const element = document.activeElement;
    return [element.getAttribute("aria-label") || element.textContent.slice(0, 40), getComputedStyle(element).outlineStyle];
})()"""


@in_a_browser
def test_focus_stays_on_its_item_when_a_list_is_reordered(fleet: Fleet, chromium: Any) -> None:
    with opened(chromium, fleet.url) as page:
        assert page.evaluate(REORDERED) == [
            ["three", "three,one,two"],
            ["three", "two,new,three,three"],
            ["outside", "new"],
        ]


@in_a_browser
def test_keyboard_reaches_all_controls_in_the_order_of_the_page(fleet: Fleet, chromium: Any) -> None:
    with opened(chromium, fleet.url) as page:
        page.locator("swr-loaders tbody tr").first.wait_for()
        names: list[str] = []
        for _ in range(300):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement === document.body"):
                break
            name, outline = page.evaluate(FOCUSED)
            names.append(name)
            assert outline != "none", name
        wanted = ["Skip to content", "Fleet", "Requests", "1 min", "5 min", "15 min", "Pause", "Reads a second", "Loads a second",
                  "Seconds that loads", "Table of loaders", "Loader or route", "Reads /s"]  # fmt: skip
        places = [next(index for index, name in enumerate(names) if name.startswith(each)) for each in wanted]
        assert places == sorted(places)
        # A table is sorted, and its name says how.
        page.get_by_role("button", name="Loader or route").press("Enter")
        assert page.locator("swr-loaders th.name").first.get_attribute("aria-sort") == "ascending"
        shown = page.locator("swr-loaders tbody .row-name code").all_text_contents()
        assert shown == sorted(shown, key=str.casefold)
        # A plot is read with the arrow keys.
        page.locator("swr-reads .surface").focus()
        page.keyboard.press("ArrowLeft")
        expect_text(
            page.locator("swr-reads [aria-live]"),
            re.compile(r"\d\d:\d\d:\d\d: missing [\d.,]+, stale [\d.,]+, fresh [\d.,]+"),
        )
        # The skip link, the pause and the range by keyboard.
        page.get_by_role("button", name="15 min").press("Enter")
        assert page.get_by_role("button", name="15 min").get_attribute("aria-pressed") == "true"
        page.get_by_role("button", name="Pause").press("Enter")
        expect_text(page.locator(".live"), "paused at")
        before = page.locator(".tiles").inner_text()
        page.evaluate("new Promise((done) => setTimeout(done, 1500))")
        assert page.locator(".tiles").inner_text() == before
        page.get_by_role("button", name="Resume").press("Enter")
        expect_text(page.locator(".live"), "live")


@in_a_browser
def test_hanging_load_is_shown_with_its_process(fleet: Fleet, chromium: Any) -> None:
    with opened(chromium, f"{fleet.url}#/requests/key/any:hung") as page:
        fleet.ask("/any", params={"text": "hung"})
        life = page.locator("swr-life")
        life.get_by_role("button", name="Hang the loader").click()
        expect_text(life.locator(".outcome"), "any:{text}")
        life.get_by_role("button", name="Invalidate").click()
        expect_text(life.locator(".life-state"), "Nothing is stored")
        # For longer than the button says, if the browser is slow. Nobody waits for it.
        (fleet.faults / "hang").touch()
        try:
            asking = {"params": {"text": "hung"}}
            threading.Thread(target=fleet.ask, args=("/any",), kwargs=asking, daemon=True).start()
            page.goto(f"{fleet.url}#/fleet")
            hanging = page.locator("swr-keys .hanging")
            expect_text(hanging, "any:hung")
            expect_text(hanging, re.compile(r"in \S+:\d+"))
            expect_text(page.locator(".alarms"), "any:hung")
        finally:
            (fleet.faults / "hang").unlink()


@in_a_browser
def test_silent_server_raises_an_alarm_until_it_answers_again(fleet: Fleet, chromium: Any) -> None:
    with opened(chromium, fleet.url) as page:
        page.locator(".is-live").wait_for()
        with fleet.held_up(0):
            expect_text(page.locator(".alarms"), "The page no longer hears from the server")
            expect_text(page.locator(".live"), "not connected")
        page.locator(".is-live").wait_for()
        page.locator(".alarms").filter(has_text="no longer hears").wait_for(state="hidden")


@in_a_browser
def test_refused_redis_commands_raise_an_alarm_and_all_processes_stay_listed(fleet: Fleet, chromium: Any) -> None:
    with opened(chromium, fleet.url) as page:
        page.locator(".is-live").wait_for()
        fleet.server.command("CONFIG", "SET", "maxmemory", "1")
        try:
            # Each of the three has reported since.
            expect_text(page.locator(".alarms"), re.compile("Redis refuses commands of 3 processes: .*raise maxmemory"))
            expect_text(page.locator(".tile").filter(has_text="Redis"), "refuses")
            expect_text(page.locator(".tile").filter(has_text="Processes"), "3")
        finally:
            fleet.server.command("CONFIG", "SET", "maxmemory", "0")


@in_a_browser
def test_killed_process_is_shown_as_gone(fleet: Fleet, chromium: Any) -> None:
    """From then on the fleet has two processes."""
    with opened(chromium, fleet.url) as page:
        page.locator("swr-processes li").first.wait_for()
        pid = fleet.kill(2)
        expect_text(page.locator("swr-processes li.is-gone").filter(has_text=f":{pid}"), "gone")
        expect_text(page.locator(".alarms"), f"{pid}")
        expect_text(page.locator(".tile").filter(has_text="Processes"), "2")
        expect_text(page.locator(".tile").filter(has_text="Processes"), "1 gone")
        assert json.dumps(fleet.state()["processes"]).count('"gone": true') == 1


@in_a_browser
def test_stopped_process_is_shown_as_ended_without_a_warning(fleet: Fleet, chromium: Any) -> None:
    """Comes last: from then on the fleet has one process."""
    with opened(chromium, fleet.url) as page:
        page.locator("swr-processes li").first.wait_for()
        pid = fleet.stop(1)
        expect_text(page.locator("swr-processes li.is-ended").filter(has_text=f":{pid}"), "ended")
        expect_text(page.locator(".tile").filter(has_text="Processes"), "1")
        assert not any(f" {pid} " in problem["text"] for problem in fleet.state()["problems"])
