"""The command line: its exit codes, one sentence for each mistake, and nothing half-written."""

import io
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from PIL import Image
from small_notebook import write_notebook

from toastlib.cache import default_cache
from toastlib.cli import commands, main
from toastlib.runs import grid, parameters
from toastlib.runs.execute import Failure
from toastlib.runs.run import Outcome
from toastlib.translators.base import RECOMMENDED

GRID = "notebook: {}\nparameters: {{size: [1, 2]}}\n"
SLOW = 'speed = 0.5  # how fast\nresults_dir = ""'


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """A study of two notebooks, and an empty working directory."""
    write_notebook(tmp_path / "notebooks" / "00_first.ipynb", "size")
    write_notebook(tmp_path / "notebooks" / "07_small.ipynb", "speed", parameters=SLOW)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(parameters, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path / "here"


def runs(study: Path, results: str = "results") -> list[Path]:
    """The run folders, and nothing left where they are made."""
    assert {path.name for path in (study / results / ".toast").glob("*/*")} == {"lock"}
    return sorted(path for path in (study / results).iterdir() if path.name != ".toast")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-p", "model=vit-mimi"], "Unknown model 'vit-mimi': did you mean 'vit-mini'?"),
        (["-p", "dataset=digit"], "Unknown data set 'digit': did you mean 'digits'?"),
        (["-p", "modle=vit-mini"], "Unknown parameter of 00_first 'modle': did you mean 'model'?"),
        (["-p", "size=four"], "Parameter size takes a whole number such as 4, not 'four'."),
        (["-p", "plans=5->2"], "Span '5->2' runs backwards: write '2->5'"),
        (["-p", "plans=1->4 2->5"], "Spans 1->4 and 2->5 overlap: both remove block 3"),
        (["-p", "dataset=./nowhere"], "There is no data set folder './nowhere'"),
        (["-p", "size"], "'size' is not a parameter: write -p name=value."),
        (["--device", "gpu"], "Device 'gpu' is not there"),
        pytest.param(
            *(["--device", "cuda"], "Device 'cuda' is not there"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
@pytest.mark.parametrize("command", [["run", "00"], ["study"]])
def test_wrong_input_is_one_sentence_and_exit_code_2(study, capfd, command, arguments, says):
    if command == ["study"] and "modle" in says:
        says = "No notebook has a parameter 'modle'"
    assert main([*command, *arguments]) == 2
    out, err = capfd.readouterr()
    assert err.startswith(f"toast: {says}")
    assert err.count("\n") == 1
    assert out == ""
    assert not list(study.iterdir())


def test_a_mistake_that_only_the_model_shows_is_one_sentence_too(study, capfd):
    cell = "from toastlib.plan import Plan\n\nPlan.parse(plans).check(12)"
    notebook = write_notebook(study.parent / "deep.ipynb", cell)
    assert main(["run", str(notebook), "-p", "plans=10->12"]) == 2
    out, err = capfd.readouterr()
    assert err == "toast: Span 10->12 leaves the model: it has 12 blocks, so the last is 11.\n"
    assert out == ""
    assert not runs(study)


def test_an_unknown_notebook_names_the_nearest(study, capfd):
    assert main(["run", "07_smal"]) == 2
    assert capfd.readouterr().err == "toast: Unknown notebook '07_smal': did you mean '07_small'?\n"


def test_a_cell_that_fails_is_exit_code_1(study, capfd):
    notebook = write_notebook(study.parent / "broken.ipynb", "1 / 0")
    assert main(["run", str(notebook)]) == 1
    kept = study / "results" / "broken.failed"
    message = "toast: broken.ipynb failed: cell 3: ZeroDivisionError: division by zero"
    assert capfd.readouterr().err == f"{message}\nUp to there it lies in {kept}\n"
    assert runs(study) == [kept]


def test_a_dry_run_says_what_would_be_run_and_runs_nothing(study, capfd):
    assert main(["run", "00", "-p", "size=9", "--dry-run"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("Sizes are checked when a set is fetched")
    assert lines[1].startswith(f"{study / 'results' / '00_first-'}")
    assert "  size = 9" in lines
    assert "00_first: not estimated, as no run of this notebook was measured" in lines
    assert err == ""
    assert not (study / "results").exists()
    assert main(["run", "00", "-p", "size=nine", "--dry-run"]) == 2


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"toastlib {metadata.version('toastlib')}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["study", "--jbs", "2"], "Unknown argument '--jbs': did you mean '--jobs'?"),
        (
            ["approximate", "vit-mini", "--data=digits", "--out=x", "--max-dorp=3"],
            "'--max-dorp': did you mean '--max-drop'?",
        ),
    ],
)
def test_an_unknown_option_names_the_nearest(arguments, says, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(says)


def test_a_results_folder_that_is_a_file_is_refused(study, capfd):
    (study / "taken").touch()
    assert main(["run", "00", "--results-dir", "taken"]) == 2
    assert capfd.readouterr().err == f"toast: Nothing can be written to {study / 'taken'}: Not a directory.\n"


def test_a_keyboard_interrupt_is_exit_code_130(study, capfd, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run_notebook", interrupt)
    assert main(["run", "00"]) == 130
    assert capfd.readouterr().err == "toast: interrupted; finished runs are kept.\n"


@pytest.mark.slow
def test_a_study_that_fails_keeps_what_is_finished(study, capfd):
    write_notebook(parameters.NOTEBOOKS / "07_small.ipynb", "1 / 0", parameters=SLOW)
    assert main(["study", "--jobs", "1"]) == 1
    out, err = capfd.readouterr()
    assert "[2/2] 07_small" in out
    assert ", failed: cell 3: ZeroDivisionError: division by zero\n" in out
    assert err == "toast: 1 of 2 runs failed; the others are kept.\n"
    assert [path.name for path in runs(study)] == ["00_first", "07_small.failed"]


def test_the_study_ends_with_the_chapter_that_looks_up_the_others(study, monkeypatch):
    for name in ("10_paper", "11_after"):
        write_notebook(parameters.NOTEBOOKS / f"{name}.ipynb", "size")
    started = []
    monkeypatch.setattr(commands, "_execute", lambda runs, options, force: started.extend(runs) or 0)
    assert main(["study"]) == 0
    assert [run.notebook.stem for run in started] == ["11_after", "00_first", "07_small", "10_paper"]


def test_run_says_where_the_results_lie(study, capfd):
    assert main(["run", "00", "-p", "size=9", "--device", "cpu", "--results-dir", "mine"]) == 0
    out, err = capfd.readouterr()
    (folder,) = runs(study, "mine")
    assert out.splitlines()[-1].strip() == str(folder)
    assert err == ""
    executed = nbformat.read(folder / "00_first.ipynb", 4)
    assert executed.cells[-1].outputs[0].data["text/plain"] == "9"
    assert 'device = "cpu"' in executed.cells[1].source


@pytest.mark.slow
def test_the_study_runs_every_notebook_with_the_parameters_that_it_takes(study, capfd):
    assert main(["study", "-p", "speed=2"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    folders = [path.name for path in runs(study)]
    assert [folder.split("-")[0] for folder in folders] == ["00_first", "07_small"]
    assert folders[0] == "00_first"
    assert {line.split()[1] for line in out.splitlines() if line.startswith("[")} == {"00_first", "07_small"}
    assert "[2/2]" in out
    assert all(str(study / "results" / folder) in out for folder in folders)
    executed = nbformat.read(study / "results" / folders[1] / "07_small.ipynb", 4)
    assert executed.cells[-1].outputs[0].data["text/plain"] == "2.0"


def test_a_sweep_runs_a_grid_and_then_only_what_is_missing(study, capfd):
    Path("grid.yaml").write_text(GRID.format("'00'"))
    assert main(["sweep", "grid.yaml"]) == 0
    first = capfd.readouterr().out
    assert "2 notebook runs; " in first
    folders = runs(study)
    assert len(folders) == 2
    before = [(folder / "manifest.json").stat().st_mtime_ns for folder in folders]
    folders[0].rename("elsewhere")
    assert main(["sweep", "grid.yaml"]) == 0
    assert "2 notebook runs, 1 of them done; " in capfd.readouterr().out
    assert runs(study) == folders
    assert (folders[1] / "manifest.json").stat().st_mtime_ns == before[1]


@pytest.mark.slow
def test_a_sweep_with_a_failing_run_does_the_others_and_is_exit_code_1(study, capfd):
    write_notebook(parameters.NOTEBOOKS / "00_first.ipynb", "1 / (size - 1)")
    Path("grid.yaml").write_text(GRID.format("'00'"))
    assert main(["sweep", "grid.yaml", "--jobs", "1"]) == 1
    out, err = capfd.readouterr()
    assert "ZeroDivisionError" in out
    assert err == "toast: 1 of 2 runs failed; the others are kept.\n"
    assert main(["status", "grid.yaml"]) == 1
    out = capfd.readouterr().out
    assert "2 runs: 1 done, 1 failed, 0 running, 0 missing" in out
    assert "cell 3: ZeroDivisionError: division by zero" in out
    assert main(["collect", "grid.yaml", "--out", "all"]) == 0
    assert "1 of 2 runs are done" in capfd.readouterr().out
    assert "ZeroDivisionError" in Path("all/index.html").read_text()
    assert main(["sweep", "grid.yaml", "--dry-run"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "Sizes are checked when a set is fetched, which these are not: mnist."
    assert sorted(lines[1:3]) == ["done     00_first size=2", "failed   00_first size=1"]
    assert lines[4].startswith("00_first: not estimated")


def test_a_full_disk_is_told_with_what_to_do(study, capfd, monkeypatch):
    def full(runs, *_):
        return iter([Outcome(run, 1.0, Failure("full disk", "OSError", "no space")) for run in runs])

    monkeypatch.setattr(commands, "run_all", full)
    Path("grid.yaml").write_text(GRID.format("'00'"))
    assert main(["sweep", "grid.yaml"]) == 1
    assert f"The disk of {study / 'results'} is full: free some space" in capfd.readouterr().err


def test_a_polite_kill_is_an_interrupt(study, capfd, monkeypatch):
    monkeypatch.setattr(commands, "run_all", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    Path("grid.yaml").write_text(GRID.format("'00'"))
    assert main(["sweep", "grid.yaml"]) == 130
    assert capfd.readouterr().err == "toast: interrupted; finished runs are kept.\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_table_of_the_paper_runs_its_grid(study, capfd, monkeypatch):
    (study / "paper-table-8.yaml").write_text(GRID.format("'07'").replace("size: [1, 2]", "speed: [1, 2]"))
    monkeypatch.setattr(grid, "GRIDS", study)
    assert main(["study", "--table", "8", "-p", "speed=3"]) == 0
    assert "1 notebook runs; " in capfd.readouterr().out  # the two differ in what is given, and are one
    assert main(["study", "--full", "-p", "speed=3"]) == 0
    assert "1 notebook runs, 1 of them done" in capfd.readouterr().out
    assert main(["study", "--table", "9"]) == 2
    assert capfd.readouterr().err == "toast: Unknown table '9': choose from 8.\n"
    assert main(["study", "--table", "8", "-p", "size=3"]) == 2
    assert capfd.readouterr().err.startswith("toast: No notebook has a parameter 'size'")


def test_the_cache_is_shown_and_cleared(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TOAST_CACHE", str(tmp_path / "kept"))
    default_cache().put("0" * 32, {"features": torch.ones(256, 1024)})
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'kept'}: 1 entries, 1.0 MiB of at most 10 GiB\n"
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'kept'}: 0 entries, 0.0 MiB of at most 10 GiB\n"
    monkeypatch.setenv("TOAST_CACHE", "off")
    assert main(["cache"]) == 0
    assert "off" in capsys.readouterr().out


def test_approximate_writes_a_model_and_a_report(tmp_path, capsys):
    sizes = ["--train-size", "60", "--test-size", "30", "--calibration-size", "30"]
    command = ["approximate", "vit-mini", "--data", "digits", "--plan", "2->5", *sizes, "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "smaller")]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err.startswith("toast: 60 images train heads on features of width 96: on so few a linear head can learn any")
    assert len(err.splitlines()) == 1
    assert lines[0].startswith("A new linear classifier is trained on 60 training images. A map that corrects")
    place = f"In place of each span: {RECOMMENDED}+align, fitted on 30 training images of digits, seed 0."
    assert lines[1] == f"Removed: blocks 3, 4 and 5 (plan 2->5). {place}"
    assert lines[-1].strip() == str(tmp_path / "smaller")
    assert (tmp_path / "smaller" / "report.html").is_file()
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert "toastlib did not write it" in capsys.readouterr().err
    assert main(["approximate", "vit-mini", "--data", str(tmp_path), "--out", str(tmp_path / "smaller")]) == 2
    assert "which is read" in capsys.readouterr().err
    assert main(["approximate", "vit-mimi", "--data", "digits", "--out", str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err == "toast: Unknown model 'vit-mimi': did you mean 'vit-mini'?\n"
    assert [path.name for path in tmp_path.iterdir()] == ["smaller"]


def test_what_is_skipped_is_said_in_a_line(tmp_path, capsys):
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "notes.txt").write_text("none")
        Image.new("RGB", (8, 8)).save(tmp_path / split / "a" / "1.png")
    assert (
        main(["approximate", "vit-mini", "--data", str(tmp_path), "--remove", "99", "--out", str(tmp_path) + "2"]) == 2
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"toast: {tmp_path}: 2 of 4 files are read; skipped: 2 .txt."
    assert lines[1].startswith("toast: 99 blocks cannot be removed")


@pytest.mark.slow
def test_approximate_counts_sublayers_where_it_is_told_to(tmp_path, capsys):
    sizes = ["--train-size", "60", "--test-size", "30", "--calibration-size", "30", "--device", "cpu"]
    command = ["approximate", "vit-mini", "--data", "digits", "--sublayers", "--plan", "4->5 6->7", *sizes]
    assert main([*command, "--out", str(tmp_path / "smaller")]) == 0
    out = capsys.readouterr().out
    assert (
        "Removed: the MLP of block 2 and the MLP of block 3 (plan 4->5 6->7). In place of each span: linear+align, "
        in out
    )
    assert "2k is the attention of block k" in (tmp_path / "smaller" / "report.html").read_text()


def test_params_lists_names_defaults_and_comments(study, capsys):
    assert main(["params", "07"]) == 0
    assert capsys.readouterr().out == "07_small\n  speed = 0.5  # how fast\n  results_dir = ''\n"


def test_params_lists_all_notebooks(study, capsys):
    assert main(["params"]) == 0
    out = capsys.readouterr().out
    assert "00_first\n  model = 'vit-mini'  # which encoder\n" in out
    assert "07_small\n" in out


def test_signs_that_an_encoding_lacks_do_not_stop_a_command(monkeypatch):
    printed = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", printed)
    rows = pd.DataFrame([("loads", True, "12 blocks → 96")], columns=["check", "works", "detail"])
    monkeypatch.setattr("toastlib.export.compatibility.check_model", lambda model: rows)
    assert main(["doctor", "vit-mini"]) == 0
    printed.flush()
    assert printed.buffer.getvalue().decode("cp1252").split() == ["?", "loads", "12", "blocks", "?", "96"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no head")
def test_a_reader_may_stop_early():
    command = f"{sys.executable} -m toastlib.cli params | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("00_quickstart\n", "")


def test_doctor_shows_that_the_embedded_encoder_loads(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch {metadata.version('torch')}" in out
    assert "devices: cpu" in out
    assert "vit-mini loads: 12 blocks" in out


TWICE = ["approximate", "vit-mini", "--data", "digits", "--out", "x", "--remove", "3", "--plan", "2->5"]


@pytest.mark.parametrize(
    "arguments",
    [["fly"], [], ["run"], ["study", "--fast"], ["study", "--jobs", "0"], ["study", "--full", "--table", "8"], TWICE],
)
def test_an_unknown_command_or_option_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("toast")


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_help_loads_nothing_heavy():
    code = """
import sys
from toastlib.cli import main
try:
    main(["--help"])
except SystemExit as end:
    print(end.code, sorted({"torch", "transformers", "pandas", "matplotlib", "papermill"} & set(sys.modules)))
"""
    lines = python(code).stdout.splitlines()
    assert lines[0].startswith("usage: toast")
    assert lines[-1] == "0 []"


def test_the_installed_command_gives_the_exit_code_to_the_shell(tmp_path):
    command = [sys.executable, "-m", "toastlib.cli", "run", "nowhere.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("toast: Unknown notebook 'nowhere.ipynb'")
    assert len(done.stderr.splitlines()) == 1


def test_a_checkout_that_is_not_installed_has_commands_too(monkeypatch, capsys):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == "toastlib (not installed)\n"
