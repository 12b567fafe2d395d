"""The paper's published numbers, its plan lists, and ours beside theirs; results of the committed reference runs."""

import re
from functools import cache

import pandas as pd

from toastlib.data.catalog import DATA
from toastlib.errors import InputError, unknown
from toastlib.plan import ORIGINAL, Plan, Span, parse_plans

IMAGENET = {"imagenet-1k": "imagenet-1k-val"}
"""The paper calls both ImageNet: its text has one, its released code the other (see `DATASETS`)."""
REFERENCE = DATA / "reference"


@cache
def _published() -> pd.DataFrame:
    table = pd.read_csv(DATA / "paper" / "results.csv", dtype={"table": str}, keep_default_na=False)
    table[["accuracy", "std"]] = table[["accuracy", "std"]].apply(pd.to_numeric)
    return table.rename(columns={"method": "translator", "spans": "plan"})


def published(table: str | int | None = None) -> pd.DataFrame:
    """Every accuracy that the paper prints (1,332), or those of one of its tables; an `InputError` if that has none.

    Columns are ``table``, ``model``, ``translator``, ``head``, ``plan``, ``source``, ``dataset``, ``accuracy`` and
    ``std`` in percent (``std`` may be NaN), ``params_m`` as printed.
    """
    rows = _published()
    if table is None:
        return rows.copy()
    if str(table) not in set(rows["table"]):
        raise unknown("table", str(table), rows["table"].unique())
    return rows[rows["table"] == str(table)].reset_index(drop=True)


def plan_list(block_count: int) -> list[Plan]:
    """The plans that the paper tries: 20 for 12 blocks (Tables 1 and 8), 34 for 24 blocks (Table 13).

    For any other depth the list is its longer plans that fit, then every single block but the first.
    """
    tables, models = (["13"], ["vit-l"]) if block_count == 24 else (["1", "8"], ["vit-s"])
    rows = _published()
    chosen = rows["table"].isin(tables) & rows["model"].isin(models) & (rows["plan"] != ORIGINAL)
    plans = parse_plans(rows.loc[chosen, "plan"])
    if block_count in (12, 24):
        return plans
    singles = [Plan((Span(block, block + 1),)) for block in range(block_count - 1)]
    return [plan for plan in plans if len(plan.removed) > 1 and max(plan.removed) < block_count] + singles


def table_plans(table: str | int) -> list[Plan]:
    """The plans of one of the paper's tables, in its order."""
    rows = published(table)
    return parse_plans(rows.loc[rows["plan"] != ORIGINAL, "plan"].unique())


def read_plans(text: str, block_count: int) -> list[Plan]:
    """The plans that a parameter asks for; an `InputError` if one is malformed or does not fit, or none is left.

    The text is ``"paper"`` (see `plan_list`), ``"table 4"``, or plans separated by commas, ``"1->5, 1->2 4->5"``. Plans
    of a table that do not fit a model of this depth are left out; a plan written out must fit.
    """
    if not isinstance(text, str):
        return [plan.check(block_count) for plan in parse_plans(text)]
    if text.strip() == "paper":
        return plan_list(block_count)
    if match := re.fullmatch(r"\s*table\s*(\w+)\s*", text):
        plans = [plan for plan in table_plans(match[1]) if max(plan.removed) < block_count]
    else:
        plans = [plan.check(block_count) for plan in parse_plans(text.split(",")) if plan]
    if not plans:
        raise InputError(f"{text!r} names no plan for a model of {block_count} blocks: write for example '2->5, 7->8'.")
    return plans


def compare_with_paper(ours: pd.DataFrame, table: str | int | None = None) -> pd.DataFrame:
    """Our accuracies beside the published ones of the same model, data set, head, translator, plan and calibration set.

    Ours are an `Evaluation.table`, one row per seed; without a column ``calibration``, maps are taken to be fitted on
    the data set that they are used on. They are compared with this table, or the first that prints the setting: one row
    each with ``ours``, ``ours_std`` (over seeds), ``theirs``, ``theirs_std``, ``difference`` in percent and points, and
    the ``table``. Both ``imagenet-1k`` and ``imagenet-1k-val`` stand beside the paper's ImageNet.
    """
    setting = ["model", "dataset", "head", "translator", "plan"]
    ours = ours.rename(columns={"calibration": "source"})
    if "source" in ours:
        setting.append("source")
    mine = ours.groupby(setting, sort=False)["accuracy"].agg(ours="mean", ours_std="std").reset_index()
    theirs = published(table)
    theirs = pd.concat([theirs, theirs.replace({"dataset": IMAGENET, "source": IMAGENET})])
    if "source" not in ours:
        # Maps fitted on another data set, which share the setting in Tables 3, 14 and 15, are another experiment.
        theirs = theirs[(theirs["source"] == "") | (theirs["source"] == theirs["dataset"])]
    theirs = theirs.drop_duplicates(setting)
    theirs = theirs[[*setting, "table", "accuracy", "std"]].rename(columns={"accuracy": "theirs", "std": "theirs_std"})
    both = mine.merge(theirs, on=setting)
    return both.assign(difference=both["ours"] - both["theirs"]).rename(columns={"source": "calibration"})


def reference(grid: str, table: str = "results") -> pd.DataFrame:
    """Read one table of the reference runs: the same table of every run of a grid, one below the other.

    Parameters
    ----------
    grid
        The name of the grid: ``"16"`` for ``grids/reference-16.yaml``. The card ``data/reference/16/README.md`` has its
        command, images and date.
    table
        A table that the notebook writes, such as ``"draws"``.

    Returns
    -------
    DataFrame
        The parameters that the grid sets, then the table's own columns.

    Raises
    ------
    InputError
        If there is no such grid or table.
    """
    files = {path.stem: path for path in sorted((REFERENCE / grid).glob("*.parquet"))}
    if not files:
        raise unknown("reference grid", grid, [path.name for path in sorted(REFERENCE.iterdir()) if path.is_dir()])
    if table not in files:
        raise unknown("table", table, files)
    return pd.read_parquet(files[table])
