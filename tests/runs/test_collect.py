"""A grid's states, its tidy table, and pages that need nothing from elsewhere."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from small_notebook import write_notebook

from toastlib import plots
from toastlib.cli import commands, main
from toastlib.errors import InputError
from toastlib.evaluation.result import Evaluation
from toastlib.runs import collect as module
from toastlib.runs import run as run_module
from toastlib.runs.collect import collect, headlines, results_table, run_labels, run_states
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


def test_a_collection_is_not_replaced_by_none(runs, tmp_path):
    collect(runs, tmp_path / "all")
    earlier = (tmp_path / "all" / "results.csv").read_text()
    with pytest.raises(InputError, match="None of the 2 runs is done, and nothing is collected: runs of other"):
        collect(runs[2:], tmp_path / "all")
    assert (tmp_path / "all" / "results.csv").read_text() == earlier


def test_of_several_heads_the_headline_is_the_frozen_one_s_and_says_so():
    results = pd.DataFrame(
        {"run": ["a"] * 4 + ["b"] * 2, "head": ["retrained"] * 2 + ["frozen"] * 2 + ["retrained"] * 2}
    )
    results["plan"] = results["translator"] = ["original", "1->2"] * 3
    results["translator"] = results["translator"].replace("1->2", "linear")
    results = results.assign(seed=0, accuracy=[90, 88, 91, 84, 80, 79], lost=[0, 2, 0, 7, 0, 1])
    found = headlines(results).set_index("run")
    assert found["head"].to_dict() == {"a": "frozen", "b": "retrained"}
    assert found["lost, linear"].to_dict() == {"a": 7, "b": 1}
    assert found["original (%)"].to_dict() == {"a": 91, "b": 80}


def test_every_run_has_one_state_and_says_why(runs, tmp_path):
    states = run_states(runs).set_index("state")
    assert states["size"].to_dict() == SIZES
    assert states["seeds"]["failed"] == "0, 2"
    assert states["cell"].notna().to_dict() == {state: state == "failed" for state in SIZES}
    assert states["failure"]["failed"] == "cell 3: KeyError: <script>alert(1)</script>"
    assert Path(states["path"]["failed"]).name.endswith(".failed")
    assert states["path"]["missing"] == ""
    assert states["seconds"].notna().to_dict() == {"done": True, "failed": True, "running": False, "missing": False}
    assert "plans" not in states  # it is the same in all runs
    assert states["label"]["missing"] == "07_small seeds=0, 5, size=5"


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
        assert "<script>alert" not in text
    index = pages[out / "index.html"]
    assert "Mine &amp; yours" in index
    assert "cell 3: KeyError: &lt;script&gt;" in index
    assert "picture.png" in index


def test_columns_of_two_types_are_written_as_text(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(module, "results_table", lambda *_: pd.DataFrame({"run": "x", "a": [1, "x", None]}))
    collect(runs, tmp_path / "all")
    assert pd.read_parquet(tmp_path / "all" / "results.parquet")["a"].tolist()[:2] == ["1", "x"]


EVALUATION = pd.DataFrame(
    {
        "head": "frozen",
        "translator": ["original", "linear", "linear"] * 2,
        "plan": ["original", "1->2", "2->3"] * 2,
        "seed": [0] * 3 + [1] * 3,
        "accuracy": [90.0, 88.0, 84.0, 92.0, 86.0, 84.0],
        "lost": [0.0, 2.0, 6.0, 0.0, 6.0, 8.0],
        "lost_low": [0.0, 1.0, 5.0, 0.0, 4.0, 7.0],
        "lost_high": [0.0, 3.0, 7.0, 0.0, 8.0, 9.0],
    }
)


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Three runs, two draws of calibration images on one data set and one on another; two tables each."""

    def execute(notebook, target, parameters, **options):
        target.write_text(notebook.read_text())
        further = parameters.get("drawn", {"calibration_seed": 0})["calibration_seed"]
        further += 10 * (parameters.get("dataset") == "mnist")
        Results(str(target.parent)).table(EVALUATION.assign(lost=EVALUATION["lost"] + further))
        Results(str(target.parent)).table(pd.DataFrame({"gain": [further]}), "gains")

    monkeypatch.setattr(run_module, "execute", execute)
    parameters = 'dataset = "digits"\ndrawn = {"calibration_seed": 0}\ndevice = "cpu"\nresults_dir = ""\n'
    notebook = write_notebook(tmp_path / "07_small.ipynb", parameters=parameters)
    given = [("digits", 0), ("digits", 2), ("mnist", 0)]
    runs = [Run(notebook, {"dataset": d, "drawn.calibration_seed": s}, tmp_path / "results") for d, s in given]
    for run in runs:
        assert attempt(run, SweepOptions()).failure is None
    return runs


