"""The front is what comparing every pair finds, and timings are ratios within a round."""

import time

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

mpl.use("Agg")

import matplotlib.pyplot as plt

from toastlib import plots
from toastlib.evaluation import costs
from toastlib.evaluation.costs import pareto_front, relative_throughput, time_plans
from toastlib.models.costs import parameter_count
from toastlib.plan import parse_plans
from toastlib.statistics.collect import collect_moments


def by_comparing_all_pairs(cost, value) -> list[bool]:
    def beaten(i):
        return any(
            cost[j] <= cost[i] and value[j] >= value[i] and (cost[j] < cost[i] or value[j] > value[i])
            for j in range(len(cost))
        )

    return [bool(cost[i] == cost[i] and value[i] == value[i] and not beaten(i)) for i in range(len(cost))]


def front(cost, value) -> list[bool]:
    return pareto_front(pd.DataFrame({"cost": cost, "value": value}), "cost", "value").tolist()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("levels", [3, 8, 10**6])  # few levels: many ties and duplicates
def test_the_front_is_what_comparing_all_pairs_finds(seed, levels):
    cost, value = np.random.default_rng(seed).integers(0, levels, (2, 40)).astype(float)
    assert front(cost, value) == by_comparing_all_pairs(cost, value)


@pytest.mark.parametrize(
    ("cost", "value", "on_it"),
    [
        ([1, 1, 2], [5, 5, 5], [True, True, False]),  # equal rows stand together; the same for more does not
        ([1, 1, 2], [4, 5, 6], [False, True, True]),
        ([3, 2, 1], [1, 2, 3], [False, False, True]),
        ([1, 2, np.nan, 0], [1, 2, 9, np.nan], [True, True, False, False]),
        ([], [], []),
    ],
)
def test_ties_duplicates_and_gaps(cost, value, on_it):
    assert front(cost, value) == on_it


def test_the_front_keeps_the_index_and_the_frame():
    frame = pd.DataFrame({"cost": [2, 1], "value": [1, 2]}, index=["b", "a"])
    before = frame.copy()
    assert pareto_front(frame, "cost", "value").to_dict() == {"b": False, "a": True}
    pd.testing.assert_frame_equal(frame, before)


class Clock:
    """Encoders that take the time they are told, on a machine that slows down by the round."""

    def __init__(self, monkeypatch, slower: float):
        self.now, self.slower, self.calls = 0.0, slower, []
        monkeypatch.setattr(costs.time, "perf_counter", lambda: self.now)

    def encoder(self, name, seconds):
        def run(inputs):
            rounds = self.calls.count(name)
            self.calls.append(name)
            self.now += seconds * (1 + self.slower * rounds)

        return run


def test_drift_between_rounds_leaves_the_ratios_alone(monkeypatch):
    clock = Clock(monkeypatch, slower=0.5)
    encoders = {"original": clock.encoder("original", 0.2), "small": clock.encoder("small", 0.1)}
    frame = relative_throughput(encoders, torch.zeros(10, 3, 4, 4), repeats=4)
    assert frame["repeat"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert np.allclose(frame.loc[frame["encoder"] == "original", "relative"], 1)
    assert np.allclose(frame.loc[frame["encoder"] == "small", "relative"], 2)
    speeds = frame.loc[frame["encoder"] == "small", "images_per_second"]
    assert np.allclose(speeds, [100 / (1 + 0.5 * r) for r in (1, 2, 3, 4)])  # round 0 is not counted


def test_rounds_interleave_and_turn_around(monkeypatch):
    clock = Clock(monkeypatch, slower=0)
    relative_throughput({name: clock.encoder(name, 1) for name in "abc"}, torch.zeros(1, 3, 4, 4), repeats=2)
    assert "".join(clock.calls) == "abc" + "cba" + "abc"


def test_a_slower_encoder_measures_slower(tiny_encoder, pixel_values):
    def slow(inputs):
        time.sleep(0.05)
        return tiny_encoder(inputs)

    frame = relative_throughput({"original": tiny_encoder, "slow": slow}, pixel_values, repeats=3)
    assert frame.loc[frame["encoder"] == "slow", "relative"].median() < 0.7


def test_every_plan_is_timed_with_each_translator_and_the_original(tiny_encoder, tiny_images, pixel_values):
    plans = parse_plans(["1->3", "0->1 3->5"])
    before = parameter_count(tiny_encoder)
    moments = collect_moments(tiny_encoder, tiny_images.train)
    timed = time_plans(tiny_encoder, plans, ["identity", "linear"], moments, pixel_values, repeats=2)
    assert list(timed.columns) == ["translator", "plan", "repeat", "images_per_second", "relative"]
    assert len(timed) == 2 * 3 * 2
    assert not timed.duplicated(["translator", "plan", "repeat"]).any()
    assert (timed["images_per_second"] > 0).all()
    assert (timed.loc[timed["translator"] == "original", "relative"] == 1).all()
    assert parameter_count(tiny_encoder) == before


def test_the_figure_joins_and_names_what_is_on_the_front():
    rows = [("original", "original", 95.0, 4.0), ("linear", "1->5", 93.0, 2.0), ("identity", "1->5", 80.0, 1.9)]
    frame = pd.DataFrame([*rows, ("identity", "2->4", 70.0, 3.0)], columns=["translator", "plan", "accuracy", "gflops"])
    frame["front"] = pareto_front(frame, "gflops", "accuracy")
    ax = plots.accuracy_against_cost(frame, "gflops", "front", "GFLOPs", plt.subplots()[1])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("GFLOPs", "accuracy (%)")
    assert np.allclose(ax.lines[0].get_xydata(), [(1.9, 80), (2, 93), (4, 95)])
    assert [text.get_text() for text in ax.texts] == ["1->5", "1->5"]  # the original is told by its marker
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == 4
    plt.close("all")
