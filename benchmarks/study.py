"""Where the time of ``make study`` goes: starting kernels, imports, loading, figures, and all that computes.

    make study && python -m benchmarks.study results

papermill writes the seconds of each cell into the executed notebooks. A cell that shows a figure counts as a figure,
whatever else it does, so that the share of what is beside computing is at most what is printed.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from benchmarks.table import HEADER, Row, show

KINDS = {"import toastlib": "imports", "plt.show()": "figures", "load_encoder(": "loading"}
"""What a cell says -> what its time is for."""


def main() -> None:
    """Read the executed notebooks of a folder, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where `make study` has left its runs")
    taken = sum((seconds_by_kind(file) for file in parser.parse_args().folder.glob("*/[0-9]*.ipynb")), Counter())
    if not taken:
        parser.error("There is no executed notebook.")
    whole = taken.total()
    print("\n".join(f"<!-- {kind}: {spent:.0f} s, {spent / whole:.0%} -->" for kind, spent in taken.most_common()))
    print(HEADER)
    show([Row("the study's seconds beside computing / all", 1 - taken["computing"] / whole, 0.35)])


def seconds_by_kind(file: Path) -> Counter[str]:
    """Seconds of an executed notebook by what they are for."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    taken = Counter()
    for cell in notebook["cells"]:
        source, spent = "".join(cell["source"]), cell["metadata"].get("papermill", {}).get("duration") or 0
        taken[next((kind for said, kind in KINDS.items() if said in source), "computing")] += spent
    return taken + Counter({"kernels and saving": notebook["metadata"]["papermill"]["duration"] - taken.total()})


if __name__ == "__main__":
    main()
