"""The commands that run notebooks (``run``, ``study``, ``sweep``) and that look at runs (``status``, ``collect``)."""

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from toastlib.errors import InputError
from toastlib.runs import batch
from toastlib.runs.executing import TIMEOUT
from toastlib.runs.folders import RunFolder
from toastlib.runs.parameters import check_parameters, notebook_parameters
from toastlib.runs.runs import Orders, Outcome, Run, default_jobs, run_all


def add_commands(command: Any) -> None:
    """Add the parsers of this module; `command` makes one from a function."""
    run_parser, study_parser, sweep_parser = command(run), command(study), command(sweep)
    status_parser, collect_parser = command(status), command(collect)
    run_parser.add_argument("notebook", help="name, number or path: 02, 02_approximation, my.ipynb")
    paper = study_parser.add_mutually_exclusive_group()
    paper.add_argument("--full", action="store_true", help="the paper's grid: every table; what is done is skipped")
    paper.add_argument("--table", action="append", metavar="N", help="a table of the paper's grid; repeat")
    for sub in (sweep_parser, status_parser, collect_parser):
        sub.add_argument("grid", help="a YAML file, for example grids/demo.yaml")
    for sub in (study_parser, sweep_parser):
        sub.add_argument(
            "--jobs", type=positive, metavar="N", help="notebooks at a time (one for each GPU; without GPUs two)"
        )
        sub.add_argument("--dask", metavar="WHERE", help="a scheduler's address, local, or slurm")
    sweep_parser.add_argument(
        "--dry-run", action="store_true", help="say what would run; with --dask slurm, as which job"
    )
    for sub in (run_parser, study_parser):
        sub.add_argument(
            "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="a notebook parameter; repeat"
        )
        sub.add_argument("--device", help="the same as -p device=...")
    for sub in (run_parser, study_parser, sweep_parser):
        sub.add_argument("--timeout", type=positive, default=TIMEOUT, metavar="S", help="seconds for a run (a day)")
    for sub in (run_parser, study_parser, sweep_parser, status_parser, collect_parser):
        sub.add_argument("--results-dir", type=Path, default=Path("results"), help="where the runs lie (results)")
    collect_parser.add_argument("--out", type=Path, required=True, help="the folder to write")


def run(options: argparse.Namespace) -> int:
    """Execute one notebook."""
    progress = sys.stderr.isatty()
    folder = batch.run_notebook(options.notebook, _given(options), options.results_dir, progress, options.timeout)
    _say_where([folder])
    return 0


def study(options: argparse.Namespace) -> int:
    """Execute every notebook of the study, or the paper's own grid of runs."""
    from toastlib.runs.grids import paper_grid

    given, on_paper = _given(options), options.full or options.table
    if on_paper:
        runs = [run for table in options.table or [None] for run in paper_grid(table)]
    else:
        runs = [Run(batch.find_notebook(name).resolve(), {}) for name in batch.notebook_names()]
    for parameter in given:
        if not any(parameter in notebook_parameters(run.notebook) for run in runs):
            raise InputError(f"No notebook has a parameter {parameter!r}; `toast params` lists them.")
    runs = [Run(run.notebook, run.given | _taken(given, run.notebook)) for run in runs]
    return _execute(runs, options, again=not on_paper)


def sweep(options: argparse.Namespace) -> int:
    """Execute the runs of a grid file that are not done yet."""
    from toastlib.runs.grids import read_grid

    runs = read_grid(options.grid)
    return _rehearse(runs, options) if options.dry_run else _execute(runs, options, again=False)


def status(options: argparse.Namespace) -> int:
    """Say which runs of a grid are done, failed, running or missing; 1 if one has failed."""
    from toastlib.runs.grids import read_grid
    from toastlib.runs.states import STATES, describe, run_states

    states = run_states(read_grid(options.grid), options.results_dir.resolve())
    counts = states["state"].value_counts()
    print(f"{len(states)} runs: " + ", ".join(f"{counts.get(state, 0)} {state}" for state in STATES))
    for _, row in states.iterrows():
        if row["state"] == "failed":
            print(f"failed   {row['run']}  {describe(row)}\n         {row['path']}")
        elif row["state"] != "done":
            print(f"{row['state']:8} {row['run']}")
    return 1 if counts.get("failed", 0) else 0


