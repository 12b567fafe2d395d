"""How a choice of blocks is judged, against direct computations and plans that are known to be equal; random maps."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from toastlib.errors import InputError
from toastlib.evaluation.metrics import paired_difference
from toastlib.selection.regret import random_map, rank_correlation, regret, win_rate


@pytest.mark.parametrize("bias", [False, True])
def test_a_random_map_has_the_scale_of_the_fitted_one_and_nothing_else(bias):
    torch.manual_seed(0)
    fitted = nn.Linear(8, 8, bias=bias)
    eye = torch.eye(8)
    drawn, near_identity = random_map(fitted), random_map(fitted, center="identity")

    def values(weight):
        return torch.linalg.svdvals(weight.detach())

    assert torch.allclose(values(drawn.weight), values(fitted.weight), atol=1e-5)
    assert torch.allclose(values(near_identity.weight - eye), values(fitted.weight - eye), atol=1e-5)
    assert not torch.allclose(drawn.weight, random_map(fitted, seed=1).weight, atol=0.01)
    assert torch.equal(drawn.weight, random_map(fitted, seed=0).weight)
    assert (drawn.bias is None) if not bias else torch.equal(drawn.bias, fitted.bias)


def test_random_directions_favour_none():
    """Each entry of a random rotation has mean 0 and variance 1 / width."""
    entries = torch.stack([random_map(nn.Linear(4, 4).requires_grad_(False), seed=seed).weight for seed in range(2000)])
    assert entries.mean(0).abs().max() < 0.03
    spread = entries.var(0)
    assert spread.max() / spread.min() < 1.3


@pytest.fixture
def measured() -> pd.DataFrame:
    """300 images, 6 plans of falling accuracy."""
    draw = np.random.default_rng(0)
    return pd.DataFrame({f"plan {k}": draw.random(300) < 0.95 - 0.1 * k for k in range(6)}).astype(float)


def test_the_rank_correlation_is_spearmans_and_lies_in_its_interval(measured):
    predicted = pd.Series([0.2, 0.1, 0.4, 0.3, 0.9, 0.5], index=measured.columns)
    correlation, low, high = rank_correlation(predicted, measured)
    assert correlation == pytest.approx(spearmanr(predicted, 1 - measured.mean()).statistic)
    assert low <= correlation <= high <= 1
    turned, _, _ = rank_correlation(-predicted, measured)
    assert turned == pytest.approx(-correlation)
    shuffled = predicted.sample(frac=1, random_state=0)  # plans are found by name
    assert rank_correlation(shuffled, measured)[0] == pytest.approx(correlation)


def test_plans_that_are_all_alike_have_no_rank_correlation():
    alike = pd.DataFrame({name: [0.0, 1.0, 1.0] for name in "abc"})
    assert rank_correlation(pd.Series({"a": 1.0, "b": 2.0, "c": 3.0}), alike) == (0, 0, 0)


def test_a_resample_in_which_all_plans_are_tied_counts_as_no_correlation():
    few = pd.DataFrame({"a": [0.0, 1.0, 1.0], "b": [1.0, 1.0, 1.0]})  # every 3rd resample or so leaves image 0 out
    correlation, low, high = rank_correlation(pd.Series({"a": 2.0, "b": 1.0}), few)
    assert (correlation, low, high) == (pytest.approx(1), 0, pytest.approx(1))


def test_the_distance_to_the_best_plan_is_that_of_the_means(measured):
    distance = regret(measured, "plan 3")
    means = 100 * measured.mean()
    assert distance.best == "plan 0"
    assert distance.points == pytest.approx(means["plan 0"] - means["plan 3"])
    assert distance.low < distance.points < distance.high
    assert distance.cross_validated == pytest.approx(distance.points, abs=2)
    assert regret(measured, "plan 0")[1:4] == (0, 0, 0)


def test_the_luckiest_of_equal_plans_has_no_cross_validated_lead():
    draw, distances = np.random.default_rng(0), []
    for _ in range(100):
        equal = pd.DataFrame({f"plan {k}": (draw.random(200) < 0.9).astype(float) for k in range(20)})
        distances.append(regret(equal, "plan 0", splits=10))
    assert np.mean([distance.points for distance in distances]) > 2
    assert abs(np.mean([distance.cross_validated for distance in distances])) < 0.8  # a deviation of 2.5 or so over 100


def test_a_plan_stands_above_those_that_are_less_accurate(measured):
    means = measured.mean()
    for plan in measured:
        others = means.drop(plan)
        stands = win_rate(measured, plan)
        assert stands.beats == pytest.approx(((others < means[plan]) + 0.5 * (others == means[plan])).mean())
        lows = [paired_difference(measured[other].to_numpy(), measured[plan].to_numpy())[1] for other in others.index]
        assert stands.unbeaten == pytest.approx(np.mean([low <= 0 for low in lows]))
    assert win_rate(measured, "plan 0").beats == 1
    assert win_rate(measured, "plan 5").unbeaten < 0.3


def test_plans_that_are_all_alike_beat_half_and_none_is_beaten():
    alike = pd.DataFrame({name: [0.0, 1.0, 1.0, 0.0] for name in "abc"})
    assert win_rate(alike, "b") == (0.5, 1.0, 0.5)


def test_hindsight_is_worth_nothing_among_equal_plans_and_all_where_they_differ(measured):
    draw, found = np.random.default_rng(0), []
    for _ in range(40):
        equal = pd.DataFrame({f"plan {k}": (draw.random(200) < 0.9).astype(float) for k in range(20)})
        found.append(win_rate(equal, "plan 0", splits=10).hindsight)
    assert 0.35 < np.mean(found) < 0.55  # a half but for what halves of one sample take from each other
    apart = pd.DataFrame({f"plan {k}": (draw.random(500) < 0.9 - 0.2 * k).astype(float) for k in range(4)})
    assert win_rate(apart, "plan 1").hindsight == 1


def test_a_plan_without_a_rival_is_refused():
    with pytest.raises(InputError, match=r"^Plan a has no rival: pass other plans of its size too"):
        win_rate(pd.DataFrame({"a": [0.0, 1.0]}), "a")


def test_another_center_is_refused():
    with pytest.raises(InputError, match="Unknown center of a random map 'identty': did you mean 'identity'"):
        random_map(nn.Linear(2, 2), center="identty")
