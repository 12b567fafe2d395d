"""Check a built site: every link inside it leads somewhere, and no page loads anything from elsewhere.

    python scripts/check_site.py build/site

Links to other sites are listed, not followed.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {
    "script": "src",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "embed": "src",
    "object": "data",
    "video": "src",
}
"""Tag -> the attribute whose address a browser fetches by itself; a link does so by its ``rel``."""
LOADING_RELS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "manifest", "preconnect", "dns-prefetch"}
IN_CSS = re.compile(r"url\(\s*[\"']?([^)\"']+)|@import\s+[\"']([^\"']+)")


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.anchors: set[str] = set()
        self._in_style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.loads |= set(_in_css(given.get("style", "")))
        self._in_style = tag == "style"
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag == "link" and set(given.get("rel", "").split()) & LOADING_RELS:
            self.loads.add(given["href"])
        elif given.get(LOADED.get(tag, "")):
            self.loads.add(given[LOADED[tag]])

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.loads |= set(_in_css(data))
            self._in_style = False


def problems(site: Path) -> list[str]:
    """Everything that is wrong, one line each: broken links, and what would be fetched from elsewhere."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name} loads {address}" for address in sorted(page.loads) if _is_external(address)]
        for address in sorted(page.links | page.loads):
            if not _is_external(address) and not _leads_somewhere(address, path, pages):
                found.append(f"{name} links to {address}, which is not there")
    for path in sorted(site.rglob("*.css")):
        for address in sorted(_in_css(path.read_text(encoding="utf-8"))):
            if _is_external(address):
                found.append(f"{path.relative_to(site)} loads {address}")
    return found


def external_links(site: Path) -> set[str]:
    """What the pages link to elsewhere."""
    links = {link for path in site.rglob("*.html") for link in Page(path).links}
    return {link for link in links if _is_external(link)}


def _in_css(text: str) -> Iterator[str]:
    for match in IN_CSS.finditer(text):
        yield match[1] or match[2]


def _is_external(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https", "ftp", "ws", "wss")


def _leads_somewhere(address: str, path: Path, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(address)
    if parts.scheme:  # data:, mailto:
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target not in pages:
        return target.is_file()
    return not parts.fragment or unquote(parts.fragment) in pages[target].anchors


def main(folder: str) -> int:
    """Print what is wrong, then the links to other sites; 1 if anything is wrong."""
    site = Path(folder).resolve()
    found = problems(site)
    print(*found, sep="\n", end="\n" if found else "")
    print("Links to other sites, not followed:", *sorted(external_links(site)), sep="\n  ")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
