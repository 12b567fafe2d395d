"""What runs take is estimated without a run: it grows with what is asked for, and says what it does not know."""

import json
from dataclasses import replace
from pathlib import Path

import hub_client as do
import pytest
import torch
from hub import Hub
from small_notebook import write_notebook

from toastlib.approximation.engine import forward_plans, variants_of
from toastlib.cli import commands, main
from toastlib.models.costs import example_input
from toastlib.models.loading import load_encoder
from toastlib.plan import parse_plans
from toastlib.runs import estimate as estimating
from toastlib.runs.estimate import PRICES, TimeLeft, amounts, block_runs, downloads, duration, estimate, shared
from toastlib.runs.parameters import find_notebook, notebook_names
from toastlib.runs.run import Outcome, given_run
from toastlib.runs.speed import Speed, hub_path, measure
from toastlib.runs.store import Run

STANDARD = Speed(**json.loads(PRICES.read_text())["speed"])
COSTS = json.loads(PRICES.read_text())["notebooks"]


@pytest.fixture
def measured(monkeypatch):
    """Every encoder is as fast as the one that prices were measured with; the test may change that."""
    found = {"speed": STANDARD}
    monkeypatch.setattr(estimating, "measure_encoders", lambda encoders, jobs: dict.fromkeys(encoders, found["speed"]))
    return found


def seconds(name, **given):
    (one,) = estimate([given_run(name, given, "results")])
    return one.seconds


def test_the_blocks_that_run_are_counted_as_they_run(monkeypatch):
    encoder = load_encoder("vit-mini", device="cpu")
    plans, ran, run_block = parse_plans(["1->5", "2->4", "2->5 7->10", "9->11"]), [], type(encoder).run_block
    monkeypatch.setattr(type(encoder), "run_block", lambda *args: ran.append(args[1]) or run_block(*args))
    variants = variants_of(plans, ["identity"])
    maps = {key: torch.nn.Identity() for one in variants for key in one.map_keys}
    forward_plans(encoder, example_input(encoder), variants, maps, lambda hidden, _: hidden)  # the last block whole
    assert block_runs(plans, 12) == len(ran)


def test_a_notebook_as_it_is_takes_what_was_measured_and_a_slower_machine_takes_longer(measured):
    for name in notebook_names():
        assert seconds(name) == pytest.approx(sum(COSTS[name]["seconds"].values()))
    usual = seconds("02")
    measured["speed"] = replace(STANDARD, python=2 * STANDARD.python, block=2 * STANDARD.block)
    assert seconds("02") == pytest.approx(2 * usual)
    measured["speed"] = replace(STANDARD, block=2 * STANDARD.block)
    assert usual < seconds("02") < 2 * usual


def test_every_notebook_of_the_study_has_a_price():
    assert list(COSTS) == notebook_names()


@pytest.mark.parametrize(
    ("name", "less", "more"),
    [
        ("02", {"train_size": 200}, {"train_size": 400}),
        ("05", {"test_size": 200}, {"test_size": 400}),
        ("00", {"calibration_size": 100}, {"calibration_size": 400}),
        ("02", {"plans": "1->5"}, {"plans": "1->5, 2->4"}),
        ("15", {"translators": "linear"}, {"translators": "identity, linear"}),
        ("00", {"head.seeds": 1}, {"head.seeds": 5}),
        ("05", {"head.protocol": "frozen"}, {"head.protocol": "frozen, retrained"}),
        ("03", {"datasets": "digits"}, {"datasets": "digits, mnist-mini"}),
        ("07", {"calibration_seeds": "0, 1"}, {"calibration_seeds": "0, 1, 2"}),
        ("17", {"steps": "0, 5"}, {"steps": "0, 50"}),
        ("08", {"repeats": 1}, {"repeats": 9}),
    ],
)
def test_more_of_anything_takes_longer(measured, name, less, more):
    assert seconds(name, **less) < seconds(name, **more)
    assert not any(note for one in estimate([given_run(name, more, "results")]) for note in one.notes)


