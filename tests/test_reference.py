"""The committed reference runs are those of the grids, complete, and as small as promised."""

import hashlib
import re

import pandas as pd
import pytest

import toastlib as toast
from toastlib.data import catalog
from toastlib.data.catalog import ROOT
from toastlib.paper import REFERENCE
from toastlib.runs.grid import read_grid

GRIDS = sorted(path.stem.removeprefix("reference-") for path in (ROOT / "grids").glob("reference-*.yaml"))
FILES = sorted(REFERENCE.rglob("*.parquet"))


@pytest.fixture(autouse=True)
def _every_model_is_there(monkeypatch):
    monkeypatch.setattr(catalog, "MADE_BY", {})  # a grid is read, and no model is opened


def settings(frame: pd.DataFrame) -> set[tuple]:
    """Every run's model and data sets, as a table has them; the decoders of 13, which read one text."""
    if "language_model" in frame:
        return set(frame[["language_model"]].itertuples(index=False, name=None))
    data = "datasets" if "datasets" in frame else "dataset"
    return set(frame[["model", data]].itertuples(index=False, name=None))


@pytest.mark.parametrize("grid", GRIDS)
def test_every_run_of_a_grid_is_there_and_no_other(grid):
    runs = read_grid(ROOT / "grids" / f"reference-{grid}.yaml")
    asked = {
        (run.parameters["model"], ", ".join(run.parameters.get("datasets", [])) or run.parameters["dataset"])
        if "model" in run.parameters
        else (run.parameters["language_model"],)
        for run in runs
    }
    tables = [file.stem for file in FILES if file.parent.name == grid]
    assert tables
    for table in tables:
        assert settings(toast.reference(grid, table)) == asked, table


FEWER = ("02-control", "08-resources", "12-selectors", "13", "17")


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid not in FEWER])
def test_a_grid_has_two_encoders_and_three_data_sets(grid):
    runs = [run.parameters for run in read_grid(ROOT / "grids" / f"reference-{grid}.yaml")]
    for model in ("vit-mini", "vit-s14-focus"):
        own = [run for run in runs if run["model"] == model]
        sets = {name for run in own for name in run.get("datasets", [run.get("dataset"), *run.get("others", [])])}
        assert len(sets) >= 3


@pytest.mark.parametrize(
    ("grid", "table", "sets", "told"),
    [
        ("08-resources", "resources", {"cifar10"}, "CIFAR-10 alone"),
        ("12-selectors", "selectors", {"cifar10", "fashion-mnist"}, "CIFAR-10 and Fashion-MNIST"),
        ("17", "results", {"cifar10"}, "CIFAR-10 alone"),
    ],
)
def test_a_grid_of_fewer_data_sets_has_two_encoders_and_says_it(grid, table, sets, told):
    read = toast.reference(grid, table)
    assert set(read["model"]) == {"vit-mini", "vit-s14-focus"}
    assert set(read["dataset"]) == sets
    row = next(line for line in (REFERENCE / "README.md").read_text().splitlines() if line.startswith(f"| [{grid}]"))
    assert told in row


def test_the_control_of_02_is_of_the_encoder_on_which_the_map_loses():
    control = toast.reference("02-control", "control")
    assert set(control["dataset"]) == {"mnist", "fashion-mnist", "cifar10"}
    gains = toast.reference("05", "gains")
    [worse] = gains[gains["clear"] == "worse"][["model", "plan"]].to_numpy().tolist()
    assert control[["model", "plan"]].drop_duplicates().to_numpy().tolist() == [worse]


