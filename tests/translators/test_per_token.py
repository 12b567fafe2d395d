"""Maps for special tokens and patches apart, per position and in context, are fits on the rows made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import linear_model
from tiny import FAMILIES, PATCHES
from transformers import SwinConfig, SwinModel

from toastlib.approximation.replace import approximate
from toastlib.data.texts import Texts
from toastlib.data.tokens import Tokens
from toastlib.errors import InputError
from toastlib.evaluation.evaluate import evaluate_plans
from toastlib.evaluation.probe import HeadConfig
from toastlib.models.costs import parameter_count
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import collect_activations
from toastlib.models.layers import AddPooledContext
from toastlib.models.loading import load_encoder
from toastlib.plan import Span
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import KFoldMoments, Moments, summarise
from toastlib.translators.least_squares import ALPHAS, Sums
from toastlib.translators.linear import Affine, Linear, Ridge
from toastlib.translators.per_token import PerPosition, PerTokenType, PooledContext, add_context

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


TOKENS = [("vit", 1), ("deit", 2), ("dinov2", 1), ("dinov2-registers", 5), ("siglip", 0)]


def places_of(encoder, images):
    """Float32 X and Y, shape (images, tokens, width)."""
    return collect_activations(encoder, images, SPAN, tokens="positions").values()


@pytest.mark.parametrize(("family", "special"), TOKENS)
def test_maps_per_position_are_ridges_of_scikit_learn(tiny_model, tiny_images, family, special):
    encoder, images = Encoder(tiny_model(family), features="mean"), tiny_images.train[:40]
    X, Y = places_of(encoder, images)
    assert X.shape == (40, special + PATCHES, 32)
    assert torch.equal(X.flatten(0, 1), collect_activations(encoder, images, SPAN, tokens="all")[1])
    fit, left = PerPosition().fit(X, Y), 0
    for place in range(X.shape[1]):
        x, y = X[:, place].double(), Y[:, place].double()
        alpha = fit.fits_[place].alpha_ * (x - x.mean(0)).square().sum().item() / 32
        oracle = linear_model.Ridge(alpha=alpha, solver="cholesky").fit(x, y - x)
        expected = x + torch.from_numpy(oracle.predict(x.numpy()))
        found = fit.predict(X)[:, place].double()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        left += (y - expected).square().sum().item()
    assert fit.residual_ == pytest.approx(left / Y.double().square().sum().item(), rel=1e-4)


@pytest.mark.parametrize(("family", "special"), TOKENS[:3])
def test_each_position_chooses_the_penalty_of_least_held_out_error(tiny_model, tiny_images, family, special):
    X, Y = places_of(Encoder(tiny_model(family)), tiny_images.train[:40])
    fit = PerPosition().fit(X, Y)
    for place in (0, special, special + 7):
        x, y = X[:, place].double().numpy(), Y[:, place].double().numpy()
        errors = []
        for alpha in ALPHAS.tolist():
            error = 0
            for k in range(5):
                kept = np.arange(40) % 5 != k
                scale = ((x[kept] - x[kept].mean(0)) ** 2).sum() / 32
                ridge = linear_model.Ridge(alpha=alpha * scale, solver="svd").fit(x[kept], (y - x)[kept])
                error += ((y - x - ridge.predict(x))[~kept] ** 2).sum()
            errors.append(error)
        chosen = ALPHAS.tolist().index(fit.fits_[place].alpha_)
        assert errors[chosen] <= min(errors) * (1 + 1e-6)


def test_without_a_penalty_they_are_lstsq_of_each_position():
    """Mode 2 of the released code."""
    draw = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(50, 7, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    fit = PerPosition(Linear()).fit(X, Y)
    expected = torch.linalg.lstsq(X.transpose(0, 1), Y.transpose(0, 1)).solution  # (tokens, width, width)
    torch.testing.assert_close(torch.stack([one.weight_ for one in fit.fits_]), expected, rtol=0, atol=1e-12)
    mapped = torch.stack([X[:, place] @ expected[place] for place in range(7)], 1)
    torch.testing.assert_close(fit.predict(X), mapped, rtol=1e-5, atol=1e-5)


def test_a_place_that_is_moved_takes_its_map_with_it():
    draw = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(30, 5, 4, generator=draw) for _ in range(2))
    order = [3, 0, 4, 1, 2]
    moved = PerPosition().fit(X[:, order], Y[:, order]).predict(X[:, order])
    torch.testing.assert_close(moved, PerPosition().fit(X, Y).predict(X)[:, order])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_with_maps_per_position_is_saved(tiny_model, tiny_images, tmp_path, family):
    encoder = Encoder(tiny_model(family), features="mean", preprocessing=tiny_images.train.preprocessing)
    small = approximate(encoder, "-1->0 1->3", tiny_images.train[:20], translator="per-position")
    pixel_values, _ = next(tiny_images.test[:3].batches(3))
    expected = small(pixel_values)
    maps = 2 * (encoder.special_tokens + PATCHES) * (32 * 32 + 32)
    blocks = sum(p.numel() for k in (0, 2, 3) for p in encoder.blocks[k].parameters())
    assert parameter_count(small) == parameter_count(encoder) - blocks + maps
    small.save_pretrained(tmp_path)
    torch.testing.assert_close(load_encoder(tmp_path)(pixel_values), expected, rtol=1e-5, atol=1e-6)


def test_one_sweep_takes_maps_per_position_beside_all_others(tiny_encoder, tiny_images):
    names = ["linear", "context", "per-position", "mlp"]
    head = HeadConfig("frozen", seeds=1, min_steps=5)
    result = evaluate_plans(tiny_encoder, tiny_images, "1->3", translators=names, calibration=20, head=head)
    alone = evaluate_plans(tiny_encoder, tiny_images, "1->3", translators=["mlp"], calibration=20, head=head)
    assert result.table["translator"].tolist() == ["original", *names]
    both = (one.table.set_index("translator").loc["mlp"] for one in (result, alone))
    assert next(both).equals(next(both))  # trained on the same rows


def test_moments_and_rows_without_positions_are_refused(tiny_encoder, tiny_images):
    moments = collect_moments(tiny_encoder, tiny_images.train[:20], PAIRS)
    with pytest.raises(InputError, match=r"^Translator 'per-position' is fitted on activations.*tokens='positions'\)"):
        approximate(tiny_encoder, "1->3", moments, translator="per-position")
    rows = collect_activations(tiny_encoder, tiny_images.train[:20], SPAN, tokens="all")
    with pytest.raises(InputError, match=r"^Translator 'per-position' is fitted on X and Y of shape \(images, tok"):
        approximate(tiny_encoder, "1->3", rows, translator="per-position")


def test_another_image_size_is_refused():
    X = torch.randn(10, 5, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"The map is for images of 5 tokens, not 7: resize them\.$"):
        PerPosition().fit(X, X).predict(torch.zeros(2, 7, 4))


def test_an_encoder_for_any_size_keeps_to_the_size_of_its_maps(tiny_model, tiny_images):
    small = approximate(Encoder(tiny_model("dinov2")), "1->3", tiny_images.train[:10], translator="per-position")
    with pytest.raises(InputError, match=r"\(2, 3, 48, 48\): The map is for images of 17 tokens, not 37"):
        small(torch.zeros(2, 3, 48, 48))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_texts_are_refused(tiny_model, family):
    ids = torch.randint(1, 50, (10, 6), generator=torch.Generator().manual_seed(0))
    texts = Texts(Tokens(ids, torch.ones_like(ids)), torch.zeros(10, dtype=torch.int64), ("one",))
    with pytest.raises(InputError, match=r"^Texts have no fixed number of positions"):
        approximate(Encoder(tiny_model(family), features="mean"), "1->3", texts, translator="per-position")


def test_stages_of_another_width_are_refused(tiny_images):
    stages = {"image_size": 32, "patch_size": 4, "depths": [1, 2], "num_heads": [2, 2], "embed_dim": 16}
    swin = SwinModel(SwinConfig(**stages, window_size=4)).eval()
    with pytest.raises(InputError, match=r"^The blocks of model do not run one after the other"):
        approximate(Encoder(swin, features="mean"), "0->1", tiny_images.train[:10], translator="per-position")
