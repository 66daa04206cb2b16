"""Pages of the documentation, to which the dashboard's explanations link."""

import html
import re
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"[a-z0-9]+")
# A clone of swr has the pages, but an installed package does not.
_FOLDER: Final = Path(__file__).parent.parent.parent / "docs"
_PUBLISHED: Final = "https://swr-cache.github.io/swr/"
_HEADING: Final = re.compile(r"(#{1,6}) (.*)")
_LINK: Final = re.compile(r"\[([^\]]*)\]\(([a-z0-9]+)\.md(#[a-z0-9-]+)?\)")
_CODE: Final = re.compile(r"`([^`]+)`")


def address_of(place: str, folder: Path = _FOLDER) -> str:
    """Return the address of a place in the documentation: on this dashboard if it has the page, else on the web.

    Parameters:
        place: a page and an anchor, such as "http#how-long-a-response-is-fresh".
        folder: the folder of the pages.
    """
    page, _, anchor = place.partition("#")
    # With an installed package, the folder may contain the documentation of another program.
    if (folder / f"{page}.md").is_file():
        return f"docs/{place}"
    return f"{_PUBLISHED}{page}/{anchor and '#'}{anchor}"


def page_of(name: str) -> str | None:
    """Return a page as HTML, or None if there is no page of that name.

    This is a minimal conversion of Markdown: headings get the anchors of links, and tables stay plain text.
    """
    if not _NAME.fullmatch(name):
        return None
    path = _FOLDER / f"{name}.md"
    return _as_html(path.read_text(encoding="utf-8")) if path.is_file() else None


def _as_html(text: str) -> str:
    parts: list[str] = []
    lines: list[str] = []
    is_code = False

    def end_block() -> None:
        if lines:
            is_table = lines[0].startswith("|")
            tag = "pre" if is_code or is_table else "p"
            body = html.escape("\n".join(lines))
            parts.append(f"<{tag}>{body if is_code else _inline(body)}</{tag}>")
            lines.clear()

    for line in text.splitlines():
        heading = None if is_code else _HEADING.fullmatch(line)
        if line.startswith("```"):
            end_block()
            is_code = not is_code
        elif heading is not None:
            end_block()
            level, title = len(heading[1]), heading[2]
            parts.append(f'<h{level} id="{anchor_of(title)}">{_inline(html.escape(title))}</h{level}>')
        elif line or is_code:
            lines.append(line)
        else:
            end_block()
    end_block()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>swr</title>'
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="../static/docs.css"></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def anchor_of(title: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def _inline(escaped: str) -> str:
    linked = _LINK.sub(lambda match: f'<a href="{match[2]}{match[3] or ""}">{match[1]}</a>', escaped)
    return _CODE.sub(r"<code>\1</code>", linked)
