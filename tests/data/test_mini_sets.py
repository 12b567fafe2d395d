"""The embedded parts of MNIST and Fashion-MNIST: what their cards say, and what the originals have."""

import hashlib
import os
import re
import runpy
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest

from toastlib.data.catalog import DATA, ROOT
from toastlib.data.images import load_images
from toastlib.models.loading import load_encoder

HUB = Path(os.environ.get("TOASTLIB_HUB", "nowhere")) / "datasets"
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "make_mini_sets.py"))
SIZES = {"train": 1500, "test": 1000}


@pytest.fixture(scope="module", params=SCRIPT["SETS"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def splits(name):
    return datasets.load_dataset(str(DATA / "images" / name))


def test_every_class_is_there_alike(splits):
    for split, size in SIZES.items():
        assert Counter(splits[split]["label"]) == dict.fromkeys(range(10), size // 10)


def test_pixels_are_those_of_the_card(name, splits):
    card = (DATA / "images" / name / "README.md").read_text(encoding="utf-8")
    for split in SIZES:
        found = hashlib.sha256(b"".join(np.array(image).tobytes() for image in splits[split]["image"])).hexdigest()
        assert re.search(rf"{split} `{found}`", card)


def test_they_load_as_any_other_set(name):
    images = load_images(name, load_encoder("vit-mini", device="cpu"))
    assert (images.name, len(images.train), len(images.test)) == (name, *SIZES.values())
    assert len(images.class_names) == 10


@pytest.mark.skipif(not HUB.is_dir(), reason="TOASTLIB_HUB does not name a folder of Hub data sets")
def test_the_script_draws_them_from_the_originals(name, splits, tmp_path):
    SCRIPT["make"](name, HUB, tmp_path)
    for split in SIZES:
        made = datasets.load_dataset("parquet", data_files=str(tmp_path / name / f"{split}*.parquet"))["train"]
        assert made["label"] == splits[split]["label"]
        assert [image.tobytes() for image in made["image"]] == [image.tobytes() for image in splits[split]["image"]]
