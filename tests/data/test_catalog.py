"""Names and refusals: aliases, folders and Hub ids, in that order; one sentence for each reason of the Hub."""

from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import httpx

from toastlib.data import catalog
from toastlib.data.sources import open_table
from toastlib.errors import InputError
from toastlib.models.loading import load_encoder

HUB_SETS = {alias: entry for alias, entry in catalog.DATASETS.items() if entry.path}


@pytest.mark.parametrize("alias", catalog.MODELS)
def test_every_model_is_known_by_its_path(alias):
    assert catalog.model_alias(catalog.MODELS[alias]) == catalog.model_alias(alias) == alias


@pytest.mark.parametrize("alias", [alias for alias in catalog.MODELS if alias not in catalog.MADE_BY])
def test_every_model_alias_leads_to_its_checkpoint(alias):
    assert catalog.model_path(alias) == catalog.MODELS[alias]


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


@pytest.mark.parametrize(("name", "path"), [("dinov2-s", catalog.MODELS["dinov2-s"]), ("owner/model", "owner/model")])
@pytest.mark.parametrize("revision", ["main", "a1b2c3", "refs/pr/1"])
def test_a_revision_may_follow_an_at(name, path, revision):
    assert catalog.model_path(f"{name}@{revision}") == f"{path}@{revision}"
    assert catalog.split_revision(f"{path}@{revision}") == (path, revision)
    assert catalog.model_alias(f"{path}@{revision}") == f"{catalog.model_alias(name)}@{revision}"


def test_a_revision_stands_before_the_label_column():
    expected = replace(catalog.DATASETS["cifar10"], path="uoft-cs/cifar10@v1")
    assert catalog.dataset_entry("cifar10@v1") == expected
    assert catalog.dataset_entry("owner/set@v1:fine") == catalog.DatasetEntry("owner/set@v1", label="fine")
    assert catalog.dataset_alias("uoft-cs/cifar100@v1:fine_label") == "cifar100-fine@v1"


def test_a_commit_is_short_in_tables():
    assert catalog.model_alias(f"facebook/dinov2-small@{'0123456789' * 4}") == "dinov2-s@0123456"


@pytest.mark.parametrize("name", ["vit-mini", "mnist-mini", "digits", "checkpoint"])
def test_what_is_on_this_machine_has_no_revision(tmp_path, monkeypatch, name):
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.chdir(tmp_path)
    find = catalog.model_path if name in ("vit-mini", "checkpoint") else catalog.dataset_entry
    with pytest.raises(InputError, match=f"^There is no folder '{name}@v1', and '{name}' is on this machine and has"):
        find(f"{name}@v1")


def test_a_folder_may_have_an_at_in_its_name(tmp_path):
    folder = tmp_path / "run@v1"
    folder.mkdir()
    assert catalog.model_path(str(folder)) == catalog.dataset_entry(str(folder)).path == str(folder)
    assert catalog.split_revision(str(folder)) == (str(folder), None)
    assert catalog.model_alias(str(folder)) == "run@v1"


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


LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
ADDRESS = "https://huggingface.co/api"


def answered(kind, status):
    request = httpx.Request("GET", ADDRESS)
    return kind("Several lines\nof the server.", response=httpx.Response(status, request=request))


def caused(error, cause):
    error.__cause__ = cause
    return error


GATED, MISSING, OFFLINE, DOWN = "gated", "missing", "offline", "down"
AGAIN = "the Hub answers 500: run this again in a while, and what is here already is not fetched again."
BOTH = [
    (GATED, answered(GatedRepoError, 403)),
    (MISSING, answered(RepositoryNotFoundError, 404)),
    (OFFLINE, OfflineModeIsEnabled("Cannot reach the Hub: offline mode is enabled.")),
    (OFFLINE, LocalEntryNotFoundError("Cannot find the file\nin the cache.")),
    (OFFLINE, httpx.ConnectError("Name or service not known")),
    (DOWN, answered(HfHubHTTPError, 500)),
]
DATASET_ERRORS = [
    *BOTH,
    (GATED, DatasetNotFoundError("Dataset 'ILSVRC/imagenet-1k' is a gated dataset on the Hub. You must be")),
    (MISSING, DatasetNotFoundError("Dataset 'ILSVRC/imagenet-1k' doesn't exist on the Hub or cannot be accessed.")),
    (OFFLINE, ConnectionError("Couldn't reach 'ILSVRC/imagenet-1k' on the Hub (OfflineModeIsEnabled)")),
]
MODEL_ERRORS = [
    *BOTH,
    (GATED, caused(OSError("You are trying to access a gated repo.\nMake sure"), answered(GatedRepoError, 401))),
    (MISSING, caused(OSError("x is not a local folder\nand"), answered(RepositoryNotFoundError, 401))),
    (OFFLINE, caused(OSError("We couldn't connect\nCheck"), LocalEntryNotFoundError("not cached"))),
]


def raises(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize(("reason", "error"), DATASET_ERRORS)
def test_a_data_set_that_the_hub_refuses(monkeypatch, reason, error):
    monkeypatch.setattr(datasets, "load_dataset_builder", raises(error))
    name = "'ILSVRC/imagenet-1k'"
    sentences = {
        GATED: f"Data set {name} is gated: accept its conditions on "
        "https://huggingface.co/datasets/ILSVRC/imagenet-1k, "
        f"then {LOG_IN} on this machine.",
        MISSING: f"The Hub shows no data set {name}: check the name, or {LOG_IN} if it is private.",
        OFFLINE: f"Data set {name} is not on this machine and the Hub cannot be reached; "
        "'digits' is embedded and needs no network.",
        DOWN: f"Data set {name} cannot be fetched, {AGAIN}",
    }
    with pytest.raises(InputError) as caught:
        open_table(catalog.dataset_entry("imagenet-1k"), None, 0)
    assert str(caught.value) == sentences[reason]


@pytest.mark.parametrize(("reason", "error"), MODEL_ERRORS)
def test_a_model_that_the_hub_refuses(monkeypatch, reason, error):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", raises(error))
    name = "facebook/dinov3-vits16-pretrain-lvd1689m"
    sentences = {
        GATED: f"Model '{name}' is gated: accept its conditions on https://huggingface.co/{name}, "
        f"then {LOG_IN} on this machine.",
        MISSING: f"The Hub shows no model '{name}': check the name, or {LOG_IN} if it is private.",
        OFFLINE: f"Model '{name}' is not on this machine and the Hub cannot be reached; "
        "'vit-mini' is embedded and needs no network.",
        DOWN: f"Model '{name}' cannot be fetched, {AGAIN}",
    }
    with pytest.raises(InputError) as caught:
        load_encoder(name)
    assert str(caught.value) == sentences[reason]


def test_a_folder_is_never_the_hubs_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_dataset", raises(FileNotFoundError("no data\nfiles here")))
    with pytest.raises(InputError, match=f"^Data set '{tmp_path}' cannot be loaded: no data$"):
        open_table(catalog.dataset_entry(str(tmp_path)), None, 0)


def test_a_folder_that_is_nearly_named_so_is_told(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no data set and no folder 'photo': did you mean the folder 'photos'"):
        catalog.dataset_entry("photo")
    with pytest.raises(InputError, match="did you mean 'digits'"):
        catalog.dataset_entry("digit")


def test_a_missing_folder_of_a_folder_that_is_here_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    for find, kind in ((catalog.model_path, "model"), (catalog.dataset_entry, "data set")):
        with pytest.raises(InputError, match=f"no folder 'photos/cats' in the folder 'photos'; for a {kind} of"):
            find("photos/cats")
        find("elsewhere/cats")
