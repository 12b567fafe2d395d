"""Gather the reference runs into data/reference: for each grid its tables as parquet, and a card that says how.

    toast sweep grids/reference-16.yaml                  # hours on 2 cores, resumable
    python scripts/make_reference.py --grids 16          # by default all grids

If a run is missing, it is named, and nothing is written. Other grids stay as they are.
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
    "01": ("results", "accuracy_lost", "agreement", "metric_against_accuracy"),
    "01-between": ("between_models",),
    "02": ("results", "accuracy_lost", "travel", "last_block"),
    "02-control": ("control", "span_output"),
    "03": ("results", "accuracy_lost", "foreign_sources", "unseen"),
    "04": ("results", "class_accuracy", "mcnemar", "served"),
    "05": ("results", "accuracy_lost", "gains"),
    "05-heads": ("kinds",),
    "06": ("accuracy_lost", "gains", "fits", "cost"),
    "07": ("results", "variance"),
    "08": ("results", "timings", "fronts", "duels"),
    "08-resources": ("resources",),
    "12": ("results", "predicted", "correlations", "choices", "controls", "distances"),
    "12-selectors": ("selectors", "budgets"),
    "13": ("results", "gains", "more"),
    "14": ("results", "unknown", "duels", "block_0"),
    "15": ("results", "patches_and_class"),
    "16": ("results", "closed_forms", "duels", "draws"),
    "18": ("results", "ways", "gains"),
    "16-confirmed": ("draws",),
    "16-positions": ("results", "closed_forms", "duels"),
    "16-carried": ("better_maps", "travelling"),
    "17": ("results", "starts", "gains"),
}
"""Grid -> the tables that are kept."""
CARD = """# {grid}

{comment}

- **Command**: `toast sweep grids/reference-{grid}.yaml`, then `python scripts/make_reference.py --grids {grid}`
- **Runs**: {runs}, {minutes:.0f} minutes in all, from {date} on
- **Device**: {where}
- **Commit**: {commit}
- **Parameters** (alternatives behind semicolons):

{parameters}

## Hashes (SHA-256)

{hashes}
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


def card(grid: str, runs: list[Run], hashes: list[str]) -> str:
    """How the runs of a grid were made."""
    manifests = [read_json(run.folder / "manifest.json") for run in runs]
    text = (ROOT / "grids" / f"reference-{grid}.yaml").read_text().splitlines()
    chosen = pd.DataFrame([settings(run, {name for run in runs for name in run.overrides}) for run in runs])
    lines, key = [], "model" if "model" in chosen else "language_model"
    for model, own in chosen.groupby(key, sort=False):
        values = {name: "; ".join(map(str, own[name].dropna().unique())) for name in own if name != key}
        lines.append(f"  - `{model}`: " + ", ".join(f"{name} `{value}`" for name, value in values.items() if value))
    return CARD.format(
        grid=grid,
        comment="\n".join(line.removeprefix("# ") for line in text if line.startswith("#")),
        runs=len(runs),
        minutes=sum(manifest["seconds"] for manifest in manifests) / 60,
        date=min(manifest["started"] for manifest in manifests)[:10],
        where="; ".join(
            f"{manifest['device']}, {manifest['platform']}, "
            + ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
            for manifest in {manifest["device"]: manifest for manifest in manifests}.values()
        ),
        commit=", ".join(sorted({manifest["commit"] for manifest in manifests})),
        parameters="\n".join(lines),
        hashes="\n".join(hashes),
    )


def main() -> None:
    """Write the tables and the card of every grid."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results-dir", type=Path, default=ROOT / "results", help="where the runs lie")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "reference", help="the folder to write")
    parser.add_argument("--grids", nargs="+", default=list(TABLES), choices=list(TABLES), help="the grids to gather")
    arguments = parser.parse_args()
    files = {grid: ROOT / "grids" / f"reference-{grid}.yaml" for grid in arguments.grids}
    every = {grid: read_grid(file, arguments.results_dir) for grid, file in files.items()}
    if missing := [run.folder.name for runs in every.values() for run in runs if not run.is_done()]:
        sys.exit(f"{len(missing)} runs are missing or were made with other code: {', '.join(missing)}.")
    for grid, runs in every.items():
        folder, hashes = arguments.out / grid, []
        folder.mkdir(parents=True, exist_ok=True)
        for table in TABLES[grid]:
            file = folder / f"{table}.parquet"
            gather(runs, table).to_parquet(file, index=False)
            hashes.append(f"- `{file.name}`: `{hashlib.sha256(file.read_bytes()).hexdigest()}`")
        (folder / "README.md").write_text(card(grid, runs, hashes))


if __name__ == "__main__":
    main()
