"""Check the built reading copy: it needs nothing from elsewhere, its links and anchors lead somewhere, its headings are
in order, and every picture has an alternative text.

    python notebooks/site/check_pages.py build/site

Prints each problem and exits with 1 where there is one. Needs only Python. Links that a reader follows to other hosts
are allowed, and not looked up; scripts, styles, fonts and pictures from there are not.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
LOADED_RELATIONS = {"stylesheet", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "icon"}
STYLE_URL = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s]+)""")


class Page(HTMLParser):
    """What one page holds: ``anchors``, ``headings`` (levels), ``links``, ``loads``, and ``untold`` pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.headings: list[int] = []
        self.links: list[str] = []
        self.loads: list[str] = STYLE_URL.findall(html)
        self.untold: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and LOADED[tag] in values:
            self.loads.append(values[LOADED[tag]])
        if tag == "link" and LOADED_RELATIONS & set(values.get("rel", "").split()):
            self.loads.append(values.get("href", ""))
        if tag == "img" and (not values.get("alt", "").strip() or values["alt"] == values.get("src")):
            self.untold.append(values.get("src", ""))


def problems(folder: Path) -> list[str]:
    """Everything wrong with the pages in ``folder``, a line each.

    Raises:
        FileNotFoundError: there are no pages.
    """
    pages = {path.resolve(): Page(path.read_text(encoding="utf8")) for path in sorted(folder.rglob("*.html"))}
    if not pages:
        raise FileNotFoundError(f"{folder} holds no pages; type make site")
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder.resolve())
        for address in page.loads:
            if urlsplit(address).netloc:
                found.append(f"{name} loads {address} from another host")
        for address in [*page.links, *page.loads]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                found.append(f"{name} refers to {address}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name} refers to {address}, an anchor that is not there")
        if page.headings.count(1) != 1 and path.name != "search.html":  # the theme's, headed by what is found
            found.append(f"{name} has {page.headings.count(1)} titles instead of one")
        steps = [(above, level) for above, level in pairwise(page.headings) if level > above + 1]
        found += [f"{name}: a heading of level {level} below one of level {above}" for above, level in steps]
        found += [f"{name}: the picture {address[:80]} has no alternative text" for address in page.untold]
    for path in sorted(folder.rglob("*.css")):
        addresses = STYLE_URL.findall(path.read_text(encoding="utf8"))
        found += [f"{path.relative_to(folder)} loads {address} from another host" for address in addresses]
    return found


def main(arguments: Sequence[str]) -> int:
    folder = Path(arguments[0])
    try:
        found = problems(folder)
    except FileNotFoundError as problem:
        found = [str(problem)]
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        pages = len(list(folder.rglob("*.html")))
        print(f"{pages} pages, links, headings and alternative texts checked: open {folder}/index.html")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
