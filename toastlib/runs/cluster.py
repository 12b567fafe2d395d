"""Workers of a sweep: processes of this machine, or Dask's, from a scheduler's address, started here or on Slurm."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

from toastlib.errors import InputError, need_packages
from toastlib.runs.store import STAGING

CONNECT_TIMEOUT = 10  # seconds for a scheduler to answer
MAX_DEATHS = 1_000_000  # a run counts its own lost workers; Dask would blame those that only waited in a worker


def worker_pool(jobs: int, cluster: Any = None) -> AbstractContextManager:
    """Run joblib's calls inside this context in Dask's workers, or in `jobs` processes that share the cores."""
    from joblib import cpu_count, parallel_config

    if cluster:
        return parallel_config(backend=_dask_backend(cluster))
    ending = {"initializer": end_with, "initargs": (os.getpid(),)}
    return parallel_config(backend="loky", inner_max_num_threads=max(1, cpu_count() // jobs), **ending)


def end_with(driver: int) -> None:
    """End this worker when its driver is killed, as kernels end with their worker."""

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _dask_backend(client: Any) -> Any:
    """joblib's Dask backend; with a single worker joblib itself would not use Dask, and later workers would be idle."""
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):
        def effective_n_jobs(self, n_jobs: int) -> int:
            return max(2, super().effective_n_jobs(n_jobs))

    return Backend(client=client)


@contextmanager
def connect(where: str, jobs: int, root: Path) -> Iterator[Any]:
    """Connect to Dask; yield a client with at least one worker.

    `where` is ``"local"`` for `jobs` workers here, ``"slurm"`` for `jobs` Slurm jobs as dask-jobqueue's configuration
    says, or the address of a scheduler, such as ``tcp://10.0.0.1:8786``.

    An `InputError` if Dask is not installed, the scheduler does not answer, a worker would run two notebooks in one
    process, or one does not see the results folder `root`.
    """
    distributed = _import("distributed")
    with _cluster(where, jobs) if where in ("local", "slurm") else nullcontext(where) as scheduler:
        try:
            client = distributed.Client(scheduler, timeout=CONNECT_TIMEOUT)
        except (OSError, ValueError) as error:
            raise InputError(f"No Dask scheduler answers at {where!r}: start one, or take local or slurm.") from error
        with closing(client):
            yield _ready(client, root)


def sbatch_script() -> str:
    """Script that dask-jobqueue's configuration submits for each worker; InputError if it is incomplete."""
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
    except (ValueError, TypeError) as error:  # dask-jobqueue: cores or memory are not configured
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
        raise InputError("A Dask worker has several threads: start each with --nthreads 1, one run has one worker.")
    client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", MAX_DEATHS))
    # Runs of workers that have another results folder of the same name would not be seen.
    mark = root / STAGING / f"{uuid4().hex}.mark"
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        seen = client.run(os.path.exists, str(mark))
        mark.unlink()
    except OSError as error:
        raise InputError(f"Nothing can be written to {root}: {error.strerror}.") from error
    except ImportError as error:
        raise InputError("A Dask worker does not find toastlib: install it where the workers run.") from error
    blind = [worker for worker, sees in seen.items() if not sees]
    if blind:
        raise InputError(f"Dask's worker {blind[0]} does not see {root}: name a --results-dir that all of them share.")
    return client


def _import(module: str) -> Any:
    need_packages("--dask", [module], "cluster")
    return import_module(module)
