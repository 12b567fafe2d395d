"""What the Hub refuses: one sentence for each reason, from the errors that the libraries really raise."""

import datasets
import pytest
import transformers
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import httpx

from toastlib.data.catalog import dataset_entry
from toastlib.data.sources import open_table
from toastlib.errors import InputError
from toastlib.models.loading import load_encoder

ADDRESS = "https://huggingface.co/api"


def answered(kind, status):
    request = httpx.Request("GET", ADDRESS)
    return kind("Several lines\nof the server.", response=httpx.Response(status, request=request))


def caused(error, cause):
    error.__cause__ = cause
    return error


GATED, MISSING, OFFLINE, OTHER = "gated", "missing", "offline", "other"
BOTH = [
    (GATED, answered(GatedRepoError, 403)),
    (MISSING, answered(RepositoryNotFoundError, 404)),
    (OFFLINE, OfflineModeIsEnabled("Cannot reach the Hub: offline mode is enabled.")),
    (OFFLINE, LocalEntryNotFoundError("Cannot find the file\nin the cache.")),
    (OFFLINE, httpx.ConnectError("Name or service not known")),
    (OTHER, answered(HfHubHTTPError, 500)),
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


LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@pytest.mark.parametrize(("reason", "error"), DATASET_ERRORS)
def test_a_data_set_that_the_hub_refuses(monkeypatch, reason, error):
    monkeypatch.setattr(datasets, "load_dataset", raises(error))
    name = "'ILSVRC/imagenet-1k'"
    sentences = {
        GATED: f"Data set {name} is gated: accept its conditions on "
        "https://huggingface.co/datasets/ILSVRC/imagenet-1k, "
        f"then {LOG_IN} on this machine.",
        MISSING: f"The Hub shows no data set {name}: check the name, or {LOG_IN} if it is private.",
        OFFLINE: f"Data set {name} is not on this machine and the Hub cannot be reached; "
        "'digits' is embedded and needs no network.",
        OTHER: f"Data set {name} cannot be loaded: Several lines",
    }
    with pytest.raises(InputError) as caught:
        open_table(dataset_entry("imagenet-1k"), None, None, 0)
    assert str(caught.value) == sentences[reason]


@pytest.mark.parametrize(("reason", "error"), MODEL_ERRORS)
def test_a_model_that_the_hub_refuses(monkeypatch, reason, error):
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", raises(error))
    name = "facebook/dinov3-vits16-pretrain-lvd1689m"
    sentences = {
        GATED: f"Model '{name}' is gated: accept its conditions on https://huggingface.co/{name}, "
        f"then {LOG_IN} on this machine.",
        MISSING: f"The Hub shows no model '{name}': check the name, or {LOG_IN} if it is private.",
        OFFLINE: f"Model '{name}' is not on this machine and the Hub cannot be reached; "
        "'vit-mini' is embedded and needs no network.",
        OTHER: f"Model '{name}' cannot be loaded: Several lines",
    }
    with pytest.raises(InputError) as caught:
        load_encoder(name)
    assert str(caught.value) == sentences[reason]


def test_a_folder_is_never_the_hubs_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_dataset", raises(FileNotFoundError("no data\nfiles here")))
    with pytest.raises(InputError, match=f"^Data set '{tmp_path}' cannot be loaded: no data$"):
        open_table(dataset_entry(str(tmp_path)), None, None, 0)
