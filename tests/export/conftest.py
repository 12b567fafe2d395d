"""A compressed tiny encoder; heads are trained for a few steps only."""

import pytest

from toastlib.export.compress import compress


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    """Of the heads: how good they are does not matter here."""
    monkeypatch.setattr("toastlib.evaluation.heads.MIN_STEPS", 30)


@pytest.fixture
def taken(tiny_encoder, tiny_images):
    return compress(tiny_encoder, tiny_images, remove="0->2 3->4", calibration=40)
