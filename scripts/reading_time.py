"""How long it takes to read a notebook with its outputs: a stated rule, computed from what stands in it.

    python scripts/reading_time.py

200 words of text a minute, 20 lines of code a minute, half a minute for each figure and for each table. The cells of
`## Claims` are left out: they are checks, not text. Times are rounded to five minutes. A test compares them with the
table of `docs/study.md` and with the first cell of each notebook.
"""

import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
WORDS, LINES, PICTURES = 200, 20, 2
"""What is read in a minute: words of text, lines of code, figures or tables."""


def reading_minutes(cells: list[NotebookNode]) -> int:
    """Minutes, a multiple of five."""
    read = without_claims(cells)
    words = sum(len(re.findall(r"\w+", cell.source)) for cell in read if cell.cell_type == "markdown")
    code = [cell for cell in read if cell.cell_type == "code"]
    lines = sum(bool(line.strip()) for cell in code for line in cell.source.splitlines())
    shown = [output.get("data", {}) for cell in code for output in cell.outputs]
    pictures = sum("image/png" in data or "text/html" in data for data in shown)
    return max(5, 5 * round((words / WORDS + lines / LINES + pictures / PICTURES) / 5))


def without_claims(cells: list[NotebookNode]) -> list[NotebookNode]:
    """All cells but those between `## Claims` and the next heading."""
    read, skips = [], False
    for cell in cells:
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            skips = cell.source.startswith("## Claims")
        read += [] if skips else [cell]
    return read


def notebook_minutes() -> dict[str, int]:
    """Name of each notebook of the study -> minutes."""
    paths = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    return {path.stem: reading_minutes(nbformat.read(path, as_version=4).cells) for path in paths}


if __name__ == "__main__":
    for name, minutes in notebook_minutes().items():
        print(f"{name:20} {minutes:3}")
