"""Plug-ins: files and packages that register names, which every function and every run then accepts."""

import os
import re
import shlex
import subprocess
import sys
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_notebook import write_notebook

import toastlib as toast
from toastlib import plugins
from toastlib.cli import main
from toastlib.data import catalog
from toastlib.errors import InputError
from toastlib.plugins import VARIABLE, plugins_of
from toastlib.runs.grid import read_grid
from toastlib.runs.parameters import check_parameters
from toastlib.runs.run import run_notebook
from toastlib.runs.store import Run, read_json
from toastlib.selection.criteria import CRITERIA
from toastlib.statistics.similarity import METRICS
from toastlib.translators.base import TRANSLATORS, make_translator

ROOT = Path(__file__).resolve().parents[1]
REGISTRIES = (TRANSLATORS, METRICS, CRITERIA, catalog.MODELS, catalog.DATASETS, catalog.TEXTS)
MAP = """
from toastlib.translators.base import TRANSLATORS
from toastlib.translators.linear import Affine

class Mine(Affine):
    name = "{0}"

TRANSLATORS["{0}"] = Mine
"""


@pytest.fixture(autouse=True)
def clean_registries(monkeypatch):
    """No test sees what another has registered, nor plug-ins of this machine."""
    before = [dict(registry) for registry in REGISTRIES]
    modules = set(sys.modules)
    monkeypatch.setattr(plugins, "_imported", {})
    monkeypatch.delenv(VARIABLE, raising=False)
    yield
    for registry, kept in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(kept)
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and "pytest-" in sys.modules[name].__file__:
            del sys.modules[name]
    plugins.load_named.cache_clear()
    plugins._load_installed.cache_clear()


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "own_maps.py"
    file.write_text(MAP.format("half-way"))
    return file


def test_a_file_is_imported_once_and_again_when_it_has_changed(mine):
    assert plugins_of(str(mine)) == {str(mine): sha256(mine.read_bytes()).hexdigest()}
    first = type(make_translator("half-way"))
    plugins_of([mine])
    assert type(make_translator("half-way")) is first
    assert first.__module__ == "own_maps"
    mine.write_text(MAP.format("all-the-way"))
    plugins_of([mine])
    assert make_translator("all-the-way").name == "all-the-way"


def test_several_files_are_named_with_commas_and_by_the_environment(mine, tmp_path, monkeypatch):
    other = tmp_path / "other_maps.py"
    other.write_text("import own_maps\n" + MAP.format(own := "third"))
    monkeypatch.setenv(VARIABLE, str(mine))
    assert list(plugins_of(f"{other}, {mine}")) == [str(mine), str(other)]
    assert own in TRANSLATORS


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("own_a.py", "x = 1\n1 / 0", r"own_a\.py, line 2: ZeroDivisionError: division by zero"),
        ("own_b.py", "x = (", r"own_b\.py, line 1: SyntaxError"),
        ("own_c.py", "def f():\n    return [][0]\n\nf()", r"own_c\.py, line 2: IndexError"),
        ("json.py", "", "has the name of another module, json: rename it"),
        ("own_d.txt", "", r"own_d\.txt is no Python file"),
        (None, "", r"own_e\.py cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_plug_in_is_refused_in_a_sentence(tmp_path, name, text, says):
    if name:
        (tmp_path / name).write_text(text)
    for _ in range(2):  # nothing of a failure is kept
        with pytest.raises(InputError, match=says):
            plugins_of([tmp_path / (name or "own_e.py")])
    assert "own_a" not in sys.modules


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("from toastlib.translators.base import TRANSLATORS as t; t['linear'] = dict", "translator 'linear'"),
        ("from toastlib.statistics.similarity import METRICS as m; m.update(cka=dict)", "metric 'cka'"),
        ("from toastlib.selection.criteria import CRITERIA as c; del c['fit']", "criterion 'fit'"),
        ("from toastlib.data.catalog import MODELS as m; m |= {'vit-mini': 'elsewhere'}", "model 'vit-mini'"),
        ("from toastlib.data.catalog import DATASETS as d; d['mnist'] = d['digits']", "data set 'mnist'"),
    ],
)
def test_a_plug_in_replaces_nothing_that_is_built_in(tmp_path, line, says):
    (file := tmp_path / "own_names.py").write_text(line)
    before = [dict(registry) for registry in REGISTRIES]
    for _ in range(2):
        with pytest.raises(InputError, match=rf"own_names\.py replaces the built-in {says}: name yours otherwise\.$"):
            plugins_of([file])
    assert [dict(registry) for registry in REGISTRIES] == before


