"""Intervals and tests: against formulas, SciPy and worked examples."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from toastlib.errors import InputError
from toastlib.evaluation.metrics import (
    accuracy_interval,
    exact_mcnemar,
    holm,
    images_needed,
    paired_difference,
    paired_interval,
)


def test_the_interval_is_wilsons():
    low, high = accuracy_interval(8, 10)
    assert (low, high) == pytest.approx((0.4901625, 0.9433178), abs=1e-7)  # statsmodels, proportion_confint


@pytest.mark.parametrize(("correct", "images"), [(0, 10), (10, 10), (97, 600), (550, 600)])
def test_the_interval_solves_wilsons_equation(correct, images):
    z, share = stats.norm.ppf(0.975), correct / images
    for end in accuracy_interval(correct, images):
        assert (share - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / images, abs=1e-12)


def test_the_paired_difference_is_students():
    draw = np.random.default_rng(0)
    first, second = draw.integers(0, 4, 200) / 3, draw.integers(0, 4, 200) / 3
    difference, low, high = paired_difference(first, second)
    half = stats.t.ppf(0.975, 199) * 100 * (first - second).std(ddof=1) / math.sqrt(200)
    assert difference == pytest.approx(100 * (first.mean() - second.mean()))
    assert (low, high) == pytest.approx((difference - half, difference + half))
    expected = stats.ttest_rel(100 * first, 100 * second).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_a_difference_that_is_the_same_for_every_image_has_no_width():
    assert paired_difference(np.ones(5), np.zeros(5)) == (100.0, 100.0, 100.0)
    assert paired_difference(np.ones(5), np.ones(5)) == (0.0, 0.0, 0.0)


def test_another_confidence_gives_the_interval_of_that_coverage():
    first, second = np.random.default_rng(0).integers(0, 2, (2, 100)).astype(float)
    expected = stats.ttest_rel(100 * first, 100 * second).confidence_interval(0.99)
    assert paired_difference(first, second, 0.99)[1:] == pytest.approx((expected.low, expected.high))
    assert paired_difference(first, second, 0.99)[0] == paired_difference(first, second)[0]


@pytest.mark.parametrize(("lost", "won"), [(6, 1), (1, 6), (10, 0), (4, 4), (23, 9), (0, 0)])
def test_mcnemars_exact_test_is_that_of_a_fair_coin(lost, won):
    tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1)) / 2 ** (lost + won)
    assert exact_mcnemar(lost, won) == pytest.approx(min(1, 2 * tail))


def test_holm_of_a_worked_example():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]


def test_holm_rejects_as_the_closed_test_does():
    """Holm is the closure of Bonferroni: reject i if every intersection that holds i is rejected by Bonferroni."""
    draw = np.random.default_rng(1)
    for p in draw.random((50, 5)) ** 3:
        adjusted = holm(p)
        for i in range(5):
            others = [k for k in range(5) if k != i]
            sets = [(i, *extra) for size in range(5) for extra in itertools.combinations(others, size)]
            assert adjusted[i] == pytest.approx(min(1, max(len(s) * min(p[list(s)]) for s in sets)))


@pytest.mark.parametrize(
    ("lost", "won", "images"), [(12, 2, 50), (5, 5, 200), (1, 0, 54), (30, 4, 40), (0, 7, 60), (1, 0, 3)]
)
def test_the_ends_of_the_paired_interval_are_those_that_the_score_test_just_rejects(lost, won, images):
    """The test by its definition: with the share that only the second has right where the likelihood is largest."""
    for end in paired_interval(lost, won, images):
        shares = np.linspace(max(0, -end), (1 - end) / 2, 2_000_001)[1:-1]
        same = images - lost - won
        likelihood = lost * np.log(shares + end) + won * np.log(shares) + same * np.log(1 - end - 2 * shares)
        variance = images * (2 * shares[likelihood.argmax()] + end * (1 - end))
        z = (lost - won - images * end) / math.sqrt(variance)
        assert abs(z) == pytest.approx(stats.norm.ppf(0.975), abs=1e-4)  # the grid's step


def test_images_that_never_change_leave_room_for_some_that_would():
    z = stats.norm.ppf(0.975)
    assert paired_interval(0, 0, 100) == pytest.approx((-(z**2) / (100 + z**2), z**2 / (100 + z**2)))
    assert paired_interval(100, 0, 100) == pytest.approx(((100 - z**2) / (100 + z**2), 1))
    assert paired_interval(3, 8, 50) == pytest.approx([-end for end in paired_interval(8, 3, 50)[::-1]])


def test_the_paired_interval_covers_where_students_does_not():
    """200 images, a hundredth of which turn wrong: the share of draws whose true difference lies above the end."""
    draws = np.random.default_rng(0).multinomial(200, [0.01, 0.0, 0.99], size=2000)
    ends = {(lost, won): paired_interval(lost, won, 200)[1] for lost, won, _ in np.unique(draws, axis=0)}
    missed = np.mean([ends[lost, won] < 0.01 for lost, won, _ in draws])
    students = np.mean(
        [paired_difference(np.repeat([1.0, 0], [lost, 200 - lost]), np.zeros(200))[2] < 1 for lost, _, _ in draws]
    )
    assert missed <= 0.025 + 0.01  # three standard errors of 2,000 draws
    assert students > 0.1


def test_one_image_has_a_difference_but_no_width():
    assert paired_difference([1], [0]) == (100.0, 100.0, 100.0)


@pytest.mark.parametrize("kind", [bool, np.uint8])
def test_correctness_may_be_of_any_kind_of_number(kind):
    """Differences of booleans and of unsigned integers are no numbers below zero."""
    first, second = np.random.default_rng(0).integers(0, 2, (2, 50))
    assert paired_difference(first.astype(kind), second.astype(kind)) == paired_difference(first, second)


@pytest.mark.parametrize("pair", [(["x"], [1]), ([1], ["x"]), ([None], [None])])
def test_what_is_no_number_is_not_compared(pair):
    with pytest.raises(InputError, match="Correctness is a number for each image"):
        paired_difference(*pair)


@pytest.mark.parametrize("pair", [([1, 0], [1]), ([1], [1, 0]), ([[1, 0]], [[1, 0]]), ([], [])])
def test_images_that_are_no_pairs_are_refused(pair):
    with pytest.raises(InputError, match="Differences are paired over images"):
        paired_difference(*pair)


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 95, math.nan])
def test_a_confidence_lies_between_0_and_1(confidence):
    with pytest.raises(InputError, match="confidence of an interval lies between 0 and 1"):
        paired_difference([1, 0], [0, 1], confidence)


@pytest.mark.parametrize(("lost", "won", "images", "bound"), [(6, 2, 100, 0.06), (1, 1, 50, 0.01), (0, 4, 80, 0.02)])
def test_the_images_needed_are_the_fewest_that_would_tell_to_a_twentieth(lost, won, images, bound):
    needed = images_needed(lost, won, images, bound)
    ends = [paired_interval(lost * n / images, won * n / images, n)[1] for n in (needed, (needed - 1) / 1.05)]
    assert ends[0] <= bound
    assert needed == images or ends[1] > bound


def test_enough_images_are_all_that_are_needed():
    upper = paired_interval(3, 1, 400)[1]
    assert images_needed(3, 1, 400, upper) == 400
    assert 400 < images_needed(3, 1, 400, upper - 1e-6) <= math.ceil(1.05 * 400)


def test_no_number_of_images_shows_that_less_is_lost_than_is():
    assert images_needed(5, 0, 100, 0.05) is None
    assert images_needed(9, 2, 100, 0.05) is None
    assert images_needed(5, 1, 100, 0.05) > 100


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_the_paired_interval_of_another_confidence_is_that_of_its_quantile(confidence):
    """Where no image changes the ends are ``z^2 / (images + z^2)``."""
    z = stats.norm.ppf(0.5 + confidence / 2)
    assert paired_interval(0, 0, 100, confidence)[1] == pytest.approx(z**2 / (100 + z**2))
