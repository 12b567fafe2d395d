"""GPUs of this machine, found without torch and leased by file locks, which the system releases for dead processes."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
WAIT = 0.2  # seconds between two looks for a free GPU


def gpu_names() -> dict[str, str]:
    """Name in ``CUDA_VISIBLE_DEVICES`` -> model, of each GPU that this process may use."""
    query = ["nvidia-smi", "--query-gpu=index,name", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    names = dict(line.split(", ", 1) for line in lines if ", " in line)
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return names
    chosen = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    return {name: names.get(name, "GPU") for name in chosen} if names else {}


@contextmanager
def one_gpu(runs_per_gpu: int = 1) -> Iterator[str | None]:
    """Wait until a GPU is free and lease it, as ``CUDA_VISIBLE_DEVICES`` now says; `None` on a machine without any."""
    gpus = list(gpu_names())
    if not gpus:
        yield None
        return
    before = os.environ.get(VISIBLE)
    with _first_free([(gpu, slot) for slot in range(runs_per_gpu) for gpu in gpus]) as gpu:
        os.environ[VISIBLE] = gpu
        try:
            yield gpu
        finally:
            os.environ.pop(VISIBLE)
            os.environ.update({VISIBLE: before} if before is not None else {})


@contextmanager
def _first_free(slots: list[tuple[str, int]]) -> Iterator[str]:
    from filelock import FileLock, Timeout

    folder = Path(tempfile.gettempdir()) / f"toastlib-gpus-{getuser()}"
    folder.mkdir(exist_ok=True)
    locks = [(gpu, FileLock(folder / f"{gpu.replace('/', '_')}.{slot}.lock")) for gpu, slot in slots]
    while True:
        for gpu, lock in locks:
            try:
                held = lock.acquire(timeout=WAIT / len(locks))
            except Timeout:
                continue
            with held:
                yield gpu
            return
