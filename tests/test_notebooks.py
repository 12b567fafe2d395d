"""Notebooks of the study away from their defaults, where a figure or a table may have nothing to show."""

import pytest

from toastlib.cli import main

SMALL = "train_size=200 calibration_size=100 test_size=60 seeds=0 head_min_steps=200 features=mean"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notebook", "parameters"),
    [
        ("12", "removed=4 exhaustive=2 draws=2 verify_size=20 shortlist=2 translator=linear+align verify=features"),
        ("14", "removed=3"),
    ],
)
def test_a_notebook_runs_where_little_is_asked_for(notebook, parameters, tmp_path, capfd):
    given = [word for parameter in f"{SMALL} {parameters}".split() for word in ("-p", parameter)]
    assert main(["run", notebook, *given, "--results-dir", str(tmp_path)]) == 0, capfd.readouterr().err
    assert len(list(tmp_path.glob("*/results.parquet"))) == 1
