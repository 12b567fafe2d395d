"""The image sets that need no network: always the same, balanced, and what their names say."""

import numpy as np
import pytest

from toastlib.data.builtin import COLOURED_SHAPES, COLOURS, EMBEDDED, SHAPES, coloured_shapes, digits_inverted, shapes
from toastlib.data.catalog import DATASETS
from toastlib.data.sources import digits


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
