"""Where a run lies: its folder, named after its content; made aside, locked meanwhile, and renamed when it is whole."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from toastlib.errors import InputError
from toastlib.runs.executing import FULL, Failure
from toastlib.runs.parameters import notebook_parameters

WORKSHOP = ".toast"  # in the results folder: locks, and runs that are being made
PATIENCE = 2.0  # seconds for a lock; `toast status` may hold it for a moment


class Busy(InputError):
    """Another process is making this run."""


def run_folder(notebook: Path, given: dict[str, Any], root: Path) -> Path:
    """The folder of a run: the notebook's name and, if a parameter differs from the notebook's own, a hash.

    The hash is of the notebook's code and of what differs: the same run has the same folder whatever the order of the
    parameters, and a notebook whose code has changed has another.
    """
    changed = changed_parameters(notebook, given)
    if not changed:
        return root / notebook.stem
    content = json.dumps([code_hash(notebook), changed], sort_keys=True)
    return root / f"{notebook.stem}-{sha256(content.encode()).hexdigest()[:8]}"


def changed_parameters(notebook: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The given parameters that differ from the notebook's own."""
    own = _read(notebook, notebook.stat().st_mtime_ns)[1]
    return {name: value for name, value in given.items() if name not in own or own[name] != value}


def code_hash(notebook: Path) -> str:
    """A hash of a notebook's code; its text and outputs may change."""
    return _read(notebook, notebook.stat().st_mtime_ns)[0]


@lru_cache(64)
def _read(notebook: Path, modified: int) -> tuple[str, dict[str, Any]]:
    """A notebook's hash and its own parameters; a grid asks for them once for each of its runs."""
    cells = json.loads(notebook.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    own = {name: parameter.default for name, parameter in notebook_parameters(notebook).items()}
    return sha256(json.dumps(code).encode()).hexdigest()[:16], own


class RunFolder:
    """A run's folder, and what lies beside it while the run is not done.

    Parameters
    ----------
    notebook
        The notebook.
    given
        Checked parameters that differ from the notebook's own.
    root
        The results folder.
    """

    def __init__(self, notebook: Path, given: dict[str, Any], root: Path) -> None:
        self.notebook = notebook
        self.folder = run_folder(notebook, given, root)
        self.failed = root / f"{self.folder.name}.failed"
        self.workshop = root / WORKSHOP / self.folder.name

    @contextmanager
    def locked(self, wait: float = PATIENCE) -> Iterator[None]:
        """Have the run for oneself; the system takes the lock back from a process that dies.

        Parameters
        ----------
        wait
            Seconds to wait for another process; -1 for as long as it takes.

        Raises
        ------
        Busy
            If another process still has it.
        InputError
            If nothing can be written there.
        """
        from filelock import FileLock, Timeout

        try:
            self.workshop.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.workshop / "lock", timeout=wait)
            lock.acquire()
        except Timeout:
            raise Busy(
                f"Another process is making {self.folder}: wait for it, or name another --results-dir."
            ) from None
        except OSError as error:
            if error.errno in FULL:
                raise
            raise InputError(f"Nothing can be written to {self.folder.parent}: {error.strerror}.") from error
        try:
            yield
        finally:
            lock.release()

    def is_done(self) -> bool:
        """Whether the folder holds this run, made by the notebook's present code."""
        manifest = read_json(self.folder / "manifest.json")
        return manifest.get("notebook") == self.notebook.stem and manifest.get("code") == code_hash(self.notebook)

    def is_being_made(self) -> bool:
        """Whether another process is at work on it now."""
        if not self.parts():
            return False
        try:
            with self.locked(0):
                return False
        except Busy:
            return True
        except (InputError, OSError):  # a results folder that can be read, but not written to
            return False

    def failure(self) -> dict[str, Any]:
        """What ``failure.json`` tells about the last attempt; empty if it did not fail, or had other code."""
        told = read_json(self.failed / "failure.json")
        return told if told.get("code") == code_hash(self.notebook) else {}

    def parts(self, maker: str = "*") -> list[Path]:
        """What attempts have left, or are writing: of one maker, or of all."""
        return sorted(self.workshop.glob(f"{maker}.*.part"))

    def check(self) -> None:
        """Refuse a folder that holds something else.

        Raises
        ------
        InputError
            Where it does.
        """
        owner = read_json(self.folder / "manifest.json").get("notebook")
        if self.folder.exists() and owner != self.notebook.stem:
            raise InputError(
                f"{self.folder} exists and is not a run of {self.notebook.stem}: name another --results-dir."
            )

    def tidy(self, but: str = "") -> None:
        """Clear away what dead processes have left, but not what this maker did; needs the lock."""
        for old in self.workshop.glob("*.old"):
            if self.folder.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:  # killed between two renames
                old.rename(self.folder)
        kept = self.parts(but) if but else []
        for part in self.parts():
            if part not in kept:
                shutil.rmtree(part, ignore_errors=True)

    def make_part(self, maker: str = "alone") -> Path:
        """A new folder to write to. No two attempts share one: a dead worker's kernel may write for a second more."""
        part = self.workshop / f"{maker}.{uuid4().hex[:8]}.part"
        part.mkdir()
        return part

    def put_in_place(self, part: Path) -> None:
        """Give a whole run its name; needs the lock."""
        self._name_inside(part, self.folder)
        old = part.with_suffix(".old")
        if self.folder.exists():
            self.folder.rename(old)
        part.rename(self.folder)
        for gone in (old, self.failed):
            shutil.rmtree(gone, ignore_errors=True)

    def keep_failure(self, part: Path, failure: Failure, told: dict[str, Any]) -> None:
        """Keep of a failed attempt the notebook, and a file that says what happened; needs the lock.

        Where not even that fits on the disk, nothing is kept.
        """
        try:
            for path in part.iterdir():
                if path.name != self.notebook.name:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if (part / self.notebook.name).exists():
                self._name_inside(part, self.failed)
            (part / "failure.json").write_text(json.dumps(told | failure.as_dict(), indent=2) + "\n")
            shutil.rmtree(self.failed, ignore_errors=True)
            part.rename(self.failed)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)

    def _name_inside(self, part: Path, final: Path) -> None:
        executed = part / self.notebook.name
        executed.write_text(executed.read_text().replace(str(part), str(final)))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file's mapping; empty if there is none."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
