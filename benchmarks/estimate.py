"""What `toast estimate` says of runs, against what they take.

python -m benchmarks.estimate [GRID ...] [--measure]

Runs are made anew, each with an empty cache, two at a time with a thread each; seconds are those of the processor, so
that other work on the machine does not count. `--measure` runs the study with its default parameters and writes
data/prices.json, from which estimates are made. Without it the runs of grids are compared with their estimates: of
grids/demo.yaml and benchmarks/estimate.yaml, whose parameters are others than those that prices are measured with.
"""

import argparse
import json
import os
import platform
import re
import sys
import tempfile
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.table import HEADER, Row, show
from toastlib.plugins import plugins_of
from toastlib.runs.estimate import PRICES, estimate, listed, sets_of
from toastlib.runs.grid import read_grid
from toastlib.runs.parameters import find_notebook, notebook_names
from toastlib.runs.run import SweepOptions, run_all
from toastlib.runs.sizes import check_sizes, splits_of
from toastlib.runs.speed import STANDARD, measure_encoders
from toastlib.runs.store import Run

KINDS = {
    "training": {"finetune"},
    "choice": {"removal_order", "race_plans", "run_plans", "compress", "select"},
    "timing": {"relative_throughput", "time_plans", "measure_memory", "measure_energy", "measure_latency"},
    "moments": {"collect_moments", "collect_calibration", "collect_activations"},
    "heads": {"evaluation/probe:fit"},
    "trained maps": {"translators/trained:fit"},
    "maps": {"fit_spans", "fit_maps", "fit_alignments", "span_costs"},
    "images": {"load_images"},
    "plans": {"collect_features", "forward_plans", "evaluate_dense"},
    "encoding": {"encode", "features", "run", "final_patches", "fit_pixel_probe"},
}
"""Kind of work -> functions, the first kind that has one on the stack."""
GRIDS = ("grids/demo.yaml", "benchmarks/estimate.yaml")
JOBS = 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grids", nargs="*", default=GRIDS)
    parser.add_argument("--measure", action="store_true", help="run the study, and write data/prices.json")
    parser.add_argument("--folder", type=Path, help="where runs are kept: those that are done are not made again")
    options = parser.parse_args()
    with nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory() as folder:
        if options.measure:
            write_prices(Path(folder).resolve())
            return
        runs = [run for grid in options.grids for run in read_grid(grid)]
        check_sizes(runs)
        print(HEADER)
        show(against_runs(runs, Path(folder).resolve()))


def of_demo() -> list[Row]:
    """Estimates of grids/demo.yaml over what its runs take."""
    with tempfile.TemporaryDirectory() as folder:
        return against_runs(read_grid(GRIDS[0]), Path(folder).resolve())


def write_prices(folder: Path) -> None:
    """What every notebook takes with its default parameters, and how fast this machine was then."""
    runs = [Run(find_notebook(name).resolve(), {}) for name in notebook_names()]
    watched = run_watched(runs, folder)
    (speed,) = measure_encoders({(STANDARD, ()): ()}, JOBS).values()
    prices = {
        "command": "python -m benchmarks.estimate --measure",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {JOBS} runs at a time, torch {torch.__version__}",
        "speed": asdict(speed),
        "notebooks": {run.notebook.stem: cost for run, cost in zip(runs, watched, strict=True)},
    }
    PRICES.write_text(json.dumps(prices, indent=1) + "\n", encoding="utf-8")
    print(f"{len(runs)} notebooks, {sum(total(cost) for cost in watched):.0f} s; written to {PRICES}")


def against_runs(runs: list[Run], folder: Path) -> list[Row]:
    """Estimate of the time and memory of each run over what it takes; and of the time of all."""
    estimates = estimate(runs, JOBS)
    watched = run_watched(runs, folder)
    rows = []
    for run, one, cost in zip(runs, estimates, watched, strict=True):
        given = ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in run.overrides.items())
        label = f"{run.notebook.stem[:2]} {given}"
        rows.append(Within(f"{label}: time, {one.seconds:.0f} s / {total(cost):.0f} s", one.seconds / total(cost)))
        rows.append(Within(f"{label}: memory", one.memory / cost["memory"]))
    share = sum(one.seconds for one in estimates) / sum(map(total, watched))
    return [*rows, Within(f"all {len(runs)} runs", share)]


class Within(Row):
    """A share that should be within 25 % of one."""

    def __init__(self, figure: str, value: float) -> None:
        super().__init__(figure, value, 1.25)

    @property
    def met(self) -> bool:
        """Whether the figure is in the range."""
        return 0.75 <= self.value <= 1.25

    def __str__(self) -> str:
        return super().__str__().replace("<= 1.25", "0.75 to 1.25")


def run_watched(runs: list[Run], folder: Path) -> list[dict]:
    """Run those that are not done in the folder; seconds by kind of work, peak memory and the results' size of each."""
    plugin = Path(__file__).with_name("watch.py")
    os.environ |= {"TOAST_PLUGINS": str(plugin), "TOAST_WATCHED": str(folder / "watched"), "TQDM_DISABLE": "1"}
    (folder / "watched").mkdir(parents=True, exist_ok=True)
    runs = [replace(run, root=folder, plugins=plugins_of()) for run in runs]
    for outcome in run_all([run for run in runs if not run.is_done()], SweepOptions(JOBS)):
        print(f"{outcome.run.folder.name} {outcome.seconds:.0f} s {outcome.failure or ''}", file=sys.stderr, flush=True)
    if failed := [run.folder.name for run in runs if not run.is_done()]:
        sys.exit(f"{', '.join(failed)} failed: give the same command and --folder again.")
    return [cost_of(run, folder / "watched" / f"{run.folder.name}.json") for run in runs]


def cost_of(run: Run, file: Path) -> dict:
    """What a run took; the start of its kernel is counted by the clock, all else by the processor."""
    watched, manifest = json.loads(file.read_text()), json.loads((run.folder / "manifest.json").read_text())
    seconds = Counter({"rest": max(0, manifest["seconds"] - watched["lived"])})
    sizes = [splits_of(name)[:2] for name in sets_of(run.parameters)]
    sizes += [listed(value) for name, value in run.parameters.items() if name.endswith(("size", "sizes", ".images"))]
    sizes = {str(size) for some in sizes for size in some}
    for stack, spent in watched["seconds"].items():
        seconds[kind_of(stack, sizes)] += spent
    size = sum(path.stat().st_size for path in run.folder.iterdir())
    rounded = {kind: round(spent, 2) for kind, spent in seconds.most_common()}
    return {"seconds": rounded, "memory": watched["memory"], "disk": size}


def total(cost: dict) -> float:
    """Seconds of all kinds of work."""
    return sum(cost["seconds"].values())


def kind_of(stack: str, sizes: set[str]) -> str:
    """Kind of the work that a stack of functions is for; sizes are the numbers of images that a run asks for."""
    names = {name for function in stack.split() for name in (function, function.partition(":")[2])}
    counts = set(re.findall(r"images:(\d+)", stack))
    if counts and not counts & sizes and "collect_features" not in names:
        return "few images"
    return next((kind for kind, functions in KINDS.items() if functions & names), "rest")


if __name__ == "__main__":
    main()
