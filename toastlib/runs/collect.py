"""A grid's results in one folder: a tidy table, how each run ended, and pages to look at."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toastlib.errors import InputError
from toastlib.runs.folders import RunFolder
from toastlib.runs.manifests import all_parameters
from toastlib.runs.pages import index_page, notebook_page
from toastlib.runs.runs import Run
from toastlib.runs.states import plain, run_states

if TYPE_CHECKING:
    import pandas as pd

PICTURES = (".png", ".svg")


def collect(runs: Sequence[Run], root: Path, out: Path, title: str = "Runs") -> "pd.DataFrame":
    """Gather what a grid's runs have left.

    `out` gets ``results`` (one tidy table of all that is done) and ``runs`` (one row for each run, failures included),
    both as parquet and CSV; ``index.html``; and under ``runs/`` each executed notebook, as it is and as a page, with
    its figures. Links are relative: the folder can be moved, or served as it is.

    Parameters
    ----------
    runs
        Checked runs.
    root
        The results folder.
    out
        The folder to write to; what `collect` has written there before is replaced.
    title
        Of the index.

    Returns
    -------
    pandas.DataFrame
        How the runs stand, as `run_states` tells it.

    Raises
    ------
    InputError
        If the folder holds something else, or cannot be written.
    """
    _check(out, root)
    states = run_states(runs, root)
    for name, frame in (("results", results_table(runs, root)), ("runs", states)):
        frame = _one_type_each(frame)
        frame.to_parquet(out / f"{name}.parquet", index=False)
        frame.to_csv(out / f"{name}.csv", index=False)
    figures = {row["run"]: _copy(row, out / "runs") for _, row in states.iterrows() if row["path"]}
    (out / "index.html").write_text(index_page(title, states, figures), encoding="utf-8")
    return states


def results_table(runs: Sequence[Run], root: Path) -> "pd.DataFrame":
    """The rows of every ``results.parquet``, with the run's name and the parameters that are no column there."""
    import pandas as pd

    frames = []
    for run in runs:
        place = RunFolder(run.notebook, run.given, root)
        file = place.folder / "results.parquet"
        if not (place.is_done() and file.exists()):
            continue
        frame = pd.read_parquet(file)
        told = {"run": place.folder.name, "notebook": run.notebook.stem} | all_parameters(run.notebook, run.given)
        missing = {name: plain(value) for name, value in told.items() if name not in frame}
        frames.append(pd.concat([pd.DataFrame(missing, index=frame.index), frame], axis=1))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"run": [], "notebook": []}, dtype=str)


def _one_type_each(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Columns that are numbers in one run and text in another, as text: parquet wants one type."""
    mixed = [name for name in frame if frame[name].dropna().map(type).nunique() > 1]
    return frame.assign(**{name: frame[name].map(str, na_action="ignore") for name in mixed})


def _copy(row: "pd.Series", runs: Path) -> list[str]:
    """Copy a run's notebook and figures, and write its page; the names of the figures."""
    source, target = Path(row["path"]), runs / row["run"]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    figures = sorted(path for path in source.iterdir() if path.suffix in PICTURES)
    for path in (*figures, *source.glob("*.ipynb")):
        shutil.copy(path, target)
    for path in target.glob("*.ipynb"):
        (target / "index.html").write_text(notebook_page(path, row), encoding="utf-8")
    return [path.name for path in figures]


def _check(out: Path, root: Path) -> None:
    ours = {"index.html", "runs", *(f"{name}.{kind}" for name in ("results", "runs") for kind in ("parquet", "csv"))}
    if out.exists():
        foreign = sorted({path.name for path in out.iterdir()} - ours) if out.is_dir() else [out.name]
        if foreign:
            raise InputError(f"{out} holds more than a collection of runs ({foreign[0]}): name another --out.")
    if out.resolve() == root.resolve():
        raise InputError("--out must not be the results folder itself.")
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Nothing can be written to {out}: {error.strerror}.") from error
