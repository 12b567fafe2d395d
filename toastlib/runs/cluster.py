"""Dask in place of this machine's processes: a scheduler by its address, workers here, or jobs on Slurm."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

from toastlib.errors import InputError
from toastlib.runs.folders import WORKSHOP

KINDS = ("local", "slurm")
ANSWER = 10  # seconds for a scheduler to answer
DEATHS = 1_000_000  # a run counts its own lost workers; Dask would blame those that only waited in a worker


@contextmanager
def connect(where: str, jobs: int, root: Path) -> Iterator[Any]:
    """A Dask client with at least one worker, closed afterwards.

    Parameters
    ----------
    where
        ``"local"`` starts workers here, ``"slurm"`` submits jobs as dask-jobqueue's configuration says; anything else
        is the address of a scheduler, such as ``tcp://10.0.0.1:8786``.
    jobs
        How many workers are started; not used with an address.
    root
        The results folder, which the workers have to see too.

    Raises
    ------
    InputError
        If Dask is not installed, the scheduler does not answer, a worker would run two notebooks in one process, or one
        does not see the results folder.
    """
    distributed = _import("distributed")
    if where in KINDS:
        with _cluster(where, jobs) as cluster, closing(distributed.Client(cluster)) as client:
            yield _ready(client, root)
    else:
        try:
            client = distributed.Client(where, timeout=ANSWER)
        except (OSError, ValueError) as error:
            raise InputError(f"No Dask scheduler answers at {where!r}: start one, or take local or slurm.") from error
        with closing(client):
            yield _ready(client, root)


def worker_pool(jobs: int, cluster: Any = None) -> AbstractContextManager:
    """Where joblib's calls run inside the context: in Dask's workers, or in so many processes that share the cores."""
    from joblib import parallel_config

    if cluster:
        return parallel_config(backend=dask_backend(cluster))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ending = {"initializer": end_with, "initargs": (os.getpid(),)}
    return parallel_config(backend="loky", inner_max_num_threads=max(1, cores // jobs), **ending)


def end_with(driver: int) -> None:
    """Let this worker end when its driver is killed, as kernels end with their worker."""

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def dask_backend(client: Any) -> Any:
    """joblib's Dask backend, that leaves the work to Dask even while there is one worker.

    With a single one joblib would do everything in this process, and workers that come later would find nothing to do.
    """
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):
        def effective_n_jobs(self, n_jobs: int) -> int:
            return max(2, super().effective_n_jobs(n_jobs))

    return Backend(client=client)


def sbatch_script() -> str:
    """The script that is submitted for each worker, as dask-jobqueue's configuration makes it.

    Raises
    ------
    InputError
        If dask-jobqueue is not installed, or not told what a job may have.
    """
    with _cluster("slurm", 0) as cluster:
        return cluster.job_script()


@contextmanager
def _cluster(where: str, jobs: int) -> Iterator[Any]:
    if where == "local":
        make = _import("distributed").LocalCluster
        options = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
    else:
        make, options = _import("dask_jobqueue").SLURMCluster, {}
    try:
        cluster = make(**options)
    except (ValueError, TypeError) as error:  # dask-jobqueue's word for cores and memory that nobody named
        raise InputError(f"Slurm jobs are not configured: {str(error).strip().splitlines()[0]}") from error
    with closing(cluster):
        if where == "slurm":
            cluster.scale(jobs=jobs)
        yield cluster


def _ready(client: Any, root: Path) -> Any:
    if not client.scheduler_info()["workers"]:
        print("Waiting for the first worker ...", flush=True)
    client.wait_for_workers(1)
    if set(client.nthreads().values()) != {1}:
        raise InputError(
            "A Dask worker here has several threads: start each with --nthreads 1, one run has one worker."
        )
    _check_root(client, root)
    client.run_on_scheduler(_forgive)
    return client


def _check_root(client: Any, root: Path) -> None:
    """Refuse workers that have another results folder of the same name: what they make would not be seen."""
    mark = root / WORKSHOP / f"{uuid4().hex}.mark"
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        seen = client.run(_exists, str(mark))
        mark.unlink()
    except OSError as error:
        raise InputError(f"Nothing can be written to {root}: {error.strerror}.") from error
    except ImportError as error:
        raise InputError("A Dask worker does not find toastlib: install it where the workers run.") from error
    blind = [worker for worker, sees in seen.items() if not sees]
    if blind:
        raise InputError(f"Dask's worker {blind[0]} does not see {root}: name a --results-dir that all of them share.")


def _exists(file: str) -> bool:
    return Path(file).exists()


def _forgive(dask_scheduler: Any) -> None:
    dask_scheduler.allowed_failures = DEATHS


def _import(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise InputError("--dask needs Dask: python -m pip install -e '.[cluster]'") from None
