"""The commands of ``toast``: each takes its arguments and returns the exit code. Torch is imported where it is used."""

import argparse
import math
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path

from toastlib.cli.models import read_by
from toastlib.errors import InputError
from toastlib.output import check_output
from toastlib.plugins import plugins_of
from toastlib.runs import collect as collecting
from toastlib.runs import estimate as estimating
from toastlib.runs import parameters
from toastlib.runs.cluster import connect, sbatch_script, worker_pool
from toastlib.runs.grid import paper_grid, read_grid
from toastlib.runs.run import Outcome, SweepOptions, default_jobs, given_run, run_all, run_notebook
from toastlib.runs.sizes import check_sizes
from toastlib.runs.store import Run


def run(options: argparse.Namespace) -> int:
    """Execute one notebook."""
    if options.dry_run:
        planned = given_run(options.notebook, _overrides(options), options.results_dir)
        _check_sizes([planned])
        print(f"{planned.folder}{', which is done,' * planned.is_done()} with")
        for name, value in planned.parameters.items():
            print(f"  {name} = {value!r}")
        print(*estimating.report([planned], 1), sep="\n")
        return 0
    settings = {"progress": sys.stderr.isatty(), "seconds": options.timeout}
    _print_folders([run_notebook(options.notebook, _overrides(options), options.results_dir, **settings)])
    return 0


def study(options: argparse.Namespace) -> int:
    """Execute every notebook of the study, or the paper's own grid of runs."""
    root, overrides, on_paper = options.results_dir, _overrides(options), options.full or options.table
    plugins = plugins_of(overrides.pop("plugins", ()))
    if on_paper:
        runs = [run for table in options.table or [None] for run in paper_grid(table, root)]
    else:
        # From 11 on first, since they take longest; 10, which looks up what the others have found, comes last.
        names = sorted(parameters.notebook_names(), key=lambda name: name < "11")
        runs = [Run(parameters.find_notebook(name).resolve(), {}, root) for name in names]
    met = set()
    for index, run in enumerate(runs):
        names = parameters.defaults(run.notebook)
        taken = {name: value for name, value in overrides.items() if parameters.full_name(name, names) in names}
        met |= taken.keys()
        checked = run.overrides | parameters.check_parameters(run.notebook, taken)
        runs[index] = replace(run, overrides=checked, plugins=plugins)
    if unmet := overrides.keys() - met:
        raise InputError(f"No notebook has a parameter {min(unmet)!r}; `toast params` lists them.")
    return _execute(runs, options, force=not on_paper)


def sweep(options: argparse.Namespace) -> int:
    """Execute the runs of a grid file that are not done yet."""
    runs = read_grid(options.grid, options.results_dir)
    if not options.dry_run:
        return _execute(runs, options, force=False)
    _check_sizes(runs)
    for _, row in collecting.run_states(runs).iterrows():
        print(f"{row['state']:8} {row['label']}")
    waiting = [run for run in runs if not run.is_done()]
    print("", *estimating.report(waiting, options.jobs or default_jobs()), sep="\n")
    if options.dask == "slurm":
        print(f"\nEach worker is submitted with\n\n{sbatch_script()}")
    return 0


def estimate(options: argparse.Namespace) -> int:
    """Say what a grid's runs, or a notebook's, will take: time, memory, disk and downloads; nothing is run."""
    runs, overrides = [], _overrides(options)
    for name in options.work:
        if not name.endswith((".yaml", ".yml")):
            runs.append(given_run(name, overrides, options.results_dir))
        elif overrides:
            raise InputError("A grid names its own parameters: -p is for a notebook.")
        else:
            runs += [run for run in read_grid(name, options.results_dir) if not run.is_done()]
    _check_sizes(runs)
    print("\n".join(estimating.report(runs, options.jobs or max(1, min(default_jobs(), len(runs))))))
    return 0


def status(options: argparse.Namespace) -> int:
    """Say which runs of a grid are done, failed, running or missing; 1 if one has failed."""
    runs = read_grid(options.grid, options.results_dir)
    states = collecting.run_states(runs)
    counts = states["state"].value_counts()
    print(f"{len(states)} runs: " + ", ".join(f"{counts.get(state, 0)} {state}" for state in collecting.STATES))
    print("".join(collecting.unfinished(states)), end="")
    missing = [run for run, state in zip(runs, states["state"], strict=True) if state == "missing"]
    if outdated := collecting.outdated(missing):
        files = ", ".join(sorted(set().union(*outdated)))
        print(f"Runs of another state of {files} that lie in {options.results_dir}, and do not count: {len(outdated)}")
    return 1 if counts.get("failed", 0) else 0


def collect(options: argparse.Namespace) -> int:
    """Gather a grid's results: one table, all executed notebooks and figures, and the failures, as pages."""
    runs = read_grid(options.grid, options.results_dir)
    title = f"Runs of {Path(options.grid).stem}"
    states = collecting.collect(runs, options.out, options.force, title=title, sort=options.sort)
    numbers = [name for name in states if name.startswith(("original (%)", "lost, "))]
    names = ["label", *states.columns.intersection(["head"])]
    columns, done = dict.fromkeys([*names, *numbers, options.sort]), states[states["state"] == "done"]
    if len(done):
        print(done[[*columns]].round(1).to_string(index=False))
    print("".join(collecting.unfinished(states)), end="")
    print(f"{len(done)} of {len(states)} runs are done; the page to open is")
    print(f"  {options.out.resolve() / 'index.html'}")
    return 0