def test_forwards_grow_with_the_images_that_each_protocol_needs():
    """A frozen head is trained on the original's features alone, so that plans run on test images only."""
    given = {"dataset": "digits", "plans": "1->5", "train_size": 100, "test_size": 10, "head.protocol": "frozen"}
    frozen, retrained = (amounts(given | {"head.protocol": p}, 12, 96)["plans"] for p in ("frozen", "retrained"))
    with_plan = 12 + 2 * (12 - 6)  # the original, and six more blocks behind each of two translators' maps
    assert frozen == 100 * 12 + 10 * with_plan
    assert retrained == 110 * with_plan


def test_features_kept_are_as_large_as_they_are(measured):
    (one,) = estimate([given_run("00", {"train_size": 100, "test_size": 10}, "results")])
    assert one.cache == (100 + 10 * 3) * 96 * 4


def test_what_is_not_counted_is_named(measured):
    (one,) = estimate([given_run("12", {"removed": "1, 2, 3"}, "results")])
    assert one.notes == ("not counted: removed",)
    (one,) = estimate([given_run("00", {"dataset": "cifar10"}, "results")])
    assert one.notes in ((), ("not counted: the images of cifar10",))  # no note where the set is on this machine


def test_the_time_of_many_is_that_of_jobs_that_take_one_after_the_other():
    assert shared([10, 20, 30], 2) == 40
    assert shared([30, 10, 10, 5], 2) == 30
    assert shared([10, 20, 30], 1) == 60
    assert [duration(t) for t in (3.2, 119, 600, 9000)] == ["3 s", "119 s", "10 min", "2.5 h"]


def test_the_time_left_is_the_estimates_at_the_pace_of_what_has_ended(measured):
    runs = [given_run(name, {}, "results") for name in ("00", "02", "05")]
    price = [sum(COSTS[run.notebook.stem]["seconds"].values()) for run in runs]
    left = TimeLeft(runs, 1)
    assert str(left) == ""  # of one encoder nothing is measured, and no run has told the pace
    left.finish(runs[0], 3 * price[0])
    assert str(left) == f"; about {duration(3 * (price[1] + price[2]))} left"
    left.finish(runs[1], price[1])
    left.finish(runs[2], price[2])
    assert str(left) == ""


def test_runs_of_several_encoders_are_measured_for(measured):
    runs = [given_run("00", {}, "results"), given_run("00", {"image_size": 64}, "results")]
    together = duration(sum(one.seconds for one in estimate(runs)))
    assert str(TimeLeft(runs, 1)) == f"; about {together} left"


