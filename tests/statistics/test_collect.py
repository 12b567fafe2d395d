"""One pass in folds: summaries of images are those of the recorded tokens, and no hook is left behind."""

import pytest
import torch

from toastlib.data.tokens import TokenSample
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


def test_no_block_behind_the_last_that_is_needed_is_run(tiny_encoder, tiny_images):
    whole = collect_moments(tiny_encoder, tiny_images.train[:10])
    calls = []
    for block, module in enumerate(tiny_encoder.blocks):
        module.register_forward_hook(lambda m, args, out, block=block: calls.append(block))
    some = collect_moments(tiny_encoder, tiny_images.train[:10], [(0, 0), (0, 2)], context=False)
    assert set(calls) == {0, 1, 2}
    torch.testing.assert_close(some.whole.product(0, 2), whole.whole.product(0, 2))


@pytest.mark.parametrize("folds", [0, 5])
def test_a_share_of_the_patches_is_unbiased(tiny_model, tiny_images, folds):
    encoder, images, pairs = Encoder(tiny_model("deit")), tiny_images.train[:10], [(1, 1), (1, 3)]
    hidden = collect_activations(encoder, images, [1, 3], tokens="all")
    x, y = (hidden[block].double() for block in (1, 3))
    draws = [
        collect_moments(encoder, images, pairs, folds=folds, tokens=TokenSample(0.25, seed)).whole for seed in range(60)
    ]
    assert {draw.count for draw in draws} == {len(x)}
    for value, exact in (
        (lambda moments: moments.product(1, 3), x.mT @ y),
        (lambda moments: moments.sums[1], y.sum(0)),
        (lambda moments: moments.inner[0, 1], (x * y).sum()),
    ):
        values = torch.stack([value(draw) for draw in draws])
        error = (values.mean(0) - exact).abs()
        assert (values.std(0) > 0).all()
        assert (error / (values.std(0) / len(draws) ** 0.5)).square().mean() < 2  # 1 is expected


def test_a_share_of_the_patches_follows_its_seed_and_leaves_special_tokens_whole(tiny_model, tiny_images):
    encoder, images, pairs = Encoder(tiny_model("deit")), tiny_images.train[:10], [(1, 1), (1, 3)]
    all_tokens = collect_moments(encoder, images, pairs)
    first, again, other = (collect_moments(encoder, images, pairs, tokens=TokenSample(0.25, k)) for k in (0, 0, 1))
    for fold in range(5):
        special, patch = ([one.parts[kind][fold] for one in (all_tokens, first)] for kind in ("special", "patch"))
        assert torch.equal(special[0].product(1, 3), special[1].product(1, 3))
        assert not torch.equal(patch[0].product(1, 3), patch[1].product(1, 3))
        assert torch.equal(all_tokens.summaries[fold][3], first.summaries[fold][3])
    assert torch.equal(first.whole.product(1, 3), again.whole.product(1, 3))
    assert not torch.equal(first.whole.product(1, 3), other.whole.product(1, 3))
    whole = collect_moments(encoder, images, pairs, tokens=TokenSample(1)).whole
    torch.testing.assert_close(whole.product(1, 3), all_tokens.whole.product(1, 3))


def test_no_patch_is_drawn_twice():
    patches = {block: torch.arange(60.0).reshape(3, 20, 1) + 100 * block for block in (0, 1)}
    rows, weight = TokenSample(0.25).draw(patches, torch.Generator().manual_seed(0))
    assert weight == 4
    assert rows[0].shape == (15, 1)
    assert len(rows[0].unique()) == 15
    assert torch.equal(rows[0] + 100, rows[1])
    assert ((rows[0].reshape(3, 5) // 20) == torch.arange(3)[:, None]).all()


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_a_share_is_a_share(share):
    with pytest.raises(InputError, match=rf"^The share of the patch tokens .* not {share}\.$"):
        TokenSample(share)


def test_tokens_of_texts_are_not_drawn(tiny_model, tiny_images):
    with pytest.raises(InputError, match="of images, and not of texts"):
        collect_moments(Encoder(tiny_model("bert")), tiny_images.train, tokens=TokenSample(0.5))


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
