"""Closed forms from moments, against solvers that see the activations."""

import re
import warnings

import numpy as np
import pytest
import torch
from sklearn import linear_model
from torch import Tensor

from toastlib.approximation.replace import approximate
from toastlib.errors import InputError
from toastlib.evaluation.costs import map_costs
from toastlib.models.hooks import collect_activations
from toastlib.models.layers import Scale
from toastlib.plan import Span, all_spans
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import Moments, all_pairs
from toastlib.translators.base import RECOMMENDED, TRANSLATORS, Translator, make_translator, split_align
from toastlib.translators.linear import Identity, Linear, Ridge

SPAN = Span(0, 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(source: Tensor, target: Tensor) -> Moments:
    return Moments.of({0: source, 1: target}, [(0, 0), (0, 1)])


def relative_residual(source: Tensor, target: Tensor, weight: Tensor) -> float:
    return ((target - source @ weight).square().sum() / target.square().sum()).item()


@pytest.fixture
def stored(tiny_encoder, tiny_images) -> tuple[dict[int, Tensor], Moments]:
    """Float64 rows of every block over 40 images, and the moments collected from the same images."""
    images = tiny_images.train[:40]
    hidden = collect_activations(tiny_encoder, images, tokens="all")
    return {block: rows.double() for block, rows in hidden.items()}, collect_moments(tiny_encoder, images, folds=0)


def test_linear_is_lstsq_on_the_stored_activations(stored):
    hidden, moments = stored
    for span in all_spans(6)[6:]:  # those from block 0 on
        source, target = hidden[span.start], hidden[span.end]
        ours, theirs = Linear().fit_moments(moments, span), torch.linalg.lstsq(source, target).solution
        assert ours.rank_ == 32
        assert relative_residual(source, target, ours.weight_) == pytest.approx(
            relative_residual(source, target, theirs), rel=1e-8
        )
        assert (ours.weight_ - theirs).norm() < 1e-8 * theirs.norm()


def test_residuals_are_those_of_the_stored_activations(stored):
    hidden, moments = stored
    for span in all_spans(6):
        source, target = hidden[span.start], hidden[span.end]
        linear, identity = Linear().fit_moments(moments, span), Identity().fit_moments(moments, span)
        assert linear.residual_ == pytest.approx(relative_residual(source, target, linear.weight_), rel=1e-8)
        assert identity.residual_ == pytest.approx(relative_residual(source, target, torch.eye(32).double()), rel=1e-8)
        assert linear.residual_ < identity.residual_


def test_a_linear_relation_is_recovered_exactly():
    source, weight = normal(100, 6), normal(6, 6, seed=1)
    fitted = Linear().fit_moments(moments_of(source, source @ weight), SPAN)
    torch.testing.assert_close(fitted.weight_, weight, rtol=0, atol=1e-10)
    assert fitted.residual_ == pytest.approx(0, abs=1e-12)


def test_a_better_map_than_the_least_squares_one_does_not_exist():
    source, target = normal(100, 6), normal(100, 6, seed=1)
    fitted = Linear().fit_moments(moments_of(source, target), SPAN)
    for seed in range(20):
        other = fitted.weight_ + 0.01 * normal(6, 6, seed=seed)
        assert relative_residual(source, target, other) > fitted.residual_


def test_rank_deficient_rows_get_the_map_of_least_norm():
    source, target = normal(200, 5) @ normal(5, 12, seed=1), normal(200, 12, seed=2)
    fitted = Linear().fit_moments(moments_of(source, target), SPAN)
    least_norm = torch.linalg.lstsq(source, target, driver="gelsd", rcond=1e-10)
    assert fitted.rank_ == least_norm.rank.item() == 5
    torch.testing.assert_close(fitted.weight_, least_norm.solution, rtol=0, atol=1e-9)


def test_too_few_rows_are_warned_about_and_get_the_map_of_least_norm():
    source, target = normal(5, 12), normal(5, 12, seed=2)
    with pytest.warns(UserWarning, match="5 calibration rows cannot determine a map of width 12"):
        fitted = Linear().fit_moments(moments_of(source, target), SPAN)
    assert fitted.rank_ == 5
    torch.testing.assert_close(fitted.weight_, torch.linalg.pinv(source) @ target, rtol=0, atol=1e-9)


def test_enough_rows_are_not_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Linear().fit_moments(moments_of(normal(12, 12), normal(12, 12, seed=1)), SPAN)


def test_the_linear_module_multiplies_by_the_weights():
    source, target = normal(100, 6), normal(100, 6, seed=1)
    fitted = Linear().fit_moments(moments_of(source, target), SPAN)
    hidden = normal(2, 5, 6, seed=2).float()  # (batch, tokens, width)
    module = fitted.module()
    torch.testing.assert_close(module(hidden), hidden @ fitted.weight_.float())
    assert [tuple(p.shape) for p in module.parameters()] == [(6, 6)]
    assert not module.weight.requires_grad


def test_the_identity_module_hands_its_input_on():
    module = Identity().fit_moments(moments_of(normal(9, 4), normal(9, 4, seed=1)), SPAN).module()
    hidden = normal(2, 5, 4)
    assert module(hidden) is hidden
    assert not list(module.parameters())


def test_fit_returns_the_translator():
    moments = moments_of(normal(30, 4), normal(30, 4, seed=1))
    for translator in (Identity(), Linear()):
        assert translator.fit_moments(moments, SPAN) is translator


def test_translators_are_made_by_name_or_taken_as_they_are():
    linear = Linear()
    assert make_translator(linear) is linear
    assert isinstance(make_translator("linear"), Linear)
    assert isinstance(make_translator("identity"), Identity)


def test_an_unknown_translator_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="Unknown translator 'linaer': did you mean 'linear'"):
        make_translator("linaer")


