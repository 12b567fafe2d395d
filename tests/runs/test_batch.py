"""One notebook run: checked parameters in, a complete folder out, or nothing."""

import json
from datetime import datetime
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from small_notebook import write_notebook

from toastlib.errors import InputError
from toastlib.runs import batch
from toastlib.runs.folders import RunFolder

WRITE = """\
import matplotlib.pyplot as plt, pandas as pd
from toastlib.runs.batch import Results

results = Results(results_dir)
results.table(pd.DataFrame({"size": [size], "plan": [plans]}))
results.figure(plt.subplots()[1], "empty")
print(f"written to {results_dir}")
"""


def contents(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*"))


def results(root: Path) -> list[str]:
    """What lies in the results folder, beside the place where runs are made; that one is clean."""
    workshop = root / "results" / ".toast"
    assert {path.name for path in workshop.glob("*/*")} <= {"lock"}
    return sorted(path.name for path in (root / "results").rglob("*") if not path.is_relative_to(workshop))


def sources(notebook: Path) -> str:
    return "\n".join(cell.source for cell in nbformat.read(notebook, 4).cells)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("batch")


@pytest.fixture(scope="module")
def folder(root) -> Path:
    """The folder of one run."""
    notebook = write_notebook(root / "07_small.ipynb", WRITE, "size + 1")
    return batch.run_notebook(str(notebook), {"size": "7", "plans": "1->2, 3->4"}, root / "results")


def test_a_run_leaves_the_notebook_tables_figures_and_a_manifest(folder):
    assert contents(folder) == [
        *("07_small.ipynb", "empty.png", "empty.svg"),
        *("manifest.json", "results.csv", "results.parquet"),
    ]


def test_the_parameters_reach_the_notebook(folder):
    expected = pd.DataFrame({"size": [7], "plan": ["1->2, 3->4"]})
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "results.parquet"), expected, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "results.csv"), expected, check_dtype=False)


def test_cells_are_executed_from_1_on(folder):
    cells = nbformat.read(folder / "07_small.ipynb", 4).cells
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4]
    assert cells[-1].outputs[0].data["text/plain"] == "8"


def test_the_executed_notebook_knows_its_final_folder_only(folder):
    text = (folder / "07_small.ipynb").read_text()
    assert f"written to {folder}" in text
    assert ".part" not in text


def test_the_manifest_tells_how_the_run_came_about(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["notebook"] == "07_small"
    assert manifest["given"] == {"size": 7, "plans": "1->2, 3->4"}
    assert manifest["parameters"]["size"] == 7
    assert manifest["parameters"]["model"] == "vit-mini"
    assert "results_dir" not in manifest["parameters"]
    assert datetime.fromisoformat(manifest["started"]).tzinfo is not None
    assert manifest["seconds"] > 0
    assert set(manifest["versions"]) >= {"toastlib", "torch", "transformers"}
    assert {"commit", "device", "python", "platform"} <= manifest.keys()
    assert manifest["files"] == [name for name in contents(folder) if name != "manifest.json"]


def test_nothing_temporary_is_left_but_an_unlocked_lock(folder):
    assert contents(folder.parent)[:2] == [".toast", folder.name]
    assert contents(folder.parent / ".toast") == [folder.name, "lock"]


def test_a_rerun_replaces_the_folder(tmp_path):
    notebook = write_notebook(tmp_path / "07_small.ipynb", "'first'")
    folder = batch.run_notebook(str(notebook), root=tmp_path / "results")
    (folder / "stale.txt").touch()
    write_notebook(notebook, "'second'")
    assert batch.run_notebook(str(notebook), root=tmp_path / "results") == folder
    assert "'second'" in sources(folder / notebook.name)
    assert results(tmp_path) == ["07_small", "07_small.ipynb", "manifest.json"]


@pytest.mark.parametrize("manifest", [None, "no json", "[]", "{}", '{"notebook": "08_other"}'])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, manifest):
    notebook = write_notebook(tmp_path / "07_small.ipynb", "1 / 0")
    folder = tmp_path / "results" / "07_small"
    folder.mkdir(parents=True)
    (folder / "precious.txt").write_text("mine")
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    before = results(tmp_path)
    with pytest.raises(InputError, match="is not a run of 07_small: name another --results-dir"):
        batch.run_notebook(str(notebook), root=tmp_path / "results")
    assert results(tmp_path) == before


