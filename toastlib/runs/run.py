"""Runs executed: one in this process, or many in parallel, one process each."""

import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from toastlib.errors import InputError, need_packages
from toastlib.plugins import hash_files, plugins_of
from toastlib.runs.cluster import worker_pool
from toastlib.runs.execute import TIMEOUT, Failure, RunError, execute, explain
from toastlib.runs.gpus import gpu_names, one_gpu
from toastlib.runs.parameters import check_parameters, find_notebook, notebook_variables
from toastlib.runs.sizes import check_sizes
from toastlib.runs.store import LOCK_TIMEOUT, Busy, Run

RUNNERS = ("papermill", "nbconvert", "ipykernel")  # packages of the extra "study"
MAX_RETRIES = 3  # workers that a run may lose before it is reported as failed
MAX_LOST_WORKERS = 20  # workers in a row that a sweep may lose before a run ends; they may die before they begin one


@dataclass(frozen=True)
class Outcome:
    """End of an attempt: complete, failed, or not begun because another process was executing the run (`busy`)."""

    run: Run
    seconds: float
    failure: Failure | None = None
    busy: bool = False


@dataclass(frozen=True)
class SweepOptions:
    """Options of a sweep."""

    jobs: int = 1  # notebooks in parallel on this machine
    seconds: float = TIMEOUT  # for each run
    force: bool = False  # repeat complete runs
    runs_per_gpu: int = 1
    owner: str = ""  # name of the sweep in its staging folders
    wait: float = LOCK_TIMEOUT  # seconds for a run that another process is executing; -1 for no limit


def default_jobs() -> int:
    """Number of notebooks in parallel: one for each GPU; without GPUs two, or one on a single core."""
    return len(gpu_names()) or min(2, os.cpu_count() or 1)


def given_run(name: str, overrides: dict[str, Any], root: str | Path) -> Run:
    """The run of a notebook with parameters, or their texts, checked; `plugins` are imported."""
    notebook, overrides = find_notebook(name), dict(overrides)
    plugins = plugins_of(overrides.pop("plugins", ()))
    return Run(notebook, check_parameters(notebook, overrides), Path(root).resolve(), plugins)


def run_notebook(
    name: str,
    overrides: dict[str, Any] | None = None,
    root: str | Path = "results",
    *,
    progress: bool = False,
    seconds: float = TIMEOUT,
) -> Path:
    """Execute a notebook of the study with checked parameters.

    Parameters
    ----------
    name, overrides
        Name, number or path of the notebook, and the parameters that differ from its defaults, or their texts;
        ``plugins`` are Python files to import before its cells, see `plugins_of`.
    root, progress, seconds
        Results folder; whether to show a bar over the cells; time limit of the run.

    Returns
    -------
    Path
        The run's folder: ``<notebook>.ipynb``, tables, figures and ``manifest.json``.

    Raises
    ------
    InputError
        If the notebook, a plug-in, a parameter or its value is not valid, the folder belongs to something else, or
        another process is executing the same run.
    RunError
        If the notebook is not executed to its end; ``<run>.failed`` keeps it up to the cell that fails.
    """
    need_packages("Running a notebook", RUNNERS, "study")
    run = given_run(name, overrides or {}, root)
    check_sizes([run])
    with run.locked():
        run.tidy()
        run.check_folder()
        started, staging_dir = time.time(), run.new_staging_dir()
        try:
            _execute(run, staging_dir, seconds, progress)
        except RunError as error:
            if error.failure.exception == InputError.__name__:
                raise InputError(error.failure.message) from None
            run.keep_failure(staging_dir, run.record(started) | asdict(error.failure))
            raise RunError(run.notebook, error.failure, run.failed if run.failed.exists() else None) from None
        finally:
            shutil.rmtree(staging_dir, ignore_errors=True)
    return run.folder