@pytest.mark.parametrize("name", ["linear+algin", "linear+"])
def test_an_unknown_alignment_is_refused_with_the_nearest(name):
    with pytest.raises(InputError, match=re.escape(f"Unknown translator {name!r}: did you mean 'linear+align'?")):
        make_translator(name)


def test_moments_without_the_span_say_so():
    moments = Moments.of({0: normal(30, 4), 1: normal(30, 4, seed=1)}, all_pairs(2)[3:4])
    with pytest.raises(InputError, match=r"do not hold the blocks \(0, 1\)"):
        Linear().fit_moments(moments, SPAN)


def test_fit_on_rows_is_lstsq_in_float64():
    X, Y = normal(100, 6), normal(100, 6, seed=1)
    solution = torch.linalg.lstsq(X, Y).solution
    for fitted in (
        Linear().fit(X, Y),
        Linear().fit(X.numpy(), Y.numpy()),
        Linear().fit(X.reshape(20, 5, 6), Y.reshape(20, 5, 6)),
    ):
        torch.testing.assert_close(fitted.weight_, solution, rtol=0, atol=1e-12)
    prediction = Linear().fit(X, Y).predict(X.numpy())
    assert prediction.dtype == "float64"
    torch.testing.assert_close(torch.from_numpy(prediction), X @ solution, rtol=1e-5, atol=1e-5)


