"""Maps for special tokens and patches apart are two fits on the rows parted by hand."""

import pytest
import torch
from conftest import PATCHES

from toastlib.activations import collect_activations
from toastlib.approximation import approximate
from toastlib.closed_forms import Affine, Ridge
from toastlib.collecting import collect_folds, collect_moments
from toastlib.models import Encoder
from toastlib.moments import FoldedMoments, Moments
from toastlib.plan import Span
from toastlib.token_aware import Separate

SPAN = Span(1, 3)
PAIRS = [(1, 1), (1, 3)]


@pytest.mark.parametrize(("family", "special"), [("vit", 1), ("deit", 2), ("dinov2-registers", 5)])
def test_separate_maps_are_two_fits_on_the_rows_parted_by_hand(tiny_model, tiny_images, family, special):
    encoder, images = Encoder(tiny_model(family)), tiny_images.train[:40]
    separate = Separate().fit(collect_folds(encoder, images, PAIRS), SPAN)
    hidden = collect_activations(encoder, images, SPAN, tokens="all")
    tokens = {block: rows.unflatten(0, (40, special + PATCHES)) for block, rows in hidden.items()}
    for kind, part in (("special", slice(None, special)), ("patch", slice(special, None))):
        folds = tuple(
            Moments.of({block: h[k::5, part].flatten(0, 1) for block, h in tokens.items()}, PAIRS) for k in range(5)
        )
        by_hand = Ridge().fit(FoldedMoments({kind: folds}, special), SPAN)
        assert separate.fits_[kind].penalty_ == by_hand.penalty_
        torch.testing.assert_close(separate.fits_[kind].weight_, by_hand.weight_, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(separate.fits_[kind].bias_, by_hand.bias_, rtol=1e-4, atol=1e-5)


def test_the_module_gives_each_token_its_own_map(tiny_encoder, tiny_images):
    images = tiny_images.train[:40]
    separate = Separate(Affine()).fit(collect_folds(tiny_encoder, images, PAIRS), SPAN)
    special, patch = separate.fits_["special"].module(), separate.fits_["patch"].module()
    hidden = torch.randn(2, 17, 32)
    mapped = separate.module()(hidden)
    torch.testing.assert_close(mapped[:, :1], special(hidden[:, :1]))
    torch.testing.assert_close(mapped[:, 1:], patch(hidden[:, 1:]))
    hidden = collect_activations(tiny_encoder, images, SPAN, tokens="all")
    source, target = (hidden[block].unflatten(0, (40, 17)) for block in SPAN)
    left = (target - separate.module()(source)).square().sum() / target.square().sum()
    assert separate.residual_ == pytest.approx(left.item(), rel=1e-3)
    assert separate.residual_ < Affine().fit(collect_moments(tiny_encoder, images, PAIRS), SPAN).residual_


def test_without_special_tokens_there_is_one_map(tiny_model, tiny_images):
    encoder = Encoder(tiny_model("siglip"), features="mean")
    folds = collect_folds(encoder, tiny_images.train[:20], PAIRS)
    assert set(folds.parts) == {"patch"}
    separate, ridge = Separate().fit(folds, SPAN), Ridge().fit(folds, SPAN)
    assert isinstance(separate.module(), torch.nn.Linear)
    torch.testing.assert_close(separate.module().weight, ridge.module().weight)


def test_an_encoder_with_separate_maps_is_an_encoder(tiny_encoder, tiny_images, pixel_values):
    folds = collect_folds(tiny_encoder, tiny_images.train[:20])
    small = approximate(tiny_encoder, "-1->0 2->4", "separate", folds)
    assert small(pixel_values).shape == (3, 32)
    assert torch.isfinite(small(pixel_values)).all()
