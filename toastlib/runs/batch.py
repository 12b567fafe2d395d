"""Notebook runs: checked parameters in; an executed notebook, tables, figures and a manifest out."""

import shutil
import time
from pathlib import Path
from typing import Any

from toastlib.data.catalog import ROOT
from toastlib.errors import InputError, unknown
from toastlib.runs.executing import TIMEOUT, RunError, execute
from toastlib.runs.folders import RunFolder
from toastlib.runs.manifests import write_manifest
from toastlib.runs.parameters import check_parameters

NOTEBOOKS = ROOT / "notebooks"


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


def run_notebook(
    name: str,
    given: dict[str, Any] | None = None,
    root: str | Path = "results",
    progress: bool = False,
    seconds: float = TIMEOUT,
) -> Path:
    """Execute a notebook of the study with checked parameters.

    Everything is written into a folder aside, which gets its name and place when all cells have run; a run that fails
    leaves nothing behind.

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
    seconds
        After how long the run is given up.

    Returns
    -------
    Path
        The run's folder: ``<notebook>.ipynb``, tables, figures and ``manifest.json``.

    Raises
    ------
    InputError
        If the notebook, a parameter or its value is not valid, the folder belongs to something else, or another
        process is making the same run.
    RunError
        If the notebook is not executed to its end.
    """
    notebook = find_notebook(name)
    given = check_parameters(notebook, given or {})
    place = RunFolder(notebook, given, Path(root).resolve())
    with place.locked():
        place.tidy()
        place.check()
        part = place.make_part()
        try:
            make_run(place, part, given, seconds, progress)
        except RunError as error:
            if error.failure.exception == InputError.__name__:
                raise InputError(error.failure.message) from None
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return place.folder


def make_run(place: RunFolder, part: Path, given: dict[str, Any], seconds: float, progress: bool = False) -> None:
    """Execute a run in a part folder, and put that in its place; needs the run's lock.

    Raises
    ------
    RunError
        If the notebook is not executed to its end.
    OSError
        If the disk is full.
    """
    started = time.time()
    execute(place.notebook, part / place.notebook.name, given | {"results_dir": str(part)}, seconds, progress)
    write_manifest(part, place.notebook, given, started)
    place.put_in_place(part)