def notebooks(options: argparse.Namespace) -> int:
    """Copy the notebooks to a folder, to work on; commands that are given there take those."""
    if options.folder.exists():
        raise InputError(f"{options.folder} is there already: name a new folder.")
    left_out = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    shutil.copytree(parameters.NOTEBOOKS, options.folder, ignore=left_out)
    print(f"The notebooks lie in\n  {options.folder.resolve()}")
    return 0


def params(options: argparse.Namespace) -> int:
    """List the parameters of the notebooks, with their defaults."""
    for name in [options.notebook] if options.notebook else parameters.notebook_names():
        notebook = parameters.find_notebook(name)
        print(notebook.stem)
        for parameter in parameters.notebook_parameters(notebook).values():
            comment = f"  # {parameter.comment}" if parameter.comment else ""
            print(f"  {parameter.name} = {parameter.default!r}{comment}")
    return 0


def moments(options: argparse.Namespace) -> int:
    """Collect the moments of a large image set in shards, by several workers; what is there already is kept."""
    from joblib import Parallel

    from toastlib.runs.shards import ShardedJob, collect_shards

    job = ShardedJob(**{setting.name: getattr(options, setting.name) for setting in fields(ShardedJob)})
    jobs = options.jobs or default_jobs()
    # Shards of an earlier attempt are kept, so that only the files' own names are checked.
    out = check_output(options.out / "moments.safetensors", read_by(options), force=True).parent
    cluster = connect(options.dask, jobs, out) if options.dask else nullcontext()
    with cluster as workers, worker_pool(jobs, workers):
        file = collect_shards(job, options.shards, out, run=Parallel(n_jobs=-1 if workers else jobs))
    print(f"Moments for toastlib.runs.shards.load_moments lie in\n  {file}")
    return 0


def cache(options: argparse.Namespace) -> int:
    """Show what features take on disk, or delete them."""
    from toastlib.cache import default_cache

    kept = default_cache()
    if kept.folder is None:
        print("The cache is off (TOAST_CACHE).")
        return 0
    if options.clear:
        kept.trim(0)
    entries = kept.entries()
    size = sum(stat.st_size for _, stat in entries) / 2**20
    print(f"{kept.folder}: {len(entries)} entries, {size:,.1f} MiB of at most {kept.limit / 2**30:g} GiB")
    return 0


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    overrides = {}
    for assignment in options.parameter:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"{assignment!r} is not a parameter: write -p name=value.")
        overrides[name] = value
    return overrides | ({"device": options.device} if options.device else {})


def _execute(runs: list[Run], options: argparse.Namespace, force: bool) -> int:
    """Execute runs, each once; print how they end and where the results lie; return 1 if one failed."""
    root, start = options.results_dir, time.monotonic()
    runs = {run.folder: run for run in runs}.values()  # overrides can make two runs of a grid the same
    waiting, jobs = [run for run in runs if force or not run.is_done()], options.jobs or default_jobs()
    done = f", {len(runs) - len(waiting)} of them done" if len(waiting) < len(runs) else ""
    _check_sizes(waiting)
    runs_per_gpu = math.ceil(jobs / default_jobs()) if options.dask in (None, "local") else 1
    sweep_options = SweepOptions(jobs, options.timeout, force, runs_per_gpu)
    with _sigterm_as_interrupt(), connect(options.dask, jobs, root) if options.dask else nullcontext() as cluster:
        parallel = f"on {len(cluster.nthreads())} Dask workers" if cluster else f"{jobs} at a time"
        jobs = len(cluster.nthreads()) if cluster else jobs
        left = estimating.TimeLeft(waiting, jobs)
        print(f"{len(runs)} notebook runs{done}; {parallel}{left}", flush=True)
        labels = dict(zip((run.folder for run in runs), collecting.run_labels(list(runs)), strict=True))
        outcomes = list(_reported(run_all(waiting, sweep_options, cluster), labels, left))
    failed = [outcome for outcome in outcomes if outcome.failure]
    if failed:
        print(f"toast: {len(failed)} of {len(outcomes)} runs failed; the others are kept.", file=sys.stderr)
    if any(outcome.failure.kind == "full disk" for outcome in failed):
        print(f"toast: The disk of {root} is full: free some space, and give the same command again.", file=sys.stderr)
    print(f"Done in {time.monotonic() - start:.0f} s.")
    _print_folders(sorted(outcome.run.folder for outcome in outcomes if not outcome.failure))
    return 1 if failed else 0


def _check_sizes(runs: list[Run]) -> None:
    if absent := check_sizes(runs):
        print(f"Sizes are checked when a set is fetched, which these are not: {', '.join(absent)}.")


def _reported(outcomes: Iterator[Outcome], labels: dict[Path, str], left: estimating.TimeLeft) -> Iterator[Outcome]:
    """Print each outcome when it comes, and the time that is left; yield those that are final."""
    number, count = 0, len(left.left)
    for outcome in outcomes:
        name = labels[outcome.run.folder]
        if outcome.busy:
            print(f"{name} is being made by another process: waiting for it", flush=True)
            continue
        number += 1
        left.finish(outcome.run, outcome.seconds)
        failure = f", failed: {outcome.failure}" if outcome.failure else ""
        print(f"[{number}/{count}] {name} {outcome.seconds:.0f} s{failure}{left}", flush=True)
        yield outcome


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let a SIGTERM clean up as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_folders(folders: list[Path]) -> None:
    if folders:
        print("Executed notebooks, tables (.parquet, .csv), figures (.png, .svg, .pdf) and manifests lie in")
    for folder in folders:
        print(f"  {folder}")
