"""Folders of pictures: what is read is what was asked for, and what is not read is counted."""

import io
import re
import tempfile
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from toastlib.data.catalog import dataset_entry
from toastlib.data.folders import SPLITS, read_image_folder
from toastlib.data.sources import open_table
from toastlib.errors import InputError


@pytest.fixture
def make(tmp_path):
    """Write files, pictures but where the suffix says text, to a folder with this name; return its path."""

    def write(*files, name="pictures"):
        for number, file in enumerate(files):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".txt", ".csv", ".md"):
                path.write_text("no picture\n")
            else:
                Image.fromarray(np.full((4, 5, 3), number + 1, np.uint8)).save(path, "PNG" if not path.suffix else None)
        return str(tmp_path / name)

    return write


def opened(folder, label=None):
    """For the training and the test rows: the class of each picture, by its path below the folder."""
    entry = dataset_entry(f"{folder}:{label}" if label else folder)
    return [
        {
            cell["path"].removeprefix(f"{folder}/"): table.rows["label"][row] if table.label else None
            for row, cell in enumerate(table.rows["image"])
        }
        for table in open_table(entry, None, 0)
    ]


def names(folder):
    return open_table(dataset_entry(folder), None, 0)[0].class_names


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["run[1]", "a*", "what?", "a b", "v[!1]", "test", "train"])
def test_a_folder_is_read_whatever_its_name_is(make, name):
    make("train/x/1.png", "test/x/2.png", name="run1")
    make("train/x/1.png", "test/x/2.png", name="ab")
    folder = make("train/a/1.png", "train/b/2.png", "test/b/3.png", name=name)
    assert opened(folder) == [{"train/a/1.png": 0, "train/b/2.png": 1}, {"test/b/3.png": 1}]
    assert names(folder) == ("a", "b")


def test_a_picture_beside_the_classes_is_skipped_and_counted(make):
    folder = make("train/a/1.png", "train/b/1.png", "train/cover.png", "test/a/1.png", "logo.png", "other/a/1.png")
    with pytest.warns(UserWarning, match="3 of 6 files are read; skipped: 2 beside the splits, 1 in no class"):
        train, test = opened(folder)
    assert (train, test) == ({"train/a/1.png": 0, "train/b/1.png": 1}, {"test/a/1.png": 0})


@pytest.mark.filterwarnings("error")
def test_a_class_is_the_first_folder_below_the_split(make):
    folder = make("train/a/2021/1.png", "train/a/2022/1.png", "train/b/2021/1.png", "test/b/1.png")
    assert names(folder) == ("a", "b")
    assert list(opened(folder)[0].values()) == [0, 0, 1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [("a_test", "b_train"), ("good", "test"), ("Test", "cat")])
def test_classes_may_be_called_like_splits(make, classes):
    assert names(make(*(f"{name}/{k}.png" for name in classes for k in range(10)))) == classes


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("splits", [("train", "test"), ("Training", "val"), ("TRAIN", "Testing")])
def test_splits_without_classes_have_no_labels(make, splits):
    train, test = (f"{split}/1.png" for split in splits)
    assert opened(make(train, test)) == [{train: None}, {test: None}]


def test_splits_whose_classes_differ_are_refused(make):
    with pytest.raises(InputError, match="has folders of classes in its split 'train', and none in 'test'"):
        opened(make("train/a/1.png", "train/b/1.png", "test/1.png", name="one"))
    with pytest.raises(InputError, match="has folders of classes in its split 'test', and none in 'train'"):
        opened(make("train/1.png", "test/a/1.png", name="two"))
    with pytest.raises(InputError, match="has no class that its splits 'train' and 'test' share"):
        opened(make("train/a/1.png", "train/b/1.png", "test/c/1.png", name="three"))
    with pytest.raises(InputError, match="has no split 'train', only test"):
        opened(make("test/a/1.png", name="four"))


def test_a_class_without_training_images_is_told(make):
    folder = make("train/a/1.png", "train/c/1.png", "test/a/1.png", "test/b/1.png", "test/c/1.png")
    with pytest.warns(UserWarning, match=r"has no training image of b\.$"):
        train, test = opened(folder)
    assert (list(train.values()), list(test.values()), names(folder)) == ([0, 2], [0, 1, 2], ("a", "b", "c"))


def test_files_that_are_no_pictures_are_counted_by_suffix(make):
    files = [f"train/a/1.{kind}" for kind in ("png", "jpg", "webp", "bmp", "tiff", "gif", "ppm", "jfif")]
    files += ["train/a/1.AVIF"] if features.check("avif") else []
    folder = make(*files, "test/a/1.png", "train/a/.hidden.txt", "train/a/notes.txt", "README.md", "train/a/nosuffix")
    read = len(files) + 1
    says = f"{read} of {read + 3} files are read; skipped: 1 .md, 1 .txt, 1 without a suffix"
    with pytest.warns(UserWarning, match=says):
        assert len(opened(folder)[0]) == len(files)


