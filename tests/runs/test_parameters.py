"""The study's notebooks are found; their parameters are read with comments, and values are checked against them."""

from pathlib import Path

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from small_notebook import write_notebook

from toastlib.errors import InputError
from toastlib.evaluation.probe import HeadConfig
from toastlib.runs import parameters
from toastlib.runs.parameters import (
    Parameter,
    check_parameters,
    defaults,
    find_notebook,
    notebook_names,
    notebook_parameters,
    notebook_variables,
)


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path / "07_small.ipynb")


def test_parameters_come_in_order_with_default_and_comment(notebook):
    found = notebook_parameters(notebook)
    assert list(found)[:3] == ["model", "dataset", "datasets"]
    assert found["size"] == Parameter("size", 4, "how many")
    assert found["quick"] == Parameter("quick", False, "")


def test_a_notebook_without_parameters_is_refused(tmp_path):
    path = write_notebook(tmp_path / "bare.ipynb", parameters="size = 4")
    path.write_text(path.read_text().replace('"parameters"', '"others"'))
    with pytest.raises(InputError, match=r"^bare\.ipynb has no cell tagged 'parameters'\.$"):
        notebook_parameters(path)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "12", 12),
        ("size", "-3", -3),
        ("rate", "1e-3", 0.001),
        ("rate", "2", 2.0),
        ("quick", "true", True),
        ("quick", "False", False),
        ("plans", "1->2 4->5, 2->5", "1->2 4->5, 2->5"),
        ("plans", "paper", "paper"),
        ("plans", "table 4", "table 4"),
        ("seeds", "3", [3]),
        ("seeds", "0, 1,2", [0, 1, 2]),
        ("seeds", "[0, 1]", [0, 1]),
        ("datasets", "['digits', 'mnist']", ["digits", "mnist"]),
        ("datasets", "digits,owner/name:label", ["digits", "owner/name:label"]),
        ("translators", "linear", ["linear"]),
        ("translators", "mlp, res-mlp, warm-start-mlp", ["mlp", "res-mlp", "warm-start-mlp"]),
        ("device", "cpu", "cpu"),
    ],
)
def test_text_is_read_as_the_type_of_the_default(notebook, name, text, value):
    checked = check_parameters(notebook, {name: text})[name]
    assert checked == value
    assert type(checked) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [("size", 12, 12), ("rate", 2, 2.0), ("quick", True, True), ("seeds", range(3), [0, 1, 2]), ("seeds", (1,), [1])],
)
def test_values_of_python_are_taken_as_they_are_meant(notebook, name, given, value):
    checked = check_parameters(notebook, {name: given})[name]
    assert checked == value
    assert type(checked) is type(value)


def test_only_what_was_given_comes_back(notebook):
    assert check_parameters(notebook, {"size": "5"}) == {"size": 5}
    assert check_parameters(notebook, {}) == {}


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("size", "four", "Parameter size takes a whole number such as 4, not 'four'."),
        ("size", "4.5", "Parameter size takes a whole number such as 4, not '4.5'."),
        ("size", True, "Parameter size takes a whole number such as 4, not True."),
        ("rate", "fast", "Parameter rate takes a number such as 0.5, not 'fast'."),
        ("quick", "yes", "Parameter quick takes true or false such as False, not 'yes'."),
        ("quick", 1, "Parameter quick takes true or false such as False, not 1."),
        ("model", 3, "Parameter model takes text such as 'vit-mini', not 3."),
        ("seeds", "0,one", "Parameter seeds takes a list such as [0, 1], not '0,one'."),
        ("seeds", 3, "Parameter seeds takes a list such as [0, 1], not 3."),
        ("seeds", "[0, 1", "Parameter seeds takes a list such as [0, 1], not '[0, 1'."),
        (
            "translators",
            "identity, linear]",
            "Parameter translators takes a list such as ['identity', 'linear'], not 'identity, linear]'.",
        ),
        (
            "translators",
            "['identity, linear]",
            "Parameter translators takes a list such as ['identity', 'linear'], not \"['identity, linear]\".",
        ),
    ],
)
def test_a_value_of_another_type_is_refused(notebook, name, given, says):
    with pytest.raises(InputError) as error:
        check_parameters(notebook, {name: given})
    assert str(error.value) == says


