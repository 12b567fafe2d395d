"""The exercises are made from the solutions, run without answers, and say what is wrong with a wrong one."""

import contextlib
import importlib.util
import inspect
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from checks import verdicts
from checks.verdicts import NOT_YET, RIGHT, UNANSWERED, quiz, reject, steps, verdict

ROOT = Path(__file__).resolve().parents[1]
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("[0-9]*.ipynb"))
NAMES = [path.stem for path in SOLUTIONS]
KINDS = ("Pencil", "Code", "Prediction", "Open")
LEVELS = ("●○○", "●●○", "●●●")
HEADING = re.compile(
    rf"## \d\. .+\n\n\*({'|'.join(KINDS)}) · ({'|'.join(LEVELS)}) · (\d+) minutes"
    r" · \[Solution\]\(\.\./solutions/(\w+)\.ipynb\)\*\n"
)
NONSENSE = ["nonsense", -12345.678, np.full((3, 7), 2.0), torch.ones(2), {}, [], {"x"}, float("nan"), np.array("?")]


def load_script():
    spec = importlib.util.spec_from_file_location("exercises", ROOT / "scripts" / "exercises.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def solution(name):
    return script.read(script.SOLUTIONS / f"{name}.ipynb")


def exercise(name):
    return script.read(script.EXERCISES / f"{name}.ipynb")


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_check(cell):
    return "nbval-check-output" in cell.metadata.get("tags", [])


def printed(cell):
    """What a cell of a committed notebook printed."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def run(notebook):
    """What each code cell prints when all run in this process, one after the other."""
    namespace, outputs = {"__name__": "__main__"}, []
    for cell in code(notebook):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(cell.source, cell.id, "exec"), namespace)
        outputs.append(output.getvalue())
    return outputs


def checks_of(name):
    """The module of a notebook's checks, and their names."""
    module = importlib.import_module(f"checks.{name[3:]}")
    functions = inspect.getmembers(module, inspect.isfunction)
    own = {
        key: function
        for key, function in functions
        if function.__module__ == module.__name__ and inspect.signature(function).return_annotation is str
    }
    return module, own


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    """Features and heads that the solution computes serve the exercise as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_every_notebook_of_the_argument_has_exercises():
    study = [path.stem for path in (ROOT / "notebooks").glob("0[1-8]_*.ipynb")]
    assert sorted(study) == NAMES
    assert sorted(path.stem for path in script.EXERCISES.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_exercises_are_made_from_the_solutions(name):
    made, committed = script.exercise_of(solution(name)), exercise(name)
    facts = [(cell.id, cell.cell_type, cell.source, cell.metadata) for cell in made.cells]
    assert facts == [(cell.id, cell.cell_type, cell.source, cell.metadata) for cell in committed.cells]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("read", [solution, exercise])
def test_notebooks_are_committed_executed(name, read):
    notebook = read(name)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_committed_checks_say_right_in_the_solution_and_wait_in_the_exercise(name):
    verdicts_there = [line for cell in code(solution(name)) if is_check(cell) for line in printed(cell).splitlines()]
    assert len(verdicts_there) >= 3
    assert all(line.startswith(RIGHT) for line in verdicts_there)
    waiting = [line for cell in code(exercise(name)) if is_check(cell) for line in printed(cell).splitlines()]
    assert waiting == [UNANSWERED] * len(verdicts_there)


@pytest.mark.parametrize("name", NAMES)
def test_every_exercise_has_its_kind_difficulty_time_and_solution(name):
    text = "\n".join(cell.source + "\n" for cell in exercise(name).cells if cell.cell_type == "markdown")
    headings = HEADING.findall(text)
    assert len(headings) == text.count("\n## ") == 5
    assert {solution for *_, solution in headings} == {name}
    kinds = {kind for kind, *_ in headings}
    assert {"Pencil", "Code"} <= kinds
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (script.EXERCISES / link).resolve().is_file(), link


@pytest.mark.parametrize("name", NAMES)
def test_the_overview_adds_up_the_minutes(name):
    text = "\n".join(cell.source + "\n" for cell in exercise(name).cells if cell.cell_type == "markdown")
    minutes = sum(int(minutes) for _, _, minutes, _ in HEADING.findall(text))
    overview = (script.EXERCISES / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| \[{name}\].* \| {minutes} \|", overview, re.M), minutes


@pytest.mark.parametrize("page", ["README.md", "projects.md"])
def test_links_of_the_pages_lead_somewhere(page):
    text = (script.EXERCISES / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (script.EXERCISES / link).resolve().exists(), link


def test_the_translator_of_the_projects_works():
    [block] = re.findall(r"```python\n(.*?)```", (script.EXERCISES / "projects.md").read_text(encoding="utf-8"), re.S)
    namespace = {}
    exec(block, namespace)
    weight = namespace["Halfway"]().fit_moments(namespace["moments"], namespace["toast"].Span(2, 5)).weight_
    replacement = namespace["smaller"].blocks[3].translation
    torch.testing.assert_close(replacement.weight.double().mT, weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_solution_is_left_in_the_exercise(name):
    source = "\n".join(cell.source for cell in exercise(name).cells)
    assert "SOLUTION" not in source
    assert "reject" not in source
    for region in re.findall(r"# BEGIN SOLUTION.*\n((?:.*\n)*?) *# END SOLUTION", all_source(solution(name))):
        assert region not in source


def all_source(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_solutions_pass_wrong_answers_do_not_and_exercises_wait(name, monkeypatch, shared_cache):
    module, own = checks_of(name)
    seen = {key: [] for key in own}  # check -> (what it was given beside the answer, what it said)

    def spied(key):
        def check(answer, *data):
            seen[key].append((data, own[key](answer, *data)))
            return seen[key][-1][1]

        return check

    named = []  # (right answer, mistakes, tolerance) of every verdict

    def spied_verdict(answer, right, mistakes, praise="", tolerance=verdicts.TOLERANCE):
        named.append((right, mistakes, tolerance))
        return verdict(answer, right, mistakes, praise, tolerance)

    for key in own:
        monkeypatch.setattr(module, key, spied(key))
    for place in (module, verdicts):
        monkeypatch.setattr(place, "verdict", spied_verdict, raising=False)
    outputs = run(solution(name))
    for cell, output in zip(code(solution(name)), outputs, strict=True):
        if is_check(cell):
            assert output.strip()
            assert all(line.startswith(RIGHT) for line in output.splitlines()), output
    for key, calls in seen.items():
        messages = [message for _, message in calls]
        assert sum(message.startswith(RIGHT) for message in messages) == 1, key
        assert len({message for message in messages if message.startswith(NOT_YET)}) >= 2, key
        data = calls[0][0]
        assert own[key](..., *data) == own[key](None, *data) == UNANSWERED
        for answer in NONSENSE:
            assert own[key](answer, *data).startswith(NOT_YET), (key, answer)

    for right, mistakes, tolerance in named:
        for reason, wrong in mistakes.items():
            assert callable(wrong) or verdict(wrong, right, mistakes, "", tolerance) == f"{NOT_YET} {reason}", reason

    waiting = run(exercise(name))
    for cell, output in zip(code(exercise(name)), waiting, strict=True):
        if is_check(cell):
            assert set(output.splitlines()) == {UNANSWERED}, cell.source


class TestGenerator:
    def make(self, *cells):
        return nbformat.v4.new_notebook(cells=list(cells))

    def cell(self, source, *tags, kind="code"):
        new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        return new(source, metadata={"tags": list(tags)} if tags else {})

    def text(self, source, *tags):
        return self.cell(source, *tags, kind="markdown")

    def test_a_solution_becomes_its_stub(self):
        value = "# BEGIN SOLUTION x = ...  # a number\nx = 1\ny = 2\n# END SOLUTION\nprint(x)"
        function = "def f():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION\n\n\nf()"
        made = script.exercise_of(self.make(self.cell(value), self.cell(function)))
        assert made.cells[0].source == "x = ...  # a number\nprint(x)"
        assert made.cells[1].source == "def f():\n    ...  # your code\n\n\nf()"

    def test_two_solutions_in_a_cell_become_two_stubs(self):
        cell = "# BEGIN SOLUTION a = ...\na = 1\n# END SOLUTION\n# BEGIN SOLUTION b = ...\nb = 2\n# END SOLUTION"
        assert script.exercise_of(self.make(self.cell(cell))).cells[0].source == "a = ...\nb = ..."

    def test_answers_in_words_leave_a_place_only_where_nothing_else_is_to_be_filled_in(self):
        stub = self.cell("# BEGIN SOLUTION x = ...\nx = 1\n# END SOLUTION")
        closed = [self.text("## 1. Closed"), stub, self.text("Because.", "solution")]
        open_ended = [self.text("## 2. Open"), self.cell("2", "solution"), self.text("It depends.", "solution")]
        made = script.exercise_of(self.make(*closed, *open_ended))
        expected = ["## 1. Closed", "x = ...", "## 2. Open", "# your experiment", "*Your answer:*"]
        assert [cell.source for cell in made.cells] == expected

    def test_what_a_check_prints_is_shown_and_mistakes_are_not(self):
        check = self.cell("print(1)", "nbval-check-output")
        check.outputs = [nbformat.v4.new_output("stream", text="Right. Well done.\n")]
        made = script.exercise_of(self.make(check, self.cell("reject(...)", "mistakes")))
        assert [cell.source for cell in made.cells] == [
            "print(1)",
            "*Expected output:*\n\n```text\nRight. Well done.\n```",
        ]
        assert made.cells[0].outputs == []
        assert made.cells[0].metadata.tags == ["nbval-check-output"]

    def test_the_introduction_is_the_readers(self):
        made = script.exercise_of(self.make(self.text("Here are the solutions.", "introduction")))
        assert [cell.source for cell in made.cells] == [script.INTRODUCTION]

    def test_links_and_title_are_turned_round(self):
        made = script.exercise_of(self.make(self.text("# 01 · X: solutions\n\n[Exercise](../exercises/01_x.ipynb)")))
        assert made.cells[0].source == "# 01 · X: exercises\n\n[Solution](../solutions/01_x.ipynb)"


class TestVerdicts:
    @pytest.mark.parametrize("answer", [0.5, np.float32(0.5), torch.tensor(0.5), torch.tensor(0.50001)])
    def test_numbers_of_any_kind_are_right(self, answer):
        assert verdict(answer, 0.5, {}, "Indeed.") == "Right. Indeed."

    @pytest.mark.parametrize("answer", [..., None, [1, ...], {"a": None}, {..., "b"}, (1, [..., 2])])
    def test_what_is_left_open_is_no_answer_yet(self, answer):
        assert verdict(answer, 1, {}) == UNANSWERED

    @pytest.mark.parametrize(
        ("answer", "right", "reason"),
        [
            (2.0, 0.5, "2 is too large"),
            (0.1, 0.5, "too small"),
            ([1.0, 2.0], 0.5, "one number, and yours has the shape (2,)"),
            ("half", 0.5, "one number, not a str"),
            (float("inf"), 0.5, "division by zero"),
            ([1.0, 3.0], [1.0, 2.0], "50 % of the entries"),
            ((1.0,), (1.0, 2.0), "2 parts"),
            ({"a": 1}, {"a": 1, "b": 2}, "the keys 'a', 'b'"),
            (3, "three", "a text"),
            (3, {"a"}, "a set"),
            ({"b"}, {"a"}, "No typical mistake"),
        ],
    )
    def test_what_no_mistake_explains_is_described(self, answer, right, reason):
        message = verdict(answer, right, {})
        assert message.startswith(NOT_YET)
        assert reason in message

    def test_the_first_mistake_that_fits_is_named(self):
        mistakes = {"Negative.": lambda x: x < 0, "Twice as much.": 1.0, "Also twice.": 1.0}
        assert verdict(1.0, 0.5, mistakes) == "Not yet. Twice as much."
        assert verdict(-3.0, 0.5, mistakes) == "Not yet. Negative."

    def test_of_two_mistakes_that_are_nearly_alike_the_nearer_is_named(self):
        mistakes = {"One.": [1.0, 0.0], "Nearly one.": [1.0, 5e-5]}
        assert verdict([1.0, 0.0], [2.0, 0.0], mistakes) == "Not yet. One."
        assert verdict([1.0, 5e-5], [2.0, 0.0], mistakes) == "Not yet. Nearly one."

    @pytest.mark.parametrize(
        ("answer", "right", "reason"),
        [
            (1.5, 1 / 65, "hundred times"),
            (0.015, 1 / 65, "rounded too much"),
            (1.25, 1.2, "too large"),
            (18_624, 18_623, "18,624 is too large"),
            (1_774_000, 1_774_464, "every digit"),
            (0.013, 4 / 3, "hundredth"),
            ((3.3, -1.0), (0.033, -0.01), "hundred times"),
            ((3.3, -0.01), (0.033, 0.02), "No typical mistake"),
            (-3, 3, "sign"),
            (300, 3, "too large"),
            (101, 100, "too large"),
            ([[1.0, 3.0], [2.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]], "transposed"),
            ([[1.0], [2.0]], [[1.0, 2.0]], "transposed"),
            (torch.tensor([1.0, 3.0]), [1.0, 2.0], "float32"),
            ([1.0, 2.001], [1.0, 2.0], "float32"),
            ([1.0, 2.01], [1.0, 2.0], "50 % of the entries"),
        ],
    )
    def test_units_signs_digits_and_directions_are_told(self, answer, right, reason):
        message = verdict(answer, right, {})
        assert message.startswith(NOT_YET)
        assert reason in message

    def test_a_right_answer_is_right_even_where_a_mistake_gives_the_same(self):
        assert verdict(0.0, 0.0, {"Zero.": 0.0}) == RIGHT

    def test_tolerance_is_of_the_largest_entry(self):
        assert verdict([1000.0, 0.01], [1000.0, 0.0], {}) == RIGHT
        assert verdict([1000.0, 1.0], [1000.0, 0.0], {}) != RIGHT

    def test_steps_stop_at_the_first_that_is_wrong(self):
        right, mistakes = {"first": 1, "second": 2}, ({"too many.": 7}, {"twice.": 4})
        assert steps({"first": 1, "second": 2}, right, mistakes, "Fine.") == "Right. Fine."
        assert steps({"first": 7, "second": 4}, right, mistakes) == "Not yet. First: too many."
        assert steps({"first": 1, "second": 4}, right, mistakes) == "Not yet. Second: twice."
        assert steps({"first": 1, "second": ...}, right, mistakes) == UNANSWERED

    def test_a_quiz_names_all_that_is_wrong(self):
        right, reasons = {"a": "x", "b": "y", "c": "z"}, {"a": "see A", "b": "see B", "c": "see C"}
        assert quiz(right, right, reasons) == RIGHT
        assert (
            quiz(right | {"a": "y", "c": "y"}, right, reasons) == "Not yet. 1 of 3 are right.\n- a: see A\n- c: see C"
        )

    def test_reject_insists_on_the_reason(self, capsys):
        def check(answer):
            return verdict(answer, 1, {"Twice as much.": 2})

        reject(check, {"Twice": 2, "too large": 5})
        assert capsys.readouterr().out == f"Not yet. Twice as much.\n{check(5)}\n"
        with pytest.raises(AssertionError, match="is not rejected"):
            reject(check, {"Twice": 1})
        with pytest.raises(AssertionError, match="for another reason"):
            reject(check, {"Twice": 5})

    def test_every_module_of_checks_belongs_to_a_notebook(self):
        modules = {path.stem for path in Path(verdicts.__file__).parent.glob("*.py")} - {"__init__", "verdicts"}
        assert modules == {name[3:] for name in NAMES}