def test_metadata_names_the_labels_and_a_column_that_may_is_said(make, tmp_path):
    folder = make(*(f"{split}/{k}.png" for split in ("train", "test") for k in range(3)))
    for split in ("train", "test"):
        (tmp_path / "pictures" / split / "metadata.csv").write_text("file_name,breed\n0.png,x\n1.png,y\n2.png,x\n")
    with pytest.warns(UserWarning, match=r"has no label column, and is taken without labels: '.*:breed' names one"):
        tables = open_table(dataset_entry(folder), None, 0)
    assert tables[0].class_names == ()
    assert open_table(dataset_entry(f"{folder}:breed"), None, 0)[0].class_names == ("x", "y")


def test_a_picture_beside_tables_is_not_the_data_set(make, tmp_path):
    import datasets

    folder = make("assets/logo.png", *(f"part/{k}.png" for k in range(10)))
    pictures = [str(path) for path in sorted(Path(folder, "part").iterdir())]
    columns = {"image": pictures, "label": [0, 1] * 5}
    types = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(types))
    rows.to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    Path(folder, "assets").rename(tmp_path / "set" / "assets")
    assert names(str(tmp_path / "set")) == ("x", "y")


def test_tables_in_a_folder_that_reads_as_a_pattern_are_refused(tmp_path):
    (tmp_path / "run[1]").mkdir()
    (tmp_path / "run[1]" / "train.csv").write_text("image,label\n1,2\n")
    with pytest.raises(InputError, match=r"reads \*, \? and \[ as patterns: rename the folder"):
        open_table(dataset_entry(str(tmp_path / "run[1]")), None, 0)


PNG = (lambda stream: (Image.new("L", (2, 2)).save(stream, "PNG"), stream.getvalue())[1])(io.BytesIO())
NAMES = st.text("abAZ01 ._-[]*?!(){}~é", min_size=1, max_size=6).filter(
    lambda name: name[0] not in "._" and name.strip() and name.lower() not in SPLITS
)
CLASSES = st.lists(NAMES, min_size=1, max_size=3, unique=True)
PLACES = st.lists(st.lists(NAMES, max_size=2).map(tuple), min_size=1, max_size=3)
"""Of the pictures of a class: the folders below it that each lies in."""


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    root=NAMES,
    classes=CLASSES,
    places=st.lists(PLACES, min_size=6, max_size=6),
    splits=st.sampled_from([(), ("train", "test"), ("Training", "val"), ("TRAIN", "validation")]),
    stray=st.sets(st.sampled_from(["root", "class", "no suffix", "text"])),
)
def test_any_tree_is_read_as_a_plain_walk_of_it_says(root, classes, places, splits, stray):
    """What belongs to a class is read with it, at any depth; all else is skipped and counted; no file is lost."""
    with tempfile.TemporaryDirectory() as above:
        folder, expected = Path(above, root), {SPLITS[split.lower()]: {} for split in splits or ("train",)}
        for number, (split, name) in enumerate(product(splits or ("",), classes)):
            for k, below in enumerate(places[number]):
                file = Path(split, name, *below, f"{k}.png")
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes(PNG)
                expected[SPLITS[split.lower() or "train"]][str(file)] = sorted(classes).index(name)
        first = Path(splits[0] if splits else "", classes[0])
        others = {
            "root": "cover.png",
            "class": first.parent / "stray.png",
            "no suffix": first / "x",
            "text": first / "a.txt",
        }
        for kind in stray:
            (folder / others[kind]).write_bytes(PNG)
        files = sum(file.is_file() for file in folder.rglob("*"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = read_image_folder(str(folder))
        read = {
            split: {str(Path(row["image"]["path"]).relative_to(folder)): row["label"] for row in table}
            for split, table in found.items()
        }
    assert read == expected
    told = [re.search(r"(\d+) of (\d+) files are read", str(warning.message)) for warning in caught]
    rows = sum(map(len, read.values()))
    assert [tuple(map(int, match.groups())) for match in told if match] == ([(rows, files)] if rows < files else [])


@pytest.mark.filterwarnings("error")
def test_a_link_upwards_is_not_followed(make, tmp_path):
    folder = make("train/a/1.png", "train/b/1.png", "test/a/1.png")
    for place, target in (("train/a/all", "../.."), ("train/self", ".")):
        (tmp_path / "pictures" / place).symlink_to(target)
    assert opened(folder) == [{"train/a/1.png": 0, "train/b/1.png": 1}, {"test/a/1.png": 0}]
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "pictures" / "train" / "c").symlink_to(tmp_path / "elsewhere")
    assert names(folder) == ("a", "b", "c")


def test_a_class_may_be_called_as_python_does(make):
    files = [f"{name}/{k}.png" for name in ("__background__", "cat", "__MACOSX") for k in range(10)]
    assert names(make(*files)) == ("__background__", "cat")


def test_a_folder_that_cannot_be_read_is_named(make, monkeypatch):
    def walk(folder, onerror, followlinks):
        onerror(PermissionError(13, "Permission denied", f"{folder}/train/b"))
        yield folder, [], []

    folder = make("train/a/1.png", "train/b/1.png")
    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(InputError, match=r"The folder .*/train/b cannot be read: Permission denied\."):
        opened(folder)


def test_a_split_for_validation_beside_one_for_testing_is_counted(make):
    folder = make("train/a/1.png", "val/a/1.png", "val/a/2.png", "test/a/1.png")
    with pytest.warns(UserWarning, match="2 of 4 files are read; skipped: 2 for validation, which is not used"):
        assert opened(folder) == [{"train/a/1.png": 0}, {"test/a/1.png": 0}]
