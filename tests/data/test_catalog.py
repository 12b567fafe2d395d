"""Names: aliases, folders and Hub ids, in that order, and back to the paper's names."""

from pathlib import Path

import pytest

from toastlib.data import catalog
from toastlib.errors import InputError

HUB_SETS = {alias: entry for alias, entry in catalog.DATASETS.items() if entry.path}


@pytest.mark.parametrize("alias", catalog.MODELS)
def test_every_model_alias_leads_to_its_checkpoint_and_back(alias):
    path = catalog.model_path(alias)
    assert path == catalog.MODELS[alias]
    assert catalog.model_alias(path) == catalog.model_alias(alias) == alias


@pytest.mark.parametrize("alias", HUB_SETS)
def test_every_data_set_alias_leads_to_its_columns_and_back(alias):
    entry = catalog.dataset_entry(alias)
    assert entry == HUB_SETS[alias]
    assert catalog.dataset_alias(alias) == alias
    assert catalog.dataset_alias(f"{entry.path}:{entry.label}") == alias.removesuffix("-val")  # another split of it


@pytest.mark.parametrize("alias", [alias for alias in catalog.DATASETS if alias not in HUB_SETS])
def test_embedded_sets_have_no_path_and_keep_their_name(alias):
    assert catalog.dataset_entry(alias).path is None
    assert catalog.dataset_alias(alias) == alias


def test_imagenet_is_streamed_and_its_probe_is_trained_as_in_the_text_or_as_in_the_code():
    text, code = catalog.DATASETS["imagenet-1k"], catalog.DATASETS["imagenet-1k-val"]
    assert (text.train, text.test) == ("train", "validation")
    assert (code.train, code.test) == ("validation", "validation")  # of which a fifth is for testing
    assert text.streamed
    assert code.streamed
    assert text.path == code.path


def test_the_embedded_model_is_in_the_repository():
    assert (Path(catalog.model_path("vit-mini")) / "config.json").is_file()


def test_a_folder_comes_before_a_hub_id_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert Path(catalog.model_path("owner/name")).is_dir()
    assert catalog.dataset_entry("owner/name:fine").label == "fine"


def test_an_alias_comes_before_a_folder_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "vit-b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert catalog.model_path("vit-b") == catalog.MODELS["vit-b"]


def test_home_is_understood(tmp_path, monkeypatch):
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert catalog.model_path("~/checkpoint") == str(tmp_path / "checkpoint")


def test_owner_and_name_make_a_hub_id():
    assert catalog.model_path("facebook/dinov2-giant") == "facebook/dinov2-giant"
    assert catalog.dataset_entry("food/food101") == catalog.DatasetEntry("food/food101")


def test_a_column_may_follow_a_colon():
    assert catalog.dataset_entry("owner/set:fine_label") == catalog.DatasetEntry("owner/set", label="fine_label")


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("some/where/uoft-cs/cifar10", "cifar10"),
        ("some/where/uoft-cs/cifar10/", "cifar10"),
        ("uoft-cs/cifar100:fine_label", "cifar100-fine"),
        ("uoft-cs/cifar100:coarse_label", "cifar100-coarse"),
        ("my/own-images", "own-images"),
        ("my/own-images:colour", "own-images"),
    ],
)
def test_data_sets_are_called_as_in_the_paper_wherever_they_lie(name, alias):
    assert catalog.dataset_alias(name) == alias


@pytest.mark.parametrize(
    ("name", "alias"),
    [("some/where/facebook/dinov2-base", "dinov2-b"), ("some/where/my-vit/", "my-vit"), ("owner/my-vit", "my-vit")],
)
def test_models_are_called_as_in_the_paper_wherever_they_lie(name, alias):
    assert catalog.model_alias(name) == alias


def test_the_folder_that_one_stands_in_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "my-images").mkdir()
    monkeypatch.chdir(tmp_path / "my-images")
    assert catalog.dataset_alias(".") == catalog.model_alias(".") == "my-images"


@pytest.mark.parametrize(("name", "near"), [("vit-x", "vit-"), ("vitmini", "vit-mini"), ("dinov2", "dinov2-")])
def test_an_unknown_model_is_refused_with_the_nearest_name(name, near):
    with pytest.raises(InputError, match=rf"Unknown model '{name}': did you mean '{near}"):
        catalog.model_path(name)


def test_a_name_like_no_other_is_refused_with_all_there_are():
    with pytest.raises(InputError, match=r"Unknown data set 'zzzz': choose from digits, .*imagenet-1k"):
        catalog.dataset_entry("zzzz")


@pytest.mark.parametrize("name", ["/no/where", "./nowhere", "../nowhere", "~/nowhere", "a/b/c"])
def test_a_path_to_no_folder_is_refused_as_such(name):
    with pytest.raises(InputError, match=rf"There is no model folder '{name}'"):
        catalog.model_path(name)
