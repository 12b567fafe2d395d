"""The GPUs of this machine, without loading torch, and one of them for each run."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path

from filelock import FileLock, Timeout

VISIBLE = "CUDA_VISIBLE_DEVICES"
WAIT = 0.2  # seconds between two looks for a free GPU


def gpu_names() -> dict[str, str]:
    """The GPUs that this process may use: what ``CUDA_VISIBLE_DEVICES`` calls each, and its model; empty if none."""
    names = _installed()
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return names
    asked = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    return {name: names.get(name, "GPU") for name in asked} if names else {}


def _installed() -> dict[str, str]:
    query = ["nvidia-smi", "--query-gpu=index,name", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(line.split(", ", 1) for line in lines if ", " in line)


@contextmanager
def one_gpu(shares: int = 1) -> Iterator[str | None]:
    """Have a GPU for oneself and for the processes started meanwhile; waits until one is free.

    Nobody hands them out: who locks a GPU's file has it, whichever sweep it belongs to, and a process that is killed
    gives it back.

    Parameters
    ----------
    shares
        How many runs may use a GPU at the same time.

    Yields
    ------
    str or None
        The GPU, as ``CUDA_VISIBLE_DEVICES`` now names it; `None` on a machine without any.
    """
    gpus = list(gpu_names())
    if not gpus:
        yield None
        return
    before = os.environ.get(VISIBLE)
    with _first_free([(gpu, share) for share in range(shares) for gpu in gpus]) as gpu:
        os.environ[VISIBLE] = gpu
        try:
            yield gpu
        finally:
            os.environ.pop(VISIBLE)
            os.environ.update({VISIBLE: before} if before is not None else {})


@contextmanager
def _first_free(places: list[tuple[str, int]]) -> Iterator[str]:
    folder = Path(tempfile.gettempdir()) / f"toastlib-gpus-{getuser()}"
    folder.mkdir(exist_ok=True)
    locks = [(gpu, FileLock(folder / f"{gpu.replace('/', '_')}.{share}.lock")) for gpu, share in places]
    while True:
        for gpu, lock in locks:
            try:
                lock.acquire(timeout=WAIT / len(locks))
            except Timeout:
                continue
            try:
                yield gpu
            finally:
                lock.release()
            return
