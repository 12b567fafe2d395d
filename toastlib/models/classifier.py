"""A checkpoint's own classifier, and which of its labels a data set's classes are."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from toastlib.data import catalog
from toastlib.errors import InputError
from toastlib.models.quiet import find_checkpoint, quiet_transformers
from toastlib.models.structure import set_image_size

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TASKS = ("ForImageClassification", "ForSequenceClassification")
SPELLINGS = (str, str.casefold, lambda name: re.sub(r"[\s_/-]+", "", name.casefold()))
"""Names are compared as they are; else without case; else without spaces, ``_``, ``-`` and ``/`` too."""


def own_classifier(
    name: str, image_size: int | None = None, trust_remote_code: bool = False, *, whole_or_none: bool = False
) -> "PreTrainedModel | None":
    """The classifier of a checkpoint, whole, or `None` if it has none; the arguments are as for `load_encoder`.

    An `InputError` if its weights are missing, or are for another number of classes than the configuration says; or
    `None` then too, if `whole_or_none`.
    """
    import transformers

    path = find_checkpoint(name)
    where = catalog.at_revision(path) | {"trust_remote_code": trust_remote_code}
    (kind, *_) = [*(transformers.AutoConfig.from_pretrained(**where).architectures or []), ""]
    task = next((task for task in TASKS if task in kind), None)
    if task is None or kind.startswith("Toast"):
        return None
    with catalog.loading("model", path), quiet_transformers():
        settings = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True} | where
        settings["ignore_mismatched_sizes"] = True  # refused below
        model, info = getattr(transformers, f"AutoModel{task}").from_pretrained(**settings)
    if wrong := sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}):
        if whole_or_none:
            return None
        raise InputError(f"The classifier of {path} lacks weights, or has others: {wrong[0]}. --head new trains one.")
    model.eval()
    if image_size:
        set_image_size(getattr(model, "vision_model", model.base_model), image_size)
    return model


def match_labels(config: "PretrainedConfig", names: Iterable[str]) -> list[int | None]:
    """The index of the label that each name stands for, or `None` where none fits, or more than one.

    A label is known by itself, by its other names in ``label2id``, and by each of its names between commas, as in
    ImageNet's ``"tench, Tinca tinca"``. A label that two names stand for fits neither.
    """
    known = [(label, index) for index, label in config.id2label.items()]
    known += [(label, index) for label, index in config.label2id.items() if index in config.id2label]
    known += [(part, index) for label, index in known for part in label.split(", ") if part != label]
    tables = []
    for spell in SPELLINGS:
        table: dict[str, set[int]] = defaultdict(set)
        for label, index in known:
            table[spell(label)].add(index)
        tables.append((spell, table))
    found: list[int | None] = []
    for name in names:
        candidates = next((table[spell(name)] for spell, table in tables if spell(name) in table), set())
        found.append(min(candidates) if len(candidates) == 1 else None)
    return [index if found.count(index) == 1 else None for index in found]
