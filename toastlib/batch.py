"""Notebook runs: checked parameters in; an executed notebook, tables, figures and a manifest out."""

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from toastlib.catalog import ROOT
from toastlib.errors import InputError, unknown
from toastlib.parameters import check_parameters, notebook_parameters

NOTEBOOKS = ROOT / "notebooks"
VERSIONS = ("toastlib", "torch", "transformers", "datasets", "numpy", "papermill")
TIMEOUT = 4 * 3600  # seconds for one cell


class Outcome(NamedTuple):
    """How a run ended: its folder, or what went wrong."""

    notebook: str
    folder: Path
    seconds: float
    error: str = ""


class Results:
    """Where a notebook leaves its tables and figures; nowhere if the folder is empty.

    Parameters
    ----------
    folder
        The notebook's ``results_dir`` parameter.
    """

    def __init__(self, folder: str = "") -> None:
        self.folder = Path(folder) if folder else None
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)

    def table(self, frame: Any, name: str = "results") -> None:
        """Write a tidy frame as ``name.parquet`` and ``name.csv``."""
        if self.folder:
            frame.to_parquet(self.folder / f"{name}.parquet", index=False)
            frame.to_csv(self.folder / f"{name}.csv", index=False)

    def figure(self, axes: Any, name: str) -> None:
        """Write the figure of these axes as ``name.png`` and ``name.svg``."""
        if self.folder:
            figure = getattr(axes, "figure", None) or axes.flat[0].figure
            figure.savefig(self.folder / f"{name}.png")
            figure.savefig(self.folder / f"{name}.svg", metadata={"Date": None})  # the same run, the same file


def notebook_names() -> list[str]:
    """The study's notebooks in order, without suffix."""
    return sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def find_notebook(name: str) -> Path:
    """A notebook of the study by name, number or path.

    Raises
    ------
    InputError
        If there is none.
    """
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name)
    matches = [stem for stem in notebook_names() if name in (stem, stem[:2])]
    if not matches:
        raise unknown("notebook", name, notebook_names())
    return NOTEBOOKS / f"{matches[0]}.ipynb"


def run_folder(notebook: Path, given: dict[str, Any], root: Path) -> Path:
    """The folder of a run: the notebook's name, and a hash of the parameters that were given, if any were."""
    if not given:
        return root / notebook.stem
    key = sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]
    return root / f"{notebook.stem}-{key}"


def run_notebook(
    name: str, given: dict[str, Any] | None = None, root: str | Path = "results", progress: bool = False
) -> Path:
    """Execute a notebook of the study with checked parameters.

    Everything is written into a folder beside the final one, which takes its place when all cells have run; a run
    that fails leaves nothing behind.

    Parameters
    ----------
    name
        Name, number or path of the notebook.
    given
        Parameters that differ from the notebook's own; text is read as the type of the default.
    root
        Where the run's folder is made.
    progress
        Show a bar over the cells.

    Returns
    -------
    Path
        The run's folder: ``<notebook>.ipynb``, tables, figures and ``manifest.json``.

    Raises
    ------
    InputError
        If the notebook, a parameter or its value is not valid, or the folder belongs to something else.
    """
    notebook = find_notebook(name)
    given = check_parameters(notebook, given or {})
    folder = run_folder(notebook, given, Path(root).resolve())
    _check_folder(folder, notebook)
    part = _make_part(folder)
    started = time.time()
    try:
        _execute(notebook, part, given, progress)
        _write_manifest(part, notebook, given, started)
        _put_in_place(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder


def is_done(name: str | Path, given: dict[str, Any], root: str | Path) -> bool:
    """Whether a results folder holds this run."""
    notebook = find_notebook(str(name))
    return _owner(run_folder(notebook, given, Path(root).resolve())) == notebook.stem


def run_notebooks(
    runs: Iterable[tuple[str | Path, dict[str, Any]]], root: str | Path = "results", jobs: int | None = None
) -> Iterator[Outcome]:
    """Execute several notebooks, some of them at the same time, each in processes of its own.

    Parameters
    ----------
    runs
        Name of a notebook, and the parameters given to it.
    root
        Where the runs' folders are made.
    jobs
        How many run at once, sharing the cores; `None` takes two, or one on a single core or where there is a GPU.

    Yields
    ------
    Outcome
        Of each run as it ends; one that fails does not keep the others from running.
    """
    from joblib import Parallel, delayed, parallel_config

    jobs, root = jobs or default_jobs(), Path(root).resolve()  # workers may stand in another folder
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with parallel_config(backend="loky", inner_max_num_threads=max(1, cores // jobs)):
        yield from Parallel(n_jobs=jobs, return_as="generator_unordered")(
            delayed(_try_run)(find_notebook(str(name)), given, root) for name, given in runs
        )


def default_jobs() -> int:
    """Two notebooks at once, or one on a single core or where there is a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def _try_run(notebook: Path, given: dict[str, Any], root: Path) -> Outcome:
    started, error = time.monotonic(), ""
    try:
        run_notebook(str(notebook), given, root)
    except Exception as failure:  # whatever a notebook raises: it is reported, and the others go on
        error = str(failure) or type(failure).__name__
    folder = run_folder(notebook, given, root)
    return Outcome(notebook.stem, folder, time.monotonic() - started, error)


def _make_part(folder: Path) -> Path:
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"Nothing can be written to {folder.parent}: {error.strerror}.") from error
    return part


def _execute(notebook: Path, part: Path, given: dict[str, Any], progress: bool) -> None:
    import papermill

    os.environ.setdefault("TQDM_DISABLE", "1")  # in the kernel: bars would end up in the saved notebook
    try:
        papermill.execute_notebook(
            str(notebook),
            str(part / notebook.name),
            parameters=given | {"results_dir": str(part)},
            kernel_name="python3",
            progress_bar=progress,
            execution_timeout=TIMEOUT,
            extra_arguments=["--IPKernelApp.log_level=50"],  # else kernels print notices, of encryption and shutdown
        )
    except papermill.PapermillExecutionError as error:
        if error.ename == InputError.__name__:
            raise InputError(error.evalue) from None
        raise RuntimeError(f"{notebook.name} failed: {error.ename}: {error.evalue}") from error


def _write_manifest(part: Path, notebook: Path, given: dict[str, Any], started: float) -> None:
    defaults = {name: parameter.default for name, parameter in notebook_parameters(notebook).items()}
    parameters = {name: value for name, value in (defaults | given).items() if name != "results_dir"}
    manifest = {
        "notebook": notebook.stem,
        "given": given,
        "parameters": parameters,
        "device": _device(parameters.get("device", "auto")),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: metadata.version(package) for package in VERSIONS},
        "files": sorted(path.name for path in part.iterdir()),
    }
    (part / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _put_in_place(part: Path, folder: Path) -> None:
    executed = next(part.glob("*.ipynb"))
    executed.write_text(executed.read_text().replace(str(part), str(folder)))
    old = part.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _check_folder(folder: Path, notebook: Path) -> None:
    if folder.exists() and _owner(folder) != notebook.stem:
        raise InputError(f"{folder} exists and is not a run of {notebook.stem}: name another --results-dir.")


def _owner(folder: Path) -> str | None:
    """The notebook whose run a folder holds."""
    try:
        return json.loads((folder / "manifest.json").read_text())["notebook"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _device(name: str) -> str:
    import torch

    from toastlib.checkpoints import resolve_device

    device = resolve_device(name)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _commit() -> str | None:
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" with changes" if changed else "")