def test_a_failing_cell_is_named_and_leaves_nothing_behind(tmp_path):
    notebook = write_notebook(tmp_path / "07_small.ipynb", WRITE, "1 / 0")
    with pytest.raises(RuntimeError, match=r"^07_small\.ipynb failed: cell 4: ZeroDivisionError: division by zero$"):
        batch.run_notebook(str(notebook), root=tmp_path / "results")
    assert results(tmp_path) == []


def test_a_failing_rerun_keeps_the_run_that_is_there(tmp_path):
    notebook = write_notebook(tmp_path / "07_small.ipynb", "'fine'")
    folder = batch.run_notebook(str(notebook), root=tmp_path / "results")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_notebook(notebook, "1 / 0")
    with pytest.raises(RuntimeError):
        batch.run_notebook(str(notebook), root=tmp_path / "results")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_wrong_input_found_in_the_notebook_is_wrong_input(tmp_path):
    cell = "from toastlib.plan import Plan\n\nPlan.parse(plans).check(2)"
    notebook = write_notebook(tmp_path / "07_small.ipynb", cell)
    with pytest.raises(InputError, match=r"^Span 3->4 leaves the model: it has 2 blocks, so the last is 1\.$"):
        batch.run_notebook(str(notebook), {"plans": "3->4"}, tmp_path / "results")
    assert results(tmp_path) == []


def test_a_run_that_another_process_is_making_is_refused(tmp_path):
    notebook = write_notebook(tmp_path / "07_small.ipynb")
    with (
        RunFolder(notebook, {}, tmp_path / "results").locked(),
        pytest.raises(InputError, match=r"^Another process is making .*07_small: wait for it"),
    ):
        batch.run_notebook(str(notebook), root=tmp_path / "results")


def test_wrong_input_is_refused_before_anything_is_written(tmp_path):
    notebook = write_notebook(tmp_path / "07_small.ipynb")
    with pytest.raises(InputError, match="takes a whole number"):
        batch.run_notebook(str(notebook), {"size": "x"}, tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """A study of two notebooks, beside a file that is none of it."""
    for name in ("00_first", "07_small", "scratch"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(batch, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path / "notebooks"


def test_the_study_is_its_numbered_notebooks(study):
    assert batch.notebook_names() == ["00_first", "07_small"]


@pytest.mark.parametrize("name", ["07", "07_small"])
def test_a_notebook_is_found_by_number_or_name(study, name):
    assert batch.find_notebook(name) == study / "07_small.ipynb"


def test_a_notebook_is_found_by_path(study):
    assert batch.find_notebook(str(study / "scratch.ipynb")) == study / "scratch.ipynb"


@pytest.mark.parametrize("name", ["08", "7", "scratch", "nowhere.ipynb"])
def test_a_notebook_that_is_not_there_is_refused(study, name):
    with pytest.raises(InputError, match=f"^Unknown notebook '{name}'"):
        batch.find_notebook(name)


def test_results_without_a_folder_are_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = batch.Results("")
    results.table(pd.DataFrame({"a": [1]}))
    assert results.folder is None
    assert contents(tmp_path) == []


def test_results_take_a_name_and_several_axes(tmp_path):
    import matplotlib.pyplot as plt

    results = batch.Results(str(tmp_path / "new"))
    results.table(pd.DataFrame({"a": [1]}), "beside")
    results.figure(plt.subplots(1, 2)[1], "panels")
    assert contents(tmp_path / "new") == ["beside.csv", "beside.parquet", "panels.png", "panels.svg"]
