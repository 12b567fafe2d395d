"""Gather the reference runs into data/reference: their tables as parquet, and a card that says how they were made.

    toast sweep grids/reference-16.yaml        # and every other grid that the card names: hours on 2 cores, resumable
    python scripts/make_reference.py

Runs that are missing are named, and nothing is written.
"""

import hashlib
import sys
from argparse import ArgumentParser
from pathlib import Path

import pandas as pd

from toastlib.data.catalog import ROOT
from toastlib.runs.grid import read_grid
from toastlib.runs.store import Run, read_json

TABLES = {
    "03": ("results", "accuracy_lost", "foreign_sources", "unseen"),
    "16": ("results", "closed_forms", "duels", "draws"),
    "16-confirmed": ("draws",),
}
"""Grid -> the tables that are kept."""
CARD = """# Reference runs

What the study's notebooks find on two encoders, one of them a real ViT-S/14: `vit-mini` (embedded) and `vit-s14-focus`
(`toast fetch vit-s14-focus`). `toast.reference("16", "draws")` reads a table. Accuracies are in percent, losses and
gains in points, with 95 % intervals paired over test images.

The tables are made by `toast sweep grids/reference-NN.yaml` for each grid, and `python scripts/make_reference.py`.
"""
SECTION = """
## {grid}

{comment}

- **Command**: `toast sweep grids/reference-{grid}.yaml`
- **Runs**: {runs}, {minutes:.0f} minutes of one core in all; device {device}; {platform}
- **Commit**: {commit}; {versions}
- **Parameters** (alternatives behind semicolons):

{parameters}
"""


def settings(run: Run, names: set[str]) -> dict[str, object]:
    """A run's values of some parameters, members of dictionaries by their own names."""
    values = {name.partition(".")[2] or name: run.parameters[name] for name in sorted(names)}
    return {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}


def gather(runs: list[Run], table: str) -> pd.DataFrame:
    """One table of every run, after the parameters that the grid sets and the table lacks."""
    frames, names = [], {name for run in runs for name in run.overrides}
    for run in runs:
        frame = pd.read_parquet(run.folder / f"{table}.parquet")
        missing = {name: value for name, value in settings(run, names).items() if name not in frame}
        frames.append(pd.concat([pd.DataFrame(missing, index=frame.index), frame], axis=1))
    return pd.concat(frames, ignore_index=True)


def section(grid: str, runs: list[Run]) -> str:
    """The card's part on one grid."""
    manifests = [read_json(run.folder / "manifest.json") for run in runs]
    first = manifests[0]
    text = (ROOT / "grids" / f"reference-{grid}.yaml").read_text().splitlines()
    chosen = pd.DataFrame([settings(run, {name for run in runs for name in run.overrides}) for run in runs])
    lines = []
    for model, own in chosen.groupby("model", sort=False):
        values = {name: "; ".join(map(str, own[name].unique())) for name in own if name != "model"}
        lines.append(f"  - `{model}`: " + ", ".join(f"{name} `{value}`" for name, value in values.items() if value))
    return SECTION.format(
        grid=grid,
        comment="\n".join(line.removeprefix("# ") for line in text if line.startswith("#")),
        runs=len(runs),
        minutes=sum(manifest["seconds"] for manifest in manifests) / 60,
        device=first["device"],
        platform=first["platform"],
        commit=", ".join(sorted({manifest["commit"] for manifest in manifests})),
        versions=", ".join(f"{name} {version}" for name, version in first["versions"].items()),
        parameters="\n".join(lines),
    )


def main() -> None:
    """Write the tables of every grid and the card."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results-dir", type=Path, default=ROOT / "results", help="where the runs lie")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "reference", help="the folder to write")
    parser.add_argument("--grids", nargs="+", default=list(TABLES), help="the grids to gather")
    arguments = parser.parse_args()
    every = {grid: read_grid(ROOT / "grids" / f"reference-{grid}.yaml", arguments.results_dir) for grid in TABLES}
    every = {grid: runs for grid, runs in every.items() if grid in arguments.grids}
    if missing := [run.folder.name for runs in every.values() for run in runs if not run.is_done()]:
        sys.exit(f"{len(missing)} runs are missing or were made with other code: {', '.join(missing)}.")
    card, hashes = CARD, []
    for grid, runs in every.items():
        (arguments.out / grid).mkdir(parents=True, exist_ok=True)
        for table in TABLES[grid]:
            file = arguments.out / grid / f"{table}.parquet"
            gather(runs, table).to_parquet(file, index=False)
            hashes.append(f"- `{grid}/{file.name}`: `{hashlib.sha256(file.read_bytes()).hexdigest()}`")
        card += section(grid, runs)
    card += "\n## Hashes (SHA-256)\n\n" + "\n".join(hashes) + "\n"
    (arguments.out / "README.md").write_text(card)


if __name__ == "__main__":
    main()
