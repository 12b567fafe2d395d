"""Rules that every notebook of the study keeps, and runs of notebooks away from their defaults."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from toastlib.cli import main
from toastlib.runs.parameters import defaults, find_notebook

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
QUOTE = "> With the default parameters"
HOLD = "The claims about the default run hold."
RESULTS = re.compile(r"\b(clearly (better|worse|loses?)|digits (lose|are))\b")


def read(path):
    return nbformat.read(path, 4).cells


def tagged(cells, tag):
    return [cell for cell in cells if tag in cell.metadata.get("tags", [])]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request):
    return read(request.param)


def code(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


def test_parameters_are_ten_lines_of_literals_with_comments(cells):
    [parameters] = tagged(cells, "parameters")
    lines = parameters.source.splitlines()
    assert len(lines) <= 10
    assert all("  # " in line for line in lines)
    for node in ast.parse(parameters.source).body:
        ast.literal_eval(node.value)


def test_code_cells_have_at_most_fifteen_lines(cells):
    assert [cell.source for cell in code(cells) if len(cell.source.splitlines()) > 15] == []


def test_the_method_is_written_out_and_tied_to_the_library_by_an_assert(cells):
    methods = tagged(cells, "method")
    assert methods, "no cell is tagged 'method'"
    first, last = cells.index(methods[0]), cells.index(methods[-1])
    after = cells[first : last + 3]  # the assert may stand in the cell that follows
    assert any("assert" in cell.source for cell in after)


def test_the_first_cell_says_whether_it_is_the_paper(cells):
    assert re.search(r"part of the paper|beyond the paper|the paper", cells[0].source, re.I)
    assert re.search(r"CPU cores", cells[0].source)


def test_every_text_cell_is_written(cells):
    """Neither empty nor a mark that stands for a text."""
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert [text for text in texts if len(re.findall(r"\w+", text)) < 2 and not text.startswith("#")] == []


def test_no_cell_has_a_magic(cells):
    """nbval in its lax mode passes a cell whose magic fails."""
    assert [line for cell in code(cells) for line in cell.source.splitlines() if re.match(r"\s*[%!]", line)] == []


def test_committed_outputs_are_whole_and_quiet(cells):
    assert [cell.execution_count for cell in code(cells)] == list(range(1, len(code(cells)) + 1))
    outputs = [output for cell in code(cells) for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    assert not any("%|" in output.get("text", "") for output in outputs), "a progress bar"


def test_sentences_about_results_stand_in_quotes_of_the_default_parameters(cells):
    for cell in cells[1:]:
        if cell.cell_type == "markdown":
            outside = "\n".join(line for line in cell.source.splitlines() if not line.startswith(">"))
            assert RESULTS.search(outside) is None, outside


def guards(cell):
    """Conditions of a cell under which claims are asserted."""
    branches = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.If)]
    return {
        ast.unparse(branch.test)
        for branch in branches
        if any(isinstance(node, ast.Assert) for node in ast.walk(branch))
    }


def test_claims_about_the_default_run_were_checked_when_it_was_executed(cells):
    """A guard that is never true would check nothing, and nobody would see it."""
    printed = [cell for cell in code(cells) if any(HOLD in output.get("text", "") for output in cell.outputs)]
    assert set().union(*map(guards, code(cells))) - set().union(*map(guards, printed)) == set()
    assert tagged(printed, "nbval-check-output"), "nbval compares no printed sentence"


NOT_IN_CLAIMS = {"results_dir", "runs_dir", "prompt", "device"}
"""Parameters that no claim depends on."""
OF_GUARDS = {"is_default", "default", "given", "defaults", "sizes_given", "sizes", "config"}
"""Variables that hold parameters, or what is told by them."""


def names_in(tree):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_claims_about_the_default_run_are_kept_to_it_by_every_parameter(cells):
    """A run with another value of any parameter asserts none of them."""
    [parameters] = tagged(cells, "parameters")
    named = {target.id for node in ast.parse(parameters.source).body for target in node.targets}
    trees = [ast.parse(cell.source) for cell in code(cells) if cell is not parameters]
    made = {}  # variable -> the names that its values are made of
    for node in (node for tree in trees for node in tree.body if isinstance(node, ast.Assign)):
        for target in node.targets:
            for name in names_in(target):
                made.setdefault(name, set()).update(names_in(node.value))
    conditions = [node.test for tree in trees for node in tree.body if isinstance(node, ast.If)]
    guarding, seen = set().union(*map(names_in, conditions)), set()
    while guarding := guarding - seen:
        seen |= guarding
        guarding = set().union(*(made.get(name, set()) for name in guarding & OF_GUARDS))
    assert named - NOT_IN_CLAIMS <= seen


def test_the_table_of_the_paper_s_numbers_is_written_by_its_helper_alone(cells):
    """10 reads the table `beside` of every run: under this name nothing else may lie."""
    assert not any('"beside"' in cell.source for cell in code(cells))


AWAY = {
    "00": "plan=7->8 train_size=300 test_size=60 calibration_size=100 head.seeds=1 head.min_steps=100",
    "02": "plans=2->5 train_size=200 test_size=60 calibration_size=100 head.seeds=1 head.min_steps=100",
    "03": "datasets=digits,mnist-mini plans=2->5 train_size=200 test_size=60 calibration_size=100 head.seeds=1",
    "05": "dataset=digits plans=2->5,7->8 train_size=200 test_size=60 calibration_size=100 head.seeds=1",
    "08": "dataset=digits plans=2->5,7->8 test_size=60 calibration_size=100 head.seeds=1 repeats=2",
    "12": "removed=4 sizes.train_size=200 sizes.test_size=60 calibration.images=100 calibration.rerank=20 "
    "calibration.draws=2 translator=linear+align choice.measure=features head.seeds=1 head.min_steps=100",
    "17": "dataset=digits plan=2->5 steps=0,2 calibration_size=60 train_size=200 test_size=60 seeds=0,1",
    "14": "removed=4 train_size=200 test_size=60 calibration_size=100 head.seeds=1 head.min_steps=100",
}
"""Parameters away from the defaults: little of everything, and another data set."""


@pytest.mark.slow
@pytest.mark.parametrize("notebook", AWAY)
def test_a_notebook_runs_away_from_its_defaults(notebook, tmp_path, capfd):
    given = [word for parameter in AWAY[notebook].split() for word in ("-p", parameter)]
    assert main(["run", notebook, *given, "--results-dir", str(tmp_path)]) == 0, capfd.readouterr().err
    assert len(list(tmp_path.glob("*/results.parquet"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("notebook", ["00", "01", "02", "03", "04", "05", "06", "07", "08", "11", "14", "15", "17"])
def test_images_without_labels_are_refused_in_one_sentence(notebook, tmp_path, capfd):
    for split, count in (("train", 60), ("test", 30)):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / "pictures" / split / f"{number}.png")
    known = {name.partition(".")[2] or name for name in defaults(find_notebook(notebook))}
    few = {"train_size": 0, "test_size": 0, "calibration_size": 20, "calibration_sizes": "8"}
    few |= {"dataset": tmp_path / "pictures", "datasets": f"{tmp_path / 'pictures'},digits"}
    given = [word for name, value in few.items() if name in known for word in ("-p", f"{name}={value}")]
    assert main(["run", notebook, *given, "--results-dir", str(tmp_path)]) == 2
    assert "pictures has no labels: accuracies need them, similarities and maps do not." in capfd.readouterr().err