def test_fit_on_rows_is_that_of_scikit_learn():
    X, Y = normal(100, 6).numpy(), normal(100, 6, seed=1).numpy()
    affine, regression = make_translator("affine").fit(X, Y), linear_model.LinearRegression().fit(X, Y)
    np.testing.assert_allclose(affine.weight_, regression.coef_.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(affine.bias_, regression.intercept_, rtol=0, atol=1e-12)
    mean_eigenvalue = ((X - X.mean(0)) ** 2).sum() / 6
    ridge = linear_model.Ridge(alpha=0.3 * mean_eigenvalue).fit(X, Y)
    np.testing.assert_allclose(Ridge("zero", alpha=0.3).fit(X, Y).weight_, ridge.coef_.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(Ridge("zero", alpha=0.3).fit(X, Y).predict(X), ridge.predict(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TRANSLATORS)
def test_every_translator_fits_and_predicts_images_of_tokens(name):
    X = normal(40, 3, 6).float()
    Y = X + 0.1 * normal(40, 3, 6, seed=1).float()
    fitted = make_translator(name)
    if hasattr(fitted, "max_epochs"):
        fitted.max_epochs = 1
    assert fitted.fit(X, Y, special_tokens=1) is fitted
    assert fitted.predict(X).shape == X.shape
    assert isinstance(fitted.predict(X.numpy()), np.ndarray)


@pytest.mark.parametrize(
    "name", [name for name, cls in TRANSLATORS.items() if not make_translator(name).needs_activations]
)
def test_closed_forms_read_moments_in_folds(tiny_encoder, tiny_images, name):
    moments, span = collect_moments(tiny_encoder, tiny_images.train[:10], [(0, 0), (0, 1)]), Span(0, 1)
    assert make_translator(name).fit_moments(moments, span).residual_ < 1


def test_an_own_translator_needs_a_name_a_fit_and_a_module(tiny_encoder, tiny_images):
    class MeanShift(Translator):
        name = "mean-shift"

        def fit_moments(self, moments, span):
            start, end = moments.whole.restrict(span).sums / moments.whole.count
            self.shift_ = (end - start).float()
            return self

        def module(self):
            return Scale(torch.ones(1), self.shift_).requires_grad_(False)

    moments = collect_moments(tiny_encoder, tiny_images.train[:10])
    small = approximate(tiny_encoder, "1->3", moments, translator=MeanShift())
    difference = moments.whole.sums[4] - moments.whole.sums[2]
    torch.testing.assert_close(small.blocks[2].translation.bias, (difference / moments.whole.count).float())
    assert map_costs(MeanShift(), 32, 17)[0] == 33
    X = normal(30, 4)
    torch.testing.assert_close(MeanShift().fit(X, X + 2).predict(X), X + 2, rtol=0, atol=1e-6)


def test_a_trained_map_says_that_moments_are_not_enough():
    with pytest.raises(InputError, match="'mlp' is fitted on rows, not on moments: use fit"):
        make_translator("mlp").fit_moments(moments_of(normal(30, 4), normal(30, 4)), SPAN)


def test_a_class_that_does_not_extend_translator_is_refused():
    class Shift:
        name = "shift"

    with pytest.raises(InputError, match="Shift is not a translator: let its class extend"):
        make_translator(Shift())


ODD = [(normal(4, 3), normal(5, 3)), (normal(4), normal(4)), (normal(0, 3), normal(0, 3)), (normal(2, 2, 2, 2),) * 2]


@pytest.mark.parametrize("pair", ODD, ids=lambda pair: str([tuple(rows.shape) for rows in pair]))
def test_rows_that_are_no_pairs_are_refused(pair):
    with pytest.raises(InputError, match=r"^X and Y are \(rows, width\) or"):
        Linear().fit(*pair)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused(place, value):
    pair = [normal(9, 3), normal(9, 3, seed=1)]
    pair[place][4, 1] = value
    with pytest.raises(InputError, match=r"^X or Y holds NaN or infinity"):
        Linear().fit(*pair)


@pytest.mark.parametrize("pair", [([[1, 2], [3]], normal(2, 2)), (normal(2, 2), [["x", "y"]])])
def test_what_are_no_rows_of_numbers_is_refused(pair):
    with pytest.raises(InputError, match=r"^X and Y are rows of numbers, not a"):
        Linear().fit(*pair)


def test_only_a_fitted_map_predicts_and_only_rows_of_its_width():
    with pytest.raises(InputError, match=r"^Translator 'linear' is not fitted: call fit or fit_moments first"):
        Linear().predict(normal(4, 3))
    with pytest.raises(InputError, match=r"^The map does not take rows of shape .*4, 2"):
        Linear().fit(normal(9, 3), normal(9, 3, seed=1)).predict(normal(4, 2))


def test_a_map_that_could_be_trained_predicts_without_gradients():
    class Fixed(Translator):
        name = "fixed"

        def fit_moments(self, moments, span):
            self.fitted_ = True
            return self

        def module(self):
            return Scale(2 * torch.ones(1), torch.zeros(3))

    X = normal(4, 3)
    fitted = Fixed().fit(X, X)
    np.testing.assert_allclose(fitted.predict(X.numpy()), 2 * X.numpy())
    assert not fitted.predict(X.requires_grad_()).requires_grad


def test_the_default_of_all_tables_is_one_of_the_translators():
    assert RECOMMENDED in TRANSLATORS
    assert split_align(f"{RECOMMENDED}+align") == (RECOMMENDED, True)
    assert split_align(RECOMMENDED) == (RECOMMENDED, False)
    assert isinstance(make_translator("linear+align"), Linear)


def test_a_translator_without_a_module_does_not_predict():
    class Empty(Translator):
        name = "empty"
        fitted_ = None

    with pytest.raises(NotImplementedError):
        Empty().module()


def test_fewer_images_than_folds_are_enough_where_none_are_held_out():
    X, Y = normal(3, 5, 4), normal(3, 5, 4, seed=1)
    solution = torch.linalg.lstsq(X.flatten(0, 1), Y.flatten(0, 1)).solution
    torch.testing.assert_close(Linear().fit(X, Y).weight_, solution, rtol=0, atol=1e-10)
    with pytest.raises(InputError, match="3 images cannot be parted into 5 folds"):
        Ridge().fit(X, Y)


def test_rows_along_one_line_have_rank_one_and_rows_of_zeros_none():
    direction, target = normal(40, 1), normal(40, 6, seed=1)
    source = direction @ normal(1, 6, seed=2)
    fitted = Linear().fit_moments(moments_of(source, target), SPAN)
    assert fitted.rank_ == 1
    torch.testing.assert_close(fitted.weight_, torch.linalg.pinv(source, rtol=1e-10) @ target, rtol=0, atol=1e-10)
    nothing = Linear().fit_moments(moments_of(0 * source, target), SPAN)
    assert nothing.rank_ == 0
    assert torch.equal(nothing.weight_, torch.zeros(6, 6).double())


def test_the_weights_of_a_module_lie_in_memory_as_files_want_them():
    assert Linear().fit(normal(40, 6), normal(40, 6, seed=1)).module().weight.is_contiguous()


def test_a_class_added_to_the_translators_is_made_by_its_name(monkeypatch):
    class Mine(Identity):
        name = "mine"

    monkeypatch.setitem(TRANSLATORS, "mine", Mine)
    assert type(make_translator("mine")) is type(make_translator("mine+align")) is Mine
