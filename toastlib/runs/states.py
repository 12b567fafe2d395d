"""How the runs of a grid stand, read from the results folder alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toastlib.runs.executing import Failure
from toastlib.runs.folders import RunFolder, read_json
from toastlib.runs.manifests import all_parameters
from toastlib.runs.runs import Run

if TYPE_CHECKING:
    import pandas as pd

STATES = ("done", "failed", "running", "missing")
TOLD = ("seconds", "host", "started", "ran_on")
FAILURE = tuple(Failure.__dataclass_fields__)
FIXED = ("run", "notebook", "state", *TOLD, *FAILURE, "path")


def run_states(runs: Sequence[Run], root: Path) -> "pd.DataFrame":
    """One row for each run.

    Parameters
    ----------
    runs
        Checked runs.
    root
        The results folder.

    Returns
    -------
    pandas.DataFrame
        `run` (the folder's name), `notebook`, `state` (of `STATES`), `seconds`, `host`, `started`, `ran_on`; what
        `Failure` tells, empty where a run did not fail; `path`, which holds the executed notebook; and a column for
        each parameter that differs between the runs.
    """
    import pandas as pd

    rows = [_row(run, RunFolder(run.notebook, run.given, root)) for run in runs]
    frame = pd.DataFrame(rows, columns=FIXED).astype({"cell": "Int64", "seconds": float})
    return frame.join(_knobs(runs))


def _row(run: Run, place: RunFolder) -> dict[str, object]:
    row = dict.fromkeys(FIXED, "") | {"cell": None, "seconds": None, "state": "missing"}
    row |= {"run": place.folder.name, "notebook": run.notebook.stem}
    failure = place.failure()
    if place.is_done():
        told = read_json(place.folder / "manifest.json")
        row |= {name: told[name] for name in TOLD if name in told} | {"ran_on": told.get("device", "")}
        row |= {"state": "done", "path": str(place.folder)}
    elif place.is_being_made():
        row["state"] = "running"
    elif failure:
        row |= {"state": "failed", "path": str(place.failed)}
        row |= {name: failure[name] for name in (*TOLD, *FAILURE) if name in failure}
    return row


def _knobs(runs: Sequence[Run]) -> "pd.DataFrame":
    """The parameters that are not the same in all runs; lists as text, so that the column has one type."""
    import pandas as pd

    rows = [all_parameters(run.notebook, run.given) for run in runs]
    frame = pd.DataFrame([{name: plain(value) for name, value in row.items()} for row in rows])
    frame = frame[[name for name in frame if frame[name].nunique(dropna=False) > 1]]
    return frame.rename(columns={name: f"given_{name}" for name in FIXED})


def plain(value: object) -> object:
    """A parameter for a table: lists as text."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def describe(row: "pd.Series") -> str:
    """What went wrong with a run, in one line."""
    import pandas as pd

    told = {name: row[name] for name in FAILURE}
    return str(Failure(**told | {"cell": None if pd.isna(row["cell"]) else int(row["cell"])}))
