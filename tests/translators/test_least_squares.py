"""Least squares from sums, against torch and scikit-learn on the stored rows."""

import pytest
import torch
from sklearn import linear_model

from toastlib.translators.least_squares import ALPHAS, Sums, fit_ridge, held_out_errors, inverse, share


def rows(count=120, inputs=12, width=5, seed=0):
    """Correlated inputs far from the origin; the targets are their first columns, moved, and some noise."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=draw).double() @ torch.randn(inputs, inputs, generator=draw).double() + 3
    moved = x[:, :width] + 0.3 * x @ torch.randn(inputs, width, generator=draw).double()
    return x, moved + torch.randn(count, width, generator=draw)


def sums_in_folds(x, y, folds=4):
    return [Sums.of_rows(x[k::folds], y[k::folds]) for k in range(folds)]


def test_sums_of_disjoint_rows_add_up():
    x, y = rows()
    parts = sums_in_folds(x, y)
    whole, added = Sums.of_rows(x, y), sum(parts[1:], start=parts[0])
    assert added.count == whole.count == 120
    for name in ("x_sum", "y_sum", "gram", "cross", "square"):
        torch.testing.assert_close(getattr(added, name), getattr(whole, name))


def test_without_a_penalty_it_is_least_squares_with_a_bias():
    x, y = rows()
    fit = fit_ridge(sums_in_folds(x, y), alpha=0)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1).double()], 1), y).solution
    torch.testing.assert_close(fit.weight, solution[:-1], rtol=1e-8, atol=1e-8)  # the oracle's own rounding
    torch.testing.assert_close(fit.bias, solution[-1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shrink_to", ["identity", "zero"])
def test_with_more_inputs_than_targets_the_penalty_holds_to_the_first_inputs(shrink_to):
    x, y = rows()
    fit = fit_ridge(sums_in_folds(x, y), shrink_to, alpha=0.2)
    goal = torch.eye(12, 5).double() * (shrink_to == "identity")
    alpha = 0.2 * (x - x.mean(0)).square().sum().item() / 12
    oracle = linear_model.Ridge(alpha=alpha, solver="cholesky").fit(x, y - x @ goal)
    torch.testing.assert_close(fit.weight, goal + torch.from_numpy(oracle.coef_.T), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fit.bias, torch.from_numpy(oracle.intercept_), rtol=1e-8, atol=1e-8)


def test_the_penalty_is_the_one_that_rows_left_out_prefer():
    x, y = rows(count=40)
    fit = fit_ridge(sums_in_folds(x, y))
    errors = torch.zeros(len(ALPHAS)).double()
    for k in range(4):
        kept = torch.arange(40) % 4 != k
        inside = [Sums.of_rows(x[kept], y[kept])]
        for p, penalty in enumerate(ALPHAS.tolist()):
            some = fit_ridge(inside, alpha=penalty)
            errors[p] += (y[~kept] - x[~kept] @ some.weight - some.bias).square().sum()
    assert fit.alpha == ALPHAS[errors.argmin()]
    assert fit.cv_error == pytest.approx(errors.min().item(), rel=1e-8)


def test_a_direction_without_rows_is_left_as_it_is():
    x, y = rows()
    x[:, 3] = 1  # no variance
    weight = fit_ridge(sums_in_folds(x, y), alpha=0).weight
    torch.testing.assert_close(weight[3], torch.eye(12, 5).double()[3])
    assert inverse(torch.tensor([0.0, 2.0]), 0).tolist() == [0, 0.5]


def test_penalties_are_half_decades_from_1e_8_to_1e4():
    assert ALPHAS.dtype == torch.float64
    assert (ALPHAS[0].item(), ALPHAS[-1].item()) == pytest.approx((1e-8, 1e4))
    torch.testing.assert_close(ALPHAS[1:] / ALPHAS[:-1], torch.full((24,), 10**0.5).double())


@pytest.mark.parametrize("shrink_to", ["identity", "zero"])
def test_held_out_errors_are_those_of_the_rows_left_out_for_every_penalty(shrink_to):
    x, y = rows(count=40)
    errors = held_out_errors(sums_in_folds(x, y), shrink_to)
    for penalty, error in zip(ALPHAS.tolist(), errors.tolist(), strict=True):
        by_hand = 0
        for k in range(4):
            kept = torch.arange(40) % 4 != k
            fit = fit_ridge([Sums.of_rows(x[kept], y[kept])], shrink_to, penalty)
            by_hand += (y[~kept] - x[~kept] @ fit.weight - fit.bias).square().sum().item()
        assert error == pytest.approx(by_hand, rel=1e-6)  # the squares of a difference, and a difference of squares


def test_maps_are_held_to_the_identity_unless_told_otherwise():
    folds = sums_in_folds(*rows(count=40))
    assert torch.equal(held_out_errors(folds), held_out_errors(folds, "identity"))
    assert torch.equal(fit_ridge(folds, alpha=1.0).weight, fit_ridge(folds, "identity", 1.0).weight)
    assert not torch.allclose(held_out_errors(folds), held_out_errors(folds, "zero"))


def test_targets_of_the_same_inputs_share_one_decomposition_for_each_fold(monkeypatch):
    x, y = rows(count=40)
    targets = [sums_in_folds(x, target) for target in (y, y.flip(1), x[:, :3])]
    apart = [held_out_errors(folds) for folds in targets]
    calls, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: calls.append(1) or eigh(matrix))
    shared = []
    for folds, expected in zip(targets, apart, strict=True):
        torch.testing.assert_close(held_out_errors(folds, shared=shared), expected)
    assert len(calls) == len(shared) == 4


def test_small_rows_that_are_not_centred_are_solved_as_large_ones_are():
    x, y = rows()
    solution = torch.linalg.lstsq(1e-3 * x, y).solution
    torch.testing.assert_close(Sums.of_rows(1e-3 * x, y).solve(), solution, rtol=1e-8, atol=1e-6)


def test_a_target_of_zeros_leaves_nothing_to_explain():
    assert share(torch.tensor(3.0), torch.tensor(2.0)) == 1.5
    assert share(0.5, torch.tensor(0.0).double()) == share(0.0, 0.0) == 0


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_are_all_alike_have_no_direction_whatever_their_rounding(seed):
    row = 100 * torch.randn(64, generator=torch.Generator().manual_seed(seed)).double()
    values, _ = Sums.of_rows(row.expand(300, -1), row.expand(300, -1)).centred().spectrum()
    assert not values.any()
