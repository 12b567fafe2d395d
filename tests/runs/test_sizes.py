"""Sizes of data are compared with what runs ask for, before anything runs and without a download."""

import pytest
from PIL import Image
from small_notebook import write_notebook

from toastlib.cli import main
from toastlib.errors import InputError
from toastlib.runs.run import run_notebook
from toastlib.runs.sizes import check_sizes, config_of
from toastlib.runs.store import Run

PARAMETERS = """\
dataset = "digits"
sizes = {"train_size": 0, "test_size": 0}
calibration_size = 100
head = {"seeds": 1}
results_dir = ""
"""


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path / "07_small.ipynb", "1 / 0", parameters=PARAMETERS)


@pytest.fixture
def unlabelled(tmp_path):
    for split, count in (("train", 5), ("test", 3)):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "pictures" / split / f"{number}.png")
    return str(tmp_path / "pictures")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sizes.train_size": 1198}, "digits: train_size=1198, and the train split has 1197 images"),
        ({"sizes.test_size": 601}, "digits: test_size=601, and the test split has 600 images"),
        ({"sizes.train_size": 99}, "digits: calibration_size=100, and train_size=99: .*, so take at most 99"),
        (
            {"calibration_size": 1198},
            "calibration_size=1198, and the train split has 1197 images: .* take at most 1197",
        ),
        ({"dataset": "mnist-mini", "sizes.test_size": 1001}, "mnist-mini: test_size=1001, and the test split has 1000"),
    ],
)
def test_what_is_more_than_there_is_is_refused_by_its_parameter(notebook, given, says):
    with pytest.raises(InputError, match=rf"^07_small, .*{says}"):
        check_sizes([Run(notebook, {}), Run(notebook, given)])


def test_what_is_there_is_enough(notebook):
    given = {"sizes.train_size": 1197, "sizes.test_size": 600, "calibration_size": 1197}
    assert check_sizes([Run(notebook, given), Run(notebook, {})]) == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"plans": "2->5, 2->40"}, "Span 2->40 leaves the model: it has 12 blocks, so the last is 11."),
        ({"plan": "2->40"}, "Span 2->40 leaves the model"),
        ({"options.image_size": 30}, "An image of 30 pixels has no whole patches of 4 pixels: take 32."),
    ],
)
def test_what_the_encoder_cannot_do_is_refused_from_its_configuration(tmp_path, monkeypatch, given, says):
    parameters = 'model = "vit-mini"\nplan = "2->5"\nplans = "paper"\noptions = {"image_size": 0}\n'
    notebook = write_notebook(tmp_path / "02_approximation.ipynb", parameters=parameters)
    assert check_sizes([Run(notebook, {}), Run(notebook, {"options.image_size": 64})]) == []
    assert check_sizes([Run(notebook, given | {"model": "owner/not-here"})]) == []  # the run itself will say it
    with pytest.raises(InputError) as error:
        check_sizes([Run(notebook, given)])
    assert str(error.value).startswith(says)
    own = write_notebook(tmp_path / "own.ipynb", parameters=parameters)
    assert check_sizes([Run(own, given)]) == []  # its plans may be of sublayers


def test_the_configuration_of_a_fetched_checkpoint_is_read_where_it_lies(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text('{"vision_config": {"num_hidden_layers": 3}}')
    here = {("owner/clip", "config.json", "v1"): str(tmp_path / "config.json")}
    found = lambda name, file, revision=None: here.get((name, file, revision))  # noqa: E731
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", found)
    assert config_of("owner/clip@v1") == {"num_hidden_layers": 3}
    assert config_of("owner/clip") == {}


def test_heads_need_labels_and_maps_do_not(notebook, unlabelled, tmp_path):
    given = {"dataset": unlabelled, "calibration_size": 5}
    with pytest.raises(InputError, match="has no labels: accuracies need them"):
        check_sizes([Run(notebook, given)])
    without = PARAMETERS.replace('head = {"seeds": 1}\n', "")
    assert check_sizes([Run(write_notebook(tmp_path / "08.ipynb", parameters=without), given)]) == []


def test_a_set_that_would_be_downloaded_is_named_and_left_alone(notebook):
    assert check_sizes([Run(notebook, {"dataset": name}) for name in ("cifar10", "digits", "cifar10")]) == ["cifar10"]


def test_a_run_and_a_grid_are_refused_before_a_kernel_starts(notebook, tmp_path, capsys, monkeypatch):
    with pytest.raises(InputError, match="calibration_size=100, and train_size=99"):
        run_notebook(str(notebook), {"train_size": 99}, tmp_path / "results")
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"notebook: {notebook}\nparameters:\n  train_size: [0, 99]\n  dataset: [digits, cifar10]\n")
    for extra in ([], ["--dry-run"]):
        assert main(["sweep", str(grid), "--results-dir", str(tmp_path / "results"), *extra]) == 2
        assert "grid.yaml, line 1: 07_small, digits: calibration_size=100, and train" in capsys.readouterr().err
    grid.write_text(grid.read_text().replace("[0, 99]", "[0]"))
    assert main(["sweep", str(grid), "--results-dir", str(tmp_path / "results"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Sizes are checked when a set is fetched, which these are not: cifar10." in out
    assert "missing  07_small dataset=cifar10" in out
    assert not (tmp_path / "results").exists()
