"""Results of the reference runs, which are committed in ``data/reference``."""

import pandas as pd

from toastlib.data.catalog import DATA
from toastlib.errors import unknown

REFERENCE = DATA / "reference"


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
