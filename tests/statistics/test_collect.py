"""One pass in folds: summaries of images are those of the recorded tokens, and no hook is left behind."""

import pytest
import torch

from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import collect_activations
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import summarise


@pytest.mark.parametrize(("family", "special"), [("vit", 1), ("deit", 2), ("siglip", 0)])
def test_folds_keep_the_summaries_of_their_images(tiny_model, tiny_images, family, special):
    encoder, images = Encoder(tiny_model(family), features="mean"), tiny_images.train[:23]
    folds = collect_moments(encoder, images, [(1, 1), (1, 3)], batch_size=3, folds=5)
    hidden = collect_activations(encoder, images, [1, 3], tokens="all")
    for k, fold in enumerate(folds.summaries):
        assert fold.keys() == {1, 3}
        for block, rows in fold.items():
            tokens = hidden[block].unflatten(0, (23, -1))[k::5]
            patches = tokens[:, special:]
            spread = (patches - patches.mean(1, keepdim=True)).square().mean(1).sqrt()
            expected = [tokens[:, :special].mean(1)] * bool(special) + [patches.mean(1), spread]
            torch.testing.assert_close(rows, torch.cat(expected, 1), rtol=1e-5, atol=1e-5)


def test_no_hook_is_left_behind(tiny_encoder, tiny_images):
    collect_moments(tiny_encoder, tiny_images.train[:10], [(1, 1)], folds=5)
    assert not tiny_encoder.model._forward_hooks
    assert not any(block._forward_hooks for block in tiny_encoder.blocks)


def test_no_hook_is_left_behind_by_a_pass_that_fails(tiny_encoder, tiny_images):
    with pytest.raises(InputError, match="Unknown tokens 'clss'") as caught:
        collect_moments(tiny_encoder, tiny_images.train[:10], tokens="clss")
    assert not any(block._forward_hooks for block in tiny_encoder.blocks)
    assert caught  # and with it all frames of the pass


def test_folds_are_restricted_with_their_summaries(tiny_encoder, tiny_images):
    folds = collect_moments(tiny_encoder, tiny_images.train[:10], [(1, 1), (1, 3)], folds=5)
    assert [len(fold[3]) for fold in folds.summaries] == [2] * 5
    assert {tuple(fold) for fold in folds.restrict([3]).summaries} == {(3,)}


def test_tokens_of_a_kind_are_summarised_apart():
    hidden = torch.arange(2 * 5 * 3).float().reshape(2, 5, 3)
    summaries = summarise(hidden, 2)
    torch.testing.assert_close(summaries[:, :3], hidden[:, :2].mean(1))
    torch.testing.assert_close(summaries[:, 3:6], hidden[:, 2:].mean(1))
    torch.testing.assert_close(summaries[:, 6:], hidden[:, 2:].std(1, correction=0))
    assert summarise(hidden, 0).shape == (2, 6)
    assert not summarise(hidden[:, :1], 0)[:, 3:].any()  # one patch does not vary
