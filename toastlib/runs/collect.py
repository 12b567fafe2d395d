"""Collection of a grid: states of its runs, its tables merged, and HTML pages that need no network."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toastlib.errors import InputError, need_packages, unknown
from toastlib.evaluation.metrics import paired_difference
from toastlib.output import writing
from toastlib.plan import ORIGINAL
from toastlib.runs.execute import Failure
from toastlib.runs.parameters import code_hash
from toastlib.runs.store import Results, Run, read_json

if TYPE_CHECKING:
    import pandas as pd

STATES = ("done", "failed", "running", "missing")
RECORD = ("seconds", "host", "started")
FAILURE = tuple(Failure.__dataclass_fields__)
FIXED = ("run", "label", "notebook", "state", *RECORD, "ran_on", "failure", *FAILURE, "path")
PICTURES = (".png", ".svg", ".pdf")
EVALUATED = {"run", "head", "translator", "plan", "seed", "accuracy", "lost"}
"""Columns of what `Evaluation.table` leaves."""
SETTING = ("notebook", "model", "features", "dataset", "image_size", "head", "translator", "calibration", "plan")


def varied_parameters(runs: Sequence[Run]) -> list[str]:
    """The parameters in which runs of one notebook differ."""
    values: dict[tuple[Path, str], set[str]] = {}
    for run in runs:
        for name, value in run.parameters.items():
            values.setdefault((run.notebook, name), set()).add(repr(value))
    return list(dict.fromkeys(name for (_, name), different in values.items() if len(different) > 1))


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Name each run by its notebook and by the parameters in which runs differ."""
    names = varied_parameters(runs)
    labels = []
    for run in runs:
        given = {name: _cell(run.parameters[name]) for name in names if name in run.parameters}
        text = ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in given.items())
        labels.append(f"{run.notebook.stem} {text}".strip())
    return labels


def run_states(runs: Sequence[Run]) -> "pd.DataFrame":
    """Read the state of each run from the results folder.

    One row each, with the columns `FIXED` (`run` is the folder's name, `label` says what differs, `path` holds the
    executed notebook, the fields of `Failure` are empty unless it failed), and one for each parameter that differs.
    """
    import pandas as pd

    rows = [_state(run) | {"label": label} for run, label in zip(runs, run_labels(runs), strict=True)]
    states = pd.DataFrame(rows, columns=FIXED).astype({"cell": "Int64", "seconds": float})
    parameters = [{name: _cell(value) for name, value in run.parameters.items()} for run in runs]
    varied = pd.DataFrame(parameters)[varied_parameters(runs)]
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
        text = str(Failure(*(failure[name] for name in FAILURE)))
        row |= {"state": "failed", "path": str(run.failed), "failure": text}
    return row | {name: record[name] for name in (*RECORD, *FAILURE) if name in record}


def unfinished(states: "pd.DataFrame") -> list[str]:
    """A line about each run that is not done, and why one has failed, from `run_states`."""
    rows = states[states["state"] != "done"].to_dict("records")
    failures = [row["failure"] and f"  {row['failure']}\n         {row['path']}" for row in rows]
    return [f"{row['state']:8} {row['label']}{failure}\n" for row, failure in zip(rows, failures, strict=True)]


def outdated(runs: Sequence[Run]) -> list[set[str]]:
    """Runs that lie in the results folder with the same parameters, and other code: for each, the files that differ."""
    records = [read_json(file) for root in {run.root for run in runs} for file in root.glob("*/manifest.json")]
    found = []
    for run in runs:
        now = _hashes(run, {"code": code_hash(run.notebook), "plugins": run.plugins})
        for record in records:
            if (record.get("notebook"), record.get("given")) == (run.notebook.stem, run.overrides):
                found.append({name for name, _ in now ^ _hashes(run, record)})
    return found


def _hashes(run: Run, record: Mapping[str, Any]) -> set[tuple[str, str]]:
    plugins = {(Path(file).name, digest) for file, digest in record.get("plugins", {}).items()}
    return plugins | {(run.notebook.name, record.get("code", ""))}