def test_text_has_two_decoders():
    assert set(toast.reference("13")["language_model"]) == {"gpt-mini", "smollm2"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_table_is_as_the_card_says(file):
    card = (file.parent / "README.md").read_text()
    [digest] = re.findall(rf"^- `{re.escape(file.name)}`: `(\w+)`$", card, re.MULTILINE)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    assert f"`toast sweep grids/reference-{file.parent.name}.yaml`" in card
    assert f"]({file.parent.name}/README.md)" in (REFERENCE / "README.md").read_text()


def test_they_are_small():
    assert sum(file.stat().st_size for file in FILES) < 5 * 2**20


def test_an_unknown_table_is_named():
    with pytest.raises(toast.InputError, match="'99'"):
        toast.reference("99")
    with pytest.raises(toast.InputError, match="'nothing'"):
        toast.reference(GRIDS[0], "nothing")


ROWS = {
    "nothing (`identity`)": "identity",
    "nothing, and one matrix behind the last block (`identity+align`)": "identity+align",
    "one matrix, the paper's (`linear`)": "linear",
    "the paper's, and the matrix behind the last block (`linear+align`)": "linear+align",
    "one matrix for the CLS token, which also reads the patches' mean and standard deviation, and one for the patches "
    "(`context`)": "context",
    "`context`, and the matrix behind the last block (`context+align`)": "context+align",
}
NAMES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
COLUMNS = [(m, d) for m in ("vit-mini", "vit-s14-focus") for d in ("mnist", "fashion-mnist", "cifar10")]


def readme_table() -> dict[str, list[str]]:
    """Name -> cells, of the README's table of results."""
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("| in place of each span"))
    rows = [line.strip("| ").split(" | ") for line in lines[start + 2 : start + 3 + len(ROWS)]]
    return {name: cells for name, *cells in rows}


def test_the_table_of_the_readme_is_that_of_the_reference_runs():
    draws, results = toast.reference("16", "draws"), toast.reference("16")
    pooled = draws[draws["draw"] == "all draws"].set_index(["model", "dataset", "translator"])
    accuracy = results[results["plan"] == "original"].groupby(["model", "dataset"])["accuracy"].mean()
    table = readme_table()
    assert list(table) == ["all blocks: accuracy of the original", *ROWS]
    assert table.pop("all blocks: accuracy of the original") == [f"{accuracy[key]:.1f} %" for key in COLUMNS]
    for name, cells in table.items():
        rows = [pooled.loc[(*key, ROWS[name]), ["lost", "lost_low", "lost_high"]] for key in COLUMNS]
        rounded = [row.astype(float).round(1) + 0 for row in rows]  # no -0.0
        assert cells == ["{:.1f} [{:.1f}, {:.1f}]".format(*row) for row in rounded], name


HEADLINE = ("identity", "linear", "context+align")


def test_the_headline_is_that_of_the_table():
    draws = toast.reference("16", "draws").query("draw == 'all draws' and model == 'vit-s14-focus'")
    ends = draws.groupby("translator")["lost"].agg(["min", "max"]).round().astype(int) + 0
    dropped, paper, best = (
        f"{low} to {high}" for low, high in ends.loc[["identity", "linear", "context+align"]].values
    )
    assert in_readme(f"dropping 2 or 3 of 12 blocks costs {dropped} points of accuracy. With the paper's matrix")
    assert in_readme(f"in their place it costs {paper}, with the best map here {best}. ")
    assert draws.groupby("translator")["lost"].max().idxmin() == "context+align"
    assert in_readme(f"On the ViT-S it loses {best} points, where the paper's matrix loses {paper} and dropping ")
    retrained = toast.reference("05", "accuracy_lost").query("model == 'vit-s14-focus' and head == 'retrained'")
    retrained = retrained[retrained["plan"].isin(["2->5", "7->10", "9->11", "1->2 4->5"])]
    means = retrained.groupby(["translator", "dataset"])["lost"].mean()
    ends = means.groupby("translator").agg(["min", "max"]).round().astype(int)
    dropped, mapped = (f"{low} to {high}" for low, high in ends.loc[["identity", "linear"]].values)
    assert in_readme(f"then dropping costs {dropped}, and the paper's matrix {mapped} (")


