"""A notebook's parameters are read with their comments, and given values are checked against them."""

import pytest
import torch
from small_notebook import write_notebook

from toastlib.errors import InputError
from toastlib.runs.parameters import Parameter, check_parameters, notebook_parameters


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path / "07_small.ipynb")


def test_parameters_come_in_order_with_default_and_comment(notebook):
    parameters = notebook_parameters(notebook)
    assert list(parameters)[:3] == ["model", "dataset", "datasets"]
    assert parameters["size"] == Parameter("size", 4, "how many")
    assert parameters["quick"] == Parameter("quick", False, "")


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
    ],
)
def test_a_value_of_another_type_is_refused(notebook, name, given, says):
    with pytest.raises(InputError) as error:
        check_parameters(notebook, {name: given})
    assert str(error.value) == says


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(notebook):
    with pytest.raises(InputError, match=r"^Device 'cuda' is not there .*: take 'cpu' or 'auto'\.$"):
        check_parameters(notebook, {"device": "cuda"})


@pytest.mark.parametrize(
    ("parameter", "text", "says"),
    [
        ('features = "cls"', "clss", "Unknown features 'clss': did you mean 'cls'?"),
        ('text_features = "mean"', "lst", "Unknown features 'lst': did you mean 'last'?"),
        ('language_model = "gpt-mini"', "gpt-mimi", "Unknown model 'gpt-mimi': did you mean 'gpt-mini'?"),
        ('text_encoder = "gpt-mini"', "gpt-mimi", "Unknown model 'gpt-mimi': did you mean 'gpt-mini'?"),
        ('text = "books"', "book", "Unknown data set 'book': did you mean 'books'?"),
        ('sentences = "lines"', "line", "Unknown data set 'line': did you mean 'lines'?"),
        ('head = "retrained"', "frosen", "Unknown head 'frosen': did you mean 'frozen'?"),
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
