"""Altered copies: what they may show, that they are the same every time, and that they stay in their image's fold."""

from dataclasses import replace

import pytest
import torch

from toastlib.data.augment import CHUNK, Augmentation
from toastlib.errors import InputError
from toastlib.statistics.collect import collect_moments


@pytest.mark.parametrize("recolour", [False, True])
def test_the_images_come_first_and_their_copies_after(tiny_images, recolour):
    images = tiny_images.train
    assert len(images) > CHUNK
    seen = Augmentation(copies=2, recolour=recolour)(images)
    assert seen.pixels.dtype == torch.uint8
    assert seen.pixels.shape == (3 * len(images), 3, 32, 32)
    assert torch.equal(seen.pixels[: len(images)], images.pixels)
    assert torch.equal(seen.labels, images.labels.repeat(3))
    first, second = seen.pixels[len(images) :].split(len(images))
    assert not any(torch.equal(a, b) for a, b in zip(first, images.pixels))
    assert not any(torch.equal(a, b) for a, b in zip(first, second))


def test_without_labels_or_copies_nothing_breaks(tiny_images):
    unlabelled = replace(tiny_images.train, labels=None)
    assert Augmentation(copies=1)(unlabelled).labels is None
    assert torch.equal(Augmentation(copies=0)(unlabelled).pixels, unlabelled.pixels)


def test_the_same_seed_and_fold_draw_the_same(tiny_images):
    def pixels(seed, fold):
        return Augmentation(copies=1, recolour=True, seed=seed)(tiny_images.train[:5], fold).pixels

    assert torch.equal(pixels(0, 1), pixels(0, 1))
    drawn = [pixels(seed, fold) for seed in (0, 1) for fold in (0, 1, 2)]
    assert not any(torch.equal(a, b) for k, a in enumerate(drawn) for b in drawn[:k])


def test_a_crop_shows_nothing_that_the_image_does_not(tiny_images):
    images = tiny_images.train[:20]
    seen = Augmentation(copies=3)(images).pixels[20:].unflatten(0, (3, 20))
    low, high = images.pixels.amin((2, 3)), images.pixels.amax((2, 3))
    assert (seen.amin((3, 4)) >= low).all()
    assert (seen.amax((3, 4)) <= high).all()


def test_half_of_the_copies_are_mirrored_or_none_is(tiny_images):
    """A ramp from left to right stays one in every crop, upwards or downwards."""
    ramp = torch.arange(32).mul(7).to(torch.uint8).expand(200, 3, 32, 32)
    images = replace(tiny_images.train, pixels=ramp, labels=None)
    for mirror, low, high in ((True, 70, 130), (False, 0, 0)):  # of 200 coins 100 fall, give or take four deviations
        seen = Augmentation(copies=1, mirror=mirror)(images).pixels[200:].float()
        mirrored = seen[:, :, :, 18:22].mean((1, 2, 3)) < seen[:, :, :, 10:14].mean((1, 2, 3))
        assert low <= int(mirrored.sum()) <= high


def test_colours_are_drawn_for_each_copy_and_channel(tiny_images):
    """What is black everywhere shows two grounds, one over the other: a mean of uniform colours, each copy its own."""
    black = replace(tiny_images.train, pixels=torch.zeros(400, 3, 8, 8, dtype=torch.uint8), labels=None)
    seen = Augmentation(copies=1, recolour=True)(black).pixels[400:].float()
    assert (seen.amax((2, 3)) == seen.amin((2, 3))).all()
    colours = seen[:, :, 0, 0]
    assert colours.mean().item() == pytest.approx(127.5, abs=8)  # 1,200 draws, deviation about 65: four errors
    assert colours.std().item() > 40
    assert abs(torch.corrcoef(colours.mT)[0, 1].item()) < 0.2


def test_copies_stay_in_the_fold_of_their_image(tiny_encoder, tiny_images):
    images, views, pairs = tiny_images.train[:23], Augmentation(copies=2), [(1, 1), (1, 3)]
    folds = collect_moments(tiny_encoder, images, pairs, augmentation=views, folds=5)
    for k, fold in enumerate(folds.folds):
        alone = collect_moments(tiny_encoder, views(images[k::5], k), pairs, folds=0)
        assert fold.count == alone.count
        torch.testing.assert_close(fold.product(1, 3), alone.product(1, 3))
    assert [len(summaries[1]) for summaries in folds.summaries] == [3 * len(images[k::5]) for k in range(5)]


def test_only_images_are_augmented():
    with pytest.raises(InputError, match="Only images can be augmented, not list"):
        Augmentation()([1, 2])


def test_a_negative_number_of_copies_is_refused(tiny_images):
    with pytest.raises(InputError, match="copies is a whole number from 0 on, not -1"):
        Augmentation(copies=-1)(tiny_images.train)
