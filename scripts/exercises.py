"""Write notebooks/exercises from notebooks/solutions, the one source of both, and execute them.

    python scripts/exercises.py               # all of them, executed
    python scripts/exercises.py 02 05         # these alone
    python scripts/exercises.py --solutions   # execute the solutions first

In a solution notebook,

- the lines from ``# BEGIN SOLUTION stub`` to ``# END SOLUTION`` become ``stub`` (``...`` where none is given);
- the text cell tagged ``introduction`` becomes a word on how to work with the exercises;
- cells tagged ``solution`` become a place for the reader's own where nothing else is to be filled in (open exercises),
  and are left out elsewhere;
- a cell tagged ``mistakes`` is left out: it shows wrong answers, and what the checks say to them;
- what a check prints (cells tagged ``nbval-check-output``) follows it as the expected output;
- links to the exercise become links to the solution.
"""

import argparse
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SOLUTIONS = NOTEBOOKS / "solutions"
EXERCISES = NOTEBOOKS / "exercises"
REGION = re.compile(r"^( *)# BEGIN SOLUTION *(.*)\n(?:.*\n)*?\1# END SOLUTION$", re.M)
INTRODUCTION = """\
Put your answer in place of each `...`, run its cell, then the check below it: it says whether the answer is right, and
if it is not, which mistake it looks like."""
PLACE = {"markdown": "*Your answer:*", "code": "# your experiment"}


def exercise_of(solution: NotebookNode) -> NotebookNode:
    """The exercise notebook of a solution notebook, not executed."""
    cells = []
    for part in sections(solution.cells):
        open_ended = not any("BEGIN SOLUTION" in cell.source for cell in part)
        for cell in part:
            cells += as_exercise(cell, open_ended)
    return nbformat.from_dict(solution | {"cells": cells})


def sections(cells: list[NotebookNode]) -> list[list[NotebookNode]]:
    """The cells parted before every heading."""
    parts: list[list[NotebookNode]] = []
    for cell in cells:
        if not parts or (cell.cell_type == "markdown" and cell.source.startswith("#")):
            parts.append([])
        parts[-1].append(cell)
    return parts


def as_exercise(cell: NotebookNode, open_ended: bool) -> list[NotebookNode]:
    """What becomes of one cell: nothing, itself without the answer, or itself and what it should print."""
    tags = cell.metadata.get("tags", [])
    if "mistakes" in tags:
        return []
    if "solution" in tags:
        return [cell_like(cell, source=PLACE[cell.cell_type], metadata={})] if open_ended else []
    if "introduction" in tags:
        return [cell_like(cell, source=INTRODUCTION, metadata={})]
    if cell.cell_type == "markdown":
        source = cell.source.replace("[Exercise](../exercises/", "[Solution](../solutions/")
        return [cell_like(cell, source=source.replace(": solutions", ": exercises"))]
    stub = REGION.sub(lambda region: region[1] + (region[2] or "...  # your code"), cell.source)
    bare = cell_like(cell, source=stub)
    return [bare, expected_output(cell)] if "nbval-check-output" in tags else [bare]


def cell_like(cell: NotebookNode, **changes) -> NotebookNode:
    """A copy with changes, not executed."""
    fresh = {"outputs": [], "execution_count": None} if cell.cell_type == "code" else {}
    return nbformat.from_dict(cell | fresh | changes)


def expected_output(cell: NotebookNode) -> NotebookNode:
    """A text cell with what the solved check prints."""
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream").strip()
    expected = nbformat.v4.new_markdown_cell(f"*Expected output:*\n\n```text\n{printed}\n```")
    return nbformat.from_dict(expected | {"id": f"{cell.id}-expected"})


def read(path: Path) -> NotebookNode:
    """A notebook file."""
    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook file as JupyterLab does."""
    path.write_text(nbformat.writes(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run all cells on a fresh kernel, in the folder where the notebook lies."""
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=50"],  # else each kernel prints notices
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", help="such as 02; all if none is given")
    parser.add_argument("--solutions", action="store_true", help="execute the solutions first")
    options = parser.parse_args()
    for path in sorted(SOLUTIONS.glob("[0-9]*.ipynb")):
        if options.numbers and path.name[:2] not in options.numbers:
            continue
        solution = read(path)
        if options.solutions:
            write(execute(solution, SOLUTIONS), path)
        write(execute(exercise_of(solution), EXERCISES), EXERCISES / path.name)
        print(path.stem)


if __name__ == "__main__":
    main()
