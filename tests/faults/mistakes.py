"""Grid files with mistakes: refused before anything runs, the line named."""

import pytest
from sweeping import Study


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ("notebook: work.ipynb\nparametres: {size: 1}", "grid.yaml, line 2: Unknown key 'parametres'"),
        ("notebook: work.ipynb\nparameters:\n  sise: 1", "grid.yaml, line 3: Unknown parameter of work 'sise'"),
        ("notebook: work.ipynb\nparameters:\n  size:\n    - 1\n    - two", "grid.yaml, line 5: Parameter size takes"),
        ("- notebook: work.ipynb\n- notebook: work.ipynb", "grid.yaml, line 2: the same run is asked for on line 1"),
        ("# mine\nnotebook: nowhere.ipynb", "grid.yaml, line 2: Unknown notebook 'nowhere.ipynb'"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(tmp_path, grid, says):
    study = Study(tmp_path, [1])
    (tmp_path / "grid.yaml").write_text(grid)
    code, said = study.run()
    assert code == 2
    assert said.startswith(f"toast: {says}")
    assert said.count("\n") == 1
    assert not (tmp_path / "results").exists()
    assert study.log.read_text() == ""