@pytest.mark.parametrize("name", ["train_size", "options.image_size", "calibration_sizes", "steps", "head.seeds"])
def test_a_number_that_is_never_negative_is_refused_before_anything_runs(tmp_path, name):
    whole, _, member = name.partition(".")
    value = "[4]" if name.endswith(("sizes", "steps")) else "4"
    line = f'{whole} = {{"{member}": {value}}}' if member else f"{whole} = {value}"
    notebook = write_notebook(tmp_path / "sizes.ipynb", parameters=line)
    least = int(name in ("calibration_sizes", "head.seeds"))
    for wrong in ("-5", "0") if least else ("-5",):
        says = f"^{name.removeprefix('options.')} is a whole number from {least} on, not {wrong}"
        with pytest.raises(InputError, match=says):
            check_parameters(notebook, {name: wrong})


@pytest.mark.parametrize("text", ["0", "-1", "nan"])
def test_a_learning_rate_that_heads_refuse_is_refused_before_anything_runs(tmp_path, text):
    notebook = write_notebook(tmp_path / "rates.ipynb", parameters='head = {"learning_rate": 1e-3}')
    with pytest.raises(InputError, match=r"^head\.learning_rate is a number above 0, not "):
        check_parameters(notebook, {"learning_rate": text})
    with pytest.raises(InputError):
        HeadConfig(learning_rate=float(text))


@pytest.mark.parametrize("given", ["[]", "", []])
def test_an_empty_list_is_refused_where_there_is_something_by_default(tmp_path, given):
    notebook = write_notebook(tmp_path / "lists.ipynb", parameters='translators = ["linear"]\nothers = ["digits"]')
    with pytest.raises(InputError, match=r"^Parameter translators takes a list such as \['linear'\], not"):
        check_parameters(notebook, {"translators": given})
    assert check_parameters(notebook, {"others": given}) == {"others": []}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("modle", "vit-mini", "Unknown parameter of 07_small 'modle': did you mean 'model'?"),
        ("model", "vit-mimi", "Unknown model 'vit-mimi': did you mean 'vit-mini'?"),
        ("dataset", "digit", "Unknown data set 'digit': did you mean 'digits'?"),
        ("datasets", "digits,mmist", "Unknown data set 'mmist': did you mean 'mnist'?"),
        ("plans", "5->2", "Span '5->2' runs backwards"),
        ("plans", "1->4 2->5", "Spans 1->4 and 2->5 overlap"),
        ("plans", "table 99", "Unknown table '99'"),
        ("translators", "identity,liner", "Unknown translator 'liner': did you mean 'linear'?"),
        ("translators", "linear,res-mpl", "Unknown translator 'res-mpl': did you mean 'res-mlp'?"),
        ("device", "gpu", "Device 'gpu' is not there"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_the_nearest(notebook, name, text, says):
    with pytest.raises(InputError) as error:
        check_parameters(notebook, {name: text})
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    ("notebook", "name", "says"),
    [
        ("05", "translators", "05_skipat has no parameter 'translators': it is one of 06_translators, "),
        ("08", "calibration_seed", "08_trade_off has no parameter 'calibration_seed': it is one of 00_quickstart, "),
        ("02", "plan", "Unknown parameter of 02_approximation 'plan': did you mean 'plans'?"),
        ("05", "translations", "Unknown parameter of 05_skipat 'translations': choose from model, "),
    ],
)
def test_a_parameter_of_other_notebooks_is_refused_with_their_names(notebook, name, says):
    with pytest.raises(InputError) as error:
        check_parameters(find_notebook(notebook), {name: "x"})
    assert str(error.value).startswith(says)