def test_an_instance_in_place_of_a_class_is_refused_where_its_name_is_checked(mine, tmp_path):
    mine.write_text(MAP.format("half-way") + '\nTRANSLATORS["half-way"] = Mine()')
    plugins_of([mine])
    with pytest.raises(InputError, match=r"^'half-way' stands for a Mine: register the class, not an instance\.$"):
        check_parameters(write_notebook(tmp_path / "small.ipynb"), {"translators": "half-way"})


def test_an_installed_package_that_replaces_a_name_is_left_out(monkeypatch):
    class Entry:
        value = "own_package.maps"

        def load(self):
            TRANSLATORS["linear"] = dict

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry()])
    plugins._load_installed.cache_clear()
    with (
        pytest.warns(UserWarning, match=r"own_package\.maps replaces the built-in translator 'linear'"),
        pytest.raises(InputError, match="Unknown translator 'mine'"),
    ):
        make_translator("mine")
    assert make_translator("linear").name == "linear"


def test_a_first_import_of_the_names_is_compared_too(tmp_path):
    (file := tmp_path / "own_names.py").write_text(
        "from toastlib.selection.criteria import CRITERIA\nCRITERIA['fit'] = dict"
    )
    done = subprocess.run(
        [sys.executable, "-m", "toastlib.cli", "params", "00"],
        env=os.environ | {VARIABLE: str(file)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == f"toast: The plug-in {file} replaces the built-in criterion 'fit': name yours otherwise.\n"


def test_an_unknown_name_asks_installed_packages(monkeypatch, mine):
    class Entry:
        value = "own_package.maps"

        def load(self):
            plugins_of([mine])

    class Broken(Entry):
        def load(self):
            raise ImportError("torch 9 is needed")

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Broken(), Entry()] if group == "toastlib" else [])
    plugins._load_installed.cache_clear()
    make_translator("linear")
    assert "half-way" not in TRANSLATORS  # a known name needs no one
    with pytest.warns(UserWarning, match=r"own_package\.maps cannot be imported: torch 9 is needed"):
        assert make_translator("half-way+align").name == "half-way"
    with pytest.raises(InputError, match="Unknown translator 'half-wey': did you mean 'half-way'"):
        make_translator("half-wey")


