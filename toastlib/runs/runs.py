"""Many runs at once: each in its own processes, each with its own end; a run that is lost is tried again, then told."""

import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from toastlib.runs.batch import make_run
from toastlib.runs.cluster import worker_pool
from toastlib.runs.executing import TIMEOUT, Failure, RunError, explain_outside
from toastlib.runs.folders import PATIENCE, Busy, RunFolder, code_hash
from toastlib.runs.gpus import gpu_names, one_gpu
from toastlib.runs.manifests import all_parameters

LIVES = 3  # workers that a run may lose
LOSSES = 20  # workers in a row that a sweep may lose before a run ends; they may die before they begin one


@dataclass(frozen=True)
class Run:
    """One notebook with checked parameters."""

    notebook: Path
    given: dict[str, Any]


class Outcome(NamedTuple):
    """How a run ended: its folder, or what went wrong; `busy` if another process was at it."""

    run: Run
    folder: Path
    seconds: float
    failure: Failure | None = None
    busy: bool = False


@dataclass(frozen=True)
class Orders:
    """What holds for all runs of a sweep.

    `root` is the results folder, `seconds` the time for one run; a run that is done is made again if `again`; `shares`
    runs may use a GPU at once. `maker` names the sweep, and `wait` is how many seconds it waits for a run that another
    process is making (-1: as long as it takes).
    """

    root: Path
    seconds: float = TIMEOUT
    again: bool = False
    shares: int = 1
    maker: str = ""
    wait: float = PATIENCE


def default_jobs() -> int:
    """A notebook for each GPU; without GPUs two at once, or one on a single core."""
    return len(gpu_names()) or min(2, os.cpu_count() or 1)


def run_all(runs: Sequence[Run], orders: Orders, jobs: int, cluster: Any = None) -> Iterator[Outcome]:
    """Execute runs, so many at once.

    A run that another process is making comes last, when that process has had time for it. A worker that is killed
    takes its notebook with it, and on a single machine its neighbours; what was lost is tried again, here one by one,
    so that only the run that keeps losing its worker is given up.

    Parameters
    ----------
    runs
        Checked runs, each once.
    orders
        What holds for all of them.
    jobs
        How many run at once on this machine, sharing its cores.
    cluster
        A Dask client, whose workers take the place of this machine's.

    Yields
    ------
    Outcome
        Of each run as it ends; one that fails does not keep the others from running.
    """
    orders, busy = replace(orders, maker=uuid4().hex[:8]), []
    try:
        for outcome in _until_none_is_lost(runs, orders, jobs, cluster):
            busy += [outcome.run] if outcome.busy else []
            yield outcome
        yield from _until_none_is_lost(busy, replace(orders, again=False, wait=-1), jobs, cluster)
    finally:
        if cluster is None:  # Dask's workers may be at it still; what they leave, the next sweep clears away
            _clear_up(runs, orders)


def _clear_up(runs: Sequence[Run], orders: Orders) -> None:
    """Remove what an interrupted sweep has begun; its workers are dead."""
    for place in (_place(run, orders) for run in runs):
        if place.parts(orders.maker):
            with suppress(Busy), place.locked():
                place.tidy()


def _until_none_is_lost(runs: Sequence[Run], orders: Orders, jobs: int, cluster: Any) -> Iterator[Outcome]:
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    waiting, losses = {id(run): run for run in runs}, 0
    while waiting:
        lost = [run for run in waiting.values() if _place(run, orders).parts(orders.maker)]
        group = lost[:1] if lost and cluster is None else list(waiting.values())
        try:
            for number, outcome in _parallel(group, orders, jobs, cluster):
                del waiting[id(group[number])]
                losses = 0
                yield outcome
        except TerminatedWorkerError:
            losses += 1
            if losses == LOSSES:
                raise RuntimeError(f"{LOSSES} workers were killed in a row; finished runs are kept.") from None


def _parallel(runs: list[Run], orders: Orders, jobs: int, cluster: Any) -> Iterator[tuple[int, Outcome]]:
    from joblib import Parallel, delayed

    # With one job joblib would work in this process, which is to survive; so there are two, one of them idle.
    ahead = "all" if cluster else jobs
    with worker_pool(jobs, cluster):
        workers = Parallel(n_jobs=max(2, jobs), pre_dispatch=ahead, batch_size=1, return_as="generator_unordered")
        yield from workers(delayed(_numbered)(number, run, orders) for number, run in enumerate(runs))


def _numbered(number: int, run: Run, orders: Orders) -> tuple[int, Outcome]:
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it would say is in the outcome
    return number, attempt(run, orders)


def attempt(run: Run, orders: Orders) -> Outcome:
    """Make a run in this process, unless it is done or another process is making it; never raises for its failures."""
    started = time.time()
    folder, failure, busy = orders.root, None, False
    try:
        place = _place(run, orders)
        folder = place.folder
        with place.locked(orders.wait):
            if orders.again or not place.is_done():
                failure = _make(place, run, orders)
    except Busy:
        busy = True
    except Exception as error:  # whatever it is: it is told, and the others go on
        failure = explain_outside(error)
    return Outcome(run, folder, time.time() - started, failure, busy)


def _make(place: RunFolder, run: Run, orders: Orders) -> Failure | None:
    place.tidy(but=orders.maker)
    place.check()
    started, lost = time.time(), place.parts(orders.maker)
    part = place.make_part(orders.maker)
    try:
        if len(lost) >= LIVES:
            failure = Failure("lost worker", "WorkerLost", f"{len(lost)} workers were killed while they made this run")
        else:
            failure = _try(place, part, run, orders)
        if failure:
            place.keep_failure(part, failure, _told(place, run, started))
    finally:
        for gone in (part, *lost):
            shutil.rmtree(gone, ignore_errors=True)
    return failure


def _try(place: RunFolder, part: Path, run: Run, orders: Orders) -> Failure | None:
    try:
        with one_gpu(orders.shares):
            make_run(place, part, run.given, orders.seconds)
    except RunError as error:
        return error.failure
    except Exception as error:
        return explain_outside(error)
    return None


def _told(place: RunFolder, run: Run, started: float) -> dict[str, Any]:
    return {
        "notebook": place.notebook.stem,
        "code": code_hash(place.notebook),
        "given": run.given,
        "parameters": all_parameters(place.notebook, run.given),
        "host": platform.node(),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
    }


def _place(run: Run, orders: Orders) -> RunFolder:
    return RunFolder(run.notebook, run.given, orders.root)
