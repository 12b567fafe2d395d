"""Costs as counted on the smaller encoders and in the paper; fronts by comparing all pairs; ratios of timings."""

import time

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import FAMILIES

from toastlib import paper
from toastlib.approximation.replace import approximate, replace_spans
from toastlib.errors import InputError
from toastlib.evaluation import costs
from toastlib.evaluation.costs import map_costs, pareto_front, plan_costs, relative_throughput, time_plans
from toastlib.models.costs import flops, parameter_count
from toastlib.models.encoder import Encoder
from toastlib.plan import Plan, Span, parse_plans
from toastlib.statistics.collect import collect_moments
from toastlib.translators.linear import Linear, LowRank


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
    timed = time_plans(tiny_encoder, plans, moments, translators=["identity", Linear()], inputs=pixel_values, repeats=2)
    assert set(timed["translator"]) == {"original", "identity", "linear"}
    assert list(timed.columns) == ["translator", "plan", "repeat", "images_per_second", "relative"]
    assert len(timed) == 2 * 3 * 2
    assert not timed.duplicated(["translator", "plan", "repeat"]).any()
    assert (timed["images_per_second"] > 0).all()
    assert (timed.loc[timed["translator"] == "original", "relative"] == 1).all()
    assert parameter_count(tiny_encoder) == before


@pytest.fixture(scope="module")
def vit_small() -> Encoder:
    """ViT-S/16-224 without weights."""
    import transformers

    config = transformers.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    with torch.device("meta"):
        return Encoder(transformers.ViTModel(config))


def removed(encoder: Encoder, plan: str, column: str = "removed_parameters", translator: str = "linear") -> int:
    """One entry of `plan_costs`, for pixels of 224."""
    inputs = torch.empty(1, 3, 224, 224, device="meta")
    return plan_costs(encoder, [Plan.parse(plan)], [translator], inputs=inputs)[column].item()


@pytest.mark.slow
def test_the_papers_counting_gives_the_papers_numbers(vit_small):
    table = paper.published(1)
    printed = table[(table["model"] == "vit-s") & (table["plan"] != "original")].drop_duplicates("plan")
    assert len(printed) == 10
    for plan, millions in zip(printed["plan"], printed["params_m"], strict=True):
        ours = -removed(vit_small, plan, "removed_parameters_paper") / 1e6
        assert ours == pytest.approx(float(millions), abs=0.01)  # as far as the paper prints


def test_one_map_per_span_leaves_more_to_remove(vit_small):
    assert removed(vit_small, "1->5", "removed_parameters_paper") == 6_508_032
    assert removed(vit_small, "1->5") == 6_950_400
    assert removed(vit_small, "1->5", translator="identity") == 6_950_400 + 384**2


def test_both_countings_agree_on_single_blocks(vit_small):
    plan = "0->1 4->5"
    assert removed(vit_small, plan, "removed_parameters_paper") == removed(vit_small, plan) == 2 * 1_627_008


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_are_those_counted_on_the_smaller_encoder(tiny_model, tiny_images, family):
    encoder = Encoder(tiny_model(family), features="mean" if family == "siglip" else "cls")
    moments = collect_moments(encoder, tiny_images.train[:10])
    inputs = torch.randn(1, 3, 32, 32)
    plans = parse_plans(["original", "1->2", "-1->1 2->4"])
    names = ["identity", "linear", "separate", "context"]
    counted = plan_costs(encoder, plans, names, inputs=inputs)
    assert counted["translator"].tolist() == ["original", *names, *names]
    assert counted["blocks_removed"].tolist() == [0, *[1] * 4, *[4] * 4]
    for row in counted.itertuples():
        name = "identity" if row.translator == "original" else row.translator
        small = approximate(encoder, row.plan, moments, translator=name)
        assert row.parameters == parameter_count(small)
        assert row.removed_parameters == parameter_count(encoder) - parameter_count(small)
        assert row.gflops == flops(small, inputs) / 1e9 > 0


def test_translators_of_ones_own_are_counted_by_their_maps(tiny_encoder):
    maps = {Span(1, 3): torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.Linear(8, 32))}
    sources = {"registered": "linear", "own": LowRank(rank=4), "maps": maps}
    inputs, before = torch.randn(1, 3, 32, 32), maps[Span(1, 3)].state_dict()
    counted = plan_costs(tiny_encoder, [Plan.parse("1->3")], sources, inputs=inputs).set_index("translator")
    moved = parameter_count(tiny_encoder) - 2 * parameter_count(tiny_encoder.blocks[0])
    assert list(counted.index) == list(sources)
    assert counted.loc["registered", "parameters"] == moved + 32**2
    assert counted.loc["own", "parameters"] == moved + parameter_count(LowRank(rank=4).build(32))
    assert counted.loc["maps", "parameters"] == moved + (32 + 1) * 8 + (8 + 1) * 32
    assert map_costs(maps, 32, 17) == (552, 2 * 17 * 2 * 32 * 8)
    assert {value.device.type for value in before.values()} == {"cpu"}  # counting leaves the maps where they are


def test_each_fitted_map_counts_with_its_own_costs(tiny_encoder):
    small, large = (
        torch.nn.Linear(32, 32, bias=False),
        torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in range(2))),
    )
    maps, inputs = {Span(0, 1): small, Span(2, 4): large}, torch.randn(1, 3, 32, 32)
    assert map_costs(maps, 32, 17) == (3 * 32**2 + 2 * 32, 3 * 2 * 17 * 32**2)
    assert map_costs(large, 32, 17) == (2 * (32**2 + 32), 2 * 2 * 17 * 32**2)
    plans = parse_plans(["0->1", "2->4", "0->1 2->4"])
    counted = plan_costs(tiny_encoder, plans, {"mine": maps}, inputs=inputs)
    for row, plan in zip(counted.itertuples(), plans, strict=True):
        smaller = replace_spans(tiny_encoder, {span: maps[span] for span in plan})
        assert row.parameters == parameter_count(smaller)
        assert row.gflops == flops(smaller, inputs) / 1e9
    both = counted.iloc[2]
    assert both["removed_parameters"] - both["removed_parameters_paper"] == parameter_count(large)  # of two blocks
    with pytest.raises(InputError, match="The maps of 'mine' have none for span 3->5"):
        plan_costs(tiny_encoder, parse_plans("3->5"), {"mine": maps}, inputs=inputs)


def test_weights_that_blocks_share_go_with_the_last_of_them(tiny_encoder, tiny_images):
    for block, other in ((2, 1), (3, 0)):
        tiny_encoder.blocks[block].mlp.fc1 = tiny_encoder.blocks[other].mlp.fc1
    counted = plan_costs(
        tiny_encoder, parse_plans(["0->1", "0->2", "2->3"]), ["identity"], inputs=torch.randn(1, 3, 32, 32)
    )
    for row in counted.itertuples():
        assert row.parameters == parameter_count(
            approximate(tiny_encoder, row.plan, tiny_images.train, translator="identity")
        )