def test_the_interval_over_images_is_that_of_the_mean_over_heads():
    rng = np.random.default_rng(0)
    kinds = [("original", "original"), ("linear", "1->2"), ("linear", "2->3")]
    variants = [("frozen", *kind, seed) for kind in kinds for seed in range(3)]
    variants = pd.DataFrame(variants, columns=["head", "translator", "plan", "seed"])
    labels = rng.integers(3, size=60)
    runs = []
    for _ in range(2):
        predictions = np.where(rng.random((9, 60)) < 0.7, labels, 3)
        runs.append(Evaluation(variants, predictions, labels, names={"dataset": "digits"}))
    results = pd.concat([run.table.assign(run=name) for name, run in zip("ab", runs)], ignore_index=True)
    lost = pd.concat([run.lost.assign(run=name) for name, run in zip("ab", runs)], ignore_index=True)
    ends = ["lost", "lost_low", "lost_high"]

    def over_images(results, lost):
        found = module.intervals_apart(results, lost).query("interval == 'images'")
        return found.set_index("plan")[ends].astype(float)

    one = over_images(results[results["run"] == "b"], lost)
    np.testing.assert_allclose(one, runs[1].lost.set_index("plan")[ends])
    both = over_images(results, lost)  # of draws: at least as wide as the interval of the mean
    of_mean = [stats.t.interval(0.95, 59, d.mean(), stats.sem(d)) for d in mean_lost(runs)]
    widths = np.diff(both[["lost_low", "lost_high"]]), np.diff(np.array(of_mean))
    assert (widths[0] >= widths[1]).all()
    assert (widths[0] < np.diff(over_images(results, None)[ends[1:]])).all()  # than that of single heads
    np.testing.assert_allclose(both["lost"], [d.mean() for d in mean_lost(runs)])


def mean_lost(runs):
    """Points lost on each image, mean over heads and runs, by plan."""
    correct = np.array([run.predictions == run.labels for run in runs]).reshape(len(runs), 3, 3, -1)
    return 100 * (correct[:, :1] - correct[:, 1:].astype(float)).mean((0, 2))


def test_options_that_results_know_better_are_left_out(tmp_path, monkeypatch):
    def execute(notebook, target, parameters, **options):
        target.write_text(notebook.read_text())
        Results(str(target.parent)).table(EVALUATION.assign(features="mean"))

    monkeypatch.setattr(run_module, "execute", execute)
    parameters = 'options = {"features": "cls", "dtype": "float32"}\nhead = {"plan": ""}\nresults_dir = ""\n'
    run = Run(write_notebook(tmp_path / "07_small.ipynb", parameters=parameters), {}, tmp_path / "results")
    assert attempt(run, SweepOptions()).failure is None
    table = results_table([run])
    assert {"options.dtype", "head.plan"} < set(table)
    assert "options.features" not in table
    assert set(table["features"]) == {"mean"}


def test_a_run_is_called_by_what_tells_it_from_the_others(evaluated, tmp_path):
    labels = run_labels(evaluated)
    assert labels[1:] == ["07_small dataset=digits, calibration_seed=2", "07_small dataset=mnist, calibration_seed=0"]
    other = Run(write_notebook(tmp_path / "00_first.ipynb"), {"size": 9}, tmp_path / "results")
    assert run_labels([*evaluated[:1], other]) == ["07_small", "00_first"]  # each is alone in its notebook


def test_every_table_is_merged_with_the_parameters_of_its_run(evaluated, tmp_path):
    collect(evaluated, tmp_path / "all")
    gains = pd.read_parquet(tmp_path / "all" / "gains.parquet")
    assert gains[["dataset", "drawn.calibration_seed", "gain"]].values.tolist() == [
        *(["digits", 0, 0], ["digits", 2, 2], ["mnist", 0, 10])
    ]
    assert len(pd.read_parquet(tmp_path / "all" / "results.parquet")) == 18


def test_the_headline_is_the_mean_over_plans_and_heads(evaluated, tmp_path):
    states = collect(evaluated, tmp_path / "all")
    assert states["lost, linear"].tolist() == [5.5, 7.5, 15.5]
    assert states["original (%)"].tolist() == [91.0] * 3
    assert "5.5" in (tmp_path / "all" / "index.html").read_text()


def test_intervals_over_draws_heads_and_images_stand_apart(evaluated, tmp_path):
    collect(evaluated, tmp_path / "all")
    found = pd.read_parquet(tmp_path / "all" / "intervals.parquet").set_index(["dataset", "plan"])
    assert len(found) == 10
    rows = found.loc[("digits", "1->2")].set_index("interval")[["lost", "lost_low", "lost_high"]]
    assert (rows["lost"] == 5).all()  # of 2, 6 with draw 0 and 4, 8 with draw 2
    for source, means in (("draws", [4, 6]), ("heads", [3, 7])):
        ends = stats.t.interval(0.95, 1, np.mean(means), stats.sem(means))
        np.testing.assert_allclose(rows.loc[source, ["lost_low", "lost_high"]].astype(float), ends)
    assert rows.loc["images"].tolist() == [5, 2.5, 5.5]
    assert set(found.loc["mnist", "interval"]) == {"images", "heads"}  # one draw has no interval
    drawn = found[found["interval"] == "draws"].reset_index()
    bars = plots.intervals(drawn, y="plan").containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 0] for bar in bars], drawn[["lost_low", "lost_high"]])


