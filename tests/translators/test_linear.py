"""Closed forms from moments, against scikit-learn, scipy and torch on the stored rows."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn import linear_model
from sklearn.decomposition import PCA
from torch import Tensor

from toastlib.approximation.replace import fit_spans
from toastlib.errors import InputError
from toastlib.plan import Span
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.base import TRANSLATORS, make_translator
from toastlib.translators.least_squares import ALPHAS, Sums
from toastlib.translators.linear import Affine, Diagonal, LowRank, Orthogonal, Ridge, Scalar

SPAN = Span(0, 1)
PAIRS = [(0, 0), (0, 1)]
FORMS = [Affine(), Ridge(alpha=0.1), LowRank(3), Orthogonal(), Diagonal(), Scalar()]


def rows(count: int = 200, width: int = 12, seed: int = 0, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Correlated rows far from the origin, and what an unknown map near the identity and some noise make of them."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    source = normal(count, width) @ normal(width, width) + 5 * normal(width)
    target = source @ (torch.eye(width) + 0.2 * normal(width, width)) + normal(width) + noise * normal(count, width)
    return source, target


def moments_of(source: Tensor, target: Tensor) -> Moments:
    return Moments.of({0: source, 1: target}, PAIRS)


def folds_of(source: Tensor, target: Tensor, folds: int = 5) -> KFoldMoments:
    parts = tuple(moments_of(source[k::folds], target[k::folds]) for k in range(folds))
    return KFoldMoments({"patch": parts}, special_tokens=0)


def predicted(fit: Affine, source: Tensor) -> Tensor:
    return source @ fit.weight_ + fit.bias_


def penalty_in_rows(source: Tensor, alpha: float) -> float:
    """The penalty as scikit-learn counts it."""
    centred = source - source.mean(0)
    return alpha * centred.square().sum().item() / source.shape[1]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_residual_is_that_of_the_rows_and_the_mean_is_met(form):
    source, target = rows()
    fit = form.fit_moments(moments_of(source, target), SPAN)
    left = target - predicted(fit, source)
    assert fit.residual_ == pytest.approx((left.square().sum() / target.square().sum()).item(), rel=1e-8)
    torch.testing.assert_close(left.mean(0), torch.zeros(12, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_module_computes_the_map_and_has_the_parameters_that_are_counted(form):
    source, target = rows()
    fit = form.fit_moments(moments_of(source, target), SPAN)
    module = fit.module()
    hidden = source[:40].reshape(2, 20, 12)  # (batch, tokens, width)
    torch.testing.assert_close(module(hidden.float()).double(), predicted(fit, hidden), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in form.build(12).parameters())
    assert not any(p.requires_grad for p in module.parameters())


def test_an_own_solve_of_another_shape_is_named():
    class Narrow(Affine):
        name = "narrow"

        def solve(self, sums):
            return super().solve(sums)[:, :2]

    source, target = rows(50, 4)
    with pytest.raises(InputError, match=r"'narrow' solves for weights of \(4, 2\), not \(4, 4\)"):
        Narrow().fit(source, target)


def test_affine_is_linear_regression():
    source, target = rows()
    ours, theirs = (
        Affine().fit_moments(moments_of(source, target), SPAN),
        linear_model.LinearRegression().fit(source, target),
    )
    np.testing.assert_allclose(ours.weight_, theirs.coef_.T, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.bias_, theirs.intercept_, rtol=0, atol=1e-8)


def test_affine_is_lstsq_with_a_column_of_ones():
    source, target = rows()
    ones = torch.ones(len(source), 1, dtype=torch.float64)
    solution = torch.linalg.lstsq(torch.cat([source, ones], dim=1), target).solution
    ours = Affine().fit_moments(moments_of(source, target), SPAN)
    torch.testing.assert_close(torch.cat([ours.weight_, ours.bias_[None]]), solution, rtol=0, atol=1e-8)


def test_affine_of_rank_deficient_rows_is_the_map_of_least_norm():
    source, target = rows(width=12)
    source = source @ torch.cat([torch.eye(5, 12), torch.zeros(7, 12)]).double() + 3
    ours = Affine().fit_moments(moments_of(source, target), SPAN)
    theirs = torch.linalg.pinv(source - source.mean(0), rtol=1e-10) @ (target - target.mean(0))
    torch.testing.assert_close(ours.weight_, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("penalty", [1e-6, 1e-2, 1.0, 100.0])
def test_ridge_towards_the_identity_is_ridge_on_what_is_added(penalty):
    source, target = rows()
    ours = Ridge(alpha=penalty).fit_moments(moments_of(source, target), SPAN)
    theirs = linear_model.Ridge(alpha=penalty_in_rows(source, penalty)).fit(source, target - source)
    np.testing.assert_allclose(ours.weight_, np.eye(12) + theirs.coef_.T, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.bias_, theirs.intercept_, rtol=0, atol=1e-8)


def test_ridge_towards_zero_is_plain_ridge():
    source, target = rows()
    ours = Ridge("zero", alpha=0.3).fit_moments(moments_of(source, target), SPAN)
    theirs = linear_model.Ridge(alpha=penalty_in_rows(source, 0.3)).fit(source, target)
    np.testing.assert_allclose(ours.weight_, theirs.coef_.T, rtol=0, atol=1e-9)


def test_the_penalty_is_a_dial_from_the_identity_to_the_affine_map():
    source, target = rows()
    moments = moments_of(source, target)
    torch.testing.assert_close(
        Ridge(alpha=1e12).fit_moments(moments, SPAN).weight_, torch.eye(12).double(), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(
        Ridge(alpha=1e-14).fit_moments(moments, SPAN).weight_,
        Affine().fit_moments(moments, SPAN).weight_,
        rtol=0,
        atol=1e-8,
    )
    residuals = [Ridge(alpha=p).fit_moments(moments, SPAN).residual_ for p in ALPHAS.tolist()]
    assert residuals == sorted(residuals)


@pytest.mark.parametrize("shrink_to", ["identity", "zero"])
@pytest.mark.parametrize(("count", "noise"), [(40, 3.0), (400, 0.5)])
def test_the_penalty_is_that_of_cross_validation_on_the_stored_rows(shrink_to, count, noise):
    source, target = rows(count, noise=noise)
    goal = source if shrink_to == "identity" else torch.zeros_like(source)
    errors = np.zeros(len(ALPHAS))
    for k in range(5):
        out = np.arange(count) % 5 == k
        for p, penalty in enumerate(ALPHAS.tolist()):
            model = linear_model.Ridge(alpha=penalty_in_rows(source[~out], penalty))
            model.fit(source[~out], (target - goal)[~out])
            errors[p] += (((target - goal)[out].numpy() - model.predict(source[out])) ** 2).sum()
    ours = Ridge(shrink_to).fit_moments(folds_of(source, target), SPAN)
    assert ours.alpha_ == ALPHAS[errors.argmin()]
    assert ours.cv_error_ == pytest.approx(errors.min() / target.square().sum().item(), rel=1e-7)
    fixed = Ridge(shrink_to, ours.alpha_).fit_moments(moments_of(source, target), SPAN)
    torch.testing.assert_close(ours.weight_, fixed.weight_, rtol=0, atol=1e-10)


def test_few_noisy_rows_are_held_to_the_identity_and_many_are_not():
    few, many = (Ridge().fit_moments(folds_of(*rows(count, noise=5.0)), SPAN).alpha_ for count in (20, 20_000))
    assert few > 10 * many


def test_low_rank_is_regression_on_the_principal_components_of_its_fit():
    source, target = rows()
    fitted = linear_model.LinearRegression().fit(source, target - source).predict(source)
    components = PCA(3, svd_solver="full").fit(fitted)
    expected = source.numpy() + components.inverse_transform(components.transform(fitted))
    ours = LowRank(3).fit_moments(moments_of(source, target), SPAN)
    np.testing.assert_allclose(predicted(ours, source), expected, rtol=0, atol=1e-8)
    assert torch.linalg.matrix_rank(ours.weight_ - torch.eye(12), rtol=1e-9) == 3


def test_low_rank_of_full_rank_is_the_affine_map():
    moments = moments_of(*rows())
    full, affine = LowRank(12).fit_moments(moments, SPAN), Affine().fit_moments(moments, SPAN)
    torch.testing.assert_close(full.weight_, affine.weight_, rtol=0, atol=1e-9)
    assert LowRank().build(12)(torch.zeros(1, 12)).shape == (1, 12)
    residuals = [LowRank(rank).fit_moments(moments, SPAN).residual_ for rank in range(1, 13)]
    assert residuals == sorted(residuals, reverse=True)


def test_orthogonal_is_procrustes_with_a_scale():
    source, target = rows()
    x, y = (part.numpy() - part.numpy().mean(0) for part in (source, target))
    rotation, total = orthogonal_procrustes(x, y)
    ours = Orthogonal().fit_moments(moments_of(source, target), SPAN)
    np.testing.assert_allclose(ours.weight_, rotation * total / (x**2).sum(), rtol=0, atol=1e-9)


def test_diagonal_is_a_regression_for_each_dimension():
    source, target = rows()
    ours = Diagonal().fit_moments(moments_of(source, target), SPAN)
    for j in range(12):
        theirs = linear_model.LinearRegression().fit(source[:, j : j + 1], target[:, j])
        assert ours.weight_[j, j].item() == pytest.approx(theirs.coef_[0], rel=1e-9)
        assert ours.bias_[j].item() == pytest.approx(theirs.intercept_, rel=1e-7)


def test_scalar_is_one_regression_over_all_dimensions():
    source, target = rows()
    x, y = ((part - part.mean(0)).flatten().numpy() for part in (source, target))
    theirs = linear_model.LinearRegression(fit_intercept=False).fit(x[:, None], y)
    weight = Scalar().fit_moments(moments_of(source, target), SPAN).weight_
    np.testing.assert_allclose(weight, theirs.coef_[0] * np.eye(12), rtol=0, atol=1e-10)


def test_forms_leave_less_the_freer_they_are():
    moments = moments_of(*rows())
    forms = [Affine(), Diagonal(), Scalar()]
    residuals = [form.fit_moments(moments, SPAN).residual_ for form in forms]
    assert residuals == sorted(residuals)
    assert Affine().fit_moments(moments, SPAN).residual_ < Orthogonal().fit_moments(moments, SPAN).residual_


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_rows_that_are_all_alike_get_the_mean_and_no_noise(form):
    """As the CLS tokens are before block 0."""
    _, target = rows()
    source = torch.full((200, 12), 7.3, dtype=torch.float64)
    fit = form.fit_moments(moments_of(source, target), SPAN)
    torch.testing.assert_close(predicted(fit, source), target.mean(0).expand(200, -1), rtol=0, atol=1e-8)
    assert fit.weight_.abs().max() <= 1


def test_moments_about_other_means_are_those_of_the_rows():
    (source, target), other = rows(), rows(seed=1)
    ours = Sums.of_span(moments_of(source, target), SPAN).centred(Sums.of_rows(*other))
    x, y = source - other[0].mean(0), target - other[1].mean(0)
    torch.testing.assert_close(ours.gram, x.mT @ x)
    torch.testing.assert_close(ours.cross, x.mT @ y)
    torch.testing.assert_close(ours.square, y.square().sum())
    weight = other[0][:12]
    torch.testing.assert_close(ours.error(weight), (y - x @ weight).square().sum())
    torch.testing.assert_close(ours.residual_target().square, (y - x).square().sum())


@pytest.mark.parametrize("name", ["ridge", "separate"])
def test_moments_without_folds_are_refused_in_one_sentence(name):
    moments = moments_of(*rows())
    with pytest.raises(
        InputError,
        match=rf"^Translator '{name}' needs moments in folds.*: pass those of collect_moments with its default.*",
    ):
        fit_spans([SPAN], name, moments)


def test_forms_that_need_no_folds_add_them_up():
    source, target = rows()
    for translator in ("linear", "affine", "orthogonal", Ridge(alpha=0.1)):
        folded = fit_spans([SPAN], translator, folds_of(source, target))[SPAN]
        plain = fit_spans([SPAN], translator, moments_of(source, target))[SPAN]
        torch.testing.assert_close(folded.weight_, plain.weight_, rtol=0, atol=1e-9)


def test_the_forms_go_by_name():
    for name in TRANSLATORS:
        assert make_translator(name).name == name


def test_a_ridge_towards_something_else_is_refused():
    with pytest.raises(InputError, match="Unknown goal of a ridge 'identiy': did you mean 'identity'"):
        Ridge("identiy")


def test_a_ridge_without_a_penalty_is_affine_and_a_negative_one_is_refused():
    moments = moments_of(*rows())
    unpenalised, affine = (form.fit_moments(moments, SPAN) for form in (Ridge(alpha=0), Affine()))
    torch.testing.assert_close(unpenalised.weight_, affine.weight_, rtol=0, atol=1e-9)
    for alpha in (-1, float("nan"), float("inf"), "0.1"):
        with pytest.raises(InputError, match=r"^alpha is a number above 0, not"):
            Ridge(alpha=alpha)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_modules_and_maps_that_are_counted_are_float32(form):
    fit = form.fit_moments(moments_of(*rows()), SPAN)
    for module in (fit.module(), form.build(12)):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_fewer_rows_than_dimensions_are_warned_about_where_the_matrix_is_free(recwarn):
    few = moments_of(*rows(count=5))
    with pytest.warns(UserWarning, match="5 calibration rows cannot determine a map of width 12"):
        Affine().fit_moments(few, SPAN)
    recwarn.clear()
    for form in (Diagonal(), Scalar(), Ridge(alpha=0.1)):
        form.fit_moments(few, SPAN)
    Affine().fit_moments(moments_of(*rows(count=12)), SPAN)
    assert not recwarn


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_rows_that_are_alike_but_for_rounding_are_not_scaled_up(form, seed):
    """No factor is made of the quotient of two rounding errors."""
    draw = torch.Generator().manual_seed(seed)
    row, target = (torch.randn(count, 12, generator=draw).double() for count in (1, 50))
    fit = form.fit_moments(moments_of(row.expand(50, -1), 5 * target), SPAN)
    assert fit.weight_.abs().max() <= 1


@pytest.mark.parametrize("rank", [None, 5, 12, 40])
def test_low_rank_is_a_quarter_of_the_width_unless_named_and_at_most_the_width(rank):
    fit, expected = LowRank(rank).fit_moments(moments_of(*rows()), SPAN), {None: 3, 40: 12}.get(rank, rank)
    assert [tuple(factor.shape) for factor in fit.factors_] == [(12, expected), (expected, 12)]
    assert sum(parameter.numel() for parameter in fit.build(12).parameters()) == 2 * expected * 12 + 12


@pytest.mark.parametrize("name", ["affine", "ridge", "low-rank", "orthogonal", "diagonal", "scalar", "separate"])
def test_maps_of_rows_that_are_all_zero_are_finite(name):
    zeros = torch.zeros(20, 3, 6)
    fitted = make_translator(name).fit(zeros, zeros + 1)
    assert torch.isfinite(fitted.predict(zeros)).all()
    torch.testing.assert_close(fitted.predict(zeros), zeros + 1)
    assert math.isfinite(fitted.residual_)
