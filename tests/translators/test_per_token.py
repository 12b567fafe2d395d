"""Maps for special tokens and patches apart, and maps in context, are fits on the rows made by hand."""

from dataclasses import replace

import pytest
import torch
from sklearn import linear_model
from tiny import FAMILIES, PATCHES

from toastlib.approximation.replace import approximate
from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import collect_activations
from toastlib.models.layers import AddPooledContext
from toastlib.plan import Span
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import KFoldMoments, Moments, summarise
from toastlib.translators.least_squares import Sums
from toastlib.translators.linear import Affine, Ridge
from toastlib.translators.per_token import PerTokenType, PooledContext, add_context

SPAN = Span(1, 3)
PAIRS = [(1, 1), (1, 3)]


@pytest.mark.parametrize(("family", "special"), [("vit", 1), ("deit", 2), ("dinov2-registers", 5)])
def test_separate_maps_are_two_fits_on_the_rows_parted_by_hand(tiny_model, tiny_images, family, special):
    encoder, images = Encoder(tiny_model(family)), tiny_images.train[:40]
    separate = PerTokenType().fit_moments(collect_moments(encoder, images, PAIRS, folds=5), SPAN)
    hidden = collect_activations(encoder, images, SPAN, tokens="all")
    tokens = {block: rows.unflatten(0, (40, special + PATCHES)) for block, rows in hidden.items()}
    for kind, part in (("special", slice(None, special)), ("patch", slice(special, None))):
        folds = tuple(
            Moments.of({block: h[k::5, part].flatten(0, 1) for block, h in tokens.items()}, PAIRS) for k in range(5)
        )
        by_hand = Ridge().fit_moments(KFoldMoments({kind: folds}, special), SPAN)
        assert separate.fits_[kind].alpha_ == by_hand.alpha_
        torch.testing.assert_close(separate.fits_[kind].weight_, by_hand.weight_, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(separate.fits_[kind].bias_, by_hand.bias_, rtol=1e-4, atol=1e-5)


def test_the_module_gives_each_token_its_own_map(tiny_encoder, tiny_images):
    images = tiny_images.train[:40]
    separate = PerTokenType(Affine()).fit_moments(collect_moments(tiny_encoder, images, PAIRS, folds=5), SPAN)
    special, patch = separate.fits_["special"].module(), separate.fits_["patch"].module()
    hidden = torch.randn(2, 17, 32)
    mapped = separate.module()(hidden)
    torch.testing.assert_close(mapped[:, :1], special(hidden[:, :1]))
    torch.testing.assert_close(mapped[:, 1:], patch(hidden[:, 1:]))
    hidden = collect_activations(tiny_encoder, images, SPAN, tokens="all")
    source, target = (hidden[block].unflatten(0, (40, 17)) for block in SPAN)
    left = (target - separate.module()(source)).square().sum() / target.square().sum()
    assert separate.residual_ == pytest.approx(left.item(), rel=1e-3)
    assert (
        separate.residual_ < Affine().fit_moments(collect_moments(tiny_encoder, images, PAIRS, folds=0), SPAN).residual_
    )


def test_without_special_tokens_there_is_one_map(tiny_model, tiny_images):
    encoder = Encoder(tiny_model("siglip"), features="mean")
    folds = collect_moments(encoder, tiny_images.train[:20], PAIRS, folds=5)
    assert set(folds.parts) == {"patch"}
    separate, ridge = PerTokenType().fit_moments(folds, SPAN), Ridge().fit_moments(folds, SPAN)
    assert isinstance(separate.module(), torch.nn.Linear)
    torch.testing.assert_close(separate.module().weight, ridge.module().weight)


def test_an_encoder_with_separate_maps_is_an_encoder(tiny_encoder, tiny_images, pixel_values):
    folds = collect_moments(tiny_encoder, tiny_images.train[:20], folds=5)
    small = approximate(tiny_encoder, "-1->0 2->4", folds, translator="separate")
    assert small(pixel_values).shape == (3, 32)
    assert torch.isfinite(small(pixel_values)).all()


def tokens_of(encoder, images, special):
    """Block -> float64 tokens of images, shape (images, tokens, width)."""
    hidden = collect_activations(encoder, images, SPAN, tokens="all")
    return {block: rows.double().unflatten(0, (len(images), special + PATCHES)) for block, rows in hidden.items()}


@pytest.mark.parametrize(("family", "special"), [("vit", 1), ("deit", 2), ("dinov2-registers", 5), ("siglip", 0)])
def test_maps_in_context_are_ridges_on_rows_made_by_hand(tiny_model, tiny_images, family, special):
    encoder, images = Encoder(tiny_model(family), features="mean"), tiny_images.train[:40]
    fit = PooledContext().fit_moments(collect_moments(encoder, images, PAIRS, folds=5), SPAN)
    source, target = tokens_of(encoder, images, special).values()
    patches = source[:, special:]
    context = torch.cat([patches.mean(1, keepdim=True), patches.std(1, keepdim=True, correction=0)], -1)
    kinds = {"patch": (slice(special, None), context[..., : 0 if special else None])}
    if special:
        kinds["special"] = (slice(None, special), context)
    assert fit.fits_.keys() == kinds.keys()
    for kind, (part, context) in kinds.items():
        x, y = source[:, part], target[:, part]
        inputs = torch.cat([x, context.expand(-1, x.shape[1], -1)], -1).flatten(0, 1)
        alpha = fit.fits_[kind].alpha * (inputs - inputs.mean(0)).square().sum().item() / inputs.shape[1]
        oracle = linear_model.Ridge(alpha=alpha, solver="cholesky").fit(inputs, (y - x).flatten(0, 1))
        expected = torch.eye(*fit.fits_[kind].weight.shape) + torch.from_numpy(oracle.coef_.T)
        # Sums of float32 activations, whose two ways round differently in the sixth digit.
        torch.testing.assert_close(fit.fits_[kind].weight, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(fit.fits_[kind].bias, torch.from_numpy(oracle.intercept_), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_module_in_context_leaves_what_the_fit_says(tiny_model, tiny_images, family):
    encoder, images = Encoder(tiny_model(family), features="mean"), tiny_images.train[:30]
    folds = collect_moments(encoder, images, PAIRS, folds=5)
    fit = PooledContext().fit_moments(folds, SPAN)
    source, target = tokens_of(encoder, images, encoder.special_tokens).values()
    left = (target - fit.module()(source.float())).square().sum() / target.square().sum()
    assert fit.residual_ == pytest.approx(left.item(), rel=1e-3)
    assert fit.residual_ < PerTokenType().fit_moments(folds, SPAN).residual_
    small = approximate(encoder, "1->3", folds, translator="context")
    features = torch.cat([small(pixel_values) for pixel_values, _ in images.batches()])
    assert torch.isfinite(features).all()


def test_a_map_in_context_gives_back_what_the_image_as_a_whole_adds():
    """CLS gets a function of the patches' mean and spread: `PerTokenType` cannot know it, the context says it."""
    draw = torch.Generator().manual_seed(0)
    source, into = torch.randn(300, 17, 32, generator=draw), torch.randn(64, 32, generator=draw) / 6
    context = torch.cat([source[:, 1:].mean(1), source[:, 1:].std(1, correction=0)], -1)
    target = source.clone()
    target[:, 0] += context @ into
    parts, summaries = {}, []
    for kind, part in (("special", slice(1)), ("patch", slice(1, None))):
        rows = [{1: source[k::5, part].flatten(0, 1), 3: target[k::5, part].flatten(0, 1)} for k in range(5)]
        parts[kind] = tuple(Moments.of(row, [*PAIRS, (3, 3)]) for row in rows)
    for k in range(5):
        summaries.append({block: summarise(h[k::5], 1) for block, h in ((1, source), (3, target))})
    folds = KFoldMoments(parts, 1, summaries=tuple(summaries))
    assert PooledContext().fit_moments(folds, SPAN).residual_ < 1e-6
    assert PerTokenType().fit_moments(folds, SPAN).residual_ > 1e-3
    torch.testing.assert_close(PooledContext().fit_moments(folds, SPAN).module()(source), target, rtol=0, atol=1e-3)


def test_without_summaries_there_is_no_context(tiny_encoder, tiny_images):
    folds = replace(collect_moments(tiny_encoder, tiny_images.train[:20], PAIRS, folds=5), summaries=())
    with pytest.raises(InputError, match="'context' needs moments of the context"):
        PooledContext().fit_moments(folds, SPAN)


def test_a_large_penalty_drops_the_span_but_for_the_shift_of_its_mean(tiny_encoder, tiny_images):
    fit = PooledContext(alpha=1e9).fit_moments(
        collect_moments(tiny_encoder, tiny_images.train[:20], PAIRS, folds=5), SPAN
    )
    assert {kind: ridge.alpha for kind, ridge in fit.fits_.items()} == {"special": 1e9, "patch": 1e9}
    for weight, *_ in fit.fits_.values():
        torch.testing.assert_close(weight, torch.eye(*weight.shape).double(), rtol=0, atol=1e-6)
    hidden = torch.randn(2, 17, 32)
    shift = fit.module()(hidden) - hidden
    torch.testing.assert_close(shift[0], shift[1], rtol=0, atol=1e-4)  # the same for every image


@pytest.mark.parametrize("special_tokens", [0, 1, 2])
def test_the_image_adds_to_the_tokens_that_read_it_and_leaves_its_input_alone(special_tokens):
    hidden = torch.randn(3, 7, 4)
    kept, context = hidden.clone(), torch.nn.Linear(8, 4, bias=False)
    mapped = AddPooledContext(special_tokens, torch.nn.Identity(), context)(hidden)
    patches = kept[:, special_tokens:]
    added = context(torch.cat([patches.mean(1), patches.std(1, correction=0)], dim=1))
    readers = special_tokens or 7
    assert torch.equal(hidden, kept)
    assert torch.equal(mapped[:, readers:], kept[:, readers:])
    torch.testing.assert_close(mapped[:, :readers] - kept[:, :readers], added[:, None].expand(-1, readers, -1))


@pytest.mark.parametrize("special", [0, 1, 3])
def test_sums_in_context_are_those_of_rows_that_hold_it(special):
    draw = torch.Generator().manual_seed(special)
    hidden = {block: torch.randn(6, 9, 4, generator=draw).double() for block in SPAN}
    part = slice(special) if special else slice(None)
    own, target = (hidden[block][:, part].flatten(0, 1) for block in SPAN)
    ours = add_context(Sums.of_rows(own, target), {block: summarise(h, special) for block, h in hidden.items()}, SPAN)
    patches = hidden[1][:, special:]
    context = torch.cat([patches.mean(1), patches.std(1, correction=0)], 1).repeat_interleave(len(own) // 6, 0)
    theirs = Sums.of_rows(torch.cat([own, context], 1), target)
    for name, value in vars(theirs).items():
        torch.testing.assert_close(getattr(ours, name), value, rtol=1e-12, atol=1e-12)


def test_rows_without_special_tokens_are_patches():
    X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert set(PerTokenType(Affine()).fit(X, X).fits_) == {"patch"}
    assert set(PerTokenType(Affine()).fit(X[:, None], X[:, None]).fits_) == {"patch"}
