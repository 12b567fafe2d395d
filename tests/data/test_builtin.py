"""The image sets that need no network: always the same, balanced, and what their names say."""

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from toastlib.data.builtin import (
    COLOURED_SHAPES,
    COLOURS,
    EMBEDDED,
    coloured_shapes,
    digits,
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

    def test_rows_are_read_in_the_order_asked_for(self):
        table = digits()[1]
        images, labels = table.read([5, 0])
        assert np.array_equal(np.stack(images), table.images[[5, 0]])
        assert labels.tolist() == table.labels[[5, 0]].tolist()


@pytest.fixture(scope="module")
def drawn():
    return coloured_shapes(train=72, test=36)


def test_the_catalog_lists_exactly_the_embedded_sets_without_a_path():
    assert {name for name, entry in DATASETS.items() if entry.path is None} == set(EMBEDDED)


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_call_makes_the_same_images(name):
    for first, second in zip(EMBEDDED[name](), EMBEDDED[name]()):
        assert np.array_equal(first.images, second.images)
        assert np.array_equal(first.labels, second.labels)


def test_shapes_are_balanced_and_named(drawn):
    for table, n in zip(drawn, (72, 36)):
        assert (table.images.shape, table.images.dtype) == ((n, 32, 32, 3), np.uint8)
        assert np.bincount(table.labels).tolist() == [n // 36] * 36
        assert table.class_names == COLOURED_SHAPES


def test_no_test_shape_is_a_training_shape(drawn):
    train, test = ({image.tobytes() for image in table.images} for table in drawn)
    assert len(train | test) == 108


def test_every_shape_stands_out_from_its_ground(drawn):
    # The noise of the ground alone has a standard deviation of 12 levels in each channel.
    assert drawn[0].images.reshape(72, -1, 3).std(1).max(1).min() > 30


@pytest.mark.parametrize("colour", COLOURS)
def test_shapes_have_the_colour_of_their_name(drawn, colour):
    for image, label in zip(drawn[0].images, drawn[0].labels):
        if COLOURED_SHAPES[label].startswith(colour):
            pixels = image.reshape(-1, 3).astype(float)
            brightest = pixels[np.argsort(pixels.max(1))[-40:]].mean(0)  # the shape; the ground is dark
            distances = {name: np.abs(brightest - np.array(rgb)).sum() for name, rgb in COLOURS.items()}
            assert min(distances, key=distances.get) == colour