def test_the_environment_names_files_for_python_and_for_every_command(mine, tmp_path):
    code = "import toastlib as toast; print(len(toast.TRANSLATORS))"
    environment = os.environ | {VARIABLE: str(mine)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(TRANSLATORS) + 1
    environment[VARIABLE] = str(tmp_path / "nowhere.py")
    command = [sys.executable, "-m", "toastlib.cli", "params", "00"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"toast: The plug-in {tmp_path / 'nowhere.py'} cannot be read: No such file or directory.\n"


def test_a_model_and_a_data_set_may_be_functions(tiny_encoder, tmp_path):
    import numpy as np

    from toastlib.data.builtin import ArrayTable

    def splits():
        sizes = (30, 12)
        return tuple(ArrayTable(np.zeros((n, 32, 32, 3), np.uint8), np.arange(n) % 2, ("a", "b")) for n in sizes)

    catalog.MODELS["mine"] = lambda: tiny_encoder
    catalog.DATASETS["noise"] = catalog.DatasetEntry(make=splits)
    encoder = toast.load_encoder("mine", features="cls", image_size=0, device="cpu", dtype="bfloat16")
    assert (encoder.name, encoder.dtype) == ("mine", torch.bfloat16)
    images = toast.load_images("noise", encoder, train_size=20)
    assert (images.name, len(images.train), len(images.test)) == ("noise", 20, 12)
    assert check_parameters(
        write_notebook(tmp_path / "small.ipynb"), {"model": "mine", "datasets": "noise,digits"}
    ) == {"model": "mine", "datasets": ["noise", "digits"]}
    with pytest.warns(UserWarning, match="mine is made by a function, and keeps its features='cls', not 'mean'"):
        assert toast.load_encoder("mine", features="mean").feature_kind == "cls"
    with pytest.raises(InputError, match="mine is made by a function, at its own image size: leave out image_size=64"):
        toast.load_encoder("mine", image_size=64)
    with pytest.raises(InputError, match="mine is made by a function: it has no checkpoint"):
        toast.load_dual_encoder(encoder, "mine")
    with pytest.raises(InputError, match="'mine' is on this machine and has no revisions"):
        toast.load_encoder("mine@main")
    catalog.MODELS["no encoder"] = dict
    with pytest.raises(InputError, match="An Encoder"):
        toast.load_encoder("no encoder")


def test_a_changed_plug_in_is_another_run(mine, tmp_path):
    notebook, root = write_notebook(tmp_path / "07_small.ipynb"), tmp_path / "results"
    without = Run(notebook, {}, root)
    one = Run(notebook, {}, root, plugins_of([mine]))
    mine.write_text(MAP.format("half-way") + "# changed")
    two = Run(notebook, {}, root, plugins_of([mine]))
    assert without.folder.name == "07_small"
    assert len({run.folder for run in (without, one, two)}) == 3
    assert one.parameters["plugins"] == ["own_maps.py"]
    assert "plugins" not in without.parameters


def test_a_grid_names_plug_ins_before_its_values_are_checked(mine, tmp_path):
    notebook = write_notebook(tmp_path / "07_small.ipynb")
    grid = tmp_path / "grid.yaml"
    text = (
        f"- notebook: {notebook}\n  plugins: {{}}\n  parameters:\n    translators: [half-way]\n- notebook: {notebook}\n"
    )
    grid.write_text(text.replace("{}", str(mine)))
    own, plain = read_grid(grid)
    assert (list(own.plugins), plain.plugins) == ([str(mine)], {})
    (tmp_path / "grids").mkdir()
    (beside := tmp_path / "grids" / "beside.py").write_text(MAP.format("half-way"))
    (tmp_path / "grids" / "grid.yaml").write_text(text.replace("{}", "beside.py"))
    assert list(read_grid(tmp_path / "grids" / "grid.yaml")[0].plugins) == [str(beside)]
    for value, says in (("nowhere.py", "line 2: The plug-in .*cannot be read"), ("[[x]]", "line 2: 'plugins' takes a")):
        grid.write_text(text.replace("{}", value))
        with pytest.raises(InputError, match=rf"^grid\.yaml, {says}"):
            read_grid(grid)


def test_the_kernel_has_the_plug_in_and_the_manifest_its_hash(mine, tmp_path, capsys):
    cell = 'import toastlib as toast\n\nassert toast.TRANSLATORS["half-way"].__module__ == "own_maps"'
    notebook = write_notebook(tmp_path / "07_small.ipynb", cell)
    command = ["run", str(notebook), "-p", "translators=half-way", "-p", f"plugins={mine}"]
    assert main([*command, "--results-dir", str(tmp_path / "results")]) == 0, capsys.readouterr().err
    (folder,) = (tmp_path / "results").glob("07_small-*")
    manifest = read_json(folder / "manifest.json")
    assert manifest["plugins"] == {str(mine): sha256(mine.read_bytes()).hexdigest()}
    assert manifest["parameters"]["plugins"] == ["own_maps.py"]


def test_a_plug_in_that_changes_while_a_run_goes_on_is_refused(mine, tmp_path):
    notebook = write_notebook(tmp_path / "07_small.ipynb", f"open({str(mine)!r}, 'a').write('# later')")
    with pytest.raises(InputError, match="A plug-in was changed after the run was asked for"):
        run_notebook(str(notebook), {"plugins": str(mine)}, tmp_path / "results")
    assert not list((tmp_path / "results").glob("07*"))


@pytest.mark.slow
def test_the_page_runs_from_its_first_line_to_its_last(tmp_path):
    """An own map, metric and model from a plug-in in a grid that is run, collected, and drawn for a column."""
    page = (ROOT / "docs" / "howto" / "plugins.md").read_text(encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}

    def run(command: list[str], **more: str) -> str:
        options = {"cwd": tmp_path, "env": environment | more, "capture_output": True, "text": True}
        done = subprocess.run([sys.executable, *command], **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed = ""
    for language, text in re.findall(r"^```(python|yaml|bash)\n(.*?)^```", page, re.M | re.S):
        if file := re.match(r"# (\S+)\n", text):
            (tmp_path / file[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            run(["-c", text])
        else:
            for line in text.splitlines():
                printed += run(["-m", "toastlib.cli", *shlex.split(line)[1:]])
    assert "06_translators model=small-vit" in printed
    assert "lost, half-way" in printed
    results = pd.read_parquet(tmp_path / "collected" / "results.parquet")
    assert set(results["model"]) == {"vit-mini", "small-vit"}
    assert {"half-way", "identity", "linear"} <= set(results["translator"])
    assert {"cka", "squared cosine"} <= set(results["metric"])
    assert "squared cosine" in set(
        pd.read_parquet(tmp_path / "collected" / "metric_against_accuracy.parquet")["metric"]
    )
    width, height = map(
        float, re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", (tmp_path / "half-way.pdf").read_bytes()).groups()
    )
    assert (width / 72, height > 0) == (3.25, True)
    assert (tmp_path / "study" / "02_approximation.ipynb").is_file()
    [line] = re.findall(r"`TOAST_PLUGINS=(\S+) toast (.+?)`", page)
    few = ["--remove", "2", "--train-size=250", "--test-size=60", "--calibration-size=60"]
    run(["-m", "toastlib.cli", *line[1].split(), *few], TOAST_PLUGINS=line[0])
    assert (tmp_path / "smaller" / "report.html").is_file()
