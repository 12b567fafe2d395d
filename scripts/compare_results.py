"""Compare the results of two studies, such as two commits': every table that both have, row by row, bit for bit.

    python scripts/compare_results.py BEFORE AFTER        # two folders of `toast study`

Rows are matched by the columns that name them; values by the columns that both tables have. Exits with 1 if any differ.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

import pandas as pd

RENAMED = {"source": "calibration"}
"""Column of an earlier version -> today's."""


def compare(before: pd.DataFrame, after: pd.DataFrame) -> tuple[int, pd.Series]:
    """The number of rows that both tables have, and for each column the share of them that differ."""
    texts = [name for name in before if name in after and not pd.api.types.is_numeric_dtype(before[name])]
    numbers = [name for name in ("seed", "start", "end", "calibration_size", "calibration_seed") if name in before]
    keys = [name for name in [*texts, *numbers] if name in after]
    values = [name for name in before if name in after and name not in keys]
    first, second = (
        table[[*keys, *values]].assign(repetition=table.groupby(keys, dropna=False).cumcount())
        for table in (before, after)
    )
    both = first.merge(second, on=[*keys, "repetition"], suffixes=("_before", "_after"))
    pairs = {name: (both[f"{name}_before"], both[f"{name}_after"]) for name in values}
    return len(both), pd.Series({name: 1 - ((a == b) | (a.isna() & b.isna())).mean() for name, (a, b) in pairs.items()})


def main() -> int:
    """Print one line for each chapter."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments, different = parser.parse_args(), False
    for old in sorted(arguments.before.glob("*/results.parquet")):
        chapter = old.parent.name
        new = arguments.after / chapter / "results.parquet"
        if not new.exists():
            print(f"{chapter}: no longer there")
            continue
        before, after = pd.read_parquet(old).rename(columns=RENAMED), pd.read_parquet(new)
        shared, shares = compare(before, after)
        differ = shares[shares > 0]
        different |= not differ.empty
        said = ", ".join(f"{name} in {share:.0%} of rows" for name, share in differ.items())
        print(f"{chapter}: {len(before)} rows before, {len(after)} after, {shared} in both: {said or 'equal'}")
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
