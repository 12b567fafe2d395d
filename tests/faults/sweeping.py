"""Sweeps as a person starts them, in processes of their own, for the tests of what can happen to them."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from small_notebook import write_notebook

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

WORK = """\
import json, os, time

with open(log, "a") as stream:
    stream.write(f"begin {size}\\n")
time.sleep(pause)
"""
WRITE = """\
from pathlib import Path

Path(results_dir, "results.csv").write_text(f"size,square\\n{size},{size**2}\\n")
with open(log, "a") as stream:
    stream.write(f"end {size}\\n")
"""


class Study:
    """A folder with a notebook that takes a moment and writes the same every time, and a grid of its runs."""

    def __init__(self, folder: Path, sizes, pause: float = 0.2, cells=(WORK, WRITE)) -> None:
        self.folder, self.log = folder, folder / "log.txt"
        parameters = f'size = 0\npause = {pause}\nlog = {str(self.log)!r}\nresults_dir = ""\n'
        write_notebook(folder / "work.ipynb", *cells, parameters=parameters)
        self.log.touch()
        self.ask_for(sizes)

    def ask_for(self, sizes) -> None:
        (self.folder / "grid.yaml").write_text(f"notebook: work.ipynb\nparameters:\n  size: {list(sizes)}\n")

    def start(self, *options: str, command: str = "sweep", results: str = "results") -> subprocess.Popen:
        """Start ``toast``, the leader of a group of processes; its words go to ``out.txt``."""
        call = [sys.executable, "-m", "toastlib.cli", command, "grid.yaml", "--results-dir", results, *options]
        with (self.folder / "out.txt").open("a") as out:
            return subprocess.Popen(
                call,
                cwd=self.folder,
                env=ENVIRONMENT,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_hear_ctrl_c,
            )

    def run(self, *options: str, command: str = "sweep", results: str = "results") -> tuple[int, str]:
        """Wait for ``toast``; its exit code and what it said."""
        before = self.said()
        code = self.start(*options, command=command, results=results).wait(timeout=300)
        return code, self.said().removeprefix(before)

    def said(self) -> str:
        file = self.folder / "out.txt"
        return file.read_text() if file.exists() else ""

    def done(self, results: str = "results") -> dict[str, int]:
        """Run -> when its manifest was written."""
        return {file.parent.name: file.stat().st_mtime_ns for file in (self.folder / results).glob("*/manifest.json")}

    def tables(self, results: str = "results") -> dict[str, bytes]:
        """Run -> its table."""
        return {file.parent.name: file.read_bytes() for file in (self.folder / results).glob("*/results.csv")}

    def left_over(self, results: str = "results") -> list[str]:
        """What lies where runs are made, except locks."""
        return [path.name for path in (self.folder / results / ".toast").glob("*/*") if path.name != "lock"]


def _hear_ctrl_c() -> None:
    """As at a terminal: what a shell starts in the background ignores it, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def family(driver: int) -> dict[str, list[psutil.Process]]:
    """The processes of a sweep: its workers and their kernels."""
    found = {"worker": [], "kernel": []}
    try:
        for child in psutil.Process(driver).children(recursive=True):
            command = " ".join(child.cmdline())
            kind = "worker" if "popen_loky" in command else "kernel" if "ipykernel_launcher" in command else None
            if kind:
                found[kind].append(child)
    except psutil.NoSuchProcess:
        pass
    return found


def wait_until(condition, seconds: float = 120):
    """The first true value of a function; fails when it takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not so within {seconds} s: {condition}")


def kill(process) -> None:
    """kill -9; it may have ended by itself."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


def has_kernels(driver: subprocess.Popen, count: int = 1) -> bool:
    """Whether a sweep has so many kernels, or has ended."""
    return len(family(driver.pid)["kernel"]) >= count or driver.poll() is not None


def all_gone(processes: list[psutil.Process]) -> bool:
    """Whether none of them works any more."""
    return not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
