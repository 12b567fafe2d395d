"""Names: the paper's models and data sets by alias, texts beside them, and the embedded ones that need no network.

A name is an alias of this page, a local folder, or a Hub id, tried in that order.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from toastlib.errors import InputError, unknown

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"

MODELS = {
    "vit-mini": str(DATA / "models" / "vit-mini"),  # embedded
    "vit-t": "WinKawaks/vit-tiny-patch16-224",
    "vit-s": "WinKawaks/vit-small-patch16-224",
    "dinov2-s": "facebook/dinov2-small",
    "deit-s": "facebook/deit-small-patch16-224",
    "vit-b": "google/vit-base-patch16-224",
    "dinov2-b": "facebook/dinov2-base",
    "openclip-vit-b": "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    "vit-l": "google/vit-large-patch16-224",
    "gpt-mini": str(DATA / "models" / "gpt-mini"),  # embedded; reads and writes English, letter by letter
}
"""Alias -> Hub id or embedded folder (paper, Table 6)."""


@dataclass(frozen=True)
class DatasetEntry:
    """Where a data set lies and which columns it has.

    `path` is a Hub id, and `config` one of several sets under it; `None` marks an embedded set. `image`, `text` and
    `label` are column names, `train` and `test` the splits; where the two are the same, a fifth of it is for testing. A
    `streamed` set is never downloaded whole.
    """

    path: str | None = None
    image: str | None = None
    label: str | None = None
    test: str | None = None
    train: str = "train"
    streamed: bool = False
    text: str | None = None
    config: str | None = None


DATASETS = {
    "digits": DatasetEntry(),
    "digits-parity": DatasetEntry(),
    "digits-inverted": DatasetEntry(),
    "shapes": DatasetEntry(),
    "coloured-shapes": DatasetEntry(),
    "mnist": DatasetEntry("ylecun/mnist", "image", "label", "test"),
    "fashion-mnist": DatasetEntry("zalando-datasets/fashion_mnist", "image", "label", "test"),
    "cifar10": DatasetEntry("uoft-cs/cifar10", "img", "label", "test"),
    "cifar100-coarse": DatasetEntry("uoft-cs/cifar100", "img", "coarse_label", "test"),
    "cifar100-fine": DatasetEntry("uoft-cs/cifar100", "img", "fine_label", "test"),
    "imagenet-1k": DatasetEntry("ILSVRC/imagenet-1k", "image", "label", "validation", streamed=True),
    "imagenet-1k-val": DatasetEntry("ILSVRC/imagenet-1k", "image", "label", "validation", "validation", streamed=True),
}
"""Alias -> Hub id and columns (paper, Table 7); the embedded sets have no path.

``imagenet-1k`` trains on training images and tests on validation images. ``imagenet-1k-val`` follows the paper's
released code: 80 % of the 50,000 validation images are for training, the others for testing.
"""


TEXTS = {
    "books": DatasetEntry(),
    "lines": DatasetEntry(),
    "wikitext-2": DatasetEntry("Salesforce/wikitext", test="test", text="text", config="wikitext-2-raw-v1"),
    "sst2": DatasetEntry("stanfordnlp/sst2", label="label", test="validation", text="sentence"),
}
"""Alias -> Hub id and columns of texts; the embedded ones have no path."""


def model_path(name: str) -> str:
    """Folder or Hub id of a model.

    Raises
    ------
    InputError
        If the name is neither an alias, nor a folder, nor of the form ``owner/name``.
    """
    return MODELS[name] if name in MODELS else _folder_or_hub_id("model", name, MODELS)


def dataset_entry(name: str) -> DatasetEntry:
    """Path and columns of a data set; columns are `None` where they are to be found.

    ``name:column`` names the label column: ``"uoft-cs/cifar100:fine_label"``.

    Raises
    ------
    InputError
        If the name is neither an alias, nor a folder, nor of the form ``owner/name``.
    """
    return _entry(name, DATASETS)


def text_entry(name: str) -> DatasetEntry:
    """Path and columns of a set of texts; as for `dataset_entry`."""
    return _entry(name, TEXTS)


def _entry(name: str, entries: dict[str, DatasetEntry]) -> DatasetEntry:
    if name in entries:
        return entries[name]
    name, label = _split_label(name)
    return DatasetEntry(_folder_or_hub_id("data set", name, entries), label=label)


def model_alias(name: str) -> str:
    """The paper's alias of a model given by Hub id or folder, or the last part of its name where it has none."""
    return _alias(name, {alias: (path, None) for alias, path in MODELS.items()}, None)


def dataset_alias(name: str) -> str:
    """The paper's alias of a data set given by Hub id or folder, or the last part of its name."""
    path, label = _split_label(name)
    return _alias(path, {alias: (entry.path, entry.label) for alias, entry in (DATASETS | TEXTS).items()}, label)


def _alias(name: str, catalog: dict[str, tuple[str | None, str | None]], label: str | None) -> str:
    tail = Path(os.path.abspath(Path(name).expanduser())).parts[-2:]  # "." has a name too
    for alias, (path, column) in catalog.items():
        if name == alias or (path and Path(path).parts[-2:] == tail and label in (None, column)):
            return alias
    return tail[-1]


def _split_label(name: str) -> tuple[str, str | None]:
    match = re.fullmatch(r"(.+):(\w+)", name)
    return (match[1], match[2]) if match else (name, None)


def _folder_or_hub_id(kind: str, name: str, catalog: dict) -> str:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"There is no {kind} folder {name!r}; an alias such as {next(iter(catalog))!r} needs none.")
    if name.count("/") == 1:
        return name
    raise unknown(kind, name, catalog)