def test_the_printed_table_is_sorted_by_any_column_of_it(evaluated, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "read_grid", lambda *_: evaluated)
    command = ["collect", "grid.yaml", "--out", str(tmp_path / "all"), "--sort"]
    for column, expected in (("dataset", ["digits", "digits", "mnist"]), ("seconds", None), ("cell", None)):
        assert main([*command, column]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert column in lines[0]
        if expected:
            assert [name for line in lines[1:4] for name in ("mnist", "digits") if name in line.split()] == expected
    monkeypatch.setattr(module, "writing", None)  # a wrong name is told before anything is written
    assert main([*command, "lost, linera"]) == 2
    assert capsys.readouterr().err == "toast: Unknown column 'lost, linera': did you mean 'lost, linear'?\n"
    assert main([*command, "x"]) == 2
    assert re.search("Unknown column 'x': choose from run, label, .*, 'lost, linear'", capsys.readouterr().err)


def test_the_terminal_says_why_a_run_has_failed(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "read_grid", lambda *_: runs)
    assert main(["collect", "grid.yaml", "--out", str(tmp_path / "all")]) == 0
    out = capsys.readouterr().out
    assert "NaN" not in out
    assert "failed   07_small seeds=0, 2, size=2  cell 3: KeyError: <script>" in out
    assert "missing  07_small seeds=0, 5, size=5\n1 of 4 runs are done" in out


def test_the_status_names_what_has_changed_since_runs_were_made(evaluated, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(commands, "read_grid", lambda *_: now)
    now = evaluated
    assert main(["status", "grid.yaml"]) == 0
    assert "another state" not in capsys.readouterr().out
    now = [replace(run, plugins={"/x/lab.py": "1"}) for run in evaluated]
    assert main(["status", "grid.yaml"]) == 0
    assert re.search(
        "^Runs of another state of lab.py that lie in .*, and do not count: 3$", capsys.readouterr().out, re.M
    )
    text = evaluated[0].notebook.read_text()
    evaluated[0].notebook.write_text(text.replace("cpu", "cuda"))
    now = [replace(run) for run in evaluated[:1]]
    assert main(["status", "grid.yaml"]) == 0
    assert "Runs of another state of 07_small.ipynb that lie in" in capsys.readouterr().out


def test_rows_of_several_notebooks_are_told_apart_by_a_column(evaluated, tmp_path):
    other = Run(write_notebook(tmp_path / "00_first.ipynb"), {"size": 9}, tmp_path / "results")
    assert attempt(other, SweepOptions()).failure is None
    collect([*evaluated, other], tmp_path / "all")
    results = pd.read_parquet(tmp_path / "all" / "results.parquet")
    assert list(results.columns[:2]) == ["run", "notebook"]
    assert results["notebook"].value_counts().to_dict() == {"07_small": 18, "00_first": 6}
    own = results.query("notebook == '00_first'").dropna(axis=1, how="all")
    assert "drawn.calibration_seed" not in own
    assert set(own["size"]) == {9}


def test_a_grid_of_two_notebooks_is_told_apart_within_each(evaluated, tmp_path):
    other = Run(write_notebook(tmp_path / "00_first.ipynb"), {"size": 9}, tmp_path / "results")
    states = run_states([*evaluated, other])
    assert list(states.columns[-2:]) == ["dataset", "drawn.calibration_seed"]  # and not what one notebook alone has
    assert states["label"].iloc[-1] == "00_first dataset=digits"


NODE = shutil.which("node")
TABLE = """
const cells = [["lost", "plan"], ["10.5", "b"], ["-2.0", "c"], ["-3.0", "a"], ["2.0", "d"]];
const table = {rows: []};
for (const texts of cells) {
  const row = {parentNode: {cells: [], append: (...rows) => { table.rows = [table.rows[0], ...rows]; }}};
  row.cells = texts.map((textContent, cellIndex) => ({textContent, cellIndex, parentNode: row, closest: () => table}));
  table.rows.push(row);
}
const document = {querySelectorAll: () => table.rows[0].cells};
"""


@pytest.mark.skipif(NODE is None, reason="there is no node here, which runs the page's script")
@pytest.mark.parametrize(
    ("clicks", "order"), [([0], "acdb"), ([0, 0], "bdca"), ([1], "abcd"), ([1, 0], "acdb"), ([1, 1], "dcba")]
)
def test_a_click_on_a_heading_sorts_the_table(clicks, order):
    page = (Path(module.__file__).parent / "index.html").read_text()
    [script] = re.findall(r"<script[^>]*>(.*?)</script>", page, re.S)
    click = "".join(f"table.rows[0].cells[{column}].onclick();" for column in clicks)
    show = 'console.log(table.rows.slice(1).map(row => row.cells[1].textContent).join(""));'
    done = subprocess.run([NODE, "-e", TABLE + script + click + show], capture_output=True, text=True)
    assert done.stdout.strip() == order, done.stderr
