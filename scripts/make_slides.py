"""Make the slides of the 90-minute session: their text, with the figures and tables of the executed notebooks.

    python scripts/make_slides.py slides.html

The text is `docs/slides/slides.md`, a slide between two lines of ``---``. A link to a notebook that stands alone in
its paragraph becomes the output of a cell: ``05_skipat.ipynb#accuracy_lost`` is the figure that is kept by the name
``"accuracy_lost"``, and ``#pooled`` the table of the cell whose last line begins with ``pooled``. So no number and no
picture of a slide differs from the notebook's. The site's build calls `slides`, and MathJax lies in the site.
"""

import re
import sys
from html import escape
from pathlib import Path

import nbformat
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "slides"
OUTPUT = re.compile(r'<p><a href="([^"#]+\.ipynb)#([^"]+)">(.*?)</a></p>', re.S)
SOURCE = re.compile(r'<a href="([^":]+)\.(?:ipynb|md)([#"])')  # on the site it is a page
TABLE = re.compile(r"<table.*</table>", re.S)


def slides() -> str:
    """The page."""
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    markdown.use(dollarmath_plugin, renderer=as_tex)
    text = (FOLDER / "slides.md").read_text(encoding="utf-8")
    pages = [markdown.render(slide) for slide in re.split(r"^---$", text, flags=re.M)]
    pages = [SOURCE.sub(r'<a href="\1.html\2', OUTPUT.sub(as_figure, page)) for page in pages]
    shown = [f"<section>\n{page}</section>" for page in pages]
    template = (FOLDER / "template.html").read_text(encoding="utf-8")
    return template.replace("<!-- slides -->", "\n".join(shown))


def as_tex(content: str, options: dict) -> str:
    """A formula as MathJax finds it."""
    return escape(rf"\[{content}\]" if options["display_mode"] else rf"\({content}\)")


def as_figure(link: re.Match) -> str:
    """What stands in the place of a link to a notebook."""
    path, name, caption = link.groups()
    data = output_of(FOLDER / path, name)
    picture = f'<img alt="{re.sub("<.*?>", "", caption)}" src="data:image/png;base64,{data.get("image/png", "")}">'
    shown = picture if "image/png" in data else TABLE.search(data["text/html"])[0]
    source = f'<a href="{path}">{Path(path).stem[:2]}</a>'
    return f"<figure>{shown}<figcaption>{caption} ({source})</figcaption></figure>"


def output_of(path: Path, name: str) -> NotebookNode:
    """The data of a cell's last output; a `ValueError` unless exactly one cell has this name."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    found = [outputs[-1] for cell in cells if is_named(cell.source, name) and (outputs := shown_by(cell))]
    if len(found) != 1:
        raise ValueError(f"{len(found)} cells of {path.name} show {name!r}, and a slide needs one")
    return found[0]


def is_named(source: str, name: str) -> bool:
    """Whether a cell keeps a figure of this name, or ends with the table."""
    last = source.rstrip().splitlines()[-1:]
    return bool(re.search(rf'\.figure\(.*"{re.escape(name)}"\)', source)) or any(
        re.match(rf"{re.escape(name)}\b", line) for line in last
    )


def shown_by(cell: NotebookNode) -> list[NotebookNode]:
    """The pictures and tables under a cell."""
    kept = [output["data"] for output in cell.outputs if "data" in output]
    return [data for data in kept if "image/png" in data or "text/html" in data]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(slides(), encoding="utf-8")
