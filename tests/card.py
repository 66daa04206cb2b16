"""Draws docs/card.png, which a link to the documentation shows in a chat: `python -m tests.card`."""

import re
from pathlib import Path

from tests.page_fleet import browser

DOCS = Path(__file__).parent.parent / "docs"
SIZE = {"width": 1200, "height": 630}
_PAGE = """
<body style="margin: 0; padding: 56px 72px; box-sizing: border-box; width: 1200px; height: 630px; color: #e8eaed;
    background: #14161b; font: 34px/1.35 system-ui, sans-serif">
  <div style="font-size: 104px; font-weight: 700; line-height: 1">swr</div>
  <p style="margin: 20px 0 44px">{description}</p>
  {timeline}
  <p style="position: absolute; bottom: 20px; color: #9aa0a6; font-size: 28px">Starlette · FastAPI · any async Python ·
    Redis and Valkey</p>
</body>
"""


def main() -> None:
    """Draw the card: the name, what swr does, and the time line of an entry."""
    configuration = (DOCS.parent / "mkdocs.yml").read_text()
    description = re.search(r'^site_description: "(.*)"$', configuration, re.MULTILINE)
    assert description is not None
    timeline = (DOCS / "diagrams" / "timeline.svg").read_text()
    with browser() as chromium:
        page = chromium.new_page(viewport=SIZE)
        page.set_content(_PAGE.format(description=description[1], timeline=timeline))
        page.screenshot(path=DOCS / "card.png")


if __name__ == "__main__":
    main()
