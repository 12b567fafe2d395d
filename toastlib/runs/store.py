"""Store of runs: one folder each, named by its content, written aside under a lock and renamed when complete."""

import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from toastlib.data import catalog
from toastlib.data.catalog import ROOT
from toastlib.errors import FULL, InputError, need
from toastlib.plugins import plugins_of
from toastlib.runs.gpus import gpu_names
from toastlib.runs.parameters import check_injected, code_hash, defaults, full_name
from toastlib.runs.versions import installed

STAGING = ".toast"  # in the results folder: locks, and runs that are not complete yet
LOCK_TIMEOUT = 2.0  # seconds for a lock; `toast status` may hold it for a moment
COMMITS = "commits.json"  # in the folder while the run is executed: what its kernel has read from the Hub


class Results:
    """Folder for a notebook's tables and figures; nothing is written if its name is empty.

    Parameters
    ----------
    folder
        The notebook's ``results_dir`` parameter.

    Raises
    ------
    InputError
        If papermill, without `toast`, has set a parameter that the notebook does not have, or to a wrong value.
    """

    def __init__(self, folder: str = "") -> None:
        check_injected()
        self.folder = Path(folder) if folder else None
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)

    def table(self, frame: Any, name: str = "results") -> None:
        """Write a tidy frame as ``name.parquet`` and ``name.csv``; an `InputError` if it is no frame."""
        need(frame, "to_parquet", "A pandas.DataFrame")
        if self.folder:
            frame.to_parquet(self._file(name, "parquet"), index=False)
            frame.to_csv(self._file(name, "csv"), index=False)

    def figure(self, axes: Any, name: str) -> None:
        """Write the figure of these axes as ``name.png``, ``.svg`` and ``.pdf``; an `InputError` if they are none."""
        first = axes.flat[0] if getattr(axes, "size", 0) else axes
        need(first, "figure", "A matplotlib Axes, or an array of them,")
        if self.folder:
            first.figure.savefig(self._file(name, "png"))
            for suffix, date in (("svg", "Date"), ("pdf", "CreationDate")):  # without: the same run, the same file
                first.figure.savefig(self._file(name, suffix), metadata={date: None})

    def _file(self, name: str, suffix: str) -> Path:
        if Path(name).name != name:
            raise InputError(f"{name!r} names no file in the results folder: leave out folders.")
        if catalog.COMMITS:
            (self.folder / COMMITS).write_text(json.dumps(sorted(catalog.COMMITS)), encoding="utf-8")
        return self.folder / f"{name}.{suffix}"

    def compare_with_paper(self, ours: Any) -> Any:
        """Write and return `paper.compare_with_paper` of an `Evaluation.table`, with a figure; or say it is empty."""
        from toastlib import paper, plots

        compared = paper.compare_with_paper(ours)
        if compared.empty:
            settings = ours[["model", "dataset"]].drop_duplicates().itertuples(index=False)
            names = ", ".join(f"{model} on {data}" for model, data in settings)
            print(f"The paper prints no accuracy of {names}: there is nothing to compare with.")
            return None
        self.table(compared, "beside")
        self.figure(plots.scatter(compared, x="theirs", y="ours", diagonal=True), "ours_against_theirs")
        return compared.drop(columns=["model", "dataset", "head"]).round(2)


class Busy(InputError):
    """Error of a run that another process is executing."""