def test_the_sentence_on_more_draws_is_that_of_the_reference_runs():
    draws = toast.reference("16-confirmed", "draws").query("draw == 'all draws' and model == 'vit-s14-focus'")
    assert set(draws["plans"]) == {"2->5, 9->11"}
    lost = draws.set_index(["translator", "dataset"])["lost"]
    told = {name: [f"{lost[name, dataset]:.1f}" for dataset in NAMES] for name in ("context+align", "linear")}
    best, paper = (f"{a}, {b} and {c}" for a, b, c in told.values())
    assert in_readme(f"`context+align` loses {best} points on the ViT-S, and `linear` {paper} (")


def test_the_sentence_on_the_size_of_maps_is_right():
    """Of 12 blocks of width 384 with their two norms and two scales, and everything else that `vit-s14-focus` has."""
    width, parameters, maps = 384, 22_056_576, {"linear": 1, "context": 4, "nothing": 0}
    block = 12 * width**2 + (4 + 4 + 1) * width + 4 * width + 2 * width
    costs = {name: toast.map_costs(name, width, 65, special_tokens=1)[0] for name in ("linear", "context")}
    assert {name: cost // width**2 for name, cost in costs.items()} == {"linear": 1, "context": 4}
    left = {name: 100 * (parameters - 3 * block + costs.get(name, 0)) / parameters for name in maps}
    sentence = (
        "`linear` leaves {linear:.1f} % of the parameters, `context` {context:.1f} %, and nothing {nothing:.1f} %"
    )
    assert in_readme(sentence.format(**left))


def test_the_sentence_on_speed_is_that_of_the_reference_runs():
    timings = toast.reference("08", "timings").query(
        "model == 'vit-s14-focus' and translator == 'linear' and plan in ['2->5', '7->10']"
    )
    medians = timings.groupby(["dataset", "plan"])["relative"].median()
    assert len(medians) == 6
    assert in_readme(f"{medians.min():.2f} to {medians.max():.2f} times as many images a second (`2->5` and `7->10`")


def test_the_sentence_on_retrained_heads_is_that_of_the_reference_runs():
    gains = toast.reference("05", "gains").query("head == 'retrained'")
    mini, real = (gains[gains["model"] == model] for model in ("vit-mini", "vit-s14-focus"))
    assert mini["plan"].nunique() == 20
    assert (mini["clear"] == "").all()
    assert len(real) == 60
    [(plan, dataset)] = real.loc[real["clear"] == "worse", ["plan", "dataset"]].itertuples(index=False)
    better = (real["clear"] == "better").sum()
    assert in_readme(f"Of these 60 comparisons the matrix is clearly better in {better}, and dropping in one (`{plan}`")
    assert NAMES[dataset] == "MNIST"
    lost = toast.reference("05", "accuracy_lost").query(
        "model == 'vit-s14-focus' and head == 'retrained' and plan == 'all plans'"
    )
    assert (lost["test_size"] == 1000).all()
    lost = lost.set_index(["dataset", "translator"])[["lost", "lost_low", "lost_high"]]
    written = {key: "{:.1f} [{:.1f}, {:.1f}]".format(*row) for key, row in zip(lost.index, lost.to_numpy())}
    dropped, mapped = ({d: written[d, t] for d in NAMES} for t in ("identity", "linear"))
    first, *others = (f"{dropped[d]} and {mapped[d]}{{}} on {name}" for d, name in NAMES.items())
    assert in_readme(", ".join([first.format(" points lost"), *(other.format("") for other in others)]))


def test_the_sentence_on_the_relative_is_that_of_the_reference_runs():
    theirs = toast.paper.published(9).query("model == 'dinov2-s'").set_index(["dataset", "plan"])["accuracy"]
    ours = toast.reference("02", "accuracy_lost").query("model == 'vit-s14-focus' and translator == 'linear'")
    ours = ours.set_index(["dataset", "plan"])
    original = theirs.xs("original", level="plan").reindex(ours.index.get_level_values("dataset")).to_numpy()
    printed = original - theirs.reindex(ours.index)
    inside = (ours["lost_low"] <= printed) & (printed <= ours["lost_high"])
    assert in_readme(f"of {printed.count()} losses that the paper prints, {inside.sum()} lie in our 95 % intervals")
    assert in_readme(f"{(printed.abs() < 1).sum()} of the {printed.count()} lie within one point of zero")


def in_readme(words: str) -> bool:
    return words in " ".join((ROOT / "README.md").read_text().split())


def intervals(rows) -> list[str]:
    """Gains with their intervals, as the README writes them."""
    columns = ["gain", "low", "high"] if "low" in rows else ["gain", "gain_low", "gain_high"]
    ends = rows[columns].abs() if (rows["gain"] < 0).all() else rows[columns]  # a loss is written without its sign
    return ["{:.1f} [{:.1f}, {:.1f}]".format(row[0], *sorted(row[1:])) for row in ends.itertuples(index=False)]


def test_the_sentence_on_stopping_early_is_that_of_the_reference_runs():
    gains = toast.reference("18", "gains").query("way == 'stop, mapped' and removed == 4").sort_values("gain")
    real, mini = (intervals(gains[gains["model"] == model].iloc[[0, -1]]) for model in ("vit-s14-focus", "vit-mini"))
    assert in_readme(
        f"accuracy is {real[0]} to {real[1]} points higher on the ViT-S, and {mini[0]} to {mini[1]} on `vit"
    )


def test_the_sentence_on_the_race_is_that_of_the_reference_runs():
    tried = toast.reference("12-selectors", "selectors").sort_values("dataset").set_index("selector")
    assert sorted(set(tried["dataset"])) == ["cifar10", "fashion-mnist"]

    def found(selector, translator, model="vit-s14-focus"):
        return tried.loc[selector].query(f"translator == '{translator}' and model == '{model}'")

    def signed(selector, translator):
        rows = found(selector, translator)[["gain", "gain_low", "gain_high"]]
        return " and ".join("{:.1f} [{:.1f}, {:.1f}]".format(*row) for row in rows.itertuples(index=False))

    race = signed("race", "context").replace(" [", " points [", 1)
    assert in_readme(f"With `context` the race's choice loses {race} less, ")
    assert in_readme(f"the last four blocks lose {signed('last', 'context')} less. ")
    assert in_readme(f"the last four lose {' and '.join(intervals(found('last', 'linear')))} more. ")
    unclear = [found(name, "context", "vit-mini") for name in ("race", "last")]
    unclear += [found(name, "linear", "vit-mini") for name in ("race", "last")] + [found("race", "linear")]
    for rows in unclear:
        assert ((rows["gain_low"] <= 0) & (rows["gain_high"] >= 0)).all()


def test_the_sentence_on_starts_is_that_of_the_reference_runs():
    starts = toast.reference("17", "starts").query("equal == 'seconds' and identity_step == 80")
    real, mini = (starts[starts["model"] == model].iloc[[0]] for model in ("vit-s14-focus", "vit-mini"))
    [of_real], [of_mini] = intervals(real), intervals(mini)
    ours, nothing = (f"{real[name].item():.0f} %" for name in ("linear", "identity"))
    lead = of_real.replace(" [", " points [")
    assert in_readme(f"From the matrices it reaches {ours}, with nothing in their place {nothing}: a lead of {lead}. ")
    trained = toast.reference("17", "gains").query("start == 'original' and model == 'vit-s14-focus'")
    before = f"The original has {trained['before'].item():.0f} %"
    assert in_readme(f"{before}, and the same 80 steps add {intervals(trained)[0]} to it. ")
    removed = [len(toast.Plan.parse(rows["plan"].iloc[0]).removed) for rows in (real, mini)]
    assert removed == [6, 9]
    assert in_readme(f"On `vit-mini`, without nine blocks, there is no clear difference: {of_mini} (CIFAR-10, labels, ")