def _cell(value: object) -> object:
    """A parameter for a table: lists as text, so that the column has one type."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def collect(
    runs: Sequence[Run], out: Path, force: bool = False, *, title: str = "Runs", sort: str = "label"
) -> "pd.DataFrame":
    """Gather the results of a grid's runs in one folder, which can be moved or served as it is.

    `out` gets every table of the complete runs, merged (`merged_tables`), ``intervals`` (`intervals_apart`) and
    ``runs`` (`run_states` and `headlines`, failures included), each as parquet and CSV; ``index.html``; and under
    ``runs/`` each executed notebook, also as a page, with its figures. An earlier collection is replaced. Returns
    ``runs`` in the order of its column `sort`; an `InputError` if there is no such column, no run is done or has
    failed, `out` holds something else and `force` is not set, or it cannot be written.
    """
    need_packages("Collecting notebooks as pages", ["nbconvert"], "study")
    states = run_states(runs)
    if set(states["state"]) <= {"missing", "running"}:
        raise InputError(
            f"None of the {len(runs)} runs is done, and nothing is collected: runs of other parameters, or made with "
            "another state of a notebook or a plug-in, do not count."
        )
    tables, varied = merged_tables(runs), [name for name in states if name not in FIXED]
    states = _one_type_each(states.merge(headlines(tables["results"]), on="run", how="left"))
    if sort not in states:
        raise unknown("column", sort, states)
    with writing(out, {run.root for run in runs}, force) as folder:
        (folder / "runs").mkdir(parents=True)
        intervals = intervals_apart(tables["results"], tables.get("accuracy_lost"), varied)
        tables |= ({} if intervals.empty else {"intervals": intervals}) | {"runs": states}
        for name, frame in tables.items():
            Results(str(folder)).table(_one_type_each(frame), name)
        rows, names = states.to_dict("records"), [name for name in states if name not in FIXED]
        figures = {row["run"]: _copy(row, folder / "runs") for row in rows if row["path"]}
        counts = {state: (states["state"] == state).sum() for state in STATES}
        facts = {"counts": counts, "names": names, "figures": figures}
        _write_page(folder, "index.html", title=title, rows=rows, tables=tables, **facts)
    return states.sort_values(sort, kind="stable")


def merged_tables(runs: Sequence[Run]) -> "dict[str, pd.DataFrame]":
    """Every table of the complete runs by its name, joined as by `results_table`; ``results`` is always there."""
    done = [run for run in runs if run.is_done()]
    names = {"results": None} | {file.stem: None for run in done for file in sorted(run.folder.glob("*.parquet"))}
    return {name: results_table(done, name) for name in names}


def results_table(runs: Sequence[Run], name: str = "results") -> "pd.DataFrame":
    """Join the rows of a table of every run, with the run's name and the parameters that are no column there."""
    import pandas as pd

    frames = []
    for run in runs:
        file = run.folder / f"{name}.parquet"
        if run.is_done() and file.exists():
            frame = pd.read_parquet(file)
            facts = {"run": run.folder.name, "notebook": run.notebook.stem} | run.parameters
            # A model that a function makes has its own features and image size, whatever its options are.
            missing = {name: _cell(v) for name, v in facts.items() if name.removeprefix("options.") not in frame}
            frames.append(pd.concat([pd.DataFrame(missing, index=frame.index), frame], axis=1))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"run": [], "notebook": []}, dtype=str)


def headlines(results: "pd.DataFrame") -> "pd.DataFrame":
    """The numbers of each run: the original's accuracy in percent, and points lost by each translator, mean over plans.

    Of several heads it is the frozen one, and ``head`` says which. One row per run; no columns but ``run`` where no run
    has evaluated plans.
    """
    import pandas as pd

    if EVALUATED - set(results):
        return results[["run"]].drop_duplicates()
    ordered = results.sort_values("head", key=lambda heads: heads != "frozen", kind="stable")
    first = results[results["head"] == ordered.groupby("run")["head"].first().reindex(results["run"]).to_numpy()]
    is_original = first["plan"] == ORIGINAL
    lost = first[~is_original].pivot_table("lost", "run", "translator", sort=False).add_prefix("lost, ")
    runs = first[is_original].groupby("run")
    original = pd.DataFrame({"head": runs["head"].first(), "original (%)": runs["accuracy"].mean()})
    return original.join(lost, how="outer").reset_index()


def intervals_apart(
    results: "pd.DataFrame", lost: "pd.DataFrame | None" = None, varied: Sequence[str] = ()
) -> "pd.DataFrame":
    """Points lost in each setting, with 95 % intervals of what chance brings by three ways, a row each.

    From a `results_table`, that of the runs' `Evaluation.lost`, and the parameters that tell settings apart. Columns
    are the setting, ``interval``, ``lost``, ``lost_low`` and ``lost_high``: over ``"draws"`` of calibration images or
    seeds of ``"heads"`` (Student's, of the means of each; no row if there is but one), or over test ``"images"``, from
    `Evaluation.lost`. Of several runs, or of heads where a run has not kept that, it is the mean of their intervals,
    which is at least as wide as the interval of the mean.
    """
    import pandas as pd

    if EVALUATED - set(results):
        return pd.DataFrame()
    draws = [name for name in results if name.rpartition(".")[2] == "calibration_seed"]
    of_draw = results[draws].bfill(axis=1).iloc[:, 0] if draws else 0  # each notebook has its own name for it
    results = _ends_of_mean(results, lost).assign(of_draw=of_draw)
    by = [name for name in dict.fromkeys([*SETTING, *varied]) if name in results and name not in (*draws, "seed")]
    rows = []
    for key, part in results[results["plan"] != ORIGINAL].dropna(subset="lost").groupby(by, sort=False, dropna=False):
        found = {"images": part[["lost", "lost_low", "lost_high"]].mean()}
        for source, column in (("draws", "of_draw"), ("heads", "seed")):
            means = part.groupby(column)["lost"].mean() / 100
            if len(means) > 1:
                found[source] = paired_difference(means, np.zeros(len(means)))
        rows += [(*key, source, *ends) for source, ends in found.items()]
    return pd.DataFrame(rows, columns=[*by, "interval", "lost", "lost_low", "lost_high"])


def _ends_of_mean(results: "pd.DataFrame", lost: "pd.DataFrame | None") -> "pd.DataFrame":
    """Intervals of single heads replaced by those of the mean over heads, where the run has these."""
    keys, ends = ["run", "head", "translator", "plan"], ["lost_low", "lost_high"]
    if lost is None or {*keys, *ends} - set(lost):
        return results
    keys += [name for name in ("calibration",) if name in lost and name in results]
    keys += ["dataset"] * bool(lost.duplicated(keys).any())  # of several in a run; else it may be a folder's name
    found = results[keys].merge(lost.drop_duplicates(keys, keep=False), "left", keys)[ends].set_axis(results.index)
    return results.assign(**found.fillna(results[ends]))


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
        _write_page(target, "notebook.html", title=row["label"], failure=row["failure"], name=path.name, body=body)
    return sorted(path.name for path in target.glob("*.png"))


def _write_page(folder: Path, template: str, **values: Any) -> None:
    """Write ``index.html``; all values but a notebook's own HTML are escaped."""
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    (folder / "index.html").write_text(templates.get_template(template).render(values), encoding="utf-8")