@pytest.fixture
def headed(tmp_path):
    """A notebook with a dictionary among its parameters."""
    parameters = 'head = {"protocol": "frozen", "seeds": 3, "rates": [0.1]}  # see HeadConfig\nsize = 4'
    return write_notebook(tmp_path / "07_small.ipynb", parameters=parameters)


def test_members_of_a_dictionary_are_parameters(headed):
    assert list(notebook_parameters(headed)) == ["head.protocol", "head.seeds", "head.rates", "size"]
    assert notebook_parameters(headed)["head.seeds"] == Parameter("head.seeds", 3, "see HeadConfig")
    assert check_parameters(headed, {"head.seeds": "5", "head.rates": "1"}) == {"head.seeds": 5, "head.rates": [1.0]}


def test_a_changed_member_gives_the_notebook_its_whole_dictionary(headed):
    assert notebook_variables(headed, {"size": 5}) == {"size": 5}
    changed = {"head": {"protocol": "frozen", "seeds": 5, "rates": [0.1]}}
    assert notebook_variables(headed, {"head.seeds": 5}) == changed
    assert notebook_parameters(headed)["head.seeds"].default == 3


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("head.protocol", "frosen", "Unknown head.protocol 'frosen': did you mean 'frozen'?"),
        ("head.seed", "1", "Unknown parameter of 07_small 'head.seed': did you mean 'head.seeds'?"),
        (
            "head",
            "frozen",
            "Unknown parameter of 07_small 'head': choose from head.protocol, head.seeds, head.rates, size.",
        ),
        ("head.seeds", "many", "Parameter head.seeds takes a whole number such as 3, not 'many'."),
    ],
)
def test_a_wrong_member_is_refused(headed, name, text, says):
    with pytest.raises(InputError) as error:
        check_parameters(headed, {name: text})
    assert str(error.value) == says


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(notebook):
    with pytest.raises(InputError, match=r"^Device 'cuda' is not there .*: take 'cpu' or 'auto'\.$"):
        check_parameters(notebook, {"device": "cuda"})