def _execute(run: Run, staging_dir: Path, seconds: float, progress: bool = False) -> None:
    """Execute a run in a staging folder and publish that; needs the run's lock."""
    started = time.time()
    parameters = notebook_variables(run.notebook, run.overrides) | {"results_dir": str(staging_dir)}
    options = {"plugins": run.plugins, "seconds": seconds, "progress": progress}
    execute(run.notebook, staging_dir / run.notebook.name, parameters, **options)
    if hash_files(run.plugins) != run.plugins:
        raise InputError("A plug-in was changed after the run was asked for: ask for it again.")
    run.write_manifest(staging_dir, started)
    run.publish(staging_dir)


def run_all(runs: Sequence[Run], options: SweepOptions, cluster: Any = None) -> Iterator[Outcome]:
    """Execute runs in parallel; one that fails does not keep the others from running.

    Runs that another process is executing come last, with a second outcome. On a single machine a killed worker takes
    the others of its pool with it: the lost runs are repeated one by one, so that only a run that keeps losing its
    worker fails. `cluster` is a Dask client whose workers replace this machine's.
    """
    need_packages("Running notebooks", RUNNERS, "study")
    options, busy = replace(options, owner=uuid4().hex[:8]), []
    try:
        for outcome in _repeat_lost(runs, options, cluster):
            if outcome.busy:
                busy.append(outcome.run)
            yield outcome
        yield from _repeat_lost(busy, replace(options, force=False, wait=-1), cluster)
    finally:
        if cluster is None:  # Dask's workers may still be writing; the next sweep removes what they leave
            for run in runs:
                if run.staging_dirs(options.owner):
                    with suppress(Busy), run.locked():
                        run.tidy()


def _repeat_lost(runs: Sequence[Run], options: SweepOptions, cluster: Any) -> Iterator[Outcome]:
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    # With one job joblib would work in this process, which is to survive; so there are two, one of them idle.
    n_jobs, ahead = max(2, options.jobs), "all" if cluster else options.jobs
    waiting, losses = {run.folder: run for run in runs}, 0
    while waiting:
        lost = [run for run in waiting.values() if run.staging_dirs(options.owner)]
        group = lost[:1] if lost and cluster is None else list(waiting.values())
        try:
            with worker_pool(options.jobs, cluster):
                workers = Parallel(n_jobs, pre_dispatch=ahead, batch_size=1, return_as="generator_unordered")
                for outcome in workers(delayed(attempt)(run, options) for run in group):
                    del waiting[outcome.run.folder]
                    losses = 0
                    yield outcome
        except TerminatedWorkerError:
            losses += 1
            if losses == MAX_LOST_WORKERS:
                raise RuntimeError(f"{losses} workers were killed in a row; finished runs are kept.") from None


def attempt(run: Run, options: SweepOptions) -> Outcome:
    """Execute a run in this process unless it is complete or another process has it; its failures are returned."""
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # its messages are in the outcome
    started, failure, busy = time.time(), None, False
    try:
        with run.locked(options.wait):
            if options.force or not run.is_done():
                failure = _attempt_locked(run, options)
    except Busy:
        busy = True
    except Exception as error:  # of any kind: the sweep goes on
        failure = explain(error)
    return Outcome(run, time.time() - started, failure, busy)


def _attempt_locked(run: Run, options: SweepOptions) -> Failure | None:
    run.tidy(keep=options.owner)
    run.check_folder()
    started, lost = time.time(), run.staging_dirs(options.owner)
    staging_dir = run.new_staging_dir(options.owner)
    try:
        if len(lost) >= MAX_RETRIES:
            message = f"{len(lost)} workers were killed while they made this run"
            raise RunError(run.notebook, Failure("lost worker", "WorkerLost", message))
        with one_gpu(options.runs_per_gpu):
            _execute(run, staging_dir, options.seconds)
        return None
    except Exception as error:
        failure = explain(error)
        run.keep_failure(staging_dir, run.record(started) | asdict(failure))
        return failure
    finally:
        for finished in (staging_dir, *lost):
            shutil.rmtree(finished, ignore_errors=True)
