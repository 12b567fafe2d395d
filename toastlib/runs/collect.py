"""Collection of a grid: states of its runs, one tidy table, and HTML pages that need no network."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toastlib.errors import need_packages
from toastlib.output import writing
from toastlib.runs.execute import Failure
from toastlib.runs.store import Results, Run, read_json

if TYPE_CHECKING:
    import pandas as pd

STATES = ("done", "failed", "running", "missing")
RECORD = ("seconds", "host", "started")
FAILURE = tuple(Failure.__dataclass_fields__)
FIXED = ("run", "notebook", "state", *RECORD, "ran_on", *FAILURE, "path")
PICTURES = (".png", ".svg")


def run_states(runs: Sequence[Run]) -> "pd.DataFrame":
    """Read the state of each run from the results folder.

    One row each, with the columns `FIXED` (`run` is the folder's name, `path` holds the executed notebook, the fields
    of `Failure` are empty unless it failed), and one for each parameter that differs between the runs.
    """
    import pandas as pd

    states = pd.DataFrame(map(_state, runs), columns=FIXED).astype({"cell": "Int64", "seconds": float})
    parameters = pd.DataFrame([{name: _cell(value) for name, value in run.parameters.items()} for run in runs])
    varied = parameters[[name for name in parameters if parameters[name].nunique(dropna=False) > 1]]
    return states.join(varied.rename(columns={name: f"given_{name}" for name in FIXED}))


def _state(run: Run) -> dict[str, object]:
    row = dict.fromkeys(FIXED, "") | {"cell": None, "seconds": None, "state": "missing"}
    row |= {"run": run.folder.name, "notebook": run.notebook.stem}
    failure, record = run.failure_record(), {}
    if run.is_done():
        record = read_json(run.folder / "manifest.json")
        row |= {"state": "done", "path": str(run.folder), "ran_on": record.get("device", "")}
    elif run.is_running():
        row["state"] = "running"
    elif failure:
        record = failure
        row |= {"state": "failed", "path": str(run.failed)}
    return row | {name: record[name] for name in (*RECORD, *FAILURE) if name in record}


def _cell(value: object) -> object:
    """A parameter for a table: lists as text, so that the column has one type."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def failure_of(row: Mapping[str, Any]) -> Failure:
    """Failure of a failed run, from its row of `run_states`."""
    import pandas as pd

    fields = {name: row[name] for name in FAILURE}
    return Failure(**fields | {"cell": None if pd.isna(row["cell"]) else int(row["cell"])})


def collect(runs: Sequence[Run], out: Path, force: bool = False, title: str = "Runs") -> "pd.DataFrame":
    """Gather the results of a grid's runs in one folder, which can be moved or served as it is.

    `out` gets ``results`` (of all complete runs) and ``runs`` (one row each, failures included), both as parquet and
    CSV; ``index.html``; and under ``runs/`` each executed notebook, also as a page, with its figures. An earlier
    collection is replaced. Returns `run_states`; an `InputError` if `out` holds something else and `force` is not set,
    or cannot be written.
    """
    need_packages("Collecting notebooks as pages", ["nbconvert"], "study")
    with writing(out, {run.root for run in runs}, force) as folder:
        (folder / "runs").mkdir(parents=True)
        states = run_states(runs)
        for name, frame in (("results", results_table(runs)), ("runs", states)):
            Results(str(folder)).table(_one_type_each(frame), name)
        rows, names = states.to_dict("records"), [name for name in states if name not in FIXED]
        figures = {row["run"]: _copy(row, folder / "runs") for row in rows if row["path"]}
        counts = {state: (states["state"] == state).sum() for state in STATES}
        facts = {"counts": counts, "names": names, "figures": figures, "failure_of": failure_of}
        _write_page(folder, "index.html", title=title, rows=rows, **facts)
    return states


def results_table(runs: Sequence[Run]) -> "pd.DataFrame":
    """Join the rows of every ``results.parquet``, with the run's name and the parameters that are no column there."""
    import pandas as pd

    frames = []
    for run in runs:
        file = run.folder / "results.parquet"
        if run.is_done() and file.exists():
            frame = pd.read_parquet(file)
            facts = {"run": run.folder.name, "notebook": run.notebook.stem} | run.parameters
            missing = {name: _cell(value) for name, value in facts.items() if name not in frame}
            frames.append(pd.concat([pd.DataFrame(missing, index=frame.index), frame], axis=1))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"run": [], "notebook": []}, dtype=str)


def _one_type_each(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Columns that are numbers in one run and text in another, as text: parquet wants one type."""
    mixed = [name for name in frame if frame[name].dropna().map(type).nunique() > 1]
    return frame.assign(**{name: frame[name].map(str, na_action="ignore") for name in mixed})


def _copy(row: Mapping[str, Any], runs: Path) -> list[str]:
    """Copy a run's notebook and figures, and write its page, pictures inside; return the names of the PNG figures."""
    import nbformat
    from nbconvert import HTMLExporter

    source, target = Path(row["path"]), runs / row["run"]
    target.mkdir()
    for path in source.iterdir():
        if path.suffix in (*PICTURES, ".ipynb"):
            shutil.copy(path, target)
    for path in target.glob("*.ipynb"):
        body, _ = HTMLExporter(template_name="basic").from_notebook_node(nbformat.read(path, 4))
        failure = failure_of(row) if row["state"] == "failed" else ""
        _write_page(target, "notebook.html", title=row["run"], failure=failure, name=path.name, body=body)
    return sorted(path.name for path in target.glob("*.png"))


def _write_page(folder: Path, template: str, **values: Any) -> None:
    """Write ``index.html``; all values but a notebook's own HTML are escaped."""
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    (folder / "index.html").write_text(templates.get_template(template).render(values), encoding="utf-8")