@pytest.mark.parametrize(
    ("parameter", "text", "says"),
    [
        ('features = "cls"', "clss", "Unknown features 'clss': did you mean 'cls'?"),
        ('text_features = "mean"', "lst", "Unknown text_features 'lst': did you mean 'last'?"),
        ('language_model = "gpt-mini"', "gpt-mimi", "Unknown model 'gpt-mimi': did you mean 'gpt-mini'?"),
        ('text_encoder = "gpt-mini"', "gpt-mimi", "Unknown model 'gpt-mimi': did you mean 'gpt-mini'?"),
        ('text = "books"', "book", "Unknown data set 'book': did you mean 'books'?"),
        ('text = "lines"', "line", "Unknown data set 'line': did you mean 'lines'?"),
        ('dtype = "float32"', "float16", "Unknown dtype 'float16': did you mean 'bfloat16'?"),
        (
            'templates = ["a {}"]',
            "a photo",
            "Template 'a photo' needs one {} where the class name goes, as in 'a photo of a {}.'.",
        ),
    ],
)
def test_choices_are_checked_before_anything_runs(tmp_path, parameter, text, says):
    notebook = write_notebook(tmp_path / "other.ipynb", parameters=parameter)
    with pytest.raises(InputError) as error:
        check_parameters(notebook, {parameter.split()[0]: text})
    assert str(error.value) == says


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """A study of two notebooks, beside a file that is none of it."""
    for name in ("00_first", "07_small", "scratch"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(parameters, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path / "notebooks"


def test_the_study_is_its_numbered_notebooks(study):
    assert notebook_names() == ["00_first", "07_small"]


@pytest.mark.parametrize("name", ["07", "07_small"])
def test_a_notebook_is_found_by_number_or_name(study, name):
    assert find_notebook(name) == study / "07_small.ipynb"


def test_a_notebook_is_found_by_path(study):
    assert find_notebook(str(study / "scratch.ipynb")) == study / "scratch.ipynb"


@pytest.mark.parametrize("name", ["08", "7", "scratch", "nowhere.ipynb"])
def test_a_notebook_that_is_not_there_is_refused(study, name):
    with pytest.raises(InputError, match=f"^Unknown notebook '{name}'"):
        find_notebook(name)


class TestMembersByTheirOwnName:
    """``-p image_size=112`` where the notebook has ``options = {"image_size": 0, ...}``."""

    CELL = 'options = {"features": "cls", "image_size": 0}\nhead = {"seeds": 3}\nseeds = 5\nsizes = {"images": 4}'

    @pytest.fixture
    def notebook(self, tmp_path):
        return write_notebook(tmp_path / "small.ipynb", parameters=self.CELL)

    def test_a_member_is_found_by_its_own_name(self, notebook):
        assert check_parameters(notebook, {"image_size": "112"}) == {"options.image_size": 112}
        assert check_parameters(notebook, {"options.image_size": 112}) == {"options.image_size": 112}

    def test_a_member_that_is_given_twice_is_refused(self, notebook):
        with pytest.raises(InputError, match=r"options\.image_size is given twice"):
            check_parameters(notebook, {"image_size": "112", "options.image_size": "224"})

    def test_a_parameter_comes_before_a_member_of_its_name(self, notebook):
        assert check_parameters(notebook, {"seeds": "7"}) == {"seeds": 7}

    def test_its_value_is_checked_as_any_other(self, notebook):
        with pytest.raises(InputError, match="mean"):
            check_parameters(notebook, {"features": "man"})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**7) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
"""Whatever a command line, a grid or a caller can name as a value."""


@settings(max_examples=25, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", notebook_names())
def test_any_value_is_taken_in_the_type_of_the_default_or_refused(name, data):
    notebook = find_notebook(name)
    known = defaults(notebook)
    parameter = data.draw(st.sampled_from([*known, "nope"]))
    value = data.draw(VALUES)
    try:
        checked = check_parameters(notebook, {parameter: value})
    except InputError as error:
        event(f"refused: {error}"[:40])
        return
    assert type(checked[parameter]) is type(known[parameter])
    assert check_parameters(notebook, checked) == checked or checked[parameter] != checked[parameter]  # NaN


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"size": 7, "translators": ["linear"], "head": {"seeds": 2}}, None),
        ({"rate": 1, "results_dir": ""}, None),
        ({"tranlators": "linear"}, "Unknown parameter of this notebook 'tranlators': did you mean 'translators'?"),
        ({"size": "many"}, "Parameter size takes a whole number such as 4, not 'many'."),
        ({"size": "7"}, "Parameter size takes a whole number such as 4, not '7'."),
        ({"translators": "linear"}, "Parameter translators takes a list such as ['identity', 'linear']"),
        ({"translators": ["linar"]}, "Unknown translator 'linar': did you mean 'linear'?"),
        ({"head": {"seed": 2}}, "Unknown parameter of this notebook 'head.seed': did you mean 'head.seeds'?"),
    ],
)
def test_plain_papermill_is_checked_where_results_are_made(tmp_path, given, says):
    import papermill
    from papermill.exceptions import PapermillExecutionError

    cell = "from toastlib.runs.store import Results\n\nResults(results_dir)"
    parameters = 'size = 4\nrate = 0.5\ntranslators = ["identity", "linear"]\nhead = {"seeds": 3}\nresults_dir = ""'
    notebook = write_notebook(tmp_path / "small.ipynb", cell, parameters=parameters)
    options = {"parameters": given, "kernel_name": "python3", "progress_bar": False}
    if says is None:
        papermill.execute_notebook(str(notebook), str(tmp_path / "out.ipynb"), **options)
        return
    with pytest.raises(PapermillExecutionError) as error:
        papermill.execute_notebook(str(notebook), str(tmp_path / "out.ipynb"), **options)
    assert error.value.ename == "InputError"
    assert says in error.value.evalue
