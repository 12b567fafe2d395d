"""The image sets that need no network: always the same, balanced, and what their names say."""

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from toastlib.data.builtin import (
    COLOURED_SHAPES,
    COLOURS,
    EMBEDDED,
    SHAPES,
    coloured_shapes,
    digits,
    digits_inverted,
    shapes,
)
from toastlib.data.catalog import DATASETS


class TestDigits:
    def test_all_1797_are_there_once(self):
        both = np.concatenate([table.images[..., 0] for table in digits()])
        theirs = np.round(load_digits().images * 255 / 16).astype(np.uint8)
        assert len(both) == 1797
        assert Counter(image.tobytes() for image in both) == Counter(image.tobytes() for image in theirs)

    def test_labels_stay_with_their_images(self):
        raw = load_digits()
        label_of = {
            np.round(image * 255 / 16).astype(np.uint8).tobytes(): k for image, k in zip(raw.images, raw.target)
        }
        for table in digits():
            assert [label_of[image[..., 0].tobytes()] for image in table.images] == table.labels.tolist()

    def test_the_split_is_1197_to_600_by_class(self):
        train, test = digits()
        assert (len(train), len(test)) == (1197, 600)
        share = np.bincount(test.labels) / np.bincount(np.concatenate([train.labels, test.labels]))
        assert np.abs(share - 600 / 1797).max() < 0.005

    def test_every_call_gives_the_same_split(self):
        for first, second in zip(digits(), digits()):
            assert np.array_equal(first.images, second.images)
            assert np.array_equal(first.labels, second.labels)

    def test_images_are_grey_in_three_channels(self):
        images = digits()[0].images
        assert (images.shape, images.dtype) == ((1197, 8, 8, 3), np.uint8)
        assert (images == images[..., :1]).all()

    def test_parity_keeps_the_images_and_says_even_or_odd(self):
        for fine, coarse in zip(digits(), digits(parity=True)):
            assert np.array_equal(fine.images, coarse.images)
            assert np.array_equal(fine.labels % 2, coarse.labels)
            assert coarse.class_names == ("even", "odd")

    def test_rows_are_read_in_the_order_asked_for(self):
        table = digits()[1]
        images, labels = table.read([5, 0])
        assert np.array_equal(np.stack(images), table.images[[5, 0]])
        assert labels.tolist() == table.labels[[5, 0]].tolist()


@pytest.fixture(scope="module")
def drawn():
    return shapes(train=60, test=30)


def test_the_catalog_lists_exactly_the_embedded_sets_without_a_path():
    assert {name for name, entry in DATASETS.items() if entry.path is None} == set(EMBEDDED)


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_call_makes_the_same_images(name):
    for first, second in zip(EMBEDDED[name](), EMBEDDED[name]()):
        assert np.array_equal(first.images, second.images)
        assert np.array_equal(first.labels, second.labels)


def test_inverted_digits_are_the_digits_black_on_white():
    for inverted, plain in zip(digits_inverted(), digits()):
        assert np.array_equal(inverted.images.astype(int) + plain.images, np.full_like(plain.images, 255))
        assert np.array_equal(inverted.labels, plain.labels)


def test_shapes_are_balanced_and_named(drawn):
    for table, n in zip(drawn, (60, 30)):
        assert (table.images.shape, table.images.dtype) == ((n, 32, 32, 3), np.uint8)
        assert np.bincount(table.labels).tolist() == [n // len(SHAPES)] * len(SHAPES)
        assert table.class_names == SHAPES


def test_no_test_shape_is_a_training_shape(drawn):
    train, test = ({image.tobytes() for image in table.images} for table in drawn)
    assert len(train | test) == 90


def test_every_shape_stands_out_from_its_ground(drawn):
    # The noise of the ground alone has a standard deviation of 12 levels.
    assert drawn[0].images.mean(-1).reshape(60, -1).std(1).min() > 14


@pytest.mark.parametrize("colour", COLOURS)
def test_coloured_shapes_have_the_colour_of_their_name(colour):
    train, test = coloured_shapes(train=72, test=36)
    assert np.bincount(train.labels).tolist() == [2] * 36
    assert test.class_names == COLOURED_SHAPES
    for image, label in zip(train.images, train.labels):
        if COLOURED_SHAPES[label].startswith(colour):
            pixels = image.reshape(-1, 3).astype(float)
            brightest = pixels[np.argsort(pixels.max(1))[-40:]].mean(0)  # the shape; the ground is dark
            distances = {name: np.abs(brightest - np.array(rgb)).sum() for name, rgb in COLOURS.items()}
            assert min(distances, key=distances.get) == colour