def test_runs_of_one_encoder_are_not_measured_for(monkeypatch):
    def refuse(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(estimating, "measure_encoders", refuse)
    left = TimeLeft([given_run(name, {}, "results") for name in ("00", "05")], 1)
    assert len(left.left) == 2


def test_one_run_alone_is_not_measured_for_and_is_counted():
    left = TimeLeft([given_run("00", {}, "results")], 1)
    assert (len(left.left), str(left)) == (1, "")


def test_runs_of_unknown_notebooks_are_timed_by_those_that_have_ended(tmp_path):
    notebook = write_notebook(tmp_path / "00_mine.ipynb", "size")
    runs = [Run(notebook, {"size": size}) for size in (1, 2, 3)]
    assert estimate(runs) == [None] * 3
    left = TimeLeft(runs, 1)
    assert str(left) == ""
    left.finish(runs[0], 50)
    assert str(left) == "; about 100 s left"


def test_the_machine_is_measured_on_the_encoder():
    small, large = (measure("vit-mini", {"image_size": size, "device": "cpu"}) for size in (16, 64))
    assert (small.depth, small.width, small.source) == (12, 96, "measured")
    own = load_encoder("vit-mini", image_size=16)
    assert small.weights == 4 * sum(p.numel() for p in own.parameters())
    assert large.block > 3 * small.block > 0  # 257 tokens against 17


def test_an_encoder_that_fails_does_not_keep_others_from_being_estimated():
    found = measure("vit-mini", {"image_size": 33, "device": "cpu"})
    assert found.source.startswith("a guess: vit-mini cannot be measured: ")
    assert found.block > 0


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A Hub with vit-mini's twin of twice the width, which has weights to fetch, and a process that reaches it."""
    root = tmp_path_factory.mktemp("served")
    folder = root / "wide"
    folder.mkdir()
    config = json.loads((find_notebook("00").parents[1] / "data/models/vit-mini/config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 192, "intermediate_size": 768}))
    (folder / "model.safetensors").write_bytes(bytes(5 * 2**20))
    hub = Hub(root / "hub")
    hub.add("model", "me/wide", folder)
    client = do.Client(HF_ENDPOINT=hub.url, NO_PROXY="127.0.0.1", HF_TOKEN="hf_token", HF_HOME=str(root / "home"))
    yield hub, client, folder
    client.close()
    hub.close()


def test_an_encoder_that_is_not_here_is_a_guess_from_its_size_and_is_not_fetched(served, tmp_path):
    hub, client, _ = served
    wide = client(measure, tmp_path, "me/wide", {"device": "cpu"})
    mini = client(measure, tmp_path, "vit-mini", {"device": "cpu"})
    assert wide.source == "a guess: me/wide is not on this machine, its speed follows from its size"
    assert (wide.depth, wide.width) == (12, 192)
    assert 2 < wide.block / mini.block < 8  # four times the products, but for attention's; two measurements
    unknown = client(measure, tmp_path, "me/nothing", {"device": "cpu"})
    assert unknown.source == "a guess: me/nothing is not on this machine, vit-mini is taken instead"
    assert hub.fetched("safetensors") == []


def test_downloads_are_sized_without_them(served, tmp_path):
    hub, client, folder = served
    run = given_run("00", {"model": "me/wide", "dataset": "me/none"}, "results")
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert client(downloads, tmp_path, [run]) == {"me/wide": size, "me/none": None}
    assert hub.fetched("safetensors") == []
    assert client(downloads, tmp_path, [given_run("00", {}, "results")]) == {}


@pytest.mark.parametrize("name", ["vit-mini", str(find_notebook("00").parents[1] / "data/models/vit-mini")])
def test_what_is_here_needs_no_hub(name):
    assert hub_path("model", name) is None


def test_a_notebook_and_a_grid_are_estimated_and_nothing_is_run(measured, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text("notebook: '02'\nparameters: {train_size: [600, 700], plans: '1->5'}\n")
    assert main(["estimate", "05", "-p", "plans=2->5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"05_skipat: {duration(seconds('05', plans='2->5'))}, ")
    assert lines[-1] == "To download: nothing"
    assert main(["estimate", "grid.yaml", "--jobs", "2"]) == 0
    found = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in found[:2]] == [f"02_approximation train_size={n}" for n in (600, 700)]
    each = [seconds("02", train_size=n, plans="1->5") for n in (600, 700)]
    assert found[2].startswith(f"In all {duration(max(sum(each) / 2, *each))}, 2 at a time: ")
    assert main(["sweep", "grid.yaml", "--dry-run", "--jobs", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == found
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["05_skipad"], "Unknown notebook '05_skipad': did you mean '05_skipat'?"),
        (["05", "-p", "train_sise=3"], "Unknown parameter of 05_skipat 'train_sise': did you mean 'train_size'?"),
        (["05", "-p", "train_size=few"], "Parameter train_size takes a whole number such as 500, not 'few'."),
        (["05", "-p", "train_size=99999"], "fashion-mnist-mini: train_size=99999, and the train split has 1500 images"),
        (["nowhere.yaml"], "The grid 'nowhere.yaml' cannot be read"),
        (["nowhere.yaml", "-p", "train_size=3"], "A grid names its own parameters: -p is for a notebook."),
    ],
)
def test_a_mistake_is_one_sentence(measured, capsys, arguments, says):
    assert main(["estimate", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_an_own_notebook_has_no_estimate(tmp_path, capsys):
    notebook = write_notebook(tmp_path / "mine.ipynb", "size", parameters="size = 4")
    assert main(["estimate", str(notebook)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "mine: not estimated, as no run of this notebook was measured"


def test_a_sweep_prints_the_time_that_is_left(measured, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text("notebook: '02'\nparameters: {train_size: [600, 700, 800]}\n")
    monkeypatch.setattr(commands, "run_all", lambda runs, *_: iter([Outcome(run, 1000.0) for run in runs]))
    assert main(["sweep", "grid.yaml", "--jobs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    each = [seconds("02", train_size=size) for size in (600, 700, 800)]
    assert lines[0] == "3 notebook runs; 1 at a time"
    assert lines[1].endswith(f" 1000 s; about {duration(1000 / each[0] * sum(each[1:]))} left")
    assert lines[3].endswith("1000 s")
