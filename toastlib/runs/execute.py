"""Execution of one notebook by papermill: all cells, or a failure with its reason and its cell."""

import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toastlib.errors import FULL
from toastlib.plugins import VARIABLE

TIMEOUT = 24 * 3600  # seconds for one run
START_TIMEOUT = 120  # seconds for a kernel to answer
MAX_STARTS = 3  # kernels tried: where many start at once, two can be given the same port


@dataclass(frozen=True)
class Failure:
    """Reason why a run has no results; `cell` is the number in ``In [n]``, `None` if no cell had begun."""

    kind: str  # exception, time-out, dead kernel, full disk or lost worker
    exception: str  # name of a class
    message: str
    cell: int | None = None

    def __str__(self) -> str:
        where = f"cell {self.cell}: " if self.cell else ""
        reason = self.exception if self.kind == "exception" else self.kind
        return f"{where}{reason}: {self.message}" if self.message else f"{where}{reason}"


class RunError(RuntimeError):
    """Error of a notebook that was not executed to its end, and was kept up to there in a folder, if it was."""

    def __init__(self, notebook: Path, failure: Failure, kept: Path | None = None) -> None:
        super().__init__(f"{notebook.name} failed: {failure}" + f"\nUp to there it lies in {kept}" * bool(kept))
        self.failure = failure


def execute(
    notebook: Path,
    target: Path,
    parameters: dict[str, Any],
    *,
    plugins: Iterable[str] = (),
    seconds: float = TIMEOUT,
    progress: bool = False,
) -> None:
    """Execute a notebook into `target`, up to the cell that fails if one does; `progress` shows a bar over the cells.

    The kernel's toastlib imports the files `plugins` before its first use.

    A `RunError` if a cell raises, the time is up, the kernel dies or the disk is full.
    """
    from zmq import ZMQError

    os.environ.setdefault("TQDM_DISABLE", "1")  # in the kernel: bars would end up in the saved notebook
    kills, deadline = _memory_kills(), time.monotonic() + seconds
    for start in range(1, MAX_STARTS + 1):
        try:
            return _papermill(notebook, target, parameters, os.pathsep.join(plugins), deadline, progress)
        except Exception as error:
            bad_start = isinstance(error, RuntimeError | ZMQError) and _last_cell(target) is None
            if bad_start and start < MAX_STARTS:  # its port is taken, it died at once, or it does not answer
                continue
            raise RunError(notebook, explain(error, _last_cell(target), seconds, _memory_kills() > kills)) from error


def _papermill(
    notebook: Path, target: Path, parameters: dict[str, Any], plugins: str, deadline: float, progress: bool
) -> None:
    import papermill
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernelManager(AsyncKernelManager):
        """Starts kernels on the running Python, whatever the kernel specification ``python3`` of this machine names."""

        async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
            arguments = kernel_cmd[kernel_cmd.index("-f") :]
            kw["env"][VARIABLE] = plugins
            await super()._async_launch_kernel([sys.executable, "-m", "ipykernel_launcher", *arguments], **kw)

        _launch_kernel = _async_launch_kernel

    def remaining(cell: Any = None) -> float:
        return max(0.01, deadline - time.monotonic())  # 0 would mean: no limit

    papermill.execute_notebook(
        str(notebook),
        str(target),
        parameters=parameters,
        kernel_name="python3",
        progress_bar=progress,
        start_timeout=max(1, int(min(START_TIMEOUT, remaining()))),
        timeout_func=remaining,
        kernel_manager_class=OwnKernelManager,
        extra_arguments=["--IPKernelApp.log_level=50"],  # else kernels print notices, of encryption and shutdown
    )


def explain(error: Exception, cell: int | None = None, seconds: float = 0, short_of_memory: bool = False) -> Failure:
    """Failure for an exception of papermill's, of this library's own code, or that names its failure."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill import PapermillExecutionError

    if isinstance(error, RunError):
        return error.failure
    if isinstance(error, PapermillExecutionError):
        full = any(f"[Errno {number}]" in error.evalue for number in FULL)
        return Failure("full disk" if full else "exception", error.ename, _first_line(error.evalue), cell)
    if isinstance(error, CellTimeoutError):
        return Failure("time-out", "CellTimeoutError", f"not done after {seconds:g} s", cell)
    if isinstance(error, DeadKernelError):
        reason = "killed because memory ran out" if short_of_memory else "it was killed, or crashed"
        return Failure("dead kernel", "DeadKernelError", reason, cell)
    if isinstance(error, OSError) and error.errno in FULL:
        return Failure("full disk", "OSError", "the disk of the results is full", cell)
    return Failure("exception", type(error).__name__, _first_line(str(error)), cell)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _last_cell(target: Path) -> int | None:
    """Number of the code cell that ran last; by its start, since papermill calls even a dead cell completed."""
    try:
        cells = json.loads(target.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, LookupError):
        return None
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    begun = [n for n, cell in enumerate(code, 1) if cell["metadata"].get("papermill", {}).get("start_time")]
    return begun[-1] if begun else None


def _memory_kills() -> int:
    """Number of processes that the system has killed for want of memory; 0 where it is not reported."""
    kills = 0
    for file in ("/proc/vmstat", "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            fields = [line.split() for line in Path(file).read_text(encoding="utf-8").splitlines()]
        except OSError:
            continue
        kills += sum(int(field[1]) for field in fields if len(field) == 2 and field[0] == "oom_kill")
    return kills