@dataclass(frozen=True)
class Run:
    """One notebook with checked parameters in place of its defaults, and its folder in the results folder `root`."""

    notebook: Path
    overrides: dict[str, Any]
    root: Path = Path("results")
    plugins: dict[str, str] = field(default_factory=plugins_of)  # path -> SHA-256 of its content
    place: str = ""  # file and line of the grid that asks for it, before messages

    @cached_property  # it stays the same while the run is executed
    def folder(self) -> Path:
        """Folder of the run: the notebook's name, with a hash of code and parameters unless they are default."""
        default = defaults(self.notebook)
        changed = {name: value for name, value in self.overrides.items() if default.get(name, ...) != value}
        if not (changed or self.plugins):
            return self.root / self.notebook.stem
        content = json.dumps([code_hash(self.notebook), changed, *self.plugins.values()], sort_keys=True)
        return self.root / f"{self.notebook.stem}-{sha256(content.encode()).hexdigest()[:8]}"

    @property
    def failed(self) -> Path:
        """Folder of the last attempt that failed."""
        return self.root / f"{self.folder.name}.failed"

    @property
    def staging(self) -> Path:
        """Folder of the lock and of attempts that are not complete."""
        return self.root / STAGING / self.folder.name

    @property
    def parameters(self) -> dict[str, Any]:
        """Value of every parameter except ``results_dir``; and ``plugins``, their names, if there are any."""
        values = defaults(self.notebook) | self.overrides
        values |= {"plugins": [Path(file).name for file in self.plugins]} if self.plugins else {}
        return {name: value for name, value in values.items() if name != "results_dir"}

    @contextmanager
    def locked(self, wait: float = LOCK_TIMEOUT) -> Iterator[None]:
        """Hold the run's lock, which the system releases when the process dies; `wait` in seconds, -1 for no limit.

        `Busy` if another process still has it, an `InputError` if nothing can be written there.
        """
        from filelock import FileLock, Timeout

        try:
            self.staging.mkdir(parents=True, exist_ok=True)
            held = FileLock(self.staging / "lock", timeout=wait).acquire()
        except Timeout:
            rest = "wait for it, or name another --results-dir"
            raise Busy(f"Another process is making {self.folder}: {rest}.") from None
        except OSError as error:
            if error.errno in FULL:
                raise
            raise InputError(f"Nothing can be written to {self.root}: {error.strerror}.") from error
        with held:
            yield

    def is_done(self) -> bool:
        """The folder holds this run, executed with the notebook's present code."""
        manifest = read_json(self.folder / "manifest.json")
        return manifest.get("notebook") == self.notebook.stem and manifest.get("code") == code_hash(self.notebook)

    def is_running(self) -> bool:
        """Another process is executing the run now."""
        if not self.staging_dirs():
            return False
        try:
            with self.locked(0):
                return False
        except (InputError, OSError) as error:  # others: a results folder that can be read, but not written to
            return isinstance(error, Busy)

    def failure_record(self) -> dict[str, Any]:
        """Content of ``failure.json`` of the last attempt; empty if it did not fail, or had other code."""
        record = read_json(self.failed / "failure.json")
        return record if record.get("code") == code_hash(self.notebook) else {}

    def check_folder(self) -> None:
        """Raise InputError if the folder holds anything but a run of this notebook."""
        name = self.notebook.stem
        if self.folder.exists() and read_json(self.folder / "manifest.json").get("notebook") != name:
            raise InputError(f"{self.folder} exists and is not a run of {name}: name another --results-dir.")

    def staging_dirs(self, owner: str = "*") -> list[Path]:
        """Folders of attempts that are running or were killed, of one owner or of all."""
        return sorted(self.staging.glob(f"{owner}.*.part"))

    def new_staging_dir(self, owner: str = "alone") -> Path:
        """Make a folder for one attempt; attempts share none, as a dead worker's kernel may go on for a second."""
        staging_dir = self.staging / f"{owner}.{uuid4().hex[:8]}.part"
        staging_dir.mkdir()
        return staging_dir

    def tidy(self, keep: str = "") -> None:
        """Remove what dead processes have left, except the attempts of the owner `keep`; needs the lock."""
        for old in self.staging.glob("*.old"):
            if self.folder.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:  # killed between the two renames of `publish`
                old.rename(self.folder)
        for staging_dir in self.staging_dirs():
            if not (keep and staging_dir.name.startswith(f"{keep}.")):
                shutil.rmtree(staging_dir, ignore_errors=True)

    def publish(self, staging_dir: Path) -> None:
        """Rename a complete attempt to the run's folder; needs the lock."""
        self._replace_path(staging_dir, self.folder)
        old = staging_dir.with_suffix(".old")
        if self.folder.exists():
            self.folder.rename(old)
        staging_dir.rename(self.folder)
        for superseded in (old, self.failed):
            shutil.rmtree(superseded, ignore_errors=True)

    def keep_failure(self, staging_dir: Path, record: dict[str, Any]) -> None:
        """Keep a failed attempt's notebook, and `record` as ``failure.json``; nothing if the disk is full."""
        try:
            for path in staging_dir.iterdir():
                if path.name != self.notebook.name:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if (staging_dir / self.notebook.name).exists():
                self._replace_path(staging_dir, self.failed)
            (staging_dir / "failure.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(self.failed, ignore_errors=True)
            staging_dir.rename(self.failed)
        except OSError:
            shutil.rmtree(staging_dir, ignore_errors=True)

    def _replace_path(self, staging_dir: Path, final: Path) -> None:
        executed = staging_dir / self.notebook.name
        text = executed.read_text(encoding="utf-8").replace(str(staging_dir), str(final))
        executed.write_text(text, encoding="utf-8")

    def record(self, started: float) -> dict[str, Any]:
        """Facts about an attempt that has just ended; `started` is in seconds since 1970."""
        return {
            "notebook": self.notebook.stem,
            "code": code_hash(self.notebook),
            "given": self.overrides,
            "parameters": self.parameters,
            "plugins": self.plugins,
            "host": platform.node(),
            "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - started, 1),
        }

    def write_manifest(self, folder: Path, started: float) -> None:
        """Write ``manifest.json``, the last file of a complete run."""
        manifest = self.record(started) | {
            "device": _device(self.parameters.get(full_name("device", self.parameters), "auto")),
            "commit": _commit(),
            "hub": read_json(folder / COMMITS, []),
            "platform": platform.platform(),
            "versions": installed(),
            "files": sorted(path.name for path in folder.iterdir() if path.name != COMMITS),
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        (folder / COMMITS).unlink(missing_ok=True)


def read_json(file: Path, default: Any = None) -> Any:
    """Read a JSON file's mapping, or a value like the default; the default, or an empty mapping, if there is none."""
    default = {} if default is None else default
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default
    return content if isinstance(content, type(default)) else default


def _device(name: str) -> str:
    """Name of the notebook's device, found without torch, which would take memory on a GPU."""
    first = next(iter(gpu_names().values()), "")
    return first if first and (name == "auto" or name.startswith("cuda")) else name.replace("auto", "cpu")


def _commit() -> str | None:
    git = ["git", "-C", str(ROOT)]
    if not (ROOT / ".git").exists():  # a repository around an installed wheel is another one
        return None
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" with changes" if changed else "")
