"""Images are shown in the order of the frame, under their classes, or in rows by name."""

import matplotlib as mpl
import pandas as pd
import pytest
import torch

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from toastlib import plots
from toastlib.data.transforms import Preprocessing


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize(("found", "shown", "places"), [(0, 0, 8), (3, 3, 8), (11, 11, 16), (40, 16, 16)])
def test_flipped_images_have_both_classes_above_them(found, shown, places):
    pixels = torch.zeros(40, 3, 4, 4, dtype=torch.uint8)
    frame = pd.DataFrame({"image": range(found), "true": "ant", "predicted": "bee"})
    axes = plots.flipped_images(frame, pixels=pixels)
    assert axes.size == places
    assert [ax.get_title() for ax in axes.flat if ax.images] == ["ant\n→ bee"] * shown


def test_pictures_show_pixels_in_named_rows():
    images = {"one": torch.randint(256, (12, 3, 4, 4), dtype=torch.uint8), "two": torch.zeros(7, 3, 4, 4)}
    axes = plots.pictures(images)
    assert axes.shape == (2, 7)
    assert plots.pictures({"one": images["one"]}).shape == (1, 10)
    assert [line[0].get_ylabel() for line in axes] == ["one", "two"]
    assert np.array_equal(axes[0, 3].images[0].get_array(), images["one"][3].permute(1, 2, 0))


def test_pictures_undo_the_preprocessing():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.1, 0.3)
    preprocessing = Preprocessing(mean=mean, std=std)
    colours = torch.rand(2, 3, 4, 4)
    values = (colours - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    axes = plots.pictures({"one": values}, preprocessing=preprocessing)
    assert np.allclose(axes[0, 1].images[0].get_array(), colours[1].permute(1, 2, 0), atol=1e-6)
