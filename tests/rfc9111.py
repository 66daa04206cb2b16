"""A naive model of a shared HTTP cache, written from RFC 9111, 5861 and 9213 alone, without a look at `swr`.

It keeps one list of responses, and computes everything from their raw header fields again at every request. docs/http.md
decides what the RFCs leave open. If both are silent, the model does not know the answer and says so (`Unsure`).
"""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Fields = list[tuple[str, str]]  # names in lower case

CAP = 2**31  # RFC 9111 1.2.2
DAY = 86400
ERRORS = {500, 502, 503, 504}  # RFC 5861 4
ABOUT_CLIENT = {*range(400, 600)} - {404, 410}  # policy: these tell nothing about stored responses
HEURISTIC = {200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501}  # RFC 9110 15.1 (206 is not stored)
REGISTERED = {*range(200, 209), 226, *range(300, 306), 307, 308, *range(400, 418), 421, 422, 423, 424, 425, 426, 428}
REGISTERED |= {429, 431, 451, *range(500, 509), 510, 511}


class Unsure(Exception):
    """Neither an RFC nor the policy says what happens now."""


@dataclass
class Stored:
    url: str
    request: Fields
    status: int
    fields: Fields
    body: bytes
    received: float


@dataclass
class Answer:
    status: int
    body: bytes
    state: str | None  # None: anything
    asked: list[tuple[str, Fields]]  # what the origin was asked: the method, and the conditions
    fields: Fields | None = None  # of the stored response, if this comes from it
    age: int | None = None  # if this comes from the cache without the origin
    last: str = ""  # why the model does not know what comes afterwards


# --- Header fields


def lines(fields: Fields, name: str) -> list[str]:
    return [value.strip(" \t") for key, value in fields if key == name]


def combined(fields: Fields, name: str) -> str | None:
    """RFC 9110 5.3."""
    return ", ".join(lines(fields, name)) if lines(fields, name) else None


SHORT, LONG = "(?:mon|tue|wed|thu|fri|sat|sun)", "(?:mon|tues|wednes|thurs|fri|satur|sun)day"
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
MONTH, TIME = f"(?P<month>{'|'.join(MONTHS)})", r"(?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)"
DATES = (
    rf"{SHORT}, (?P<day>\d\d) {MONTH} (?P<year>\d{{4}}) {TIME} gmt",
    rf"{LONG}, (?P<day>\d\d)-{MONTH}-(?P<year>\d\d) {TIME} gmt",
    rf"{SHORT} {MONTH} (?P<day>\d\d| \d) {TIME} (?P<year>\d{{4}})",
)


