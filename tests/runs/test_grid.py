"""Grid files: expanded as written, and every mistake named with its line."""

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_notebook import write_notebook

from toastlib import paper
from toastlib.errors import InputError
from toastlib.runs import parameters
from toastlib.runs.grid import GRIDS, paper_grid, read_grid


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """Factory: writes a grid over two small notebooks and reads it."""
    for name in ("00_first", "07_small"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    (tmp_path / "empty.ipynb").write_text('{"cells": []}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parameters, "NOTEBOOKS", tmp_path / "notebooks")

    def read(text):
        (tmp_path / "grid.yaml").write_text(text)
        return read_grid(tmp_path / "grid.yaml")

    return read


def test_lists_give_every_combination(grid):
    runs = grid("notebook: '07'\nparameters:\n  size: [1, 2]\n  plans: ['1->2', '2->3']\n  rate: 1\n")
    assert {run.notebook.stem for run in runs} == {"07_small"}
    assert [tuple(run.overrides.values()) for run in runs] == [
        *((1, "1->2", 1.0), (1, "2->3", 1.0), (2, "1->2", 1.0), (2, "2->3", 1.0))
    ]


def test_a_list_parameter_takes_its_list_whole(grid):
    text = "notebook: 07_small\nparameters:\n  seeds: {}\n"
    assert [run.overrides for run in grid(text.format("[0, 1]"))] == [{"seeds": [0, 1]}]
    assert [run.overrides for run in grid(text.format("[[0], [1]]"))] == [{"seeds": [0]}, {"seeds": [1]}]


def test_combinations_are_excluded_and_included(grid):
    text = """\
- notebook: '00'
- notebook: '07'
  parameters: {size: [1, 2], dataset: [digits, mnist]}
  exclude:
    - {size: 2, dataset: [mnist]}
  include:
    - {size: 3, dataset: mnist, quick: true}
"""
    first, *others = grid(text)
    assert (first.notebook.stem, first.overrides) == ("00_first", {})
    assert [tuple(run.overrides.values()) for run in others] == [
        *((1, "digits"), (1, "mnist"), (2, "digits"), (3, "mnist", True))
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "asks for no run"),
        ("notebook: [", "line 1: not YAML"),
        ("notebook: '08'", "line 1: Unknown notebook '08'"),
        ("- parameters: {size: 1}", "line 1: a run needs a 'notebook'"),
        ("- just text", "line 1: a mapping of names to values is needed here"),
        ("notebook: '07'\nparametres: {size: 1}", "line 2: Unknown key 'parametres': did you mean 'parameters'?"),
        ("notebook: '07'\nparameters: 3", "line 2: a mapping of names to values is needed here"),
        ("notebook: '07'\nparameters:\n  rate: 1\n  sise: 1", "line 4: Unknown parameter of 07_small 'sise'"),
        ("notebook: '07'\nparameters:\n  size: [1, two]", "line 3: Parameter size takes a whole number such as 4"),
        ("notebook: '07'\nparameters:\n  size: 1\n  size: 2", "line 4: 'size' stands here twice"),
        ("notebook: '07'\nparameters:\n  model: vit-mimi", "line 3: Unknown model 'vit-mimi'"),
        ("notebook: '07'\nexclude: {size: 1}", "line 2: 'exclude' takes a list of mappings"),
        ("notebook: '07'\nexclude:\n  - {sise: 1}", "line 3: Unknown parameter of 07_small 'sise'"),
        ("- notebook: '07'\n- notebook: 07_small\n", "line 2: the same run is asked for on line 1 too: the default"),
        ("notebook: '07'\nparameters:\n  size: [1, 2, 1]", "line 3: size has 1 twice."),
        ("notebook: '07'\nparameters:\n  seeds:\n    - [1]\n    - [1]", "line 5: seeds has [1] twice."),
        (
            "notebook: '07'\nparameters: {size: 1}\ninclude:\n  - {size: 1}",
            "line 4: the same run is asked for on line 1 too: size=1.",
        ),
        (
            "- notebook: '07'\n- notebook: '07'\n  parameters: {size: 4}",
            "line 2: the same run is asked for on line 1 too: size=4",
        ),
        ("notebook: '07'\nparameters:\n  size:\n    - 1\n    - two", "line 5: Parameter size takes a whole number"),
        ("notebook: '07'\nparameters:\n  results_dir: x", "line 3: results_dir is for the command"),
        ("notebook: '07'\nparameters:\n  size: !!python/name:os.system", "line 3: could not determine a constructor"),
        ("notebook: ['07']", "line 1: 'notebook' takes a name, a number or a path"),
        ("notebook: '07'\nparameters:\n  ? [a]\n  : 1", "line 3: a name is needed here"),
        (
            "notebook: '07'\nparameters: {size: &a 1}\ninclude:\n - rate: [*a, x]",
            "line 4: Parameter rate takes a number",
        ),
        ("notebook: broken.ipynb", "line 1: 'broken.ipynb' cannot be read as a notebook"),
        ("notebook: empty.ipynb", "line 1: empty.ipynb has no cell tagged 'parameters'"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(grid, text, says):
    with pytest.raises(InputError) as error:
        grid(text)
    assert says in str(error.value)
    assert str(error.value).startswith("grid.yaml")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "grid.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match=r"^grid\.yaml: not YAML \("):
        read_grid(tmp_path / "grid.yaml")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_grid(tmp_path / "nowhere.yaml")


def test_the_papers_grids_cover_the_paper():
    published = paper.published()
    assert {path.stem.removeprefix("paper-table-") for path in GRIDS.glob("paper-*.yaml")} == set(published["table"])
    for table, rows in published.groupby("table"):
        runs = paper_grid(table)
        assert {run.overrides["plans"] for run in runs} == {f"table {table}"}
        covered = {
            (run.overrides["model"], dataset.replace("imagenet-1k-val", "imagenet-1k"))
            for run in runs
            for dataset in run.overrides.get("datasets", [run.overrides.get("dataset")])
        }
        assert covered >= set(zip(rows["model"], rows["dataset"], strict=True)), table


def test_the_whole_paper_is_all_its_tables():
    tables = paper.published()["table"].unique()
    assert len(paper_grid()) == sum(len(paper_grid(table)) for table in tables)
    with pytest.raises(InputError, match="Unknown table '6'"):
        paper_grid("6")


def test_the_demonstration_needs_no_network():
    for run in read_grid(GRIDS / "demo.yaml"):
        assert run.overrides["model"] == "vit-mini"
        assert run.overrides["dataset"] in ("digits", "fashion-mnist-mini")


def test_grid_files_are_plain_yaml():
    for path in GRIDS.glob("*.yaml"):
        assert yaml.safe_load(path.read_text())


class TestMembersByTheirOwnName:
    """``image_size`` in a grid, where the notebook has ``options = {"image_size": 0, ...}``."""

    @pytest.fixture
    def read(self, tmp_path):
        notebook = write_notebook(tmp_path / "small.ipynb", parameters='options = {"image_size": 0}\nsize = 4')

        def read(text):
            (tmp_path / "grid.yaml").write_text(f"notebook: {notebook}\nparameters:\n{text}")
            return [run.overrides for run in read_grid(tmp_path / "grid.yaml")]

        return read

    def test_an_axis_has_the_full_name(self, read):
        assert read("  image_size: [112, 224]") == [{"options.image_size": 112}, {"options.image_size": 224}]

    def test_include_and_exclude_mean_the_same_parameter_by_either_name(self, read):
        text = "  image_size: [112, 224]\nexclude:\n- options.image_size: 224\ninclude:\n- options.image_size: 336"
        assert read(text) == [{"options.image_size": 112}, {"options.image_size": 336}]

    def test_both_names_at_once_are_refused(self, read):
        with pytest.raises(InputError, match=r"line 4: 'options\.image_size' stands here twice"):
            read("  image_size: 112\n  options.image_size: 224")


KEYS = st.sampled_from(
    ["notebook", "parameters", "include", "exclude", "size", "rate", "plans", "seeds", "head", "nope"]
)
SCALARS = st.sampled_from(["07_small", "00", 3, -1, 0.5, float("nan"), True, None, "1->2", "x", "", "*a", "results"])
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))
ENTRIES = st.fixed_dictionaries({"notebook": st.just("07_small"), "parameters": TREES | st.dictionaries(KEYS, TREES)})


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(TREES.map(yaml.safe_dump), ENTRIES.map(yaml.safe_dump), st.text("ab:-[]{}&*!|>'\"\n #%@`,?", max_size=20))
)
def test_any_file_is_read_or_refused_by_its_line(grid, text):
    runs, refused = [], None
    try:
        runs = grid(text)
    except InputError as error:
        refused = str(error)
    assert bool(runs) != bool(refused)
    assert len({run.folder for run in runs}) == len(runs)
    assert refused is None or (refused.startswith("grid.yaml") and "\n" not in refused)


def test_an_exclusion_compares_defaults_too_and_one_that_fits_no_run_is_refused(grid):
    text = "notebook: '07'\nparameters:\n  size: [4, 5]\nexclude:\n  - {}\n"
    default = parameters.defaults(parameters.find_notebook("07"))["rate"]
    assert [run.overrides["size"] for run in grid(text.format(f"{{size: 5, rate: {default}}}"))] == [4]
    with pytest.raises(InputError, match=r"grid\.yaml, line 4: exclusion 1 fits no run"):
        grid(text.format("{size: 6}"))
