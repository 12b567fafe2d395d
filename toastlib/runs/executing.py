"""One notebook through papermill: executed from the first cell to the last, or a failure that says where and why."""

import errno
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 24 * 3600  # seconds for one run
START = 120  # seconds for a kernel to answer
STARTS = 3  # kernels tried: where many start at once, two can be given the same port
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Failure:
    """Why a run has no results.

    `kind` is ``"exception"``, ``"time-out"``, ``"dead kernel"``, ``"full disk"`` or ``"lost worker"``; `cell` is the
    number that the notebook shows as ``In [n]``, `None` if no cell had begun; `exception` is a class name.
    """

    kind: str
    exception: str
    message: str
    cell: int | None = None

    def __str__(self) -> str:
        where = f"cell {self.cell}: " if self.cell else ""
        what = self.exception if self.kind == "exception" else self.kind
        return f"{where}{what}: {self.message}" if self.message else f"{where}{what}"

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON and tables."""
        return asdict(self)


class RunError(RuntimeError):
    """A notebook was not executed to its end."""

    def __init__(self, notebook: Path, failure: Failure) -> None:
        super().__init__(f"{notebook.name} failed: {failure}")
        self.failure = failure


def execute(
    notebook: Path, target: Path, parameters: dict[str, Any], seconds: float = TIMEOUT, progress: bool = False
) -> None:
    """Execute a notebook and keep it with its outputs, up to the cell that failed if one did.

    Parameters
    ----------
    notebook
        The notebook, with a cell tagged ``parameters``.
    target
        Where the executed one is written, cell by cell.
    parameters
        Values for its parameters, of the right types.
    seconds
        After how long it is given up.
    progress
        Show a bar over the cells.

    Raises
    ------
    RunError
        If a cell raises, the time is up, the kernel dies or the disk is full.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # in the kernel: bars would end up in the saved notebook
    kills, deadline = _memory_kills(), time.monotonic() + seconds
    for start in range(1, STARTS + 1):
        try:
            return _papermill(notebook, target, parameters, deadline, progress)
        except Exception as error:
            if start < STARTS and _may_be_a_bad_start(error) and _last_cell(target) is None:
                continue
            raise RunError(notebook, _explain(error, target, seconds, _memory_kills() > kills)) from error


def _papermill(notebook: Path, target: Path, parameters: dict[str, Any], deadline: float, progress: bool) -> None:
    import papermill

    def left(cell: Any = None) -> float:
        return max(0.01, deadline - time.monotonic())  # 0 would mean: no limit

    papermill.execute_notebook(
        str(notebook),
        str(target),
        parameters=parameters,
        kernel_name="python3",
        progress_bar=progress,
        start_timeout=max(1, int(min(START, left()))),
        timeout_func=left,
        extra_arguments=["--IPKernelApp.log_level=50"],  # else kernels print notices, of encryption and shutdown
    )


def _may_be_a_bad_start(error: Exception) -> bool:
    """A kernel that finds its port taken, dies at once or does not answer: all of them are RuntimeErrors or ZMQ's."""
    from zmq import ZMQError

    return isinstance(error, RuntimeError | ZMQError)


def _explain(error: Exception, target: Path, seconds: float, short_of_memory: bool) -> Failure:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill import PapermillExecutionError

    cell = _last_cell(target)
    if isinstance(error, PapermillExecutionError):
        full = any(f"[Errno {number}]" in error.evalue for number in FULL)
        return Failure("full disk" if full else "exception", error.ename, _first_line(error.evalue), cell)
    if isinstance(error, CellTimeoutError):
        return Failure("time-out", "CellTimeoutError", f"not done after {seconds:g} s", cell)
    if isinstance(error, DeadKernelError):
        why = "killed because memory ran out" if short_of_memory else "it was killed, or crashed"
        return Failure("dead kernel", "DeadKernelError", why, cell)
    return explain_outside(error, cell)


def explain_outside(error: Exception, cell: int | None = None) -> Failure:
    """The failure that an exception outside the notebook's own code makes."""
    if isinstance(error, OSError) and error.errno in FULL:
        return Failure("full disk", "OSError", "the disk of the results is full", cell)
    return Failure("exception", type(error).__name__, _first_line(str(error)), cell)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _last_cell(target: Path) -> int | None:
    """The number of the code cell that ran last; papermill leaves the times, and calls even a dead cell completed."""
    try:
        cells = json.loads(target.read_text())["cells"]
    except (OSError, ValueError, LookupError):
        return None
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    begun = [n for n, cell in enumerate(code, 1) if cell["metadata"].get("papermill", {}).get("start_time")]
    return begun[-1] if begun else None


def _memory_kills() -> int:
    """How many processes the system has killed for want of memory; 0 where it does not tell."""
    found = 0
    for file in ("/proc/vmstat", "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            fields = (line.split() for line in Path(file).read_text().splitlines())
        except OSError:
            continue
        found += sum(int(value) for name, value in (pair for pair in fields if len(pair) == 2) if name == "oom_kill")
    return found