def http_date(text: str, now: float) -> float | None:
    """RFC 9110 5.6.7: one of exactly three forms."""
    for form in DATES:
        if found := re.fullmatch(form, text, re.IGNORECASE | re.ASCII):
            year, month = int(found["year"]), MONTHS.index(found["month"].lower()) + 1
            rest = (int(found["day"]), int(found["h"]), int(found["m"]), int(found["s"]))
            try:
                if len(found["year"]) == 4:
                    return datetime(year, month, *rest, tzinfo=UTC).timestamp()
                today = datetime.fromtimestamp(now, UTC)
                moment = datetime(today.year // 100 * 100 + year, month, *rest, tzinfo=UTC)
                if moment > today.replace(year=today.year + 50):  # more than 50 years in the future
                    moment = moment.replace(year=moment.year - 100)
                return moment.timestamp()
            except ValueError:
                return None
    return None


@dataclass
class Directive:
    argument: str | None
    seconds: int  # 0 when it is not a number of seconds (RFC 9111 4.2.1: invalid counts as stale)


def cache_control(text: str | None) -> dict[str, Directive]:
    """RFC 9111 5.2: the first of duplicates counts, arguments come as tokens and as quoted strings."""
    found: dict[str, Directive] = {}
    for part in re.findall(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+', text or ""):
        name, equals, argument = (piece.strip(" \t") for piece in part.partition("="))
        if argument.startswith('"'):
            argument = re.sub(r"\\(.)", r"\1", argument[1:-1])
        seconds = min(int(argument), CAP) if re.fullmatch(r"[0-9]+", argument) else 0
        if name:
            first = found.setdefault(name.lower(), Directive(argument if equals else None, seconds))
            if not equals and name.lower() in {
                "no-cache",
                "private",
            }:  # both `no-cache="a"` and `no-cache`: the stricter
                first.argument = None
    return found


KEY = r"[a-z*][a-z0-9_.*-]*"
ITEM = (
    r"(?:-?[0-9]{1,12}\.[0-9]{1,3}|-?[0-9]{1,15}(?![0-9.])"
    r'|"(?:[ !#-\[\]-~]|\\["\\])*"|[A-Za-z*][!#$%&\'*+.^_`|~0-9A-Za-z:/-]*|:[A-Za-z0-9+/=]*:|\?[01]|@-?[0-9]{1,15})'
)
PARAMETERS = rf"(?:; *{KEY}(?:={ITEM})?)*"
INNER = rf"\( *(?:{ITEM}{PARAMETERS}(?: +{ITEM}{PARAMETERS})*)? *\)"
MEMBER = rf"({KEY})(?:=({ITEM}|{INNER}))?{PARAMETERS}"


def dictionary(text: str | None) -> dict[str, Directive]:
    """RFC 9651 4.2.2; empty if it is empty or malformed. The last of duplicates counts."""
    text = (text or "").strip(" ")
    if not re.fullmatch(rf"{MEMBER}(?:[ \t]*,[ \t]*{MEMBER})*", text):
        return {}
    found = {}
    for member in re.finditer(rf"{MEMBER}[ \t]*(?:,[ \t]*|$)", text):
        name, argument = member[1], member[2]
        seconds = min(int(argument), CAP) if re.fullmatch(r"[0-9]+|-0+", argument or "") else 0
        found[name] = Directive(argument, seconds)
    return found


def control(fields: Fields) -> tuple[dict[str, Directive], bool]:
    """RFC 9213 2.2: the first targeted field that is valid goes before Cache-Control and Expires."""
    for name in ("swr-cache-control", "cdn-cache-control"):
        if targeted := dictionary(combined(fields, name)):
            return targeted, True
    return cache_control(combined(fields, "cache-control")), False


def unqualified(directives: dict[str, Directive], name: str) -> bool:
    """RFC 9111 5.2.2.4 and 5.2.2.7: with an argument, a directive applies only to the fields that it names."""
    return name in directives and directives[name].argument is None


def without_qualified(fields: Fields) -> Fields:
    """Remove the fields that `private="a, b"` and `no-cache="a, b"` name, which must not be stored."""
    directives, _ = control(fields)
    names = ",".join((directives[n].argument or "") for n in ("private", "no-cache") if n in directives)
    dropped = {name.strip(' \t"').lower() for name in names.split(",")}
    return [(name, value) for name, value in fields if name not in dropped]


# --- Freshness


def date_of(fields: Fields, received: float) -> float:
    """RFC 9110 6.6.1: without a Date it is the time of receipt."""
    date = http_date(lines(fields, "date")[0], received) if lines(fields, "date") else None
    return received if date is None else date


def explicit_lifetime(fields: Fields, received: float) -> float | None:
    """RFC 9111 4.2.1."""
    directives, targeted = control(fields)
    for name in ("s-maxage", "max-age"):
        if name in directives:
            return directives[name].seconds
    if lines(fields, "expires") and not targeted:
        expires = http_date(lines(fields, "expires")[0], received)
        if expires is None or len(set(lines(fields, "expires"))) > 1:  # RFC 9111 4.2.1 and 5.3
            return 0
        return min(max(0, expires - date_of(fields, received)), CAP)
    return None


def heuristic_lifetime(status: int, fields: Fields, received: float) -> float:
    """RFC 9111 4.2.2: a tenth of the time since the last change, a day at most."""
    if not lines(fields, "last-modified") or not (status in HEURISTIC or "public" in control(fields)[0]):
        return 0
    changed = http_date(lines(fields, "last-modified")[0], received)
    return 0 if changed is None else min(max(0, (date_of(fields, received) - changed) // 10), DAY)


def lifetime(entry: Stored) -> float:
    explicit = explicit_lifetime(entry.fields, entry.received)
    return heuristic_lifetime(entry.status, entry.fields, entry.received) if explicit is None else explicit


def age(entry: Stored, now: float) -> float:
    """RFC 9111 4.2.3, with no delay."""
    apparent_age = max(0, entry.received - date_of(entry.fields, entry.received))
    first = (lines(entry.fields, "age") or ["0"])[0].split(",")[0].strip(" \t")  # RFC 9111 5.1
    age_value = min(int(first), CAP) if re.fullmatch(r"[0-9]+", first) else 0
    return max(apparent_age, age_value) + (now - entry.received)


def overdue(entry: Stored, now: float) -> float:
    """Seconds since the response became stale; negative: it is fresh (RFC 9111 4.2)."""
    return age(entry, now) - lifetime(entry)


def never_stale(entry: Stored) -> bool:
    """RFC 9111 4.2.4."""
    directives, _ = control(entry.fields)
    if "must-revalidate" in directives or "proxy-revalidate" in directives or unqualified(directives, "no-cache"):
        return True
    return "s-maxage" in directives and not directives.keys() & {"stale-while-revalidate", "stale-if-error"}


def window(entry: Stored, name: str) -> int:
    """RFC 5861 3 and 4."""
    directives, _ = control(entry.fields)
    return directives[name].seconds if name in directives else 0


def kept_for(entry: Stored) -> float:
    return max(DAY, window(entry, "stale-while-revalidate"), window(entry, "stale-if-error"))


# --- Validators and conditions


def validators(entry: Stored) -> Fields:
    """RFC 9111 4.3.1."""
    pairs = (("etag", "if-none-match"), ("last-modified", "if-modified-since"))
    if not 200 <= entry.status < 300:  # RFC 9110 13.2.1: an origin looks at conditions only if it would answer 2xx
        return []
    return [(condition, lines(entry.fields, name)[0]) for name, condition in pairs if lines(entry.fields, name)]


def not_modified(entry: Stored, request: Fields) -> bool:
    """RFC 9111 4.3.2, RFC 9110 13.2.2: does the stored response answer the client's condition with a 304?"""
    if lines(request, "if-none-match"):
        asked = [tag.strip() for tag in (combined(request, "if-none-match") or "").split(",")]
        etag = lines(entry.fields, "etag")
        return asked == ["*"] or (
            bool(etag) and etag[0].removeprefix("W/") in [tag.removeprefix("W/") for tag in asked]
        )
    since = http_date((lines(request, "if-modified-since") or [""])[0], entry.received)
    changed = http_date((lines(entry.fields, "last-modified") or [""])[0], entry.received)
    return since is not None and (date_of(entry.fields, entry.received) if changed is None else changed) <= since


def wanted_range(entry: Stored, request: Fields) -> slice | str:
    """RFC 9110 14.2: a part, "unsatisfiable", or "" for the whole."""
    if lines(request, "if-range"):  # RFC 9110 13.1.5: strong comparison
        strong = [tag for tag in lines(entry.fields, "etag") if not tag.startswith("W/")]
        if lines(request, "if-range")[0] not in strong:
            return ""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", combined(request, "range") or "", re.IGNORECASE | re.ASCII)
    if not found or found[0].endswith("=-"):
        return ""
    size, (first, last) = len(entry.body), found.groups()
    if not first:
        return slice(max(0, size - int(last)), size) if int(last) else "unsatisfiable"
    if last and int(last) < int(first):
        return ""
    return slice(int(first), min(int(last), size - 1) + 1 if last else size) if int(first) < size else "unsatisfiable"


# --- Variants


def vary(fields: Fields) -> set[str]:
    return {name.strip(" \t").lower() for name in ",".join(lines(fields, "vary")).split(",")} - {""}


def normal(request: Fields, name: str) -> str | None:
    """RFC 9111 4.1."""
    value = combined(request, name)
    if value is None:
        return None
    value = ",".join(part.strip(" \t") for part in value.split(","))
    return value.lower() if name in {"accept", "accept-charset", "accept-encoding", "accept-language"} else value


def selects(entry: Stored, request: Fields) -> bool:
    return all(normal(entry.request, name) == normal(request, name) for name in vary(entry.fields))


# --- The cache


def shared(entry: Stored) -> bool:
    """RFC 9111 3.5: is it for all clients although its request had Authorization? Policy: not by a guessed lifetime."""
    directives = control(entry.fields)[0]
    own = explicit_lifetime(entry.fields, entry.received) is not None or unqualified(directives, "no-cache")
    return "public" in directives or (own and bool(directives.keys() & {"s-maxage", "must-revalidate"}))


def storable(request: Fields, new: Stored) -> bool:
    """RFC 9111 3, of a response to GET."""
    directives, _ = control(new.fields)
    if new.status < 200 or new.status in {206, 304}:
        return False
    if "must-understand" in directives:  # RFC 9111 5.2.2.3
        if new.status not in REGISTERED:
            return False
    elif "no-store" in directives:
        return False
    if unqualified(directives, "private") or "*" in vary(new.fields):
        return False
    if lines(request, "authorization") and not shared(new):
        return False
    explicit = explicit_lifetime(new.fields, new.received)
    if new.status in ERRORS:
        if unqualified(directives, "no-cache") or explicit is None or explicit <= 0:
            return False
        return overdue(new, new.received) < 0
    validated = bool(lines(new.fields, "etag") or lines(new.fields, "last-modified"))
    if unqualified(directives, "no-cache"):
        return validated
    if explicit is None and lifetime(new) <= 0:
        return False  # it gives no lifetime
    over = overdue(new, new.received)
    windows = max(window(new, "stale-while-revalidate"), window(new, "stale-if-error"))
    return over < 0 or validated or (over < windows and not never_stale(new))


@dataclass
class NaiveCache:
    stored: list[Stored] = field(default_factory=list)
    alone: dict[str, float] = field(default_factory=dict)  # until when a URL need not be stored (docs/http.md)

    def moments(self, url: str, now: float) -> list[float]:
        """Seconds until each change of state of the stored responses to a URL."""
        names = ("stale-while-revalidate", "stale-if-error")
        entries = [entry for entry in self.stored if entry.url == url]
        return [end - overdue(e, now) for e in entries for end in (0, *(window(e, name) for name in names))]

    def request(self, method: str, url: str, request: Fields, now: float, origin: Any) -> Answer:
        """Answer a request; `origin(method, conditions)` returns status, fields and body."""
        asked: list[tuple[str, Fields]] = []

        def ask(method: str, conditions: Fields) -> Stored:
            asked.append((method, conditions))
            return Stored(url, request, *origin(method, conditions), received=now)

        wants = cache_control(combined(request, "cache-control"))
        conditional = bool(lines(request, "if-none-match") or lines(request, "if-modified-since"))
        if method not in {"GET", "HEAD"}:
            new = ask(method, [])
            if 200 <= new.status < 300 or new.status in {301, 302, 303}:  # RFC 9111 4.4; policy: not 307, 308
                self.stored = [entry for entry in self.stored if entry.url != url]
                self.alone.pop(url, None)
            return Answer(new.status, new.body, None, asked)
        entry = next((entry for entry in self.stored if entry.url == url and selects(entry, request)), None)
        if entry and lines(request, "authorization") and not shared(entry):
            if conditional or lines(request, "range") or "only-if-cached" in wants:
                raise Unsure("what is not for this client, and conditions")
            new = ask(method, [])  # RFC 9111 3.5 allows the stored response, but does not require it
            return Answer(new.status, new.body, "missing", asked, last="what is stored is not for this client")
        if entry and (state := self.servable(entry, wants, now)):
            answer = self.answer(entry, method, request, state, asked)
            answer.age = int(age(entry, now))
            if state == "stale":  # RFC 5861 3, and what the client alone allows is refreshed too
                new = ask("GET", validators(entry))
                if new.status in ABOUT_CLIENT:
                    answer.last = "a failed refresh: back-off"
                else:
                    self.take(new, entry, [], now)
            return answer
        if "only-if-cached" in wants:  # RFC 9111 5.2.1.7
            return Answer(504, b"", None, asked)
        if lines(request, "range"):
            raise Unsure("a range on a miss")
        if "no-store" in wants:  # RFC 9111 5.2.1.5
            if conditional:
                raise Unsure("what of the client's conditions is passed on")
            new = ask(method, [])
            return Answer(new.status, new.body, "missing", asked)
        if entry and overdue(entry, now) >= kept_for(entry):
            raise Unsure("is it still there?")
        if method == "HEAD":
            return self.head(entry, request, ask, asked, now)

        alone = now < self.alone.get(url, 0)
        if alone and entry:
            raise Unsure("a URL that is left alone, because of another variant")
        if alone and conditional:
            raise Unsure("what of the client's conditions is passed on")
        new = ask("GET", validators(entry) if entry else [])
        if new.status in ERRORS and entry:
            over = overdue(entry, now)
            usable = over < window(entry, "stale-while-revalidate") and not never_stale(entry)
            if usable or (over < 0 and not unqualified(control(entry.fields)[0], "no-cache")):
                raise Unsure("may what is not fresh enough for the client be the fallback?")
            if self.stands_in(entry, new.status, now):
                answer = self.answer(entry, method, request, "stale", asked)
                answer.age, answer.last = int(age(entry, now)), "a failed load: back-off"
                ask("GET", validators(entry))  # once more, without this client's own fields
                return answer
        if alone and storable(request, new):
            return Answer(new.status, new.body, "missing", asked, last="a URL that is left alone")
        kept = self.take(new, entry, request, now)
        last = (
            ""
            if kept or not entry or not lines(request, "authorization")
            else "does what is for one client end what is stored?"
        )
        if kept:  # RFC 9111 4.3.2: conditions apply to the whole response
            return self.answer(kept, method, request, "missing", asked)
        if new.status == 304:
            if conditional:
                raise Unsure("a 304 that says that what it confirms may not be stored")
            assert entry
            return Answer(entry.status, entry.body, "missing", asked, last=last)
        return Answer(new.status, new.body, "missing", asked, last=last)

    def servable(self, entry: Stored, wants: dict[str, Directive], now: float) -> str | None:
        """RFC 9111 4: "fresh", "stale" or not."""
        over = overdue(entry, now)
        if unqualified(control(entry.fields)[0], "no-cache"):
            return None
        if over < 0:
            return "fresh"
        if never_stale(entry):
            return None
        accepted = "max-stale" in wants and over < kept_for(entry)  # RFC 9111 5.2.1.2
        if accepted and (wants["max-stale"].argument is None or over <= wants["max-stale"].seconds):
            return "stale"
        if over < window(entry, "stale-while-revalidate"):
            if accepted:
                raise Unsure("more stale than the client likes, but not than the origin does")
            return "stale"
        return None

    def stands_in(self, entry: Stored, status: int, now: float) -> bool:
        """RFC 5861 4; RFC 9111 4.2.4 for an origin that cannot be reached."""
        unreachable = status in {502, 504} and entry.status not in ERRORS
        allowed = max(window(entry, "stale-if-error"), DAY if unreachable else 0)
        return overdue(entry, now) < allowed and not never_stale(entry)

    def answer(self, entry: Stored, method: str, request: Fields, state: str, asked: Any) -> Answer:
        status, body = entry.status, entry.body
        if status == 200 and not_modified(entry, request):
            status, body = 304, b""
        elif status == 200 and method == "GET" and lines(request, "range"):
            part = wanted_range(entry, request)
            if isinstance(part, slice):
                status, body = 206, body[part]
            elif part:
                status, body = 416, b""
        return Answer(status, b"" if method == "HEAD" else body, state, asked, list(entry.fields))

    def take(self, new: Stored, old: Stored | None, request: Fields, now: float) -> Stored | None:
        """Store a response to GET if it may be stored; return the stored response, or None."""
        if new.status == 304:
            assert old
            if lines(new.fields, "etag") and lines(new.fields, "etag") != lines(old.fields, "etag"):
                raise Unsure("a 304 about something else than what is stored")  # RFC 9111 4.3.4
            fields, new = new.fields, Stored(old.url, old.request, old.status, old.fields, old.body, now)
            new.fields = updated(old.fields, fields)
        keep = storable(request, new)
        others = [entry for entry in self.stored if entry.url == new.url and entry is not old]
        if keep and any(vary(entry.fields) != vary(new.fields) for entry in [*others, *([old] if old else [])]):
            raise Unsure("a resource that varies by something else than before")
        asks_for_less = any(lines(request, name) for name in ("if-none-match", "if-modified-since", "range"))
        if not keep and (new.status in ABOUT_CLIENT or (new.status in {404, 410} and asks_for_less)):
            return None
        if not keep:
            self.alone[new.url] = now + 120
        self.stored = [entry for entry in self.stored if entry is not old]
        if keep:
            new.fields = without_qualified(new.fields)
            self.stored.append(new)
        return new if keep else None

    def head(self, entry: Stored | None, request: Fields, ask: Any, asked: Any, now: float) -> Answer:
        """RFC 9111 4.3.5."""
        if lines(request, "if-none-match") or lines(request, "if-modified-since"):
            raise Unsure("what of the client's conditions is passed on")
        new = ask("HEAD", [])
        if entry and new.status in ERRORS and self.stands_in(entry, new.status, now):
            raise Unsure("does what is stored stand in for a HEAD?")
        answer = Answer(new.status, b"", "missing", asked)
        if entry and new.status == 200:
            if vary(new.fields) != vary(entry.fields):
                raise Unsure("a resource that varies by something else than before")
            both = {n: (lines(new.fields, n), lines(entry.fields, n)) for n in ("etag", "last-modified")}
            weak = {n: [[v.removeprefix("W/") for v in side] for side in sides] for n, sides in both.items()}
            differs = any(all(sides) and sides[0] != sides[1] for sides in weak.values())
            strong = all(both["etag"]) and not any(v.startswith("W/") for side in both["etag"] for v in side)
            length = lines(new.fields, "content-length")
            other = bool(length) and length != lines(entry.fields, "content-length")
            own = explicit_lifetime(entry.fields, entry.received) is not None or bool(
                control(entry.fields)[0].keys() & {"public", "no-cache"}
            )
            if not differs and (other or not (strong or all(both["last-modified"]))):
                return answer
            fresh = Stored(entry.url, entry.request, entry.status, updated(entry.fields, new.fields), entry.body, now)
            if not own and (differs or entry.status != 200 or not storable(request, fresh)):
                return answer
            self.stored = [e for e in self.stored if e is not entry]
            if differs or entry.status != 200:
                answer.last = "a HEAD that says that what is stored has changed"
            elif storable(request, fresh):
                fresh.fields = without_qualified(fresh.fields)
                self.stored.append(fresh)
        return answer


def updated(old: Fields, new: Fields) -> Fields:
    """RFC 9111 3.2 and 4.3.4; Date and Age belong to a message, so the new message ends the old ones."""
    names = {name for name, _ in new} - {"content-length", "content-encoding", "content-range"}
    kept = [(name, value) for name, value in old if name not in names | {"date", "age"}]
    return kept + [(name, value) for name, value in new if name in names]
