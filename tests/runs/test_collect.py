"""A grid's states, its tidy table, and pages that need nothing from elsewhere."""

import re
from pathlib import Path

import pandas as pd
import pytest
from small_notebook import write_notebook

from toastlib.runs import run as run_module
from toastlib.runs.collect import collect, failure_of, results_table, run_states
from toastlib.runs.execute import Failure, RunError
from toastlib.runs.run import SweepOptions, attempt
from toastlib.runs.store import Results, Run

SIZES = {"done": 1, "failed": 2, "running": 3, "missing": 5}
MEAN = Failure("exception", "KeyError", "<script>alert(1)</script>", 3)
PIXEL = bytes.fromhex("89504e470d0a1a0a")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Four runs, one in each state; the results folder is ``results``."""

    def execute(notebook, target, parameters, **options):
        target.write_text(notebook.read_text())
        if parameters["size"] == SIZES["failed"]:
            raise RunError(notebook, MEAN)
        (target.parent / "picture.png").write_bytes(PIXEL)
        frame = pd.DataFrame({"rate": [0.25, 0.75], "accuracy": [90.5, 91.0]})
        Results(str(target.parent)).table(frame)

    monkeypatch.setattr(run_module, "execute", execute)
    notebook = write_notebook(tmp_path / "07_small.ipynb", "size")
    runs = [Run(notebook, {"size": size, "seeds": [0, size]}, tmp_path / "results") for size in SIZES.values()]
    for run in runs[:2]:
        attempt(run, SweepOptions())
    with runs[2].locked():
        runs[2].new_staging_dir()
        yield runs


def test_every_run_has_one_state_and_says_why(runs, tmp_path):
    states = run_states(runs).set_index("state")
    assert states["size"].to_dict() == SIZES
    assert states["seeds"]["failed"] == "0, 2"
    assert states["cell"].notna().to_dict() == {state: state == "failed" for state in SIZES}
    assert str(failure_of(states.loc["failed"])) == "cell 3: KeyError: <script>alert(1)</script>"
    assert Path(states["path"]["failed"]).name.endswith(".failed")
    assert states["path"]["missing"] == ""
    assert states["seconds"].notna().to_dict() == {"done": True, "failed": True, "running": False, "missing": False}
    assert "plans" not in states  # it is the same in all runs


def test_the_table_is_tidy_and_names_its_run(runs, tmp_path):
    table = results_table(runs)
    assert len(table) == 2
    assert set(table["size"]) == {1}
    assert list(table["rate"]) == [0.25, 0.75]  # the notebook's own column, not the parameter
    assert table["run"].str.startswith("07_small-").all()
    assert table["dataset"].eq("digits").all()
    assert len(results_table(runs[1:])) == 0


def test_a_collection_holds_tables_pages_and_pictures(runs, tmp_path):
    out = tmp_path / "all"
    for _ in range(2):  # the second replaces the first
        states = collect(runs, out, title="Mine & yours")
    assert len(pd.read_parquet(out / "results.parquet")) == len(pd.read_csv(out / "results.csv")) == 2
    assert list(pd.read_csv(out / "runs.csv")["state"]) == list(states["state"]) == list(SIZES)
    pages = {page: page.read_text() for page in out.rglob("*.html")}
    assert len(pages) == 3
    for page, text in pages.items():
        links = re.findall(r'(?:href|src)="([^"#]+)"', text)
        assert links
        for link in links:
            assert (page.parent / link).resolve().is_relative_to(out.resolve()), link
            assert (page.parent / link).exists(), link
        assert "<script>" not in text
    index = pages[out / "index.html"]
    assert "Mine &amp; yours" in index
    assert "cell 3: KeyError: &lt;script&gt;" in index
    assert "picture.png" in index


def test_columns_of_two_types_are_written_as_text(tmp_path, runs, monkeypatch):
    from toastlib.runs import collect as module

    monkeypatch.setattr(module, "results_table", lambda *_: pd.DataFrame({"a": [1, "x", None]}))
    collect(runs, tmp_path / "all")
    assert pd.read_parquet(tmp_path / "all" / "results.parquet")["a"].tolist()[:2] == ["1", "x"]