def collect(options: argparse.Namespace) -> int:
    """Gather a grid's results: one table, all executed notebooks and figures, and the failures, as pages."""
    from toastlib.runs import collect as collecting
    from toastlib.runs.grids import read_grid

    runs, root = read_grid(options.grid), options.results_dir.resolve()
    states = collecting.collect(runs, root, options.out, f"Runs of {Path(options.grid).stem}")
    print(f"{(states['state'] == 'done').sum()} of {len(states)} runs are done; the page to open is")
    print(f"  {options.out.resolve() / 'index.html'}")
    return 0


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _rehearse(runs: list[Run], options: argparse.Namespace) -> int:
    from toastlib.runs.cluster import sbatch_script
    from toastlib.runs.states import run_states

    for _, row in run_states(runs, options.results_dir.resolve()).iterrows():
        print(f"{row['state']:8} {row['run']}")
    if options.dask == "slurm":
        print(f"\nEach worker is submitted with\n\n{sbatch_script()}")
    return 0


def _execute(runs: list[Run], options: argparse.Namespace, again: bool) -> int:
    """Execute runs, each once; say how they end and where the results lie; 1 if one failed."""
    from toastlib.runs.cluster import connect

    root = options.results_dir.resolve()
    places = [RunFolder(run.notebook, run.given, root) for run in runs]
    runs = {place.folder: run for place, run in zip(places, runs)}
    done = set() if again else {place.folder for place in places if place.is_done()}
    waiting, jobs = [runs[folder] for folder in runs if folder not in done], options.jobs or default_jobs()
    told = f", {len(done)} of them done" if done else ""
    shares = -(-jobs // default_jobs()) if options.dask in (None, "local") else 1
    orders = Orders(root, options.timeout, again, shares)
    start = time.monotonic()
    with _sigterm_is_ctrl_c(), connect(options.dask, jobs, root) if options.dask else nullcontext() as cluster:
        at_once = f"on {len(cluster.nthreads())} Dask workers" if cluster else f"{jobs} at a time"
        print(f"{len(runs)} notebook runs{told}; {at_once}", flush=True)
        outcomes = list(_reported(run_all(waiting, orders, jobs, cluster), len(waiting)))
    failed = [outcome for outcome in outcomes if outcome.failure]
    if failed:
        print(f"toast: {len(failed)} of {len(outcomes)} runs failed; the others are kept.", file=sys.stderr)
    if any(outcome.failure.kind == "full disk" for outcome in failed):
        print(f"toast: The disk of {root} is full: free some space, and give the same command again.", file=sys.stderr)
    print(f"Done in {time.monotonic() - start:.0f} s.")
    _say_where(sorted(outcome.folder for outcome in outcomes if not outcome.failure))
    return 1 if failed else 0


def _reported(outcomes: Iterator[Outcome], count: int) -> Iterator[Outcome]:
    """The outcomes that are final, each told when it comes."""
    number = 0
    for outcome in outcomes:
        if outcome.busy:
            print(f"{outcome.folder.name} is being made by another process: waiting for it", flush=True)
            continue
        number += 1
        line = f"[{number}/{count}] {outcome.folder.name} {outcome.seconds:.0f} s"
        print(f"{line}, failed: {outcome.failure}" if outcome.failure else line, flush=True)
        yield outcome


@contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    """While runs are made, a polite kill cleans up as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _given(options: argparse.Namespace) -> dict[str, str]:
    given = {}
    for assignment in options.parameter:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"{assignment!r} is not a parameter: write -p name=value.")
        given[name] = value
    return given | ({"device": options.device} if options.device else {})


def _taken(given: dict[str, str], notebook: Path) -> dict[str, Any]:
    """What is given for the parameters that a notebook has, checked."""
    takes = notebook_parameters(notebook)
    return check_parameters(notebook, {name: value for name, value in given.items() if name in takes})


def _say_where(folders: list[Path]) -> None:
    if not folders:
        return
    print("Executed notebooks, tables (results.parquet, results.csv), figures (.png, .svg) and manifests lie in")
    for folder in folders:
        print(f"  {folder}")
