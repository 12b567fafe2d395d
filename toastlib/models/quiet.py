"""transformers without its notices; and a checkpoint's files, fetched at one commit."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
from transformers.utils import logging

from toastlib.data import catalog
from toastlib.errors import InputError

FILES = ("*.json", "*.txt", "*.model", "*.py", "*.jinja", "model.safetensors", "model-*.safetensors")
"""What transformers reads of a checkpoint, and takes for missing where the Hub fails to send it."""


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars and notices of transformers; toastlib raises or warns itself."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def find_checkpoint(name: str) -> str:
    """Folder of a model, or ``owner/name@commit``: its files are here from then on, all of one commit."""
    path = catalog.model_path(name)
    if path in catalog.MODELS:
        raise InputError(
            f"{name} is made by a function: it has no checkpoint with a head, a tokenizer or a text model."
        )
    if Path(path).is_dir():
        return path
    hub_id, revision = catalog.split_revision(path)
    with catalog.loading("model", path), quiet_transformers():
        commit = Path(huggingface_hub.hf_hub_download(hub_id, "config.json", revision=revision)).parent.name
        huggingface_hub.snapshot_download(hub_id, revision=commit, allow_patterns=FILES, ignore_patterns="*/*")
    found = f"{hub_id}@{commit}"
    catalog.COMMITS.add(found)
    return found
