"""Sizes that runs ask of their images and encoders, checked before anything runs, without torch or a download."""

import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from toastlib.data import catalog
from toastlib.errors import InputError
from toastlib.plan import Plan
from toastlib.runs.parameters import KINDS, notebook_names
from toastlib.runs.store import Run, read_json


def check_sizes(runs: Iterable[Run]) -> list[str]:
    """Compare parameters of runs with their encoders and sets of images; return the sets that are not here yet.

    An `InputError` if a split has fewer images than are asked for, fewer training images are drawn than calibration
    images, there are no labels where heads are trained, a plan leaves the encoder, or its patches do not fit an image.
    """
    absent, study = {}, notebook_names()
    for run in runs:
        try:
            absent |= dict.fromkeys(_check(run, run.notebook.stem in study))
        except InputError as error:
            raise InputError(f"{run.place}{error}") from None
    return list(absent)


def _check(run: Run, is_of_study: bool) -> list[str]:
    given = by_last_name(run.parameters)
    if is_of_study:  # plans of others may be of sublayers
        _check_encoder(given)
    has_head = any(parameter.startswith("head.") for parameter in run.parameters)
    names = sets_of(run.parameters)
    for name in names:
        if splits := splits_of(name):
            _check_images(f"{run.notebook.stem}, {name}", given, has_head, *splits)
    return [name for name in names if not splits_of(name)]


def named_in(parameters: dict[str, Any]) -> list[tuple[str, str]]:
    """Kind (``"model"``, ``"images"`` or ``"texts"``) and name of each model and data set among parameters."""
    return [(KINDS[name], one) for name, value in parameters.items() if name in KINDS for one in listed(value)]


def sets_of(parameters: dict[str, Any]) -> list[str]:
    """The sets of images among parameters."""
    return [name for kind, name in named_in(parameters) if kind == "images"]


def listed(value: Any) -> list:
    """A value as a list: itself if it is one, none for `None`."""
    return value if isinstance(value, list) else [] if value is None else [value]


def by_last_name(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters with members of dictionaries under their own names: ``head.seeds`` as ``seeds``."""
    return {name.rpartition(".")[2]: value for name, value in parameters.items()}


def _check_images(where: str, given: dict[str, Any], has_head: bool, train: int, test: int, is_labelled: bool) -> None:
    for split, available in (("train", train), ("test", test)):
        if (size := given.get(f"{split}_size") or 0) > available:
            raise InputError(f"{where}: {split}_size={size}, and the {split} split has {available} images.")
    drawn, size = given.get("train_size") or train, given.get("calibration_size") or 0
    if size > drawn:
        of = f"train_size={drawn}" if given.get("train_size") else f"the train split has {drawn} images"
        why = f"calibration images are training images, so take at most {drawn}"
        raise InputError(f"{where}: calibration_size={size}, and {of}: {why}.")
    if has_head and not is_labelled:
        raise InputError(f"{where} has no labels: accuracies need them, similarities and maps do not.")


def _check_encoder(given: dict[str, Any]) -> None:
    config = config_of(given["model"]) if "model" in given else {}
    depth, patch, size = config.get("num_hidden_layers"), config.get("patch_size"), given.get("image_size")
    if depth:
        from toastlib.paper import read_plans

        Plan.parse(given.get("plan", "")).check(depth)
        read_plans(given.get("plans") or "paper", depth)
    if isinstance(patch, int) and size and size % patch:
        near = max(patch, round(size / patch) * patch)
        raise InputError(f"An image of {size} pixels has no whole patches of {patch} pixels: take {near}.")


def config_of(model: str) -> dict[str, Any]:
    """The configuration of a checkpoint that is on this machine, of CLIP's its encoder of images; else empty."""
    if callable(catalog.MODELS.get(model)):
        return {}
    path = catalog.model_path(model)
    if not Path(path).is_dir():
        from huggingface_hub import try_to_load_from_cache

        name, revision = catalog.split_revision(path)
        found = try_to_load_from_cache(name, "config.json", revision=revision)
        path = Path(found).parent if isinstance(found, str) else ""
    config = read_json(Path(path) / "config.json") if path else {}
    return config.get("vision_config", config)


@cache
def splits_of(name: str) -> tuple[int, int, bool] | None:
    """Numbers of training and of test images, and whether they have labels; `None` if that needs a download."""
    from toastlib.data.builtin import EMBEDDED
    from toastlib.data.sources import open_table

    entry = catalog.dataset_entry(name)
    make = EMBEDDED.get(name) or entry.make
    if not (make or Path(entry.path).is_dir()):
        return None
    with warnings.catch_warnings(action="ignore"):  # the run itself says what it skips
        train, test = make() if make else open_table(entry, None, 0)
    return len(train), len(test), bool(make) or train.label is not None
